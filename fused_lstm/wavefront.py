"""Layers side by side on a GPU: layer l + 1 computes a chunk of steps while l computes the next.

    layer 0   | 0 | 1 | 2 | 3 |          chunks of steps; backward goes the same way from the
    layer 1       | 0 | 1 | 2 | 3 |      upper right to the lower left
    layer 2           | 0 | 1 | 2 | 3 |

A persistent kernel waits for most of a step, and a small layer leaves most of the GPU idle. Here
are the plan that says whether chunks pay, the order in which the operators of ops.py are called for
each layer and chunk, with h and c handed on, and the one derivative of it all. The order is the
same without streams, where it computes on the CPU what one layer after the other would: so it is
tested. With streams it has run on no GPU.

Letters as in ops.py, L layers; K chunks of `steps` steps, the last one of what is left.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _extension, function, ops

__all__ = [
    "CALLER",
    "CudaLanes",
    "Lanes",
    "Plan",
    "Wavefront",
    "explain",
    "plan",
    "stack",
    "wants_gradient",
]

# ---- streams -------------------------------------------------------------------------------------

CALLER = -1  # the lane of whoever called: the stream that was current


class Lanes:
    """Queues of work that may run side by side. Here all are one, which computes at once: the CPU.

    What is called inside `on(lane)` is queued on that lane. All lanes begin after `fork`, which
    comes after everything that the caller queued before, and the caller goes on after `join`.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def fork(self) -> None:
        """Has every lane wait for the caller."""

    def join(self) -> None:
        """Has the caller wait for every lane."""

    def on(self, lane: int) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def mark(self, lane: int) -> Any:
        """What stands for all that the lane was given so far."""

    def wait(self, lane: int, mark: Any) -> None:
        """Has a lane wait for what another was given before the mark."""

    def lend(self, lane: int, *tensors: Tensor | None) -> None:
        """Tells the allocator that a lane reads tensors, which other lanes may have made."""


