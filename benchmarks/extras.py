"""What regularisers and memory modes cost, and what one did without them.

`python benchmarks/extras.py` compares training (forward and backward), at T128 B128 I256 H256: the
plain kernel (the bound), each regulariser of fused_lstm.Extras and each memory mode, the loops over
nn.LSTMCell that people write for zoneout and for recurrent dropout, and nn.LSTM with W_hh masked.
Then it trains on one sequence of T = 100,000 in fresh processes and tells the memory of each mode.
It prints tables and writes results/<machine>/extras.json. Ways take turns in one process; a figure
is a median, a ratio the median of the ratios within a round (timing.py).
"""

from __future__ import annotations

import argparse
import json
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
from torch.func import functional_call

import fused_lstm
from benchmarks import fresh
from benchmarks.ways import compare, write

P = 0.2  # of every mask
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute": {"recompute": True},
    "checkpoint_steps=500": {"checkpoint_steps": 500},
    "checkpoint_steps=500, recompute": {"checkpoint_steps": 500, "recompute": True},
}


class Ways:
    """The ways to train on one batch, each a function without arguments that gives an output."""

    def __init__(self, T: int, B: int, features: int, H: int) -> None:
        self.x = torch.randn(T, B, features)
        self.make = lambda **extras: fused_lstm.LSTM(features, H, **extras)
        self.torch_lstm = nn.LSTM(features, H)
        self.cell = nn.LSTMCell(features, H)

    def zoneout_loop(self) -> Tensor:
        h = c = torch.zeros(self.x.shape[1], self.cell.hidden_size)
        ys = []
        for x in self.x:
            new_h, new_c = self.cell(x, (h, c))
            h = torch.where(torch.rand_like(h) < P, h, new_h)
            c = torch.where(torch.rand_like(c) < P, c, new_c)
            ys.append(h)
        return torch.stack(ys)

    def recurrent_dropout_loop(self) -> Tensor:
        h = c = torch.zeros(self.x.shape[1], self.cell.hidden_size)
        mask = nn.functional.dropout(torch.ones_like(h), P)
        ys = []
        for x in self.x:
            h, c = self.cell(x, (h * mask, c))
            ys.append(h)
        return torch.stack(ys)

    def masked_torch(self) -> Tensor:
        """Weight drop as AWD-LSTM has it: nn.LSTM with a masked W_hh."""
        w_hh = nn.functional.dropout(self.torch_lstm.weight_hh_l0, P)
        return functional_call(self.torch_lstm, {"weight_hh_l0": w_hh}, (self.x,))[0]

    def named(self) -> dict[str, Callable[[], Tensor]]:
        asked: dict[str, dict[str, Any]] = {
            "plain kernel": {},
            "zoneout": {"zoneout": P},
            "recurrent_dropout": {"recurrent_dropout": P},
            "input, recurrent and output dropout": {
                "input_dropout": P,
                "recurrent_dropout": P,
                "output_dropout": P,
            },
            "weight_dropout": {"weight_dropout": P},
            "recompute": {"recompute": True},
            "checkpoint_steps=32": {"checkpoint_steps": 32},
        }

        def way(lstm: fused_lstm.LSTM) -> Callable[[], Tensor]:
            return lambda: lstm(self.x)[0]

        ways = {name: way(self.make(**extras)) for name, extras in asked.items()}
        return ways | {
            "zoneout, loop over nn.LSTMCell": self.zoneout_loop,
            "recurrent dropout, loop over nn.LSTMCell": self.recurrent_dropout_loop,
            "weight dropout, nn.LSTM": self.masked_torch,
        }


def measure_memory(T: int, B: int, features: int, H: int) -> list[dict[str, Any]]:
    """Peak memory of training on one long sequence, beyond module and input, in fresh processes."""
    rows = []
    for name in MODES:
        found = fresh.run_child(__file__, "--child", name, str(T), str(B), str(features), str(H))
        row = {"mode": name, "T": T, "B": B, "I": features, "H": H, **found}
        rows.append(row)
        print("{mode:42} {step_mib:9.0f} MiB {seconds:7.1f} s".format(**row), flush=True)
    return rows


def child(name: str, *sizes: str) -> None:
    """In the child: one training step on a long sequence."""
    T, B, features, H = map(int, sizes)
    torch.set_num_threads(1)
    lstm = fused_lstm.LSTM(features, H, **MODES[name])
    lstm(torch.randn(3, B, features))[0].sum().backward()
    x = torch.randn(T, B, features)
    print(json.dumps(fresh.peak_of(lambda: lstm(x)[0].sum().backward())))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds for the timings")
    parser.add_argument("--shape", type=int, nargs=4, default=(128, 128, 256, 256), metavar="N")
    parser.add_argument("--long", type=int, nargs=4, default=(100_000, 4, 8, 128), metavar="N")
    parser.add_argument("--out", type=Path, help="default: results/<machine>/extras.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ways = Ways(*options.shape).named()
    ours = [name for name in ways if "nn." not in name]
    rows = compare(ways, "training", options.budget, ours, options.threads)
    result = {
        "shape": dict(zip("TBIH", options.shape, strict=True)),
        "probability": P,
        "threads": options.threads,
        "rows": rows,
        "memory": measure_memory(*options.long),
    }
    write("extras", result, options.out)


if __name__ == "__main__":
    main()
