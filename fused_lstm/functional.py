"""`lstm` and `lstm_cell` as functions of their weights: what may be passed, and what comes back.

Here the arguments are checked, and unbatched, batch-first and packed inputs are brought to the one
form in which `dispatch.py` computes them.

Errors are those of torch.nn.LSTM, in type and (where it has one) in message. Where it fails by
accident, with an AttributeError out of its depths, there is a TypeError.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .dispatch import Options, cell, plain_layer, stack, zero_state
from .extras import Extras

__all__ = ["lstm", "lstm_cell"]

Stack = Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]]  # dispatch.stack, or one like it


def lstm(
    input: Tensor | PackedSequence,  # [T, B, I]; [B, T, I] when batch_first; [T, I] unbatched
    hx: Sequence[Tensor] | None,  # h0 [L*D, B, P] and c0 [L*D, B, H], without B when unbatched
    weights: Sequence[Tensor],  # per layer and direction: w_ih, w_hh[, b_ih, b_hh][, w_hr]
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    proj_size: int = 0,
    reset: Tensor | None = None,  # [T, B] bool; [B, T] when batch_first; [T] unbatched
    lengths: Tensor | None = None,  # [B] int64; a single number when unbatched
    return_cells: bool = False,
    extras: Extras | None = None,
) -> tuple[Any, ...]:
    """What `torch.nn.LSTM` computes, as a function of its input, initial state and weights.

    L is num_layers, D is 2 when bidirectional, H the hidden size and P is proj_size or H; w_ih is
    [4H, features], w_hh [4H, P], the biases [4H] and w_hr [P, H], gates in the order i, f, g, o.

    Args:
        input: [T, B, I], [B, T, I] when batch_first, [T, I] unbatched, or a PackedSequence.
        hx: h0 `[L*D, B, P]` and c0 `[L*D, B, H]`, without B when unbatched; None for zeros.
        weights: per layer and direction w_ih, w_hh, then b_ih and b_hh with bias, then w_hr with
            proj_size.
        num_layers: layers L.
        bias: whether `weights` has biases.
        batch_first: whether B comes before T in input and output.
        dropout: probability of zeroing an element between layers, where `training`.
        training: whether dropout is drawn.
        bidirectional: whether D = 2.
        proj_size: size P of a projected h; 0 for none.
        reset: bool [T, B], [B, T] when batch_first, [T] unbatched, on the input's device: where it
            is True, h and c of that row are zero before that step, in every layer. At t = 0 that
            drops hx of the row. Each direction clears its state before that step in its own order:
            in reverse it is what comes from t + 1.
        lengths: int64 [B], on the input's device or the CPU: row b has steps 0..lengths[b]-1 only,
            and from 0 to T of them. Its output and cells are zero after them, h_n and c_n are those
            of its last step (those of hx if it has none), the reverse direction starts there, and
            the input after them is not looked at. No order, no packing. On the CPU a length out of
            range raises; elsewhere nobody waits to look, and it counts as 0 or T.
        return_cells: whether to return c after every step too.
        extras: regularisers, which act where `training` (zoneout also, in its way, where not), and
            memory modes; None for neither. Packed input is padded for them and packed again.

    Returns:
        `(output, (h_n, c_n))`, or `(output, (h_n, c_n), cells)` with return_cells, where cells is
        c of the last layer after every step, both directions side by side as in the output:
        `[T, B, D*H]`, [B, T, ...] when batch_first, [T, ...] unbatched. output is `[T, B, D*P]` (a
        transposed view when batch_first, a PackedSequence when the input is one), h_n like h0 and
        c_n like c0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a wrong number of dimensions or of weights, or an input of another dtype; reset
            or lengths of another dtype, size or device, or beside a PackedSequence.
        RuntimeError: wrong sizes, T = 0, or a state or weight of another dtype or device.

    Source: the equations of torch.nn.LSTM; `reference.py` has them in plain PyTorch.
    """
    options = Options(num_layers, bias, dropout, training, bidirectional, proj_size)
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    expected = num_layers * (2 if bidirectional else 1) * (2 + 2 * bool(bias) + (proj_size > 0))
    if len(weights) != expected:
        raise ValueError(f"weights: expected {expected} tensors, got {len(weights)}")
    for k, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights[{k}]: expected a Tensor, got {type(weight).__name__}")
    marked = reset is not None or lengths is not None or return_cells
    if extras is not None:
        if not isinstance(extras, Extras):
            raise TypeError(f"extras: expected Extras or None, got {type(extras).__name__}")
        extras.check(num_layers, dropout, proj_size)
        if not extras.act(training):
            extras = None
    if isinstance(input, PackedSequence):
        if marked:
            _refuse_packed(reset, lengths)
        if extras is not None:
            if hx is not None:
                _check_state_kind(hx)
            return _lstm_packed_with_extras(input, hx, weights, options, extras)
    elif marked or extras is not None:
        _check_input(input, hx)
        own = (reset, lengths, bool(return_cells), extras)
        return _lstm_marked(input, hx, weights, options, batch_first, *own)
    return plain_lstm(input, hx, weights, options, batch_first, stack)


def plain_lstm_layer(
    input: Any, hx: Any, weights: Sequence[Tensor], batch_first: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """`lstm` of one layer in one direction, without a projection, where `dispatch.plain_layer` has
    it. Whatever has to be refused, or computed in another way, is not plain: None.
    """
    results = plain_layer(input, hx, weights, 0 if batch_first else 1)
    if results is None:
        return None
    y, h_n, c_n = results
    return (y.transpose(0, 1) if batch_first else y), (h_n, c_n)


def plain_lstm(
    input: Tensor | PackedSequence,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool,
    stack: Stack,
) -> tuple[Any, tuple[Tensor, Tensor]]:
    """What torch.nn.LSTM computes, by whichever `stack` computes all layers of a checked call."""
    if isinstance(input, PackedSequence):
        if hx is not None:
            _check_state_kind(hx)
        return _lstm_packed(input, hx, weights, options, stack)
    dim = _check_input(input, hx)
    if dim == 3:
        x = input.transpose(0, 1) if batch_first else input
        y, state = _lstm_padded(x, hx, weights, options, stack)
        return (y.transpose(0, 1) if batch_first else y), state
    if hx is not None:
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    y, (h_n, c_n) = _lstm_padded(input.unsqueeze(1), hx, weights, options, stack)
    return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))


def _check_input(input: Any, hx: Any) -> int:
    """The number of dimensions of an input that is no PackedSequence."""
    if hx is not None:
        _check_state_kind(hx)
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor or PackedSequence, got {type(input).__name__}")
    dim = input.dim()
    if dim not in (2, 3):
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {dim}D instead")
    if hx is not None and not hx[0].dim() == hx[1].dim() == dim:
        raise RuntimeError(
            f"For {'batched 3-D' if dim == 3 else 'unbatched 2-D'} input, hx and cx should also be "
            f"{dim}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    return dim


def lstm_cell(
    input: Tensor,  # [B, I], or [I] unbatched
    hx: Sequence[Tensor] | None,  # h and c [B, H], without B when unbatched
    w_ih: Tensor,  # [4H, I]
    w_hh: Tensor,  # [4H, H]
    b_ih: Tensor | None = None,  # [4H]
    b_hh: Tensor | None = None,  # [4H]
) -> tuple[Tensor, Tensor]:
    """What `torch.nn.LSTMCell` computes, as a function: one step.

    Args:
        input: [B, I], or [I] unbatched.
        hx: h and c [B, H], without B when unbatched; None for zeros.
        w_ih: [4H, I], gates in the order i, f, g, o.
        w_hh: [4H, H].
        b_ih: [4H] or None.
        b_hh: [4H] or None.

    Returns:
        The new h and c, shaped like hx.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a wrong number of dimensions.
        RuntimeError: wrong sizes or dtypes.

    Source: the equations of torch.nn.LSTMCell; `reference.py` has them in plain PyTorch.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
    dim = input.dim()
    if dim not in (1, 2):
        raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {dim}D instead")
    if hx is not None:
        _check_state_kind(hx)
        for k in (0, 1):
            if hx[k].dim() not in (1, 2):
                raise ValueError(
                    f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {hx[k].dim()}D instead"
                )
    if dim == 1:
        state = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = cell(input.unsqueeze(0), state, w_ih, w_hh, b_ih, b_hh)
        return h.squeeze(0), c.squeeze(0)
    return cell(input, hx, w_ih, w_hh, b_ih, b_hh)


