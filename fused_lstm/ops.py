"""Typed wrappers of the operators `torch.ops.fused_lstm.forward` and `.backward`, of the same with
options that nn.LSTM lacks, `.marked_forward` and `.marked_backward`, of `.keep_bits`, and of the
recurrence of the cell's variants, `.recurrence_forward` and `.recurrence_backward`, one direction
of it.

One call is one layer in one or two directions over a whole sequence; csrc/binding/schema.cpp has
the schemas. Here the operators also get their fake kernels, which tell shapes and dtypes without
computing: they serve the meta device, FakeTensorMode, make_fx and torch.compile. Nothing here knows
autograd: the operators have no derivative of their own, `function.py` gives them one.

Letters: T steps, B rows, I input features, H hidden units, P size of h (proj_size, or H),
D directions, N = sum(batch_sizes) rows of a packed input.
"""

from typing import Any

import torch
from torch import Tensor

from . import _extension

__all__ = [
    "KEEP_C",
    "KEEP_H",
    "MARK_ENDED",
    "MARK_RESET",
    "WEIGHT_SLOTS",
    "backward",
    "computes_now",
    "forward",
    "frozen_forward",
    "keep_bits",
    "marked_backward",
    "marked_forward",
    "recurrence_backward",
    "recurrence_forward",
]

WEIGHT_SLOTS = 10  # w_ih, w_hh, b_ih, b_hh, w_hr, then the same of the reverse direction

# Bits of marks [T, B]: the row's state is cleared before the step; the row has no such step.
MARK_RESET, MARK_ENDED = 1, 2
# Bits of keep [T, B, D*H]: zoneout leaves the unit's h, its c, as it was before the step.
KEEP_H, KEEP_C = 1, 2