class CudaLanes(Lanes):
    """Lanes that are streams of a GPU, the same ones in every call: the allocator keeps memory for
    each stream by itself.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__(count)
        self._caller = torch.cuda.current_stream(device)
        self._streams = [_stream(device, lane) for lane in range(count)]

    def fork(self) -> None:
        for stream in self._streams:
            stream.wait_stream(self._caller)

    def join(self) -> None:
        for stream in self._streams:
            self._caller.wait_stream(stream)

    def on(self, lane: int) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[lane])

    def mark(self, lane: int) -> Any:
        return self._streams[lane].record_event()

    def wait(self, lane: int, mark: Any) -> None:
        self._streams[lane].wait_event(mark)

    def lend(self, lane: int, *tensors: Tensor | None) -> None:
        stream = self._caller if lane == CALLER else self._streams[lane]
        for t in tensors:
            if t is not None:
                t.record_stream(stream)


@functools.cache
def _stream(device: torch.device, lane: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _lanes(count: int, x: Tensor) -> Lanes:
    return CudaLanes(count, x.device) if x.is_cuda else Lanes(count)


# ---- the order -----------------------------------------------------------------------------------

Ten = Sequence[Tensor | None]  # one layer's weights, see ops.WEIGHT_SLOTS


class Kept(NamedTuple):
    """What backward needs of one layer and chunk."""

    x: Tensor  # [steps, B, I or P]
    h0: Tensor | None  # [1, B, P], before the chunk
    c0: Tensor | None  # [1, B, H]
    y: Tensor  # [steps, B, P]
    reserve: Tensor


def _diagonals(layers: int, chunks: int) -> Iterator[tuple[int, int]]:
    """(layer, chunk), each after what it reads; what may run at once follows one another."""
    for diagonal in range(layers + chunks - 1):
        for layer in range(max(0, diagonal - chunks + 1), min(layers, diagonal + 1)):
            yield layer, diagonal - layer


def forward(
    x: Tensor,  # [T, B, I]
    h0: Tensor | None,  # [L, B, P], None for zeros
    c0: Tensor | None,  # [L, B, H]
    layers: Sequence[Ten],
    steps: int,
    lanes: Lanes,
    saves: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, list[list[Kept]]]:
    """Y [T, B, P], h_n [L, B, P], c_n [L, B, H], and where it `saves` what `backward` needs."""
    L, xs = len(layers), x.split(steps)
    h = [None if h0 is None else h0.narrow(0, layer, 1) for layer in range(L)]
    c = [None if c0 is None else c0.narrow(0, layer, 1) for layer in range(L)]
    ys: list[list[Any]] = [[None] * len(xs) for _ in layers]
    done: list[list[Any]] = [[None] * len(xs) for _ in layers]
    kept: list[list[Kept]] = [[] for _ in layers]
    lanes.fork()
    try:
        for layer, k in _diagonals(L, len(xs)):
            lane = layer % lanes.count
            with lanes.on(lane):
                source = xs[k]
                if layer > 0:
                    lanes.wait(lane, done[layer - 1][k])
                    source = ys[layer - 1][k]
                own = (source, h[layer], c[layer])
                lanes.lend(lane, *own, *(layers[layer] if k == 0 else ()))
                y, h_n, c_n, reserve = ops.forward(
                    source, None, h[layer], c[layer], *layers[layer], saves, tf32
                )
                ys[layer][k], h[layer], c[layer] = y, h_n, c_n
                done[layer][k] = lanes.mark(lane)
            if saves:
                kept[layer].append(Kept(*own, y, reserve))
            elif layer > 0:
                ys[layer - 1][k] = None  # read for the last time
    finally:
        lanes.join()
    lanes.lend(CALLER, *ys[-1], *h, *c)
    return torch.cat(ys[-1]), torch.cat(h), torch.cat(c), kept  # type: ignore[arg-type]


class Wanted(NamedTuple):
    """Which gradients somebody needs."""

    x: bool
    h0: bool
    c0: bool
    weights: Sequence[Sequence[bool]]  # of each layer, ten each

    @property
    def lowest(self) -> int:
        """The lowest layer that has a gradient of its own, or stands between it and its x."""
        if self.x or self.h0 or self.c0:
            return 0
        return next(layer for layer, own in enumerate(self.weights) if any(own))


def backward(
    dy: Tensor | None,  # [T, B, P]; a gradient that is None is zero
    dh_n: Tensor | None,  # [L, B, P]
    dc_n: Tensor | None,  # [L, B, H]
    kept: Sequence[Sequence[Kept]],
    layers: Sequence[Ten],
    wanted: Wanted,
    steps: int,
    lanes: Lanes,
    tf32: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[list[Tensor | None]]]:
    """dx, dh0, dc0, and of each layer the gradients of its ten weights; None where not wanted.

    The parts of a weight's gradient that its chunks give are added in float32 (float64 for that),
    the last chunk first.
    """
    L, K = len(layers), len(kept[0])
    dys: list[list[Any]] = [[None] * K for _ in layers]
    if dy is not None:
        dys[-1] = list(dy.split(steps))
    dxs: list[Any] = [None] * K
    dh = [None if dh_n is None else dh_n.narrow(0, layer, 1) for layer in range(L)]
    dc = [None if dc_n is None else dc_n.narrow(0, layer, 1) for layer in range(L)]
    done: list[list[Any]] = [[None] * K for _ in layers]
    sums: list[list[Tensor]] = [[] for _ in layers]
    grads: list[list[Tensor | None]] = [[None] * ops.WEIGHT_SLOTS for _ in layers]
    lowest = wanted.lowest
    lanes.fork()
    try:
        for from_above, from_end in _diagonals(L - lowest, K):
            layer, k = L - 1 - from_above, K - 1 - from_end
            lane = layer % lanes.count
            needs_dx = wanted.x if layer == 0 else layer > lowest
            needs = [needs_dx, False, k > 0 or wanted.h0, k > 0 or wanted.c0]
            mask = function.needs_mask([*needs, *wanted.weights[layer]])
            own = kept[layer][k]
            incoming: tuple[Any, ...] = (dys[layer][k], dh[layer], dc[layer])
            inputs = (own.x, None, own.h0, own.c0, *layers[layer])
            with lanes.on(lane):
                if layer < L - 1:
                    lanes.wait(lane, done[layer + 1][k])
                lanes.lend(lane, *incoming, *own, *(layers[layer] if k == K - 1 else ()))
                results = ops.backward(*incoming, *inputs, own.y, own.reserve, mask, tf32)
                parts = [results[slot] for slot in _OF_WEIGHTS if mask >> slot & 1]
                sums[layer] = _added(sums[layer], parts)
                done[layer][k] = lanes.mark(lane)
            dys[layer][k] = None  # read for the last time
            dh[layer], dc[layer] = (results[slot] if mask >> slot & 1 else None for slot in (1, 2))
            if layer > 0:
                dys[layer - 1][k] = results[0] if needs_dx else None
            elif needs_dx:
                dxs[k] = results[0]
    finally:
        lanes.join()
    for layer in range(lowest, L):
        lanes.lend(CALLER, dh[layer], dc[layer], *sums[layer])
        flags = [False, False, False, False, *wanted.weights[layer]]
        mask, rest = function.needs_mask(flags), iter(sums[layer])
        dtype = kept[layer][0].x.dtype
        whole = [next(rest).to(dtype) if mask >> slot & 1 else _NONE for slot in range(11)]
        grads[layer] = [*function.spread(whole, flags, (None,) * len(flags))[4:]]
    lanes.lend(CALLER, *dxs)
    return (
        torch.cat(dxs) if wanted.x else None,
        torch.cat(dh) if wanted.h0 else None,  # type: ignore[arg-type]
        torch.cat(dc) if wanted.c0 else None,  # type: ignore[arg-type]
        grads,
    )


_OF_WEIGHTS = range(3, 11)  # results of the backward operator
_NONE = torch.empty(0)  # in place of one that nobody wants


def _added(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    if not sums:
        return [t.float() if t.dtype.itemsize < 4 else t for t in parts]
    for total, part in zip(sums, parts, strict=True):
        total.add_(part)
    return sums


# ---- the derivative ------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How a call is cut up."""

    steps: int  # of a chunk
    lanes: int  # layers in flight
    us: float = 0.0  # predicted for the call, and for one layer after the other
    us_in_order: float = 0.0


