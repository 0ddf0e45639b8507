"""Frozen weights: packed once by `LSTM.freeze`, for inference with few rows, until `thaw`.

An ordinary call reads the parameters where they lie, so that any of them may change at any time. A
frozen module computes from a copy instead, laid out for the kernel and, if asked, stored in fewer
bits. Such a copy may go stale, so it exists only where somebody asked for it, and every call holds
the parameters against what they were: the same objects, at the same place, with the same version
counter. Two things do not count there: an edit through `.data`, so that parameters are
`WatchedParameter`s while frozen, whose `.data` does count; and a fused step of an optimizer, which
a hook after the steps of all optimizers counts.

What is computed: csrc/kernels/frozen.h. x, h, c and all sums are float32; but products with int8
weights take x and h in 16 bits where integers are quicker, see csrc/kernels/cpu/bytes.h.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from . import _extension, dispatch, export, ops

__all__ = ["Frozen", "WatchedParameter", "freeze", "thaw"]

UNITS = 16  # of a panel: kFrozenUnits of frozen.h
QUAD = 4  # columns of an 8-bit matrix that lie side by side
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_REMEDY = "call lstm.thaw(), or lstm.freeze() again"

State = tuple[Tensor, Tensor]


class WatchedParameter(nn.Parameter):
    """A parameter of a frozen module: what is done to its `.data` moves its version counter too."""

    @property
    def data(self) -> Tensor:
        return self.detach()  # which shares the counter, as `.data` of a Tensor does not

    @data.setter
    def data(self, value: Tensor) -> None:
        kept = _place(value) == _place(self)
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        if not kept:
            torch.autograd.graph.increment_version(self)


def _place(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.dtype, t.device, t.shape, t.stride()


class Watch(NamedTuple):
    """A parameter as it was when its values were packed."""

    parameter: Tensor
    version: int
    pointer: int
    memory: Tensor  # keeps it from being given to another tensor while we compare addresses

    def sees_change(self, now: Tensor) -> bool:
        return (
            now is not self.parameter
            or type(now) is not WatchedParameter
            or now._version != self.version
            or now.data_ptr() != self.pointer
        )


def _count_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Fused steps of an optimizer do not move the version counters of what they change."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if type(p) is WatchedParameter and p.grad is not None:
                torch.autograd.graph.increment_version(p)


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_count_step)


class Frozen:
    """The packed weights of an LSTM. Copies and pickles hold the way to store them alone: the
    module that is loaded packs its own weights anew.
    """

    def __init__(self, weights: str, hidden_size: int = 0) -> None:
        self.weights = weights
        self.hidden_size = hidden_size
        self.layers: list[tuple[Tensor | None, ...]] = []  # as ops.frozen_forward takes them
        self.packed: tuple[Any, ...] = ()  # hidden_size and the layers, as direct.frozen takes them
        self.watches: list[Watch] = []

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Frozen, (self.weights,)

    def check(self, lstm: Any, now: Sequence[Tensor], *inputs: Tensor) -> None:
        """Refuses whatever the packed weights are not for.

        Args:
            lstm: the frozen module.
            now: its weights at this moment.
            inputs: x and the states of the call.

        Raises:
            RuntimeError: saying what, and how to thaw.
        """
        if torch._C._is_tracing() or export.is_exporting():
            self._refuse("tracing or export", "a graph cannot notice that weights changed")
        if dispatch._transforms():
            self._refuse("a transform of torch.func", "it has no derivative and no rule for vmap")
        for name, watch, t in zip(lstm._flat_weights_names, self.watches, now, strict=True):
            if watch.sees_change(t):
                raise RuntimeError(
                    f"{name}: expected the weights as they were at freeze(), got others: weights "
                    f"changed since freeze(): {_REMEDY}"
                )
        if lstm.training:
            raise RuntimeError(
                "lstm: expected eval mode while it is frozen, got training mode: call lstm.eval(), "
                "or lstm.thaw() to train it"
            )
        if torch.is_grad_enabled():
            for name, tensors in (("input or hx", inputs), ("weights", now)):
                if any(t.requires_grad for t in tensors):
                    raise RuntimeError(
                        f"{name}: expected no gradient to be wanted of a frozen LSTM, got "
                        "requires_grad=True: call it under torch.no_grad() or "
                        "torch.inference_mode(), or lstm.thaw() to train it"
                    )
        if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu"):
            self._refuse("autocast", "it computes in float32: turn autocast off around it")

    def _refuse(self, what: str, why: str) -> None:
        raise RuntimeError(
            f"lstm: expected no {what} while it is frozen, got it: {why}; or call lstm.thaw()"
        )

    def run(
        self, x: Tensor, batch_sizes: Tensor | None, states: Sequence[State] | None
    ) -> tuple[Tensor, list[State]]:
        """All layers of a checked call: y, and h [D, B, H] and c [D, B, H] of each layer."""
        if not x.is_cpu:
            raise RuntimeError(
                f"input: expected a tensor on the CPU like the weights, got one on '{x.device}'"
            )
        y, after = x, []
        for layer, own in enumerate(self.layers):
            h0, c0 = (None, None) if states is None else states[layer]
            y, h, c = ops.frozen_forward(y, batch_sizes, h0, c0, self.hidden_size, *own)
            after.append((h, c))
        return y, after

    def stack(
        self,
        x: Tensor,  # [T, B, I] or packed [N, I]
        batch_sizes: Tensor | None,
        batch: int,
        hx: Sequence[Tensor] | None,
        weights: Sequence[Tensor],
        options: dispatch.Options,
    ) -> tuple[Tensor, State]:
        """`dispatch.stack` from the packed weights."""
        states = None
        dispatch._check_uniform(x, hx, ())
        if hx is not None:
            D = 2 if options.bidirectional else 1
            states = list(zip(hx[0].split(D), hx[1].split(D), strict=True))
        y, after = self.run(x, batch_sizes, states)
        if len(after) == 1:
            return y, after[0]
        h_n, c_n = zip(*after, strict=True)
        return y, (torch.cat(h_n), torch.cat(c_n))

    def explain(self, T: int, B: int, features: int, D: int, threads: int) -> str:
        """One line about one layer, as dispatch.explain_plan gives it."""
        sizes = (T, B, features, self.hidden_size, D)
        line: str = _extension.require().explain_frozen(*sizes, self.weights, threads)
        return line


def freeze(lstm: Any, weights: str) -> Frozen:
    """Packs the weights of a module and watches its parameters; see `LSTM.freeze`."""
    if weights not in _DTYPES:
        raise ValueError(f"weights: expected one of {', '.join(_DTYPES)}, got {weights!r}")
    _extension.require()
    now = lstm._current_weights()
    _check_module(lstm, now, weights)
    _watch_optimizers()
    frozen = Frozen(weights, lstm.hidden_size)
    directions, each = (2 if lstm.bidirectional else 1), (4 if lstm.bias else 2)
    with torch.no_grad():
        sides = [_pack(now[k : k + each], weights) for k in range(0, len(now), each)]
    none = (None, None, None)
    for k in range(0, len(sides), directions):
        frozen.layers.append((*sides[k], *(sides[k + 1] if directions == 2 else none)))
    frozen.packed = (lstm.hidden_size, *frozen.layers)
    for p in now:
        p.__class__ = WatchedParameter
        frozen.watches.append(Watch(p, p._version, p.data_ptr(), p.detach()))
    return frozen


def thaw(lstm: Any) -> None:
    """Gives the parameters their class back; see `LSTM.thaw`."""
    for watch in lstm._frozen.watches:
        if type(watch.parameter) is WatchedParameter:
            watch.parameter.__class__ = nn.Parameter  # type: ignore[assignment]


def _check_module(lstm: Any, now: Sequence[Tensor], weights: str) -> None:
    if lstm.proj_size:
        raise NotImplementedError(
            f"proj_size: expected 0 to freeze an LSTM, got {lstm.proj_size}: there is no kernel "
            "from frozen weights with a projection"
        )
    if lstm.extras is not None and any(lstm.extras.zoneout):
        raise NotImplementedError(
            f"zoneout: expected 0 to freeze an LSTM, got {lstm.extras.zoneout}: it acts in "
            "evaluation too, and there is no kernel from frozen weights with it"
        )
    for name, p in zip(lstm._flat_weights_names, now, strict=True):
        if type(p) not in (nn.Parameter, WatchedParameter):
            raise TypeError(
                f"{name}: expected an nn.Parameter to freeze, got {type(p).__name__}: what is "
                "pruned, parametrized or computed has no version that could be watched"
            )
        if p.dtype is not torch.float32 or not p.is_cpu:
            raise ValueError(
                f"{name}: expected torch.float32 on the CPU to freeze, got {p.dtype} on device "
                f"'{p.device}'"
            )
        if p.is_inference():
            raise ValueError(
                f"{name}: expected a parameter made outside torch.inference_mode, got one made "
                "inside, whose changes are not counted"
            )
        if weights == "int8" and not bool(p.isfinite().all()):
            raise ValueError(f"{name}: expected finite values to store as int8, got inf or nan")


def _pack(own: Sequence[Tensor], weights: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Panels, scales and bias of one direction, see frozen.h."""
    w_ih, w_hh = own[:2]
    bias = own[2] + own[3] if len(own) == 4 else w_ih.new_zeros(w_ih.shape[0])
    if weights != "int8":
        rows = torch.cat([w_ih, w_hh], 1).to(_DTYPES[weights])
        return _panels(rows), None, _panels(bias[:, None]).squeeze(1)
    (q_ih, s_ih), (q_hh, s_hh) = _quantised(w_ih), _quantised(w_hh)
    scales = torch.stack([_panels(s[:, None]).squeeze(1) for s in (s_ih, s_hh)])
    return _int8_panels(q_ih, q_hh), scales, _panels(bias[:, None]).squeeze(1)