def _lstm_padded(
    x: Tensor,  # [T, B, I]
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
    stack: Stack,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    _check_padded(x, hx, weights, options)
    return stack(x, None, x.shape[1], hx, weights, options)


def _lstm_marked(
    input: Tensor,  # as in lstm
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool,
    reset: Any,
    lengths: Any,
    return_cells: bool,
    extras: Extras | None,
) -> tuple[Any, ...]:
    unbatched = input.dim() == 2
    x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if batch_first else input
    if unbatched and hx is not None:
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    from .options import make_marks, marked_stack  # modules that a plain call never needs

    _check_padded(x, hx, weights, options)
    extras = extras or Extras()
    if extras.checkpoint_steps and lengths is not None and options.bidirectional:
        raise ValueError(
            "lengths: expected None with checkpoint_steps and two directions, got a Tensor: the "
            "reverse direction's rows would begin inside of pieces"
        )
    marks = make_marks(x, reset, lengths, batch_first, unbatched)
    y, h_n, c_n, cells = marked_stack(x, hx, weights, options, marks, return_cells, extras)
    if unbatched:
        y, h_n, c_n = y.squeeze(1), h_n.squeeze(1), c_n.squeeze(1)
        cells = cells.squeeze(1) if return_cells else cells
    elif batch_first:
        y, cells = y.transpose(0, 1), cells.transpose(0, 1) if return_cells else cells
    return (y, (h_n, c_n), cells) if return_cells else (y, (h_n, c_n))


def _refuse_packed(reset: Any, lengths: Any) -> None:
    name = "reset" if reset is not None else "lengths" if lengths is not None else "return_cells"
    raise ValueError(
        f"{name}: expected {'False' if name == 'return_cells' else 'None'} with a PackedSequence, "
        f"got another value; pad the sequences (pad_packed_sequence) and pass their lengths"
    )


def _check_padded(
    x: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor], options: Options
) -> None:
    w_ih = weights[0]
    if x.dtype is not w_ih.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({w_ih.dtype}). Convert "
            f"input: input.to({w_ih.dtype}), or convert model: model.to({x.dtype})"
        )
    steps, batch, features = x.shape
    _check_sizes(features, batch, hx, w_ih, options)
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def _lstm_packed(
    packed: PackedSequence,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
    stack: Stack,
) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
    x, batch_sizes, sorted_indices, unsorted_indices = packed
    if x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
    if torch._C._are_functorch_transforms_active() and _is_mapped(batch_sizes):
        raise RuntimeError(
            "batch_sizes: expected the same lengths for all calls that vmap maps, got batch_sizes "
            "mapped too. Map the data alone, or pad the sequences to one length"
        )
    if x.dtype is not weights[0].dtype and not torch._C._is_any_autocast_enabled():
        raise RuntimeError(f"input: expected data of {weights[0].dtype}, got {x.dtype}")
    batch = _packed_rows(packed, hx)
    _check_sizes(x.shape[1], batch, hx, weights[0], options)
    if hx is not None and sorted_indices is not None:
        hx = (hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices))
    if hx is None and torch.compiler.is_compiling():
        hx = zero_state(x, batch, weights[0], options)  # so that a graph knows the results' sizes
    y, (h_n, c_n) = stack(x, batch_sizes, batch, hx, weights, options)
    if unsorted_indices is not None:
        h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)


