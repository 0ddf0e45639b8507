"""The derivative of one LSTM layer: what is saved, what is computed again.

Without a gradient to track the operator is called directly. With one, `LstmLayer` saves the
inputs, y and the operator's reserve, and asks the backward operator for exactly the gradients that
autograd wants. It saves neither h_n nor c_n, so those may be edited in place; editing x, y, the
initial state or a weight before backward raises, by autograd's version counters.

When backward itself is to be differentiated (create_graph=True), it does not call the operator but
computes the layer again through `reference.py` and lets autograd differentiate that, to any order.
"""

from typing import Any

import torch
from torch import Tensor

from . import _extension, ops, reference

__all__ = ["LstmLayer", "lstm_layer", "reference_layer"]

# Result k of the backward operator is the gradient of these positions of LstmLayer.forward.
_DIFFERENTIABLE = ((0,), (2,), (3,), (4,), (5,), (6, 7), (8,), (9,), (10,), (11, 12), (13,))
_NO_GRADIENTS = (None,) * (4 + ops.WEIGHT_SLOTS + 1)


class LstmLayer(torch.autograd.Function):
    """(x, batch_sizes, h0, c0, ten weights, tf32) -> (y, h_n, c_n, reserve), see ops.py."""

    @staticmethod
    def forward(
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights_tf32: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return ops.forward(x, batch_sizes, h0, c0, *weights_tf32[:-1], True, weights_tf32[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        y, _, _, reserve = output
        ctx.set_materialize_grads(False)  # a part of the output that is not used costs nothing
        ctx.mark_non_differentiable(reserve)
        ctx.save_for_backward(*inputs[:-1], y, reserve)
        ctx.tf32 = inputs[-1]

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        *inputs, y, reserve = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:-1]
        if dy is None and dh_n is None and dc_n is None:
            return _NO_GRADIENTS
        if torch.is_grad_enabled():
            return (*_differentiable_backward(dy, dh_n, dc_n, inputs, wanted), None)
        needs = 0
        for k, positions in enumerate(_DIFFERENTIABLE):
            if wanted[positions[0]] or wanted[positions[-1]]:
                needs |= 1 << k
        results = ops.backward(dy, dh_n, dc_n, *inputs, y, reserve, needs, ctx.tf32)
        grads: list[Tensor | None] = list(_NO_GRADIENTS)
        for k, positions in enumerate(_DIFFERENTIABLE):
            for position in positions:
                if wanted[position]:
                    # Two biases share one gradient in value, never in memory.
                    shared = position != positions[0] and wanted[positions[0]]
                    grads[position] = results[k].clone() if shared else results[k]
        return tuple(grads)


def _differentiable_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    inputs: list[Tensor | None],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    # A fresh view stands for each input, so that the gradient with respect to it is this layer's
    # alone even where one input was computed from another (tied weights, h0 made from x, ...).
    views = [
        t.view_as(t) if w and t is not None else t for t, w in zip(inputs, wanted, strict=True)
    ]
    outputs = reference_layer(*views)  # type: ignore[arg-type]
    pairs = [(out, g) for out, g in zip(outputs, (dy, dh_n, dc_n), strict=True) if g is not None]
    grads = iter(
        torch.autograd.grad(
            [out for out, _ in pairs],
            [t for t, w in zip(views, wanted, strict=True) if w and t is not None],
            [g for _, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
    )
    return tuple(next(grads) if w else None for w in wanted)


def reference_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.lstm_layer` as the kernels compute it: half types through float32, no autocast."""
    inputs = [x, h0, c0, *weights]
    if x.dtype in (torch.bfloat16, torch.float16):
        inputs = [t if t is None else t.float() for t in inputs]
    with torch.autocast(x.device.type, enabled=False):
        outputs = reference.lstm_layer(inputs[0], batch_sizes, *inputs[1:])  # type: ignore[arg-type]
    y, h_n, c_n = (t.to(x.dtype) for t in outputs)
    return y, h_n, c_n


@_extension.constant_in_graphs
def tf32_allowed() -> bool:
    """Whether float32 products on a GPU may be formed in TF32: cuDNN's switch for RNNs.

    nn.LSTM obeys the same one, and it is on by default: `torch.backends.cudnn.rnn.fp32_precision`,
    which `torch.backends.cudnn.allow_tf32` sets too. A compiled graph keeps what it was at tracing.
    """
    precision: str = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


# Function.apply binds its arguments with inspect.signature on every call, which costs more than the
# rest of a small call together. That only serves default arguments, and LstmLayer has none, so
# outside torch.compile this is the step below it. (torch.func never comes here: see functional.py.)
_apply = super(torch.autograd.Function, LstmLayer).apply


def lstm_layer(
    x: Tensor,  # [T, B, I], or packed [N, I]
    batch_sizes: Tensor | None,  # [T] int64 on the CPU when x is packed
    h0: Tensor | None,  # [D, B, P], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights: Tensor | None,  # ten, see ops.WEIGHT_SLOTS
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer through the fused operator, with a gradient where one is asked for.

    Returns y [T, B, D*P] (packed: [N, D*P]), h_n [D, B, P] and c_n [D, B, H].
    """
    tf32 = not x.is_cpu and tf32_allowed()
    # An exported graph holds the operator alone, which knows no derivative: it is for inference.
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        for t in (x, h0, c0, *weights):
            if t is not None and t.requires_grad:
                apply = LstmLayer.apply if torch.compiler.is_compiling() else _apply
                y, h_n, c_n, _ = apply(x, batch_sizes, h0, c0, *weights, tf32)
                return y, h_n, c_n
    y, h_n, c_n, _ = ops.forward(x, batch_sizes, h0, c0, *weights, False, tf32)
    return y, h_n, c_n
