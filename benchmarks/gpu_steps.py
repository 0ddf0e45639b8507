"""Microseconds per step against the model's floor, and what launches and synchronisation cost.

    python benchmarks/gpu_steps.py --seconds 60 --json steps.json

The time of one more step is a slope: (time at T = 1200 - time at T = 200) / 1000, so that what a
call costs once drops out. Floors are those of the model in FLOORS; nn.LSTM's slope stands beside
ours. The latencies bound every family that launches or synchronises per step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` first, an installed fused_lstm before
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the one in the source tree
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch

from benchmarks.gpu_cases import PRECISIONS, GpuCase
from benchmarks.gpu_environment import describe_device
from benchmarks.gpu_peers import prepare, tf32, work_for
from benchmarks.gpu_timing import turn_for
from benchmarks.peers import UnavailableError
from benchmarks.timing import Turn, interleave, spread

__all__ = ["FLOORS", "latencies", "slopes"]

SHORT, LONG = 200, 1200  # steps
INPUT = 32  # features: small enough to be read without a projection
# (H, B): microseconds of a forward step in bfloat16 that an H200 cannot undercut, by arithmetic on
# its data sheet (+-40 %); backward is expected at 1.2 to 2 times that.
FLOORS = {
    (128, 16): 0.5,
    (128, 128): 0.5,
    (256, 64): 0.8,
    (512, 64): 1.1,
    (768, 16): 1.3,
    (1024, 8): 1.35,
    (1024, 64): 2.8,
}
_NAMES = ("torch", "fused", "stepwise", "single_block", "cluster", "grid")


def slopes(
    hidden: int,
    batch: int,
    mode: str,
    precision: str,
    device: torch.device,
    budget: float,
    turn: Turn,
    names: Sequence[str] = _NAMES,
    lengths: tuple[int, int] = (SHORT, LONG),
) -> dict[str, float]:
    """Microseconds per step of everyone who can compute this."""
    seconds: dict[str, list[float]] = {}
    with tf32(PRECISIONS[precision][1]):
        for T in lengths:
            work = work_for(GpuCase(T, batch, INPUT, hidden), mode, precision, device)
            calls: dict[str, Callable[[], object]] = {}
            for name in names:
                try:
                    calls[name] = prepare(name, work).call
                except UnavailableError:
                    continue
            for name, series in interleave(calls, budget, names, turn=turn).items():
                seconds.setdefault(name, []).append(spread(series.measured).median)
    steps = lengths[1] - lengths[0]
    return {
        name: round(1e6 * (times[1] - times[0]) / steps, 4)
        for name, times in seconds.items()
        if len(times) == 2
    }


def _per_call(call: Callable[[], object], calls: int) -> float:
    """Microseconds of the host's clock per call, the GPU's queue empty before and after."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - begin) / calls


def latencies() -> dict[str, float]:
    """Launches, synchronisation, copies and products of this machine, in its present state."""
    tiny = torch.zeros(32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    tiny.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(1000):
            tiny.add_(1)

    def launched_and_awaited() -> None:
        tiny.add_(1)
        torch.cuda.synchronize()

    found = {
        "launch_us": _per_call(lambda: tiny.add_(1), 3000),
        "launch_in_graph_us": _per_call(graph.replay, 20) / 1000,
        "launch_and_synchronize_us": _per_call(launched_and_awaited, 500),
        "synchronize_idle_us": _per_call(torch.cuda.synchronize, 500),
    }
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found["copy_tb_per_s"] = 2 * (1 << 30) / _per_call(lambda: target.copy_(source), 20) / 1e6
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    found["bf16_tflops"] = 2 * 8192**3 / _per_call(lambda: a @ a, 20) / 1e6
    return {name: round(value, 3) for name, value in found.items()}


def measure(device: torch.device, end: float, result: dict[str, Any]) -> None:
    """Every row for which there is time before `end`."""
    turn = turn_for(device)
    plan = [
        (hidden, batch, mode, precision)
        for precision in ("bfloat16", "tf32", "float32")
        for mode in ("inference", "training")
        for hidden, batch in FLOORS
    ]
    for k, (hidden, batch, mode, precision) in enumerate(plan):
        left = end - time.perf_counter()
        if left <= 0:
            result["left_out"] = len(plan) - k
            return
        budget = min(0.5, 0.2 * left / (len(plan) - k))
        found = slopes(hidden, batch, mode, precision, device, budget, turn)
        floor = FLOORS[hidden, batch] if (mode, precision) == ("inference", "bfloat16") else None
        row = {"H": hidden, "B": batch, "mode": mode, "precision": precision, "floor_us": floor}
        result["rows"].append({**row, "us_per_step": found})
        text = "; ".join(f"{name} {value:.2f}" for name, value in found.items())
        print(
            f"H {hidden:<5} B {batch:<4} {mode:<10} {precision:<9} us/step: {text}"
            + (f"; floor {floor}" if floor else ""),
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 without a GPU."""
    parser = argparse.ArgumentParser(description="Microseconds per step on this GPU.")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"benchmarks/gpu_steps.py: torch {torch.__version__} sees no GPU", file=sys.stderr)
        return 2
    end = time.perf_counter() + options.seconds
    device = torch.device("cuda")
    result: dict[str, Any] = {"device": describe_device(device), "rows": [], "left_out": 0}
    result["latencies"] = latencies()
    print(result["latencies"])
    measure(device, end, result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    best = [
        row["us_per_step"]["fused"] / row["floor_us"]
        for row in result["rows"]
        if row["floor_us"] and "fused" in row["us_per_step"]
    ]
    over = f"{min(best):.1f} to {max(best):.1f} times the floor" if best else "no row with a floor"
    launch = result["latencies"]["launch_in_graph_us"]
    print(f"{len(result['rows'])} rows, {over}; a launch in a graph takes {launch} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
