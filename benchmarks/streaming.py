"""One step at a time: `Streaming`, and the module called in a loop with its state handed on.

`python benchmarks/streaming.py` prints a table and writes results/<machine>/streaming.json. The
three ways take turns in one process; a figure is the median over single steps, in microseconds.
One thread unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # see fresh.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch
from torch import nn

import fused_lstm
from benchmarks.ways import write

SIZES = ((16, 1, 1), (128, 1, 1), (128, 2, 1), (128, 1, 8), (512, 1, 1))  # I = H, layers, rows
STEPS = 100  # of each way in a turn


def in_a_loop(lstm: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """Steps of lstm(x, state) without gradients."""
    state: Any = None

    def step() -> None:
        nonlocal state
        with torch.no_grad():
            _, state = lstm(x, state)

    return step


def medians(ways: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Microseconds of a step, each way in its turn."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, step in ways.items():
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                if turn > 0:
                    times[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(own) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=10, help="of 100 steps each (default: 10)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for H, L, B in SIZES:
        ours, theirs = fused_lstm.LSTM(H, H, L).eval(), nn.LSTM(H, H, L).eval()
        x, stream = torch.randn(1, B, H), fused_lstm.Streaming(ours, B)
        ways = {
            "streaming_us": lambda stream=stream, x=x: stream(x),
            "loop_us": in_a_loop(ours, x),
            "nn_lstm_us": in_a_loop(theirs, x),
        }
        rows.append({"H": H, "L": L, "B": B, **medians(ways, options.turns)})
        print(
            "H{H} L{L} B{B}: Streaming {streaming_us:.1f}, loop {loop_us:.1f}, "
            "nn.LSTM in a loop {nn_lstm_us:.1f} us".format(**rows[-1])
        )
    write("streaming", {"rows": rows})


if __name__ == "__main__":
    main()
