"""One row of the benchmark: prepare the candidates, check that they agree, time them, sum it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.cases import Case, flops
from benchmarks.noise import Watch
from benchmarks.peers import (
    Candidate,
    UnavailableError,
    Workload,
    expected_result,
    explain,
    mismatch,
    prepare,
    workload,
)
from benchmarks.timing import (
    Series,
    Spread,
    Turn,
    interleave,
    ratio_of_rounds,
    spread,
    wall_turn,
)

__all__ = ["MismatchError", "measure_row", "timed"]

_REFERENCE = "torch"


class MismatchError(Exception):
    """fused_lstm computed something else than nn.LSTM: there is nothing to time."""


def _prepare_all(
    work: Workload, peers: Sequence[str], unavailable: dict[str, str]
) -> dict[str, Candidate]:
    """The candidates that agree with nn.LSTM; the reasons of the others go into `unavailable`."""
    expected = expected_result(work)
    ready = {_REFERENCE: prepare(_REFERENCE, work)}
    for name in peers:
        if name == _REFERENCE:
            continue
        try:
            candidate = prepare(name, work)
            fault = mismatch(candidate.result(), expected, work.dtype)
        except UnavailableError as error:
            unavailable.setdefault(name, str(error))
            continue
        if fault and name == "fused":
            raise MismatchError(f"fused_lstm.LSTM at {work.case.name}, {work.mode}: {fault}")
        if fault:
            unavailable[f"{name} at {work.case.name}, {work.mode}"] = fault
            continue
        ready[name] = candidate
    return ready


def _as_dict(value: Spread | None) -> dict[str, float] | None:
    return None if value is None else {k: round(v, 4) for k, v in dataclasses.asdict(value).items()}


def _summary(series: Series, reference: Series, operations: float) -> dict[str, Any]:
    """The figures of one candidate: milliseconds per call, GF/s, ratio of nn.LSTM's time to it."""
    milliseconds = spread([1e3 * seconds for seconds in series.measured])
    return {
        "ms": round(milliseconds.median, 6),
        "ms_low": round(milliseconds.low, 6),
        "ms_high": round(milliseconds.high, 6),
        "gflops": round(operations / milliseconds.median / 1e6, 2),
        "ratio": _as_dict(ratio_of_rounds(reference, series)),
        "rounds": len(series.measured),
        "cores": round(series.cores, 2),
    }


def timed(
    calls: Mapping[str, Callable[[], object]],
    operations: float,
    budget: float,
    retries: int = 0,
    threads: int = 1,
    turn: Turn = wall_turn,
) -> dict[str, Any]:
    """The measured part of a row: `implementations`, `fused_versus` and `noise`.

    A measurement that other work disturbed is repeated up to `retries` times and the quietest is
    kept; if that one was disturbed too, its row says so. nn.LSTM must be among the calls.
    """
    best = None
    for attempt in range(1 + retries):
        watch = Watch(threads)
        series = interleave(calls, budget, (_REFERENCE, "fused"), threads, turn)
        noise = watch.stop()
        foreign = (noise.other_cores or 0.0) + (noise.stolen_cores or 0.0)
        if best is None or foreign < best[0]:
            best = (foreign, series, noise, attempt + 1)
        if not noise.noisy:
            break
    assert best is not None
    _, series, noise, attempts = best
    reference = series[_REFERENCE]
    versus = {
        name: _as_dict(ratio_of_rounds(one, series["fused"]))
        for name, one in series.items()
        if name != "fused" and "fused" in series
    }
    return {
        "implementations": {n: _summary(one, reference, operations) for n, one in series.items()},
        "fused_versus": versus,
        "noise": {**dataclasses.asdict(noise), "attempt": attempts},
    }


def measure_row(
    group: str,
    case: Case,
    mode: str,
    dtype: str,
    threads: int,
    peers: Sequence[str],
    budget: float,
    retries: int,
    unavailable: dict[str, str],
) -> dict[str, Any]:
    """Measures one shape in one mode, dtype and thread count.

    `budget` is in seconds of timing; `unavailable` receives why a peer took no part.

    Raises:
        MismatchError: fused_lstm and nn.LSTM disagree.
        UnavailableError: the extension is missing.
    """
    torch.set_num_threads(threads)
    work = workload(case, mode, getattr(torch, dtype), threads)
    candidates = _prepare_all(work, peers, unavailable)
    calls = {name: candidate.call for name, candidate in candidates.items()}
    operations = flops(case, mode)
    return {
        "shape": case.name,
        "group": group,
        "mode": mode,
        "dtype": dtype,
        "threads": threads,
        "gflop": operations / 1e9,
        "plan": explain(work) if "fused" in calls else None,
        **timed(calls, operations, budget, retries, threads),
    }