class Wavefront(torch.autograd.Function):
    """(steps, lanes, tf32, x, h0, c0, ten weights of each layer) -> (y, h_n, c_n)."""

    @staticmethod
    def forward(
        ctx: Any, steps: int, lanes: Lanes, tf32: bool, *tensors: Any
    ) -> tuple[Tensor, ...]:
        x, h0, c0, *weights = tensors
        layers = _by_layer(weights)
        y, h_n, c_n, kept = forward(x, h0, c0, layers, steps, lanes, True, tf32)
        ctx.set_materialize_grads(False)
        # x and the last layer's y are saved as the caller has them, so that an edit is noticed.
        between = [t for own in kept[:-1] for t in (part.y for part in own)]
        states = [t for own in kept for part in own[1:] for t in (part.h0, part.c0)]
        reserves = [part.reserve for own in kept for part in own]
        ctx.save_for_backward(*tensors, y, *between, *states, *reserves)
        ctx.settings = steps, lanes.count, tf32
        return y, h_n, c_n

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        steps, count, tf32 = ctx.settings
        saved = ctx.saved_tensors
        inputs = saved[: len(ctx.needs_input_grad) - 3]
        needs = ctx.needs_input_grad[3:]
        if dy is None and dh_n is None and dc_n is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return (None, None, None, *_in_order_gradients(inputs, needs, (dy, dh_n, dc_n)))
        x, h0, c0, *weights = inputs
        layers = _by_layer(weights)
        kept = _unpack(x, h0, c0, len(layers), steps, saved[len(inputs) :])
        wanted = Wanted(needs[0], needs[1], needs[2], _by_layer(needs[3:]))
        *of_inputs, of_weights = backward(
            dy, dh_n, dc_n, kept, layers, wanted, steps, _lanes(count, x), tf32
        )
        return (None, None, None, *of_inputs, *(t for own in of_weights for t in own))


def _by_layer(flat: Sequence[Any]) -> list[Sequence[Any]]:
    each = ops.WEIGHT_SLOTS
    return [flat[k : k + each] for k in range(0, len(flat), each)]


def _unpack(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, L: int, steps: int, saved: Sequence[Any]
) -> list[list[Kept]]:
    """What `forward` kept, from what Wavefront.forward saved of it."""
    y, *rest = saved
    xs = x.split(steps)
    K = len(xs)
    between, states = rest[: (L - 1) * K], rest[(L - 1) * K : (L - 1) * K + 2 * L * (K - 1)]
    reserves = rest[len(between) + len(states) :]
    ys = [*(between[k * K : (k + 1) * K] for k in range(L - 1)), y.split(steps)]
    kept: list[list[Kept]] = []
    for layer in range(L):
        hs = [None if h0 is None else h0.narrow(0, layer, 1)]
        cs = [None if c0 is None else c0.narrow(0, layer, 1)]
        own = states[2 * layer * (K - 1) : 2 * (layer + 1) * (K - 1)]
        hs, cs = [*hs, *own[0::2]], [*cs, *own[1::2]]
        sources = xs if layer == 0 else ys[layer - 1]
        parts = zip(sources, hs, cs, ys[layer], reserves[layer * K : (layer + 1) * K], strict=True)
        kept.append([Kept(*part) for part in parts])
    return kept


