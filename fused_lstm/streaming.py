"""`Streaming`: an LSTM fed piece by piece, for inference on data that arrives as it is made.

It holds what an LSTM knows of the past, (h, c) of each layer, and hands it from piece to piece. A
step goes by the short way of inference (direct.py); wherever that is closed (another device,
autocast, a compiled graph, hooks on the module), the module is called as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import direct
from .modules import LSTM

__all__ = ["Streaming"]

State = tuple[Tensor, Tensor]


class Streaming:
    """A unidirectional LSTM that reads B streams piece by piece and keeps their state.

    Args:
        lstm: a `fused_lstm.LSTM` in eval mode, or an nn.LSTM that `convert` has made one. Its
            weights are read anew with every piece.
        batch_size: streams B that run side by side.
        exact: every step by a call of its own, so that results do not depend, to the last bit, on
            where the streams are cut. Slower for pieces of many steps, the same for single ones.

    Call it as `y = stream(x)`. A piece x is [T, B, I] or, when the LSTM is batch_first, [B, T, I],
    with any T >= 1; y is like it with P features. A single step may be [B, I], and y is [B, P]
    then. Nothing is recorded for autograd: the state is cut from all history.

    Pieces of any length give what the whole sequence would, up to the order in which sums are
    formed; docs/recipes/streaming.md says where that is to the bit. For bfloat16 and float16, c is
    kept in that type between pieces and in float32 within one.

    Raises:
        TypeError: lstm is no LSTM of ours, or has a forward of its own; batch_size is no integer.
            In a call: x is no Tensor.
        ValueError: batch_size < 1, or lstm is bidirectional: its second direction begins at the
            end, which a stream does not have. In a call: x has other sizes, or another dtype.
        RuntimeError: lstm is in training mode, for a stream has dropout off and no gradients; in a
            call: x asks for a gradient, has no steps, or is being transformed by torch.func.
    """

    def __init__(self, lstm: nn.Module, batch_size: int = 1, *, exact: bool = False) -> None:
        own_forward = isinstance(lstm, nn.Module) and "forward" in vars(lstm)
        if (
            not isinstance(lstm, nn.RNNBase)
            or getattr(type(lstm), "forward", None) is not LSTM.forward
            or own_forward
        ):
            kind = type(lstm).__qualname__
            raise TypeError(
                f"lstm: expected a fused_lstm.LSTM with its own forward, got {kind}"
                + ("; fused_lstm.convert makes one of it" if type(lstm) is nn.LSTM else "")
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size: expected an int, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if lstm.bidirectional:
            raise ValueError(
                "lstm: expected one direction, got bidirectional=True: the second direction "
                "begins at the end, which a stream does not have"
            )
        self._lstm: Any = lstm
        self._batch_size = batch_size
        self._exact = bool(exact)
        self._state: State | None = None  # [L, B, P] and [L, B, H]
        self._check_mode()

    @property
    def batch_size(self) -> int:
        """Streams that run side by side."""
        return self._batch_size

    @property
    def state(self) -> State:
        """A copy of h [L, B, P] and c [L, B, H], batch_first or not; it may be assigned to.

        What is assigned is copied, and has to have the weights' dtype and device: TypeError,
        ValueError otherwise.
        """
        if self._state is None:
            return self._zeros()
        h, c = self._state
        return h.clone(), c.clone()

    @state.setter
    def state(self, value: Sequence[Tensor]) -> None:
        self._state = _checked_state(value, self._zeros())

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Forgets the past, so that new streams begin.

        Args:
            rows: which streams: their numbers, or a bool Tensor [B]; None for all of them.

        Raises:
            TypeError: rows is a Tensor of another dtype than bool or int64.
            IndexError: a number that no stream has, or a mask of another size.
        """
        if rows is None:
            self._state = None
            return
        index = _row_numbers(rows, self._batch_size)
        # Not in place, which torch refuses for what was computed in inference_mode.
        if self._state is not None:
            h, c = self._state
            self._state = (
                h.index_fill(1, index.to(h.device), 0),
                c.index_fill(1, index.to(c.device), 0),
            )

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
        lstm = self._lstm
        is_step = x.dim() == 2
        if is_step:
            piece = x.unsqueeze(0)
        else:
            piece = x.transpose(0, 1) if lstm.batch_first and x.dim() == 3 else x
        weights = lstm._current_weights()
        if torch._C._are_functorch_transforms_active() and _is_transformed(x, *weights):
            raise RuntimeError(
                "x: expected nothing that torch.func transforms, got it: the state would be the "
                "transform's. Use lstm(x, hx) there"
            )
        self._check_piece(x, piece, weights[0])
        # What torch.no_grad() does, which takes 2 us for it: a tenth of a step.
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            if self._exact and piece.shape[0] > 1:
                y = torch.cat([self._feed(step, weights) for step in piece.split(1)])
            else:
                y = self._feed(piece, weights)
        finally:
            torch._C._set_grad_enabled(before)
        if is_step:
            return y.squeeze(0)
        return y.transpose(0, 1) if lstm.batch_first else y

    def __repr__(self) -> str:
        exact = ", exact=True" if self._exact else ""
        return f"Streaming({self._lstm!r}, batch_size={self._batch_size}{exact})"

    def _feed(self, piece: Tensor, weights: list[Tensor]) -> Tensor:  # [T, B, I] -> [T, B, P]
        lstm = self._lstm
        if not (lstm._forward_pre_hooks or lstm._forward_hooks):
            results = None
            if lstm._frozen is not None:
                lstm._frozen.check(lstm, weights)
                results = direct.frozen(piece, self._state, lstm._frozen.packed, False, False)
            elif lstm.extras is None:
                own = lstm.num_layers, lstm.bias, False, False, lstm.proj_size
                results = direct.stack(piece, self._state, weights, *own)
            if results is not None:
                y, self._state = results
                return y
        x = piece.transpose(0, 1) if lstm.batch_first else piece
        y, self._state = lstm(x, self._state)
        return y.transpose(0, 1) if lstm.batch_first else y

    def _check_piece(self, x: Tensor, piece: Tensor, w_ih: Tensor) -> None:
        lstm = self._lstm
        B, I = self._batch_size, lstm.input_size  # noqa: E741
        if piece.dim() != 3 or piece.shape[1] != B or piece.shape[2] != I:
            full = f"[{B}, T, {I}]" if lstm.batch_first else f"[T, {B}, {I}]"
            raise ValueError(f"x: expected {full} or, for one step, [{B}, {I}], got {[*x.shape]}")
        if piece.shape[0] == 0:
            raise RuntimeError("x: expected at least one step, got none")
        if x.dtype is not w_ih.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(f"x: expected {w_ih.dtype} as the weights, got {x.dtype}")
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "x: expected no gradient to be asked for, got requires_grad=True: a stream is for "
                "inference. Train with lstm(x, hx), or pass x.detach()"
            )
        if self._state is not None:
            h = self._state[0]
            if h.dtype is not w_ih.dtype and not torch._C._is_any_autocast_enabled():
                raise ValueError(
                    f"lstm: its weights are {w_ih.dtype} now, its state is {h.dtype}: reset() "
                    "begins anew"
                )
        self._check_mode()

    def _check_mode(self) -> None:
        if self._lstm.training:
            raise RuntimeError(
                "lstm: expected eval mode, got training mode: a stream has dropout off and no "
                "gradients. Call lstm.eval() first"
            )

    def _zeros(self) -> State:
        lstm = self._lstm
        w_ih = lstm._current_weights()[0]
        shape = (lstm.num_layers, self._batch_size)
        h = w_ih.new_zeros(*shape, lstm.proj_size or lstm.hidden_size)
        return h, w_ih.new_zeros(*shape, lstm.hidden_size)


