"""What nn.LSTM lacks: resets, lengths without packing, the cell state of every step, and what
`extras.py` names.

`functional.lstm` sends a call with one of these options here, and only such a call. Resets and
lengths are checked and become marks, a byte for each row of each step; `marked_stack` runs the
layers, by the operators of `marked.py` wherever a plain call has a kernel, and by the specification
in `reference.py` elsewhere: with a projection, under torch.func, and in graphs that must run
without this package.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checkpointing, dispatch, marked, ops
from .extras import Extras
from .masks import Masks

__all__ = ["make_marks", "marked_stack"]

_W_HH = (1, ops.WEIGHT_SLOTS // 2 + 1)  # where it stands among ten weights, for each direction


def make_marks(
    x: Tensor,  # [T, B, I]
    reset: Any,  # [T, B] bool; [B, T] when batch_first; [T] unbatched
    lengths: Any,  # [B] int64; [] unbatched
    batch_first: bool,
    unbatched: bool,
) -> Tensor | None:
    """Checks both and returns marks [T, B] uint8 for the operators, or None where there are none.

    Raises:
        TypeError: something else than a Tensor.
        ValueError: another dtype, device or size; on the CPU also a length outside of 0..T.
    """
    T, B = x.shape[:2]
    marks = None
    if reset is not None:
        if unbatched:
            _check("reset", reset, torch.bool, "[T]", (T,))
        elif batch_first:
            _check("reset", reset, torch.bool, "[B, T]", (B, T))
        else:
            _check("reset", reset, torch.bool, "[T, B]", (T, B))
        if reset.device != x.device:
            raise ValueError(
                f"reset: expected a tensor on device '{x.device}' like the input, "
                f"got one on '{reset.device}'"
            )
        time_first = reset.transpose(0, 1) if batch_first and not unbatched else reset
        marks = time_first.reshape(T, B).to(torch.uint8)  # 1: ops.MARK_RESET
    if lengths is not None:
        _check("lengths", lengths, torch.int64, "[]" if unbatched else "[B]", x.shape[1:2])
        if lengths.device != x.device and not lengths.is_cpu:
            raise ValueError(
                f"lengths: expected a tensor on device '{x.device}' like the input, or on the CPU, "
                f"got one on '{lengths.device}'"
            )
        _check_range(lengths, T)
        steps = torch.arange(T, device=x.device).unsqueeze(1)
        ends = lengths.reshape(1, B).to(x.device, non_blocking=True)
        ended = (steps >= ends).to(torch.uint8) * ops.MARK_ENDED
        marks = ended if marks is None else marks | ended
    return None if marks is None else marks.contiguous()


def _check(name: str, t: Any, dtype: torch.dtype, letters: str, sizes: Sequence[int]) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a Tensor of {dtype}, got {type(t).__name__}")
    if t.dtype is not dtype:
        raise ValueError(f"{name}: expected a Tensor of {dtype}, got {t.dtype}")
    if tuple(t.shape) != tuple(sizes) and not (letters == "[]" and t.dim() == 0):
        expected = f"{letters} = {list(sizes)}" if letters != "[]" else "[] or [1]"
        raise ValueError(f"{name}: expected sizes {expected}, got {list(t.shape)}")


def _check_range(lengths: Tensor, T: int) -> None:
    """Looks at values only where that costs no waiting for a GPU and breaks no graph."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    if traced or type(lengths) is not Tensor or not lengths.is_cpu or lengths.numel() == 0:
        return
    if torch._C._are_functorch_transforms_active():
        return
    low, high = (int(value) for value in torch.aminmax(lengths))
    if low < 0 or high > T:
        wrong = low if low < 0 else high
        raise ValueError(f"lengths: expected values from 0 to T = {T}, got {wrong}")


def marked_stack(
    x: Tensor,  # [T, B, I]
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: dispatch.Options,
    marks: Tensor | None,
    return_cells: bool,
    extras: Extras,
) -> marked.Results:
    """All layers of a checked call: y, h_n, c_n, and the last layer's cells if they are wanted."""
    call_options = marks is not None or return_cells
    obstacle = dispatch.marked_obstacle(options.proj_size, call_options, extras)
    by_kernel = obstacle is None and not dispatch._transforms()
    by_kernel = by_kernel and not dispatch._must_use_torch(x, hx, weights)
    layer_of: Any = marked.marked_layer if by_kernel else marked.reference_layer
    # torch.func knows no hooks for saved tensors. It has the same numbers without.
    if extras.checkpoint_steps and torch.is_grad_enabled() and not dispatch._transforms():
        layer_of = functools.partial(checkpointing.in_pieces, layer_of, extras.checkpoint_steps)
    result_dtypes = None
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        x, hx, weights, result_dtypes = dispatch._autocast(x, hx, weights, True)
    dispatch._check_uniform(x, hx, weights)

    num_layers, bias, dropout, training, bidirectional, proj_size = options
    directions, each = (2 if bidirectional else 1), len(weights) // num_layers
    h0, c0 = (None, None) if hx is None else hx
    masks = Masks(extras, training, x)
    (T, B), H, P = x.shape[:2], weights[0].shape[0] // 4, weights[1].shape[1]
    y, h_n, c_n, cells = x, [], [], x
    for layer in range(num_layers):
        if layer > 0 and training and dropout > 0:
            y = torch.dropout(y, dropout, True)
        if hx is not None:
            h0, c0 = (t.narrow(0, layer * directions, directions) for t in hx)
        own = weights[layer * each : (layer + 1) * each]
        ten: list[Any] = list(dispatch.ten_weights(own, bias, bidirectional, proj_size))
        dropped = masks.weight(layer, directions, 4 * H, P)
        if dropped is not None:
            for d, w_hh in zip(range(directions), _W_HH, strict=False):
                ten[w_hh] = ten[w_hh] * dropped[d]
        keep, *shares = masks.zoneout(layer, T, B, directions * H)
        factors = masks.recurrent(layer, directions, B, P)
        wanted = return_cells and layer == num_layers - 1
        y, h, c, cells = layer_of(
            masks.input(y, layer),
            marks,
            h0,
            c0,
            *ten,
            keep,
            factors,
            *shares,
            extras.recompute,
            wanted,
        )
        h_n.append(h)
        c_n.append(c)
    y = masks.output(y, num_layers - 1)
    results = (y, torch.cat(h_n), torch.cat(c_n), cells)
    if result_dtypes is not None:
        dtypes = (*result_dtypes, result_dtypes[2])
        y, h, c, cells = (t.to(d) for t, d in zip(results, dtypes, strict=True))
        return y, h, c, cells
    return results
