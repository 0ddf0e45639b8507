"""One layer with what nn.LSTM lacks: resets, rows that end, the cell state of every step, zoneout,
factors of h before the gates, gates computed again in backward.

As `function.py`, with operators of their own, so that a call without these options is what it was.
What a row's steps are is told by `marks`, a byte for each row of each step, and which units zoneout
keeps by `keep`, a byte for each of them (see ops.py). There is no kernel for a projection with
anything but recompute; there and under torch.func the layer is computed by `reference.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import batching, export, ops, reference
from .function import needs_mask, second_gradients, spread, tf32_allowed, without_autocast

__all__ = ["MarkedLayer", "MarkedLayerBackward", "Results", "marked_layer", "reference_layer"]

Results = tuple[Tensor, Tensor, Tensor, Tensor]  # y, h_n, c_n, cells
_TENSORS = 4 + ops.WEIGHT_SLOTS + 2  # x, marks, h0, c0, ten weights, keep, h_factors
_NO_GRADIENTS = (None,) * (_TENSORS + 5)


class MarkedLayer(torch.autograd.Function):
    """(x, marks, h0, c0, ten weights, keep, h_factors, zoneout_h, zoneout_c, recompute, cells,
    tf32) -> (y, h_n, c_n, cells, reserve), see ops.py.
    """

    @staticmethod
    def forward(
        x: Tensor,
        marks: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights_options_tf32: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        *weights_options, tf32 = weights_options_tf32
        return ops.marked_forward(x, marks, h0, c0, *weights_options, True, tf32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, _, _, cells, reserve = output
        ctx.set_materialize_grads(False)
        if inputs[-2]:
            ctx.mark_non_differentiable(reserve)
        else:
            ctx.mark_non_differentiable(cells, reserve)
        ctx.save_for_backward(*inputs[:_TENSORS], y, reserve)
        *ctx.how, ctx.cells, ctx.tf32 = inputs[_TENSORS:]

    @staticmethod
    def backward(
        ctx: Any,
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        dcells: Tensor | None,
        _: None,
    ) -> tuple[Tensor | None, ...]:
        *inputs, y, reserve = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:_TENSORS]
        if not ctx.cells:
            dcells = None  # a compiled graph brings one for the empty tensor
        if dy is None and dh_n is None and dc_n is None and dcells is None:
            return _NO_GRADIENTS
        whole = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        backward = MarkedLayerBackward.apply if whole else ops.marked_backward
        needs = needs_mask(wanted)
        results = backward(dy, dh_n, dc_n, dcells, *inputs, *ctx.how, y, reserve, needs, ctx.tf32)
        return spread(results, wanted, _NO_GRADIENTS)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return batching.one_by_one(MarkedLayer.apply, info.batch_size, in_dims, arguments)


class MarkedLayerBackward(torch.autograd.Function):
    """The arguments and results of `ops.marked_backward`."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return ops.marked_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[: 4 + _TENSORS])
        ctx.how = inputs[4 + _TENSORS : -4]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        def again(*tensors: Any) -> Results:
            return reference_layer(*tensors, *ctx.how)

        return second_gradients(ctx, cotangents, 4, again)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return batching.one_by_one(MarkedLayerBackward.apply, info.batch_size, in_dims, arguments)


def marked_layer(
    x: Tensor,  # [T, B, I]
    marks: Tensor | None,  # [T, B] uint8
    h0: Tensor | None,  # [D, B, H], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights_options: Any,  # ten weights, keep, h_factors, zoneout_h, zoneout_c, recompute, cells
) -> Results:
    """One layer through the fused operator, with a gradient where one is asked for.

    Returns y [T, B, D*H], h_n and c_n [D, B, H], and cells [T, B, D*H], or [0] where not wanted.
    """
    tf32 = not x.is_cpu and tf32_allowed()
    if torch.is_grad_enabled() and not export.is_exporting():
        for t in (x, h0, c0, *weights_options[: ops.WEIGHT_SLOTS]):
            if t is not None and t.requires_grad:
                apply: Callable[..., Any] = MarkedLayer.apply
                return apply(x, marks, h0, c0, *weights_options, tf32)[:4]
    return ops.marked_forward(x, marks, h0, c0, *weights_options, False, tf32)[:4]


def reference_layer(
    x: Tensor, marks: Tensor | None, h0: Tensor | None, c0: Tensor | None, *weights_options: Any
) -> Results:
    """`reference.marked_layer` as the kernels compute it: half types through float32, no autocast.

    weights_options: as `marked_layer` has them; what is kept for backward is of no concern here.
    """
    keep, h_factors, *shares = weights_options[ops.WEIGHT_SLOTS :][:4]
    reset = ended = None
    if marks is not None:
        reset, ended = (marks & ops.MARK_RESET) != 0, (marks & ops.MARK_ENDED) != 0
    zoneout = None
    if keep is not None:
        zoneout = (keep & ops.KEEP_H) != 0, (keep & ops.KEEP_C) != 0
    elif any(shares):
        zoneout = tuple(shares)
    inputs = [x, h0, c0, *weights_options[: ops.WEIGHT_SLOTS], h_factors]
    if x.dtype in (torch.bfloat16, torch.float16):
        inputs = [t if t is None else t.float() for t in inputs]
    with without_autocast(x):
        x32, h0, c0, *weights, h_factors = inputs
        outputs = reference.marked_layer(
            x32, reset, ended, h0, c0, *weights, zoneout=zoneout, h_factors=h_factors
        )
    y, h_n, c_n, cells = (t.to(x.dtype) for t in outputs)
    return y, h_n, c_n, cells