def _is_transformed(*tensors: Tensor) -> bool:
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def _checked_state(value: Any, like: State) -> State:
    """Copies of h and c that are as `like` is, without history."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"state: expected a pair of Tensors (h, c), got {type(value).__name__}")
    copies = []
    for name, t, zeros in zip("hc", value, like, strict=True):
        if not isinstance(t, Tensor):
            raise TypeError(f"state: expected {name} to be a Tensor, got {type(t).__name__}")
        expected, got = _describe(zeros), _describe(t)
        if expected != got:
            raise ValueError(f"state: expected {name} to be {expected}, got {got}")
        copies.append(t.detach().clone())
    return copies[0], copies[1]


def _describe(t: Tensor) -> str:
    return f"{[*t.shape]} of {t.dtype} on device '{t.device}'"


def _row_numbers(rows: Sequence[int] | Tensor, batch_size: int) -> Tensor:
    """Indices of streams, int64."""
    try:
        index = rows if isinstance(rows, Tensor) else torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"rows: expected numbers of streams or a mask, got {type(rows).__name__} ({error})"
        ) from error
    if index.numel() == 0 and not isinstance(rows, Tensor):
        index = index.to(torch.int64)
    if index.dtype is torch.bool:
        if index.shape != (batch_size,):
            raise IndexError(f"rows: expected a mask [{batch_size}], got {[*index.shape]}")
        return index.nonzero().squeeze(1)
    if index.dtype is not torch.int64:
        raise TypeError(f"rows: expected bool or int64, got {index.dtype}")
    index = index.reshape(-1)
    if index.numel() and not -batch_size <= int(index.min()) <= int(index.max()) < batch_size:
        raise IndexError(f"rows: expected numbers of {batch_size} streams, got {index.tolist()}")
    return index % batch_size
