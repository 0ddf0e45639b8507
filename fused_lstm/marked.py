"""One layer with what nn.LSTM lacks: resets, rows that end, and the cell state of every step.

As `function.py`, with operators of their own, so that a call without these options is what it was.
What a row's steps are is told by `marks`, a byte for each row of each step (see ops.py). There is
no kernel for a projection, nor on a GPU; there and under torch.func the layer is computed by
`reference.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import batching, ops, reference
from .function import needs_mask, second_gradients, spread, tf32_allowed, without_autocast

__all__ = ["MarkedLayer", "MarkedLayerBackward", "Results", "marked_layer", "reference_layer"]

Results = tuple[Tensor, Tensor, Tensor, Tensor]  # y, h_n, c_n, cells
_NO_GRADIENTS = (None,) * (4 + ops.WEIGHT_SLOTS + 2)


class MarkedLayer(torch.autograd.Function):
    """(x, marks, h0, c0, ten weights, cells, tf32) -> (y, h_n, c_n, cells, reserve), see ops.py."""

    @staticmethod
    def forward(
        x: Tensor,
        marks: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights_cells_tf32: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        *weights_cells, tf32 = weights_cells_tf32
        return ops.marked_forward(x, marks, h0, c0, *weights_cells, True, tf32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, _, _, cells, reserve = output
        ctx.set_materialize_grads(False)
        if inputs[-2]:
            ctx.mark_non_differentiable(reserve)
        else:
            ctx.mark_non_differentiable(cells, reserve)
        ctx.save_for_backward(*inputs[:-2], y, reserve)
        ctx.cells, ctx.tf32 = inputs[-2:]

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
        wanted = ctx.needs_input_grad[:-2]
        if not ctx.cells:
            dcells = None  # a compiled graph brings one for the empty tensor
        if dy is None and dh_n is None and dc_n is None and dcells is None:
            return _NO_GRADIENTS
        whole = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        backward = MarkedLayerBackward.apply if whole else ops.marked_backward
        needs = needs_mask(wanted)
        results = backward(dy, dh_n, dc_n, dcells, *inputs, y, reserve, needs, ctx.tf32)
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
        ctx.save_for_backward(*inputs[:-4])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return second_gradients(ctx, cotangents, 4, reference_layer)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return batching.one_by_one(MarkedLayerBackward.apply, info.batch_size, in_dims, arguments)


def marked_layer(
    x: Tensor,  # [T, B, I]
    marks: Tensor | None,  # [T, B] uint8
    h0: Tensor | None,  # [D, B, H], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights_cells: Any,  # ten weights, whether cells are wanted
) -> Results:
    """One layer through the fused operator, with a gradient where one is asked for.

    Returns y [T, B, D*H], h_n and c_n [D, B, H], and cells [T, B, D*H], or [0] where not wanted.
    """
    tf32 = not x.is_cpu and tf32_allowed()
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        for t in (x, h0, c0, *weights_cells[:-1]):
            if t is not None and t.requires_grad:
                apply: Callable[..., Any] = MarkedLayer.apply
                return apply(x, marks, h0, c0, *weights_cells, tf32)[:4]
    return ops.marked_forward(x, marks, h0, c0, *weights_cells, False, tf32)[:4]


def reference_layer(
    x: Tensor, marks: Tensor | None, h0: Tensor | None, c0: Tensor | None, *weights: Any
) -> Results:
    """`reference.marked_layer` as the kernels compute it: half types through float32, no autocast.

    weights: ten; another argument, whether cells are wanted, is of no concern here.
    """
    reset = ended = None
    if marks is not None:
        reset, ended = (marks & ops.MARK_RESET) != 0, (marks & ops.MARK_ENDED) != 0
    inputs = [x, h0, c0, *weights[: ops.WEIGHT_SLOTS]]
    if x.dtype in (torch.bfloat16, torch.float16):
        inputs = [t if t is None else t.float() for t in inputs]
    with without_autocast(x):
        outputs = reference.marked_layer(inputs[0], reset, ended, *inputs[1:])
    y, h_n, c_n, cells = (t.to(x.dtype) for t in outputs)
    return y, h_n, c_n, cells