def _lstm_packed_with_extras(
    packed: PackedSequence,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
    extras: Extras,
) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
    """Through padding and lengths; rows stand in the caller's order there, as hx does."""
    x, lengths = pad_packed_sequence(packed)
    y, state = _lstm_marked(x, hx, weights, options, False, None, lengths, False, extras)
    if packed.sorted_indices is not None:
        y = y.index_select(1, packed.sorted_indices)
        lengths = lengths.index_select(0, packed.sorted_indices.cpu())
    return packed._replace(data=pack_padded_sequence(y, lengths).data), state


def _packed_rows(packed: PackedSequence, hx: Sequence[Tensor] | None) -> int:
    """B. A graph cannot know batch_sizes[0], a value, so there the size of something else is read;
    the operator holds the two against each other when it runs.
    """
    if torch.compiler.is_compiling():
        if packed.sorted_indices is not None:
            return packed.sorted_indices.shape[0]
        if hx is not None:
            return hx[0].shape[1]
    return int(packed.batch_sizes[0])


def _check_state_kind(hx: Any) -> None:
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx: expected a pair of Tensors (h_0, c_0), got {type(hx).__name__}")
    if len(hx) > 2:
        raise RuntimeError(f"hx: expected two hidden states (h_0, c_0), got {len(hx)}")
    if len(hx) < 2 or not (isinstance(hx[0], Tensor) and isinstance(hx[1], Tensor)):
        kinds = ", ".join(type(t).__name__ for t in hx)
        raise TypeError(f"hx: expected a pair of Tensors (h_0, c_0), got ({kinds})")


def _check_sizes(
    features: int, batch: int, hx: Sequence[Tensor] | None, w_ih: Tensor, options: Options
) -> None:
    if w_ih.dim() != 2:
        raise ValueError(f"weights[0]: expected sizes [4H, I], got {[*w_ih.shape]}")
    gate_rows, input_size = w_ih.shape
    if features != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got {features}"
        )
    if hx is not None:
        rows = options.num_layers * (2 if options.bidirectional else 1)
        hidden = gate_rows // 4
        for k, width in enumerate((options.proj_size or hidden, hidden)):
            if hx[k].shape != (rows, batch, width):
                raise RuntimeError(
                    f"Expected hidden[{k}] size {(rows, batch, width)}, got {list(hx[k].shape)}"
                )


def _is_mapped(t: Tensor) -> bool:
    """Whether vmap maps a dimension of t, at whatever level."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            return True
        t = functorch.get_unwrapped(t)
    return False
