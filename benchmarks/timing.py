"""How it is measured: candidates take turns in one process, and ratios are taken within a round.

A machine's speed drifts by several per cent over seconds (frequency, neighbours). Candidates that
are measured one after the other inherit that drift; candidates that take turns share it. So one
round runs every candidate once, in an order that rotates from round to round, and the figure that
counts is the median over rounds of (time of A / time of B) in the same round.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Series",
    "Spread",
    "Turn",
    "geometric_mean",
    "interleave",
    "ratio_of_rounds",
    "spread",
    "wall_turn",
]

MIN_ROUNDS = 5
MAX_ROUNDS = 300
_BLOCK_SECONDS = 0.004  # a candidate's turn lasts at least this long: many short calls
_LONG_CALL = 0.03  # a call this long needs no untimed call before it
_SETTLE_SECONDS = 0.003  # with several threads: lets the last pool's workers fall asleep


@dataclass
class Series:
    """Seconds per call of one candidate, one entry per round; None where it sat out."""

    seconds: list[float | None] = field(default_factory=list)
    cpu: float = 0.0  # processor seconds of all threads during timed turns
    wall: float = 0.0  # seconds of timed turns

    @property
    def measured(self) -> list[float]:
        """The rounds in which it ran."""
        return [s for s in self.seconds if s is not None]

    @property
    def cores(self) -> float:
        """Cores kept busy on average: near the thread count, or something else was measured."""
        return self.cpu / self.wall if self.wall else 0.0


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio_of_rounds(numerator: Series, denominator: Series) -> Spread | None:
    """Spread of numerator / denominator over the rounds in which both ran; None without any."""
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    return spread(ratios) if ratios else None


def geometric_mean(values: Iterable[float]) -> float:
    """The mean that is fair to ratios: of 2 and 1/2 it is 1. Raises ValueError on no values."""
    logs = [math.log(value) for value in values]
    if not logs:
        raise ValueError("values: expected at least one ratio, got none")
    return math.exp(sum(logs) / len(logs))


Turn = Callable[[Callable[[], object], int], tuple[float, float]]


def wall_turn(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """(wall, processor) seconds of `calls` calls that are done when they return."""
    cpu = time.process_time()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    wall = time.perf_counter() - begin
    return wall, time.process_time() - cpu


def _warm(call: Callable[[], object], turn: Turn) -> float:
    """Runs until caches, pools and compilers have settled; returns the seconds of one call."""
    call()
    seconds, _ = turn(call, 1)
    if seconds < _LONG_CALL:
        calls = max(2, min(200, int(_LONG_CALL / max(seconds, 1e-6))))
        seconds = turn(call, calls)[0] / calls
    return seconds


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    budget: float,
    principals: Sequence[str] = (),
    threads: int = 1,
    turn: Turn = wall_turn,
) -> dict[str, Series]:
    """Times the candidates in rotating rounds until `budget` seconds are spent.

    At least MIN_ROUNDS rounds, however slow. The principals run in every round; each of the others
    leaves once it has had three rounds and its share of half the budget, so that a slow peer does
    not take the rounds of the pair that matters. Garbage collection is off meanwhile. `turn` is how
    a turn is timed: on a GPU by its own events.
    """
    series = {name: Series() for name in candidates}
    others = [name for name in candidates if name not in principals]
    share = budget / 2 / max(1, len(others))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        estimate = {name: _warm(call, turn) for name, call in candidates.items()}
        calls = {n: max(1, math.ceil(_BLOCK_SECONDS / max(t, 1e-7))) for n, t in estimate.items()}
        names = list(candidates)
        begin = time.perf_counter()
        for round_ in range(MAX_ROUNDS):
            if round_ >= MIN_ROUNDS and time.perf_counter() - begin > budget:
                break
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                mine = series[name]
                if name in others and round_ >= 3 and mine.wall > share:
                    mine.seconds.append(None)
                    continue
                if threads > 1:
                    time.sleep(_SETTLE_SECONDS)
                if estimate[name] < _LONG_CALL:
                    candidates[name]()
                wall, cpu = turn(candidates[name], calls[name])
                mine.seconds.append(wall / calls[name])
                mine.wall += wall
                mine.cpu += cpu
    finally:
        if collecting:
            gc.enable()
    return series