def forward(
    x: Tensor,  # [T, B, I] with any strides, or packed [N, I]
    batch_sizes: Tensor | None,  # [T] int64 on the CPU when x is packed
    h0: Tensor | None,  # [D, B, P], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights_save_tf32: Any,  # ten weights (see WEIGHT_SLOTS, None where there is none), two bools
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y [T, B, D*P] (packed: [N, D*P]), h_n [D, B, P], c_n [D, B, H] and the reserve.

    The reserve is what `backward` needs besides inputs and y: opaque bytes, of shape [0] when the
    last but one argument, save_for_backward, is False. The last, tf32, lets float32 products on
    CUDA tensors be formed in TF32; on the CPU it says nothing.

    Raises torch.OutOfMemoryError where a GPU's memory does not suffice.
    """
    try:
        return _forward(x, batch_sizes, h0, c0, *weights_save_tf32)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def backward(
    dy: Tensor | None,  # [T, B, D*P] or packed [N, D*P]; a gradient that is None is zero
    dh_n: Tensor | None,  # [D, B, P]
    dc_n: Tensor | None,  # [D, B, H]
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights_y_reserve_needs_tf32: Any,  # ten weights, y, the reserve, bit mask of needs, a bool
) -> tuple[Tensor, ...]:
    """Returns dx, dh0, dc0, then dw_ih, dw_hh, db, dw_hr of each direction; [0] where not needed.

    Bit k of the mask asks for result k. `db` is the gradient of b_ih and of b_hh alike. The reserve
    is only read, so that a second call gives the same result to the bit.

    Raises torch.OutOfMemoryError where a GPU's memory does not suffice.
    """
    try:
        return _backward(dy, dh_n, dc_n, x, batch_sizes, h0, c0, *weights_y_reserve_needs_tf32)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def marked_forward(
    x: Tensor,  # [T, B, I]
    marks: Tensor | None,  # [T, B] uint8, see MARK_RESET and MARK_ENDED
    h0: Tensor | None,  # [D, B, H], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights_options_save_tf32: Any,  # ten weights; keep [T, B, D*H] uint8 or None, h_factors
    # [D, B, P] or None, zoneout_h and zoneout_c (floats), recompute, cells; save, tf32 (bools)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `forward`: y, h_n, c_n, c after every step [T, B, D*H] ([0] unless `cells`), reserve.

    schema.cpp says what the options are. There may be a w_hr with recompute alone.
    """
    try:
        return _marked_forward(x, marks, h0, c0, *weights_options_save_tf32)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def marked_backward(
    dy: Tensor | None,  # [T, B, D*H]; a gradient that is None is zero
    dh_n: Tensor | None,  # [D, B, H]
    dc_n: Tensor | None,  # [D, B, H]
    dcells: Tensor | None,  # [T, B, D*H]
    x: Tensor,
    marks: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *rest: Any,  # ten weights, keep to recompute as forward had them, y, reserve, needs, tf32
) -> tuple[Tensor, ...]:
    """As `backward`."""
    try:
        return _marked_backward(dy, dh_n, dc_n, dcells, x, marks, h0, c0, *rest)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def frozen_forward(
    x: Tensor,  # [T, B, I] float32, or packed [N, I]
    batch_sizes: Tensor | None,  # [T] int64 when x is packed
    h0: Tensor | None,  # [D, B, H], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    hidden_size: int,
    *packed: Tensor | None,  # panels, scales, bias of each direction, see schema.cpp
) -> tuple[Tensor, Tensor, Tensor]:
    """Inference from packed weights on the CPU: y [T, B, D*H] (packed: [N, D*H]), h_n and c_n."""
    results: tuple[Tensor, Tensor, Tensor] = _frozen_forward(
        x, batch_sizes, h0, c0, hidden_size, *packed
    )
    return results


def keep_bits(
    like: Tensor, seed: Tensor, stream: int, T: int, B: int, U: int, h: float, c: float
) -> Tensor:
    """Random bits KEEP_H and KEEP_C [T, B, U], set with probabilities h and c, on like's device.

    They follow from seed ([] int64 on the CPU), stream and their place alone.
    """
    try:
        return _keep_bits(like, seed, stream, T, B, U, h, c)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def computes_now(x: Tensor) -> bool:
    """Whether an operator that is called with x computes at once, and once: nothing traces the
    call, fakes it or puts it into a CUDA graph.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def recurrence_forward(
    zx: Tensor,  # [T, B, G*H], G = 4, or 3 with coupled gates
    h0: Tensor | None,  # [B, H], None for zeros
    c0: Tensor | None,  # [B, H], None for zeros
    w_hh: Tensor,  # [G*H, H]
    peepholes: Tensor | None,  # [G-1, H]
    ln_hh: Tensor | None,  # [G*H]
    ln_c: Tensor | None,  # [H], exactly with ln_hh
    ln_c_bias: Tensor | None,  # [H]
    *options_save: Any,  # reverse, cell_clip, hidden_clip (inf for none), save_for_backward
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.variant_direction` on tensors of float32 or float64: y, h_n, c_n, reserve.

    Raises torch.OutOfMemoryError where a GPU's memory does not suffice.
    """
    arguments = (zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias, *options_save)
    try:
        return _recurrence_forward(*arguments)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def recurrence_backward(
    dy: Tensor | None,  # [T, B, H]; a gradient that is None is zero
    dh_n: Tensor | None,  # [B, H]
    dc_n: Tensor | None,  # [B, H]
    *arguments_reserve: Any,  # the eight tensors of forward, its three options, the reserve
) -> tuple[Tensor, ...]:
    """Returns dzx, dzh, dh0, dc0, dpeepholes, dln_hh, dln_c, dln_c_bias.

    A result is [0] where its argument is None. dzh [T, B, G*H] is the gradient of h W_hh^T, of
    which dW_hh is a product; without LayerNorm it is [0], for it is dzx.

    Raises torch.OutOfMemoryError where a GPU's memory does not suffice.
    """
    try:
        return _recurrence_backward(dy, dh_n, dc_n, *arguments_reserve)
    except RuntimeError as error:
        raise _as_torch_has_it(error) from None


def _as_torch_has_it(error: RuntimeError) -> RuntimeError:
    """The error itself, or for a full GPU the class of it that torch raises.

    The extension can only say so in words (csrc/binding/stable.cpp): the class does not get through
    torch's stable interface.
    """
    return torch.OutOfMemoryError(str(error)) if "CUDA out of memory" in str(error) else error


def _missing(*_: Any) -> Any:
    _extension.require()  # raises: what is missing, why, and the remedy
    raise RuntimeError("fused_lstm: the extension loaded but did not register its operators")


def _fake_forward(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    w_ih_reverse: Tensor | None,
    w_hh_reverse: Tensor | None,
    b_ih_reverse: Tensor | None,
    b_hh_reverse: Tensor | None,
    w_hr_reverse: Tensor | None,
    save_for_backward: bool,
    tf32: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    directions = 1 if w_ih_reverse is None else 2
    hidden, p = w_ih.shape[0] // 4, w_hh.shape[1]
    batch = _batch(x, batch_sizes, (h0,))
    nbytes: Any = 0
    if save_for_backward:
        nbytes = _reserve_bytes(x, hidden, directions, w_hr is not None, recompute)
    return (
        x.new_empty((*x.shape[:-1], directions * p)),
        x.new_empty((directions, batch, p)),
        x.new_empty((directions, batch, hidden)),
        x.new_empty((nbytes,), dtype=torch.uint8),
    )


def _batch(x: Tensor, batch_sizes: Tensor | None, states: tuple[Tensor | None, ...]) -> Any:
    """B: of a packed input from a state where there is one, else a size that nobody knows yet."""
    if batch_sizes is None:
        return x.shape[1]
    state = next((t for t in states if t is not None), None)
    return torch.library.get_ctx().new_dynamic_size() if state is None else state.shape[1]


def _reserve_bytes(
    x: Tensor, hidden: Any, directions: int, projects: bool, recompute: bool = False
) -> Any:
    """What the extension's own reserve_bytes says, as an expression that sizes may be symbols of.

    A symbol of its own (an unbacked one) would do for tracing, but partitioners cannot tell what
    saving such a tensor costs. The kernels' own sources: kernels/cpu/isa.h, kernels/cuda/reserve.h.
    """
    rows = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
    stored = x.dtype.itemsize
    computed = max(stored, 4)
    # Bytes of one unit in one row.
    gates, cells, m = 0 if recompute else 4 * stored, computed, stored
    if x.device.type != "cuda":
        return directions * rows * _whole_lines(hidden, computed) * (gates + cells)
    arrays = (gates, cells, m) if projects else (gates, cells)
    return directions * sum((rows * hidden * each + 255) // 256 * 256 for each in arrays)


def _whole_lines(hidden: Any, itemsize: int) -> Any:
    """Units in memory that counts lines of 64 bytes."""
    line = 64 // itemsize
    return (hidden + line - 1) // line * line


def _fake_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    w_ih_reverse: Tensor | None,
    w_hh_reverse: Tensor | None,
    b_ih_reverse: Tensor | None,
    b_hh_reverse: Tensor | None,
    w_hr_reverse: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    needs: int,
    tf32: bool = False,
) -> tuple[Tensor, ...]:
    directions = 1 if w_ih_reverse is None else 2
    hidden, p = w_ih.shape[0] // 4, w_hh.shape[1]
    batch = _batch(x, batch_sizes, (h0, c0, grad_h_n, grad_c_n))
    weights: list[tuple[int, ...]] = [w_ih.shape, w_hh.shape, (4 * hidden,), (p, hidden)]
    shapes = [x.shape, (directions, batch, p), (directions, batch, hidden), *weights, *weights]
    return tuple(x.new_empty(s if needs >> k & 1 else (0,)) for k, s in enumerate(shapes))


def _fake_marked_forward(
    x: Tensor,
    marks: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    w_ih_reverse: Tensor | None,
    w_hh_reverse: Tensor | None,
    b_ih_reverse: Tensor | None,
    b_hh_reverse: Tensor | None,
    w_hr_reverse: Tensor | None,
    keep: Tensor | None,
    h_factors: Tensor | None,
    zoneout_h: float,
    zoneout_c: float,
    recompute: bool,
    cells: bool,
    save_for_backward: bool,
    tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (w_ih, w_hh, b_ih, b_hh, w_hr)
    reverse = (w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse)
    y, h_n, c_n, reserve = _fake_forward(
        x, None, h0, c0, *weights, *reverse, save_for_backward, tf32, recompute
    )
    return y, h_n, c_n, x.new_empty(y.shape if cells else (0,)), reserve


def _fake_marked_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    x: Tensor,
    marks: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    states_weights = rest[: 2 + WEIGHT_SLOTS]
    y_reserve_needs_tf32 = rest[2 + WEIGHT_SLOTS + 5 :]
    return _fake_backward(
        grad_y, grad_h_n, grad_c_n, x, None, *states_weights, *y_reserve_needs_tf32
    )


def _fake_frozen_forward(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    hidden_size: int,
    panels: Tensor,
    scales: Tensor | None,
    bias: Tensor,
    panels_reverse: Tensor | None,
    scales_reverse: Tensor | None,
    bias_reverse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    directions = 1 if panels_reverse is None else 2
    batch = _batch(x, batch_sizes, (h0, c0))
    y = x.new_empty((*x.shape[:-1], directions * hidden_size))
    h_n = x.new_empty((directions, batch, hidden_size))
    return y, h_n, torch.empty_like(h_n)


def _fake_keep_bits(
    like: Tensor, seed: Tensor, stream: int, T: int, B: int, U: int, h: float, c: float
) -> Tensor:
    return like.new_empty((T, B, U), dtype=torch.uint8)


def _fake_recurrence_forward(
    zx: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_hh: Tensor,
    peepholes: Tensor | None,
    ln_hh: Tensor | None,
    ln_c: Tensor | None,
    ln_c_bias: Tensor | None,
    reverse: bool,
    cell_clip: float,
    hidden_clip: float,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B, columns = zx.shape
    hidden, nbytes = w_hh.shape[1], 0
    if save_for_backward:
        nbytes = _recurrence_reserve_bytes(zx, hidden, columns // hidden, ln_hh is not None)
    y, h_n, c_n = (zx.new_empty(sizes) for sizes in ((T, B, hidden), (B, hidden), (B, hidden)))
    return y, h_n, c_n, zx.new_empty((nbytes,), dtype=torch.uint8)


def _recurrence_reserve_bytes(zx: Tensor, hidden: Any, gates: Any, normalises: bool) -> Any:
    """What recurrence_reserve_bytes says, as _reserve_bytes above.

    The kernels' own sources: kernels/cpu/recurrence.cpp, kernels/cuda/recurrence_steps.h.
    """
    rows, size = zx.shape[0] * zx.shape[1], zx.dtype.itemsize
    if zx.device.type != "cuda":
        units = _whole_lines(hidden, size) * size
        return rows * (units * (1 + gates) + (units * gates + 64 if normalises else 0))
    arrays = [gates * hidden, hidden] + ([gates * hidden, 3] if normalises else [])
    return sum((rows * each * size + 255) // 256 * 256 for each in arrays)


def _fake_recurrence_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    zx: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_hh: Tensor,
    peepholes: Tensor | None,
    ln_hh: Tensor | None,
    ln_c: Tensor | None,
    ln_c_bias: Tensor | None,
    reverse: bool,
    cell_clip: float,
    hidden_clip: float,
    reserve: Tensor,
) -> tuple[Tensor, ...]:
    own = (h0, c0, peepholes, ln_hh, ln_c, ln_c_bias)
    small = (zx.new_empty((0,) if t is None else t.shape) for t in own)
    dzh = zx.new_empty((0,) if ln_hh is None else zx.shape)
    return (zx.new_empty(zx.shape), dzh, *small)


_extension.load()
if _extension.available:
    torch.library.register_fake("fused_lstm::forward", _fake_forward)
    torch.library.register_fake("fused_lstm::backward", _fake_backward)
    torch.library.register_fake("fused_lstm::marked_forward", _fake_marked_forward)
    torch.library.register_fake("fused_lstm::marked_backward", _fake_marked_backward)
    torch.library.register_fake("fused_lstm::frozen_forward", _fake_frozen_forward)
    torch.library.register_fake("fused_lstm::keep_bits", _fake_keep_bits)
    torch.library.register_fake("fused_lstm::recurrence_forward", _fake_recurrence_forward)
    torch.library.register_fake("fused_lstm::recurrence_backward", _fake_recurrence_backward)
    _forward: Any = torch.ops.fused_lstm.forward.default
    _backward: Any = torch.ops.fused_lstm.backward.default
    _marked_forward: Any = torch.ops.fused_lstm.marked_forward.default
    _marked_backward: Any = torch.ops.fused_lstm.marked_backward.default
    _frozen_forward: Any = torch.ops.fused_lstm.frozen_forward.default
    _keep_bits: Any = torch.ops.fused_lstm.keep_bits.default
    _recurrence_forward: Any = torch.ops.fused_lstm.recurrence_forward.default
    _recurrence_backward: Any = torch.ops.fused_lstm.recurrence_backward.default
else:
    _forward = _backward = _marked_forward = _marked_backward = _missing
    _frozen_forward = _keep_bits = _recurrence_forward = _recurrence_backward = _missing
