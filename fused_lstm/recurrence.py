"""The recurrence of the cell's variants, one direction of one layer, and its derivative.

The operator takes what the cells get from the input as computed already (zx) and returns, in its
backward, the gradient of zx and of h W_hh^T for every step. The gradient of W_hh is then one
product over all steps, left to torch as those of the input are. Derivatives of that go through
`reference.py`, as in `function.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import batching, export, ops, reference
from .function import second_gradients, without_autocast

__all__ = ["Options", "Recurrence", "RecurrenceBackward", "recurrence"]

Options = tuple[bool, float, float]  # reverse, cell_clip, hidden_clip
_TENSORS = 8  # zx, h0, c0, w_hh, peepholes, ln_hh, ln_c, ln_c_bias
_DIFFERENTIABLE = tuple((k,) for k in range(_TENSORS))


class Recurrence(torch.autograd.Function):
    """(eight tensors, options) -> (y, h_n, c_n, reserve), see ops.recurrence_forward."""

    @staticmethod
    def forward(*tensors_options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *tensors, options = tensors_options
        return ops.recurrence_forward(*tensors, *options, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, _, _, reserve = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(reserve)
        ctx.save_for_backward(*inputs[:-1], y, reserve)
        ctx.options = inputs[-1]

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:-1]
        if dy is None and dh_n is None and dc_n is None:
            return (None,) * (_TENSORS + 1)
        whole = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        backward: Callable[..., Any] = RecurrenceBackward.apply if whole else _backward
        results = backward(dy, dh_n, dc_n, *ctx.saved_tensors, wanted[3], ctx.options)
        return (*(g if want else None for g, want in zip(results, wanted, strict=True)), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return batching.one_by_one(Recurrence.apply, info.batch_size, in_dims, arguments)


class RecurrenceBackward(torch.autograd.Function):
    """(dy, dh_n, dc_n, eight tensors, y, reserve, whether dw_hh is wanted, options) -> eight."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return _backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-4])
        ctx.options = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        def again(*tensors: Any) -> tuple[Tensor, ...]:
            return reference.variant_direction(*tensors, *ctx.options)

        return second_gradients(ctx, cotangents, 3, again, _DIFFERENTIABLE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return batching.one_by_one(RecurrenceBackward.apply, info.batch_size, in_dims, arguments)


def _backward(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients of the eight tensors; [0] of one that is None, or not wanted."""
    *tensors, y, reserve, wants_weight, options = rest
    dzx, dzh, dh0, dc0, *small = ops.recurrence_backward(
        dy, dh_n, dc_n, *tensors, *options, reserve
    )
    dw_hh = dzx.new_empty(0)
    if wants_weight:
        with without_autocast(dzx):
            dw_hh = _weight_gradient(dzx if tensors[5] is None else dzh, y, tensors[1], options[0])
    return (dzx, dh0, dc0, dw_hh, *small)


def _weight_gradient(
    dzh: Tensor,  # [T, B, G*H]
    y: Tensor,  # [T, B, H]
    h0: Tensor | None,  # [B, H]
    reverse: bool,
) -> Tensor:
    """dw_hh [G*H, H]: the sum over all rows of dzh times the h that came before."""
    dz, h, first = (dzh[:-1], y[1:], dzh[-1]) if reverse else (dzh[1:], y[:-1], dzh[0])
    dw = dz.reshape(-1, dz.shape[2]).t() @ h.reshape(-1, h.shape[2])
    return dw if h0 is None else dw + first.t() @ h0


def recurrence(*tensors_options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `reference.variant_direction`, with its options as one tuple at the end.

    Returns y [T, B, H], h_n and c_n [B, H], by the fused operator, with a gradient where one is
    asked for.
    """
    *tensors, options = tensors_options
    if torch.is_grad_enabled() and not export.is_exporting():
        for t in tensors:
            if t is not None and t.requires_grad:
                apply: Callable[..., Any] = Recurrence.apply
                y, h_n, c_n, _ = apply(*tensors, options)
                return y, h_n, c_n
    y, h_n, c_n, _ = ops.recurrence_forward(*tensors, *options, False)
    return y, h_n, c_n