def _quantised(w: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and, for each row, what a unit of it stands for: the largest of the row is 127."""
    scale = w.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (w / scale[:, None]).round_().to(torch.int8), scale


def _panels(rows: Tensor) -> Tensor:  # [4H, K] -> [ceil(H/16), K, 4, 16], see frozen.h
    H, K = rows.shape[0] // 4, rows.shape[1]
    count = -(-H // UNITS)
    padded = rows.new_zeros(4, count * UNITS, K)
    padded[:, :H] = rows.view(4, H, K)
    panels = _on_large_pages(rows, count, K)
    if rows.dtype == torch.bfloat16:  # gates in pairs: i beside f, g beside o
        pairs = padded.view(2, 2, count, UNITS, K).permute(2, 4, 0, 3, 1)
        panels.view(count, K, 2, UNITS, 2).copy_(pairs)
        return panels
    return panels.copy_(padded.view(4, count, UNITS, K).permute(1, 3, 0, 2))


def _int8_panels(ih: Tensor, hh: Tensor) -> Tensor:
    """W_ih [4H, I] and W_hh [4H, H] with four k of a unit side by side and 128 added to each:
    [ceil(H/16), 4 ceil(I/4) + 4 ceil(H/4), 4, 16], see frozen.h.
    """
    H = hh.shape[1]
    count = -(-H // UNITS)
    rows = [-(-w.shape[1] // QUAD) * QUAD for w in (ih, hh)]
    panels = _on_large_pages(ih, count, sum(rows))
    for w, part in zip((ih, hh), panels.split(rows, 1), strict=True):
        padded = w.new_zeros(4, count * UNITS, part.shape[1])
        padded[:, :H, : w.shape[1]] = w.view(4, H, -1)
        quads = padded.view(4, count, UNITS, -1, QUAD).permute(1, 3, 0, 2, 4)
        part.copy_(quads.bitwise_xor(-128).reshape(part.shape))  # -128: the bit that adds 128
    return panels


def _on_large_pages(like: Tensor, count: int, rows: int) -> Tensor:
    panels = like.new_empty(count, rows, 4, UNITS)
    # A step walks through all of it: on small pages every few lines wait for an address.
    _extension.require().prefer_large_pages(panels.data_ptr(), panels.nbytes)
    return panels


def __getattr__(name: str) -> Any:
    """`outside_graphs(f, ...)` calls f where torch.compile breaks its graph for it. Made when a
    graph is first traced: only there torch._dynamo has been imported, a second's work.
    """
    if name != "outside_graphs":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    reason = "a frozen LSTM looks at its weights' versions, which no graph can: lstm.thaw()"
    globals()[name] = torch.compiler.disable(lambda f, *own: f(*own), reason=reason)
    return globals()[name]