def _in_order_gradients(
    inputs: Sequence[Tensor | None], needs: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The same gradients with a derivative of their own, from one layer after the other."""

    def again(*changing: Tensor) -> tuple[Tensor, ...]:
        rest = iter(changing)
        y: Any
        y, h0, c0, *weights = (
            next(rest) if need else t for t, need in zip(inputs, needs, strict=True)
        )
        h_n, c_n = [], []
        for layer, own in enumerate(_by_layer(weights)):
            state = (None if t is None else t.narrow(0, layer, 1) for t in (h0, c0))
            y, h, c = function.transformed_layer(y, None, *state, *own)
            h_n.append(h)
            c_n.append(c)
        results: tuple[Tensor, ...] = (y, torch.cat(h_n), torch.cat(c_n))
        return tuple(t for t, g in zip(results, grads, strict=True) if g is not None)

    changing = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    found = iter(function.gradients(again, changing, [g for g in grads if g is not None], True))
    return [next(found) if need else None for need in needs]


def stack(
    x: Tensor,  # [T, B, I]
    h0: Tensor | None,  # [L, B, P], None for zeros
    c0: Tensor | None,  # [L, B, H]
    weights: Sequence[Tensor | None],  # ten of each layer
    chosen: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers, with a gradient where one is asked for: y [T, B, P], h_n [L, B, P], c_n."""
    tf32 = not x.is_cpu and function.tf32_allowed()
    lanes = _lanes(chosen.lanes, x)
    if wants_gradient((x, h0, c0, *weights)):
        results: Any = Wavefront.apply(chosen.steps, lanes, tf32, x, h0, c0, *weights)
        y, h_n, c_n = results
    else:
        layers = _by_layer(weights)
        y, h_n, c_n, _ = forward(x, h0, c0, layers, chosen.steps, lanes, False, tf32)
    return y, h_n, c_n


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd will ask for a gradient of any of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# ---- the plan ------------------------------------------------------------------------------------

# Arithmetic about an H100, as the cost table in csrc/kernels/cuda/plan.cpp is: microseconds of a
# call besides its steps (weights packed, input projected, launches one after the other) on the GPU,
# and of the host, which makes all calls by itself. Inference, training.
CALL_US = (25.0, 70.0)
HOST_US = (60.0, 170.0)
LEAST_STEPS = 16
GAIN = 0.8  # of the time that one layer after the other takes: what is only just quicker is not


def plan(
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    L: int,
    dtype: torch.dtype,
    training: bool,  # whether gradients will be wanted
    tf32: bool,
    index: int,  # of the GPU
) -> Plan | None:
    """How to compute L layers of one direction side by side; None: one after the other.

    Only where the families that compute them stay on the GPU from step to step and there is room
    for two layers at least, and no family is forced. Only in float32: c and its gradient would be
    rounded to 16 bits at the end of every chunk, and within a kernel they never are. Goes by the
    cost table: what tuning.py has measured is about layers by themselves.
    """
    if not _extension.across_blocks or L < 2 or dtype is not torch.float32:
        return None
    module = _extension.require_cuda()
    if module.forced_family() is not None:
        return None
    facts = tuple(sorted(module.device_facts(index).items()))
    return _plan(T, B, I, H, L, training, tf32, facts)


@functools.lru_cache(maxsize=256)
def _plan(
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    L: int,
    training: bool,
    tf32: bool,
    facts: tuple[tuple[str, int], ...],
) -> Plan | None:
    module, device = _extension.require_cuda(), dict(facts)
    first, others = (
        module.families(T, B, features, H, H, 1, "float32", training, tf32, device)[0]
        for features in (I, H)
    )
    if first["room"] == 0 or others["room"] == 0:
        return None  # stepwise
    call, host = CALL_US[training], HOST_US[training]
    lanes = min(L, *(one["room"] // one["blocks"] for one in (first, others)))
    if lanes < 2:
        return None
    in_order = T * (first["us"] + (L - 1) * others["us"]) + L * call
    slowest = max(first["us"], others["us"])
    best = None
    steps = (T + 1) // 2
    while steps >= LEAST_STEPS:
        K = -(-T // steps)
        us = max((K * L / lanes + lanes - 1) * (steps * slowest + call), K * L * host)
        if best is None or us < best.us:
            best = Plan(steps, lanes, us, in_order)
        steps = (steps + 1) // 2
    return best if best is not None and best.us < GAIN * in_order else None


def explain(chosen: Plan, T: int, L: int) -> str:
    """One line about a plan."""
    return (
        f"as a wavefront: {chosen.lanes} of {L} layers at once on a stream each, "
        f"{chosen.steps} of {T} steps at a time; predicted {chosen.us:.0f} us for the call and "
        f"{chosen.us_in_order:.0f} us for one layer after the other"
    )
