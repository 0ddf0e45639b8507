"""The short way of inference: from the module to the kernels, past torch's dispatcher.

At a few steps of few rows the way through the operator takes as long as computing. This one is
open where it makes no difference: no gradient is recorded, nothing traces, transforms,
casts or profiles the call, no mode stands between, and every argument is a dense CPU tensor of one
dtype and of the right sizes. It refuses nothing: what it does not take is None, for whoever looks
more closely. csrc/binding/direct.cpp is the other half.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import _extension

__all__ = ["cell", "frozen", "stack"]

_BIASES, _REVERSE, _PROJECTED, _BATCH_FIRST, _CELL, _FROZEN = 1, 2, 4, 8, 16, 32


def _connect() -> Any:
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if exchange is None or not _extension.load():
        return None
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    try:
        return _extension.require().connect_direct(
            exchange, Tensor, nn.Parameter, torch.empty, dtypes
        )
    except TypeError:  # a torch whose parts are others
        return None


_direct = _connect()


def stack(
    input: Any,  # [T, B, I], [B, T, I] where batch_first, or [T, I]
    hx: Any,
    weights: list[Tensor],  # as nn.LSTM orders them
    num_layers: int,
    bias: bool,
    batch_first: bool,
    bidirectional: bool,
    proj_size: int,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """All layers of nn.LSTM without dropout: y and (h_n, c_n), or None."""
    if torch.compiler.is_compiling() or _is_watched():
        return None
    flags = (
        (_BIASES if bias else 0)
        + (_REVERSE if bidirectional else 0)
        + (_PROJECTED if proj_size else 0)
        + (_BATCH_FIRST if batch_first else 0)
    )
    return _direct(input, hx, weights, num_layers, flags)


def cell(input: Any, hx: Any, weights: list[Any]) -> tuple[Tensor, Tensor] | None:
    """One step of nn.LSTMCell of a batch [B, I]: h and c, or None. Biases may be None."""
    if torch.compiler.is_compiling() or _is_watched():
        return None
    if weights[2] is None and weights[3] is None:
        return _direct(input, hx, weights[:2], 1, _CELL)
    return _direct(input, hx, weights, 1, _CELL + _BIASES)


def frozen(
    input: Any,  # as of `stack`
    hx: Any,
    packed: tuple[Any, ...],  # hidden_size, then what ops.frozen_forward takes of each layer
    batch_first: bool,
    bidirectional: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """`stack` from frozen weights, which the caller has found unchanged."""
    if torch.compiler.is_compiling() or _is_watched():
        return None
    flags = _FROZEN + (_REVERSE if bidirectional else 0) + (_BATCH_FIRST if batch_first else 0)
    return _direct(input, hx, packed, 0, flags)


def _is_watched() -> bool:
    """Whether anybody would miss the operator, or there is no other way."""
    return (
        torch.is_grad_enabled()
        or _direct is None
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )
