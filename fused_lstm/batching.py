"""One layer mapped by torch.vmap, at the kernels' speed: N mapped calls become few or one.

N calls that share their weights are one call of N times as many rows, so the mapped dimension is
folded into the batch: b outside, n inside, which keeps packed rows in their order too. Members
with weights of their own (an ensemble) are called one after the other. Where a gradient of shared
weights is wanted for each n alone (per-sample gradients), it is a product of what one folded call
gives. Everything here can be mapped and differentiated again: the layers are passed in as the
functions of `function.py`, and nested transforms come down to these two rules level by level.

Letters: N mapped calls, T steps, B rows, I input features, H hidden units, P size of h, D
directions, S = sum(batch_sizes) rows of a packed input.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["map_backward", "map_forward", "one_by_one"]

Layer = Callable[..., tuple[Tensor, ...]]
Mapped = tuple[tuple[Tensor, ...], tuple[int | None, ...]]  # outputs, and their mapped dimensions

_STATE_GRADIENTS = 0b110  # dh0 and dc0 in the mask of needs, see ops.backward
_ROW_GRADIENTS = 0b111  # dx too; all others sum over rows


def map_forward(
    layer: Layer,  # x, batch_sizes, h0, c0, ten weights, tf32 -> y, h_n, c_n, reserve
    N: int,
    dims: Sequence[int | None],  # the mapped dimension of each argument
    arguments: Sequence[Any],
) -> Mapped:
    """What `layer` gives for N calls; there is one reserve for all where their rows were folded."""
    if N == 0:
        return _of_none(functools.partial(map_forward, layer), dims, arguments)
    if any(d is not None for d in dims[4:14]):
        return one_by_one(layer, N, dims, arguments)
    y, h_n, c_n, reserve = layer(*_fold_inputs(N, dims[:4], arguments[:4]), *arguments[4:])
    outputs = [_unfold(N, t) for t in (y, h_n, c_n)]
    return (*outputs, reserve), (y.dim() - 1, 2, 2, None)


def map_backward(
    layer: Layer,
    layer_backward: Layer,  # dy, dh_n, dc_n, layer's arguments, y, reserve, needs, tf32 -> eleven
    N: int,
    dims: Sequence[int | None],
    arguments: Sequence[Any],
) -> Mapped:
    """What `layer_backward` gives for N calls, whose forward went through map_forward if mapped."""
    if N == 0:
        return _of_none(functools.partial(map_backward, layer, layer_backward), dims, arguments)
    *tensors, y, reserve, needs, tf32 = arguments
    weights = tensors[7:]
    if any(d is not None for d in dims[7:17]):
        return one_by_one(layer_backward, N, dims, arguments)

    if needs & ~_ROW_GRADIENTS and not (tensors[4] is None and weights[4] is None):
        # Packed or projected: each n alone, and forward again, because the reserve is of all.
        def alone(*own: Any) -> tuple[Tensor, ...]:
            own_y, _, _, own_reserve = layer(*own[3:17], tf32)
            return layer_backward(*own[:17], own_y, own_reserve, needs, tf32)

        return one_by_one(alone, N, dims, arguments)

    gradients = [_fold(N, d, t) for d, t in zip(dims[:3], tensors[:3], strict=True)]
    inputs = _fold_inputs(N, dims[3:7], tensors[3:7])
    if any(d is not None for d in dims[3:7]):
        y = _fold(N, dims[17], y)
    else:  # only the gradients are mapped (jacrev): forward again, for the reserve of all rows
        y, _, _, reserve = layer(*inputs, *weights, tf32)
    saved = (y, reserve)
    if needs & ~_ROW_GRADIENTS:
        results = _with_weights(layer_backward, N, gradients, inputs, weights, saved, needs, tf32)
    else:
        results = layer_backward(*gradients, *inputs, *weights, *saved, needs, tf32)
    rows = [_unfold(N, t) if needs >> k & 1 else t for k, t in enumerate(results[:3])]
    row_dims = [t.dim() - 2 if needs >> k & 1 else None for k, t in enumerate(rows)]
    weight_dims = [0 if needs >> k & 1 else None for k in range(3, 11)]
    return (*rows, *results[3:]), (*row_dims, *weight_dims)


def _with_weights(
    layer_backward: Layer,
    N: int,
    gradients: Sequence[Tensor | None],
    inputs: Sequence[Any],  # folded, [T, B*N, .] and [D, B*N, .]
    weights: Sequence[Tensor | None],
    saved: tuple[Tensor, Tensor],  # y and the reserve
    needs: int,
    tf32: bool,
) -> tuple[Tensor, ...]:
    """The gradients of rows, folded, and those of weights [N, ...] for each n alone.

    They need the gradient of every row's gates, which `layer_backward` does not return, but makes
    on its way. So it is told that the gates x W_ih^T are its input, and the identity its W_ih: then
    dx is that gradient. (An infinity in it turns the other gates of its row into NaN: 0 * inf.)
    """
    x, _, h0, _ = inputs
    own = [weights[:5], weights[5:]][: 1 if weights[5] is None else 2]
    D, (H4, P) = len(own), own[0][1].shape  # type: ignore[union-attr]
    w_ih = torch.cat([w[0] for w in own])  # type: ignore[misc]
    identity = torch.eye(D * H4, dtype=x.dtype, device=x.device)
    stand_in = list(weights)
    for d in range(D):
        stand_in[5 * d] = identity[d * H4 : (d + 1) * H4]
    gate_inputs = (linear(x, w_ih), *inputs[1:])
    wanted = 1 | needs & _STATE_GRADIENTS
    dgates, dh0, dc0, *empty = layer_backward(
        *gradients, *gate_inputs, *stand_in, *saved, wanted, tf32
    )
    results = [dgates @ w_ih if needs & 1 else empty[0], dh0, dc0]
    for d in range(2):
        of_ih, of_hh, of_bias, _ = (needs >> (3 + 4 * d + k) & 1 for k in range(4))
        if not (of_ih or of_hh or of_bias):
            results += empty[:4]
            continue
        rows = _unfold(N, dgates[..., d * H4 : (d + 1) * H4]).flatten(0, -3)  # [T*B, N, 4H]
        by_gate = rows.permute(1, 2, 0)  # [N, 4H, T*B]
        results.append(by_gate @ _by_call(N, x) if of_ih else empty[0])
        h = None
        if of_hh:
            y = saved[0][..., d * P : (d + 1) * P]
            first = torch.zeros_like(y[:1]) if h0 is None else h0[d : d + 1]
            h = torch.cat([y[1:], first] if d else [first, y[:-1]])  # before each step
        results.append(empty[0] if h is None else by_gate @ _by_call(N, h))
        results += [rows.sum(0) if of_bias else empty[0], empty[0]]
    return tuple(results)


def _unfold(N: int, t: Tensor) -> Tensor:
    """[..., B*N, K] as [..., B, N, K]."""
    return t.unflatten(-2, (t.shape[-2] // N, N))


def _of_none(
    mapped: Callable[..., Mapped], dims: Sequence[int | None], arguments: Sequence[Any]
) -> Mapped:
    """The results of no calls: of one call, of zeros, none is kept."""
    one = [
        t
        if d is None
        else t.new_zeros([1 if k == d % t.dim() else n for k, n in enumerate(t.shape)])
        for d, t in zip(dims, arguments, strict=True)
    ]
    results, places = mapped(1, dims, one)
    kept = [t if d is None else t.narrow(d, 0, 0) for t, d in zip(results, places, strict=True)]
    return tuple(kept), places


def _by_call(N: int, t: Tensor) -> Tensor:
    """[T, B*N, K] as [N, T*B, K]."""
    return _unfold(N, t).flatten(0, -3).transpose(0, 1)


def _fold(N: int, dim: int | None, t: Tensor | None) -> Tensor | None:
    """N tensors [..., B, K] as one of [..., B*N, K]: t holds them along dim, or is all of them."""
    if t is None:
        return None
    rows = t.unsqueeze(-2) if dim is None else t.movedim(dim, -2)  # [..., B, N or 1, K]
    return rows.expand(*rows.shape[:-2], N, rows.shape[-1]).flatten(-3, -2)


def _fold_inputs(N: int, dims: Sequence[int | None], inputs: Sequence[Any]) -> list[Any]:
    """x, batch_sizes, h0 and c0 of N calls as those of one."""
    x, h0, c0 = (_fold(N, dims[k], inputs[k]) for k in (0, 2, 3))
    return [x, None if inputs[1] is None else inputs[1] * N, h0, c0]


def one_by_one(call: Layer, N: int, dims: Sequence[int | None], arguments: Sequence[Any]) -> Mapped:
    """N calls, one after the other; every result has its mapped dimension in front."""
    results = [
        call(*(t if d is None else t.select(d, n) for t, d in zip(arguments, dims, strict=True)))
        for n in range(N)
    ]
    stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
