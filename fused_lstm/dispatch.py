"""Chooses what computes a checked call, and runs its layers.

Three ways lead through. The fused operator, wherever it has a kernel (on a GPU: wherever those are
turned on, see `_extension.py`). PyTorch's own LSTM, for the
devices, dtypes and options without one and in graphs that must run elsewhere: whatever
torch.nn.LSTM accepts works here too, and `explain_plan` says which way is taken. And the
specification in `reference.py`, under forward-mode differentiation and wherever torch.func
transforms a call for which the operator has no kernel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor, nn
from torch.autograd import forward_ad

from . import _extension, export, function, ops
from .extras import Extras

__all__ = [
    "Options",
    "cell",
    "explain_plan",
    "marked_obstacle",
    "plain_layer",
    "runs_directly",
    "stack",
    "ten_weights",
    "torch_lstm",
]

_KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_PLAIN_TENSORS = frozenset({Tensor, nn.Parameter})
_NO_REVERSE = (None,) * (ops.WEIGHT_SLOTS - 4)  # after w_ih, w_hh and the biases
_CUDA_CAVEAT = "these kernels have run on the CPU stand-in only"


class Options(NamedTuple):
    num_layers: int
    bias: bool
    dropout: float
    training: bool
    bidirectional: bool
    proj_size: int


def stack(
    x: Tensor,  # [T, B, I] or packed [N, I]
    batch_sizes: Tensor | None,
    batch: int,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All layers of a checked call, by whichever way computes them."""
    transformed = _transforms()
    if not transformed and _must_use_torch(x, hx, weights):
        num_layers, bias, dropout, training, bidirectional, _ = options
        if hx is None:
            hx = zero_state(x, batch, weights[0], options)
        flags = (bool(bias), num_layers, float(dropout), bool(training), bool(bidirectional))
        y, h_n, c_n = torch_lstm(x, batch_sizes, hx[0], hx[1], list(weights), *flags)
        return y, (h_n, c_n)
    y, h_n, c_n = _compute(transformed, x, batch_sizes, hx, weights, options)
    return y, (h_n, c_n)


