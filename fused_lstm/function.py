"""The derivative of one LSTM layer: what is saved, what is computed again.

Without a gradient to track the operator is called directly. With one, `LstmLayer` saves the
inputs, y and the operator's reserve, and asks the backward operator for exactly the gradients that
autograd wants. It saves neither h_n nor c_n, so those may be edited in place; editing x, y, the
initial state or a weight before backward raises, by autograd's version counters.

When backward itself may be differentiated (create_graph=True, torch.func), it is a Function too,
`LstmLayerBackward`: it calls the same operator, and its own derivative computes the layer again
through `reference.py` and lets autograd differentiate that, to any order. Both Functions have a
rule for torch.vmap, see `batching.py`; that makes them whole for torch.func but for forward mode.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _extension, batching, export, ops, reference

__all__ = [
    "LstmLayer",
    "LstmLayerBackward",
    "gradients",
    "lstm_layer",
    "needs_mask",
    "reference_layer",
    "second_gradients",
    "spread",
    "tf32_allowed",
    "transformed_layer",
    "without_autocast",
]

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
        # Also for vmap of torch.autograd.grad: gradients that are mapped need the Function's rule.
        whole = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        backward = LstmLayerBackward.apply if whole else ops.backward
        needs = needs_mask(wanted)
        results = backward(dy, dh_n, dc_n, *inputs, y, reserve, needs, ctx.tf32)
        return spread(results, wanted, _NO_GRADIENTS)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        return batching.map_forward(LstmLayer.apply, info.batch_size, in_dims, arguments)


class LstmLayerBackward(torch.autograd.Function):
    """The arguments and results of `ops.backward`.

    y and the reserve follow from the other arguments, and have no gradient of their own.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return ops.backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-4])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return second_gradients(ctx, cotangents, 3, reference_layer)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        layers = LstmLayer.apply, LstmLayerBackward.apply
        with without_autocast(arguments[3]):
            return batching.map_backward(*layers, info.batch_size, in_dims, arguments)


def needs_mask(wanted: Sequence[bool]) -> int:
    """Which results of the backward operator are asked for, from what autograd wants."""
    needs = 0
    for k, positions in enumerate(_DIFFERENTIABLE):
        if wanted[positions[0]] or wanted[positions[-1]]:
            needs |= 1 << k
    return needs


def spread(
    results: Sequence[Tensor], wanted: Sequence[bool], none: tuple[None, ...]
) -> tuple[Tensor | None, ...]:
    """The backward operator's results as the gradients of a layer's arguments."""
    grads: list[Tensor | None] = list(none)
    for k, positions in enumerate(_DIFFERENTIABLE):
        for position in positions:
            if wanted[position]:
                # Two biases share one gradient in value, never in memory.
                shared = position != positions[0] and wanted[positions[0]]
                grads[position] = results[k].clone() if shared else results[k]
    return tuple(grads)


def second_gradients(
    ctx: Any,
    cotangents: Sequence[Tensor | None],
    outputs: int,
    layer_again: Callable[..., tuple[Tensor, ...]],
    differentiable: Sequence[tuple[int, ...]] = _DIFFERENTIABLE,
) -> tuple[Tensor | None, ...]:
    """The derivative of a backward operator, through the layer's specification.

    The operator's arguments are the gradients of the layer's `outputs` results, the layer's own
    arguments, then more that are not differentiated; ctx saved the former. Result k of the operator
    is the gradient of the layer's arguments differentiable[k].
    """
    tensors = ctx.saved_tensors
    wanted = [k for k, need in enumerate(ctx.needs_input_grad[: len(tensors)]) if need]
    pairs = [
        (positions[0], g)
        for positions, g in zip(differentiable, cotangents, strict=True)
        if g is not None
    ]
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    if not pairs or not wanted:
        return tuple(grads)

    def first(*changing: Tensor) -> tuple[Tensor, ...]:
        """The gradients that are differentiated here, as a function of what is wanted."""
        new = list(tensors)
        for k, t in zip(wanted, changing, strict=True):
            new[k] = t
        dys, inputs = new[:outputs], new[outputs:]

        def layer(*own: Tensor) -> tuple[Tensor, ...]:
            again = list(inputs)
            for (k, _), t in zip(pairs, own, strict=True):
                again[k] = t
            results = layer_again(*again)
            return tuple(o for o, g in zip(results, dys, strict=True) if g is not None)

        own = [inputs[k] for k, _ in pairs]
        return gradients(layer, own, [g for g in dys if g is not None], True)

    create_graph = torch.is_grad_enabled()
    with without_autocast(tensors[outputs]):
        changing = [tensors[k] for k in wanted]
        second = gradients(first, changing, [g for _, g in pairs], create_graph)
    for k, t in zip(wanted, second, strict=True):
        grads[k] = t
    return tuple(grads)


def gradients(
    f: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create_graph: bool,
) -> tuple[Tensor, ...]:
    """The gradients of f for its inputs, inside torch.func's transforms and outside of them."""
    if torch._C._are_functorch_transforms_active():
        return torch.func.vjp(f, *inputs)[1](tuple(cotangents))
    # Not by torch.func here, for it allows no saved-tensor hooks. A fresh view stands for each
    # input, so that the gradient with respect to it is f's alone even where one input was computed
    # from another (tied weights, h0 made from x, ...).
    with torch.enable_grad():
        views = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(
            f(*views), views, cotangents, create_graph=create_graph, materialize_grads=True
        )


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keeps autocast from the products inside; some devices (meta) have none to begin with."""
    # Asked first, for Dynamo of torch 2.11 does not know the second question.
    if torch._C._is_any_autocast_enabled() and torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


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
    with without_autocast(x):
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
    tf32 = False
    if not x.is_cpu:
        tf32 = tf32_allowed()
        if not torch.compiler.is_compiling() and _extension.autotunes:
            _tune(x, batch_sizes, h0, c0, weights, tf32)
    # An exported graph holds the operator alone, which knows no derivative: it is for inference.
    if torch.is_grad_enabled() and not export.is_exporting():
        for t in (x, h0, c0, *weights):
            if t is not None and t.requires_grad:
                apply = LstmLayer.apply if torch.compiler.is_compiling() else _apply
                y, h_n, c_n, _ = apply(x, batch_sizes, h0, c0, *weights, tf32)
                return y, h_n, c_n
    y, h_n, c_n, _ = ops.forward(x, batch_sizes, h0, c0, *weights, False, tf32)
    return y, h_n, c_n


def _tune(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    tf32: bool,
) -> None:
    """Has a call of a new class measured, with the gradients that will be wanted of it."""
    from . import tuning  # which most programs never need

    arguments = (x, batch_sizes, h0, c0, *weights)
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in arguments]
    tuning.prepare(arguments, needs_mask(wanted), tf32)


def transformed_layer(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor | None, c0: Tensor | None, *weights: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_layer` under vmap, grad, vjp and jacrev of torch.func: by the Function in any case."""
    tf32 = not x.is_cpu and tf32_allowed()
    y, h_n, c_n, _ = LstmLayer.apply(x, batch_sizes, h0, c0, *weights, tf32)
    return y, h_n, c_n
