"""What the smaller comparisons share: ways to compute the same thing that take turns in one process
(timing.py), a row for each, and a file for all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import environment, options, timing

__all__ = ["WRAPPERS", "compare", "write"]


def _with_backward(call: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: call().sum().backward()


def _without_gradient(call: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


WRAPPERS = {"inference": _without_gradient, "training": _with_backward}


def compare(
    ways: Mapping[str, Callable[[], Tensor]],  # the first is the plain one
    mode: str,  # of WRAPPERS
    budget: float,  # seconds
    principals: Sequence[str],  # see timing.interleave
    threads: int,
    turn: timing.Turn = timing.wall_turn,
) -> list[dict[str, Any]]:
    """A printed row for each: the median, and how many times the first one's time it takes."""
    calls = {name: WRAPPERS[mode](way) for name, way in ways.items()}
    series = timing.interleave(calls, budget, principals, threads, turn)
    plain, rows = series[next(iter(calls))], []
    for name in calls:
        ratio = timing.ratio_of_rounds(series[name], plain)
        row = {
            "mode": mode,
            "way": name,
            "ms": 1e3 * timing.spread(series[name].measured).median,
            "over_plain": ratio.median if ratio else None,
            "rounds": len(series[name].measured),
        }
        rows.append(row)
        print("{mode:10} {way:42} {ms:9.2f} ms {over_plain:7.2f}".format(**row), flush=True)
    return rows


def write(name: str, content: dict[str, Any], out: Path | None = None) -> None:
    """Writes results/<machine>/<name>.json, or `out`: the content, and where and how it came."""
    folder = Path(__file__).parent / "results" / environment.machine_slug()
    out = out or folder / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = options.command_line(sys.argv[1:], f"{name}.py")
    result = {"environment": environment.describe(command), **content}
    out.write_text(json.dumps(result, indent=1) + "\n")