def plain_layer(
    x: Any,  # [T, B, I], or [B, T, I] with B in batch_dim
    hx: Any,
    weights: Sequence[Tensor],  # w_ih, w_hh[, b_ih, b_hh]
    batch_dim: int,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """One layer of one direction without a projection, or None for whoever looks more closely.

    At a few steps of few rows looking at a call takes as long as computing it. So this looks once,
    for all that makes a call plain: CPU tensors of one dtype and of the right sizes, which nothing
    traces, transforms or casts. It refuses nothing.
    """
    if not isinstance(x, Tensor):
        return None
    if hx is None:
        if not runs_directly(x, weights) or not _fits(x, 3, weights):
            return None
        state: Any = (None, None)
    else:
        if type(hx) is not tuple or len(hx) != 2:
            return None
        if not isinstance(hx[0], Tensor) or not isinstance(hx[1], Tensor):
            return None
        if not runs_directly(x, (*weights, *hx)) or not _fits(x, 3, weights):
            return None
        expected = (1, x.shape[batch_dim], weights[1].shape[1])
        if hx[0].shape != expected or hx[1].shape != expected:
            return None
        state = hx
    return _one_layer(x.transpose(0, 1) if batch_dim == 0 else x, state, weights)


def _plain_cell(
    x: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """`cell` in the same way."""
    everything = weights if hx is None else (*weights, *hx)
    if not runs_directly(x, everything) or not _fits(x, 2, weights):
        return None
    state: Any = (None, None)
    if hx is not None:
        expected = (x.shape[0], weights[1].shape[1])
        if hx[0].shape != expected or hx[1].shape != expected:
            return None
        state = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
    _, h, c = _one_layer(x.unsqueeze(0), state, weights)
    return h.squeeze(0), c.squeeze(0)


def _fits(x: Tensor, dim: int, weights: Sequence[Tensor]) -> bool:
    sizes, w_ih, w_hh = x.shape, weights[0].shape, weights[1].shape
    if not len(w_ih) == len(w_hh) == 2 or w_ih[0] < 4 or w_ih[0] != 4 * w_hh[1]:
        return False
    return len(sizes) == dim and sizes[-1] == w_ih[1] and 0 not in sizes


def _one_layer(
    x: Tensor, state: tuple[Tensor | None, Tensor | None], weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    no_biases = () if len(weights) == 4 else (None, None)
    return function.lstm_layer(x, None, *state, *weights, *no_biases, *_NO_REVERSE)


def zero_state(x: Tensor, batch: int, w_ih: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The initial state that stands for none: h [L*D, B, P] and c [L*D, B, H] of x's dtype."""
    rows, hidden = options.num_layers * (2 if options.bidirectional else 1), w_ih.shape[0] // 4
    width = options.proj_size or hidden
    return x.new_zeros(rows, batch, width), x.new_zeros(rows, batch, hidden)


def cell(
    x: Tensor,  # [B, I]
    hx: Sequence[Tensor] | None,  # h and c [B, H]
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if b_ih is None and b_hh is not None:  # the one that is not there adds nothing
        b_ih = torch.zeros_like(b_hh)
    elif b_hh is None and b_ih is not None:
        b_hh = torch.zeros_like(b_ih)
    weights = (w_ih, w_hh) if b_ih is None or b_hh is None else (w_ih, w_hh, b_ih, b_hh)
    plain = _plain_cell(x, hx, weights)
    if plain is not None:
        return plain
    transformed = _transforms()
    (batch, features), hidden = x.shape, w_hh.shape[1]
    fits = features == w_ih.shape[1] and features > 0 and hidden > 0
    if fits and hx is not None:
        fits = hx[0].shape == hx[1].shape == (batch, hidden)
    if not fits or (not transformed and _must_use_torch(x, hx, weights, is_cell=True)):
        if hx is None:
            hx = (x.new_zeros(batch, hidden),) * 2
        return _VF.lstm_cell(x, tuple(hx), w_ih, w_hh, b_ih, b_hh)  # or its error
    state = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
    options = Options(1, len(weights) == 4, 0.0, False, False, 0)
    _, h, c = _compute(transformed, x.unsqueeze(0), None, state, weights, options, is_cell=True)
    return h.squeeze(0), c.squeeze(0)


def _compute(
    transformed: str,  # see _transforms
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
    is_cell: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """By the fused operator, or by the specification; either with autocast's types."""
    result_dtypes = None
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        rounds = batch_sizes is None and not is_cell
        x, hx, weights, result_dtypes = _autocast(x, hx, weights, rounds)
    _check_uniform(x, hx, weights)
    layer_of: Any = function.lstm_layer
    if transformed:
        by_rule = transformed == "rules" and not torch.compiler.is_compiling()  # Dynamo cannot
        by_rule = by_rule and not _must_use_torch(x, hx, weights)
        layer_of = function.transformed_layer if by_rule else function.reference_layer
    y, h_n, c_n = _layers(layer_of, x, batch_sizes, hx, weights, options)
    if result_dtypes is not None:
        y, h_n, c_n = (t.to(d) for t, d in zip((y, h_n, c_n), result_dtypes, strict=True))
    return y, h_n, c_n


def _layers(
    layer_of: Any,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer after the other with dropout between them; y, h_n and c_n of all of them."""
    num_layers, bias, dropout, training, bidirectional, proj_size = options
    h0, c0 = (None, None) if hx is None else hx
    if num_layers == 1:
        return layer_of(
            x, batch_sizes, h0, c0, *ten_weights(weights, bias, bidirectional, proj_size)
        )
    if _extension.across_blocks and not x.is_cpu and layer_of is function.lstm_layer:
        results = _side_by_side(x, batch_sizes, hx, weights, options)
        if results is not None:
            return results
    directions, each = (2 if bidirectional else 1), len(weights) // num_layers
    y, h_n, c_n = x, [], []
    for layer in range(num_layers):
        if layer > 0 and training and dropout > 0:
            y = torch.dropout(y, dropout, True)
        if hx is not None:
            h0, c0 = (t.narrow(0, layer * directions, directions) for t in hx)
        own = ten_weights(
            weights[layer * each : (layer + 1) * each], bias, bidirectional, proj_size
        )
        y, h, c = layer_of(y, batch_sizes, h0, c0, *own)
        h_n.append(h)
        c_n.append(c)
    return y, torch.cat(h_n), torch.cat(c_n)


def _side_by_side(
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Layers on a GPU that compute at the same time; None where one comes after the other."""
    if batch_sizes is not None or not _may_overlap(options) or not ops.computes_now(x):
        return None
    from . import wavefront  # which most programs never need

    h0, c0 = (None, None) if hx is None else hx
    (T, B, features), H, L = x.shape, weights[1].shape[1], options.num_layers
    if x.numel() == 0:
        return None
    training = wavefront.wants_gradient((x, h0, c0, *weights))
    tf32 = function.tf32_allowed()
    chosen = wavefront.plan(T, B, features, H, L, x.dtype, training, tf32, _index(x.device))
    if chosen is None:
        return None
    each = len(weights) // L
    by_layer = [weights[k : k + each] for k in range(0, len(weights), each)]
    tens = [t for own in by_layer for t in ten_weights(own, options.bias, False, 0)]
    return wavefront.stack(x, h0, c0, tens, chosen)


def _may_overlap(options: Options) -> bool:
    """Whether a chunk of steps is all that a layer needs of the one below."""
    drops = options.training and options.dropout > 0
    return not (options.bidirectional or options.proj_size or drops)


def ten_weights(
    weights: Sequence[Tensor], bias: bool, bidirectional: bool, proj_size: int
) -> tuple[Tensor | None, ...]:
    """One layer's weights as the operator takes them: five slots per direction, None if empty."""
    half = len(weights) // 2 if bidirectional else len(weights)
    ten: tuple[Tensor | None, ...] = ()
    for own in (weights[:half], weights[half:]):
        if not own:
            return (*ten, None, None, None, None, None)
        biases = tuple(own[2:4]) if bias else (None, None)
        ten = (*ten, own[0], own[1], *biases, own[-1] if proj_size else None)
    return ten


def _autocast(
    x: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor], rounds: bool
) -> tuple[Tensor, Sequence[Tensor] | None, Sequence[Tensor], tuple[torch.dtype, ...] | None]:
    """What to compute with under autocast, and the dtypes of y, h_n and c_n (None: as is).

    float64 stays float64. On a GPU everything else is cast to the autocast dtype, as it is for
    nn.LSTM there. On the CPU other mixed types are computed in float32, where our kernels are as
    fast as in the lower type, and only results are rounded. Where a float32 input `rounds` (padded,
    not packed nor a cell), y and h_n take the autocast dtype and c_n stays float32; elsewhere all
    three have the type of the state.
    """
    if not x.is_cpu:
        low = torch.get_autocast_dtype(x.device.type)
        state = None if hx is None else [_lowered(t, low) for t in hx]
        return _lowered(x, low), state, [_lowered(t, low) for t in weights], None
    everything = (x, *(hx or ()), *weights)
    if any(t.dtype is torch.float64 for t in everything):
        return x, hx, weights, None
    if x.dtype is torch.float32 and rounds:
        low = torch.get_autocast_dtype(x.device.type)
        result_dtypes = (low, low, torch.float32)
    else:
        common = x.dtype if hx is None else torch.promote_types(hx[0].dtype, hx[1].dtype)
        result_dtypes = (common, common, common)
    if any(t.dtype is not x.dtype for t in everything):
        x, hx = x.float(), None if hx is None else [t.float() for t in hx]
        weights = [t.float() for t in weights]
    return x, hx, weights, result_dtypes


def _lowered(t: Tensor, low: torch.dtype) -> Tensor:
    return t if t.dtype is torch.float64 else t.to(low)


def _check_uniform(x: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor]) -> None:
    dtype, is_cpu = x.dtype, x.is_cpu
    device = None if is_cpu else x.device  # reading it costs more than is_cpu
    for name, tensors in (("hx", hx or ()), ("weights", weights)):
        for k, t in enumerate(tensors):
            elsewhere = t.is_cpu is not is_cpu or (device is not None and t.device != device)
            if t.dtype is not dtype or elsewhere:
                raise RuntimeError(
                    f"{name}[{k}]: expected {dtype} on device '{x.device}' like the input, "
                    f"got {t.dtype} on device '{t.device}'"
                )


@_extension.constant_in_graphs
def _transforms() -> str:
    """What transforms the call: "" for nothing, "rules" for those that LstmLayer has a rule for.

    "any" for all others of torch.func, and for a level of forward-mode differentiation.
    """
    if forward_ad._current_level >= 0:
        return "any"
    if not torch._C._are_functorch_transforms_active():
        return ""
    functorch = torch._C._functorch
    known = (functorch.TransformType.Vmap, functorch.TransformType.Grad)
    levels = functorch.get_interpreter_stack() or ()
    return "rules" if all(level.key() in known for level in levels) else "any"


def _no_kernel(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why there is no kernel for an LSTM like this, or None when there is one."""
    if device.type not in ("cpu", "cuda"):
        return f"no kernel for device '{device.type}'"
    if dtype not in _KERNEL_DTYPES:
        return f"no kernel for {dtype}"
    if device.type == "cpu":
        return None
    obstacle: str | None = _extension.cuda_obstacle(_index(device))
    return obstacle


def marked_obstacle(proj_size: int, call_options: bool, extras: Extras | None) -> str | None:
    """Why there is none with these: reset, lengths or return_cells, and what a module has."""
    if not proj_size:
        return None
    if call_options:
        return "no kernel with reset, lengths or return_cells and a proj_size"
    dropped = extras is not None and extras.recurrent_dropout > 0
    return "no kernel with recurrent_dropout and a proj_size" if dropped else None


def _index(device: torch.device) -> int:
    """A CUDA device's number; that of "cuda" is the present one's, or 0 where there is none."""
    if device.index is not None:
        return device.index
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _must_use_torch(
    x: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor], is_cell: bool = False
) -> bool:
    """True when PyTorch's own LSTM has to compute this call."""
    if torch.compiler.is_compiling():
        if export.is_exporting() and not export.holds_fused(1 if is_cell else x.shape[0]):
            return True  # the graph must also run where fused_lstm is not installed
    elif torch._C._is_tracing():
        return True  # likewise
    if x.is_cpu:
        if x.dtype not in _KERNEL_DTYPES:
            return True
    elif _no_kernel(x.device, x.dtype) is not None:
        return True
    for t in (x, *(hx or ()), *weights):
        if type(t) not in _PLAIN_TENSORS and _computes_itself(type(t)):
            return True
    return False


def _computes_itself(kind: type) -> bool:
    """True for a Tensor class with operators of its own, other than those PyTorch traces with."""
    own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[attr-defined]
    return own and not kind.__module__.startswith("torch._subclasses")


def runs_directly(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether a call is the CPU operator's alone, or with a gradient LstmLayer's: nothing traces,
    transforms or casts it, and every weight is of x's dtype and on the CPU.
    """
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled() or _transforms():
        return False
    dtype = x.dtype
    if not x.is_cpu or dtype not in _KERNEL_DTYPES or torch._C._is_tracing():
        return False
    for t in weights:
        if type(t) not in _PLAIN_TENSORS or t.dtype is not dtype or not t.is_cpu:
            return False
    return type(x) in _PLAIN_TENSORS


def torch_lstm(
    x: Tensor,  # [T, B, I] or packed [N, I]
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own LSTM, time first. TorchScript compiles this function too."""
    if batch_sizes is None:
        return _VF.lstm(
            x, (h0, c0), weights, bias, num_layers, dropout, training, bidirectional, False
        )
    return _VF.lstm(
        x, batch_sizes, (h0, c0), weights, bias, num_layers, dropout, training, bidirectional
    )


def explain_plan(
    target: nn.Module | tuple[int, int, int, int],
    T: int = 1,
    B: int = 1,
    *,
    bidirectional: bool = False,
    proj_size: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    training: bool | None = None,
    threads: int | None = None,
    options: bool = False,
) -> str:
    """Says in words what would compute an LSTM: which kernel, or why PyTorch's own LSTM.

    Args:
        target: an `LSTM`, `LSTMCell` or `VariantLSTM`, whose dtype, device and options are then the
            module's own, or a shape `(T, B, I, H)` with the keywords below.
        T: steps of the input, where target is a module.
        B: rows of the batch, likewise.
        bidirectional: of a shape: two directions.
        proj_size: of a shape: size P of a projected h; 0 for none.
        dtype: of a shape.
        device: of a shape.
        training: whether gradients will be wanted; None: the module's mode, or True for a shape.
        threads: None for torch's present number.
        options: whether the call has `reset`, `lengths` or `return_cells`; a module's `extras`
            count of themselves.

    Returns:
        One line per layer: device, instruction set or family, how the products are formed, how
        many tasks.

    Raises:
        TypeError: target is another kind of module.
        ImportError: a kernel would compute but the extension is missing; it says the remedy.
        ValueError: sizes, dtype or threads that no problem can have.
    """
    layers = 1
    own: Any = getattr(target, "explain_plan", None)  # of VariantLSTM, imported by who uses it
    if own is not None:
        text: str = own(T, B)
        return text
    if isinstance(target, nn.RNNBase) and target.mode == "LSTM":
        layers, bidirectional, proj_size = target.num_layers, target.bidirectional, target.proj_size
    elif isinstance(target, nn.RNNCellBase) and len(target.weight_ih) == 4 * target.hidden_size:
        T = 1
    elif isinstance(target, nn.Module):
        raise TypeError(f"target: expected an LSTM or LSTMCell, got {type(target).__name__}")
    if isinstance(target, nn.Module):
        w = next(target.parameters())
        dtype, device = w.dtype, w.device
        features, H = w.shape[1], w.shape[0] // 4
        training = target.training if training is None else training
    else:
        T, B, features, H = target
        training = True if training is None else training
    D, P = (2 if bidirectional else 1), (proj_size or H)
    device = torch.device(device)
    frozen = getattr(target, "_frozen", None)
    obstacle = _no_kernel(device, dtype)
    instead = "torch's own LSTM"
    extras: Extras | None = getattr(target, "extras", None)
    if options or (extras is not None and extras.act(bool(training))):
        instead = "the specification in plain PyTorch"
        obstacle = obstacle or marked_obstacle(proj_size, options, extras)
        options = True
    lines = []
    for layer in range(layers):
        features = features if layer == 0 else D * P
        if frozen is not None:
            line = frozen.explain(T, B, features, D, threads or torch.get_num_threads())
        elif obstacle is None:
            sizes = (T, B, features, H, P, D, str(dtype).removeprefix("torch."), training)
            if device.type == "cuda":
                line = _cuda_plan(sizes, device, options)
            else:
                line = _cpu_plan(sizes, threads, options)
        else:
            line = f"{instead} ({obstacle})"
        line = f"{line}; {extras}" if extras is not None else line
        lines.append(f"layer {layer}: {line}" if layers > 1 else line)
    if isinstance(target, nn.RNNBase) and device.type == "cuda" and obstacle is None:
        drops = target.dropout, target.training
        own = Options(layers, target.bias, *drops, bidirectional, proj_size)
        lines += _wavefront_plan((T, B, w.shape[1], H), own, dtype, device, bool(training))
    return "\n".join(lines)


def _cpu_plan(sizes: tuple[Any, ...], threads: int | None, options: bool) -> str:
    count = torch.get_num_threads() if threads is None else threads
    plan: str = _extension.require().explain_plan(*sizes, count, options)
    return plan


def _cuda_plan(sizes: tuple[Any, ...], device: torch.device, options: bool) -> str:
    module = _extension.require_cuda()
    index, tf32 = _index(device), function.tf32_allowed()
    measured = module.choice(index, *sizes, tf32, False)
    plan: str = module.explain_plan(*sizes, tf32, module.device_facts(index), measured, options)
    return f"{plan}; {_CUDA_CAVEAT}"


def _wavefront_plan(
    shape: tuple[int, int, int, int],  # T, B, I, H
    options: Options,
    dtype: torch.dtype,
    device: torch.device,
    training: bool,
) -> list[str]:
    """A line where the layers would compute at the same time."""
    if not _extension.across_blocks or not _may_overlap(options):
        return []
    from . import wavefront

    L, tf32 = options.num_layers, function.tf32_allowed()
    chosen = wavefront.plan(*shape, L, dtype, training, tf32, _index(device))
    return [] if chosen is None else [wavefront.explain(chosen, shape[0], L)]
