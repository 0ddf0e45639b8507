"""What resets, lengths and cell states of a call cost, and what one did without them.

`python benchmarks/call_options.py` compares, forward and with backward, at T128 B128 I256 H256 with
3 % resets: the plain kernel (which does not reset: the bound), the options, a loop over nn.LSTMCell
that clears the state, and one call of nn.LSTM over the stretches between resets, packed. It prints
a table and writes results/<machine>/call_options.json. Ways take turns in one process; a figure is
a median, a ratio the median of the ratios within a round (timing.py).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # see fresh.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
from benchmarks.ways import WRAPPERS, compare, write


class Ways:
    """The ways to compute one batch with resets, each a function without arguments."""

    def __init__(self, T: int, B: int, features: int, H: int, share: float) -> None:
        self.lstm = fused_lstm.LSTM(features, H)
        self.torch_lstm = nn.LSTM(features, H)
        self.torch_lstm.load_state_dict(self.lstm.state_dict())
        self.cell = nn.LSTMCell(features, H)
        for own, other in zip(self.cell.parameters(), self.lstm.parameters(), strict=True):
            own.data.copy_(other)
        self.x = torch.randn(T, B, features)
        self.reset = torch.rand(T, B) < share
        self.lengths = torch.randint(T // 2, T + 1, (B,))

    def loop(self) -> Tensor:
        h = c = torch.zeros(self.x.shape[1], self.cell.hidden_size)
        keep, ys = (~self.reset).to(self.x.dtype).unsqueeze(2), []
        for x, kept in zip(self.x, keep, strict=True):
            h, c = self.cell(x, (h * kept, c * kept))
            ys.append(h)
        return torch.stack(ys)

    def split(self) -> Tensor:
        """nn.LSTM over the stretches between resets; their outputs stay packed."""
        stretches = []
        for b, begins in enumerate(self.reset.T.tolist()):
            cuts = [0, *(t for t, begin in enumerate(begins) if begin and t > 0), len(begins)]
            stretches += [self.x[i:j, b] for i, j in itertools.pairwise(cuts)]
        packed, _ = self.torch_lstm(pack_sequence(stretches, enforce_sorted=False))
        return packed.data

    def named(self) -> dict[str, Callable[[], Tensor]]:
        lstm, x = self.lstm, self.x
        return {
            "plain kernel, no reset": lambda: lstm(x)[0],
            "reset": lambda: lstm(x, reset=self.reset)[0],
            "lengths": lambda: lstm(x, lengths=self.lengths)[0],
            "return_cells": lambda: sum_of(lstm(x, return_cells=True)),
            "all three": lambda: sum_of(
                lstm(x, reset=self.reset, lengths=self.lengths, return_cells=True)
            ),
            "loop over nn.LSTMCell": self.loop,
            "nn.LSTM on packed stretches": self.split,
        }


def sum_of(results: Any) -> Tensor:
    y, _, cells = results
    return torch.stack([y.sum(), cells.sum()])


def measure(ways: Ways, modes: list[str], budget: float, threads: int) -> list[dict[str, Any]]:
    torch.testing.assert_close(ways.lstm(ways.x, reset=ways.reset)[0], ways.loop())
    named = ways.named()
    ours = list(named)[:5]
    return [row for mode in modes for row in compare(named, mode, budget, ours, threads)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", nargs="+", choices=list(WRAPPERS), default=list(WRAPPERS))
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each mode")
    parser.add_argument("--shape", type=int, nargs=4, default=(128, 128, 256, 256), metavar="N")
    parser.add_argument("--share", type=float, default=0.03, help="of steps that are resets")
    parser.add_argument("--out", type=Path, help="default: results/<machine>/call_options.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ways = Ways(*options.shape, options.share)
    rows = measure(ways, options.modes, options.budget, options.threads)
    result = {
        "shape": dict(zip("TBIH", options.shape, strict=True)),
        "resets": options.share,
        "threads": options.threads,
        "rows": rows,
    }
    write("call_options", result, options.out)


if __name__ == "__main__":
    main()
