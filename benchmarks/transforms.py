"""What torch.func's transforms gain from the kernels: each call by them, and step by step.

`python benchmarks/transforms.py` prints a table and writes results/<machine>/transforms.json. "Step
by step" is the specification, through which every transform would go without the rules of
`fused_lstm/batching.py`. Both ways take turns in one process, each figure is a median, and a ratio
is the median of the ratios within a turn. One thread unless --threads says otherwise.
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
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

import fused_lstm
from benchmarks.ways import write
from fused_lstm import dispatch


def calls() -> dict[str, Callable[[], Any]]:
    """Named calls, at sizes where one takes some ten milliseconds."""

    def value(lstm: fused_lstm.LSTM, weights: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
        return functional_call(lstm, weights, (x,))[0].square().sum()

    def of_one(lstm: fused_lstm.LSTM) -> Callable[[], Any]:
        weights = {name: p.detach() for name, p in lstm.named_parameters()}
        samples = grad(lambda w, row: value(lstm, w, row.unsqueeze(1)))
        return lambda: vmap(samples, (None, 1))(weights, x)

    def members(count: int, lstm: fused_lstm.LSTM) -> dict[str, torch.Tensor]:
        weights, _ = stack_module_state([lstm] * count)  # type: ignore[arg-type]
        return {name: p.detach() for name, p in weights.items()}

    lstm, small = fused_lstm.LSTM(128, 128), fused_lstm.LSTM(16, 32)
    weights = {name: p.detach() for name, p in lstm.named_parameters()}
    eight, hundred = members(8, lstm), members(100, small)
    x, many, few = torch.randn(50, 32, 128), torch.randn(16, 50, 2, 128), torch.randn(20, 4, 16)
    one = lambda w: value(lstm, w, x)  # noqa: E731
    return {
        "per-sample gradients, T50 B32 I128 H128": of_one(lstm),
        "the same, bidirectional": of_one(fused_lstm.LSTM(128, 128, bidirectional=True)),
        "grad for the weights, T50 B32 I128 H128": lambda: grad(one)(weights),
        "vmap over 16 inputs, T50 B2 I128 H128": lambda: vmap(lambda t: lstm(t)[0])(many),
        "8 members, forward, T50 B32 I128 H128": lambda: vmap(one)(eight),
        "8 members, grad": lambda: vmap(grad(one))(eight),
        "100 members, forward, T20 B4 I16 H32": lambda: vmap(lambda w: value(small, w, few))(
            hundred
        ),
        "jacrev of h_n for x, T20 B4 I16 H32": lambda: jacrev(lambda t: small(t)[1][0])(few),
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def step_by_step(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        kept = dispatch._transforms
        dispatch._transforms = lambda: "any"
        try:
            call()
        finally:
            dispatch._transforms = kept

    return run


def measure(call: Callable[[], Any], turns: int) -> dict[str, Any]:
    slow = step_by_step(call)
    call(), slow()
    pairs = [(seconds(call), seconds(slow)) for _ in range(turns)]
    fast_ms, slow_ms = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(s / f for f, s in pairs)
    return {"kernels_ms": fast_ms, "step_by_step_ms": slow_ms, "ratio": ratio, "turns": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7, help="of every call (default: 7)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for name, call in calls().items():
        rows.append({"call": name, "threads": options.threads, **measure(call, options.turns)})
        print(
            "{call:42} {kernels_ms:8.1f} ms {step_by_step_ms:8.1f} ms {ratio:6.1f}".format(
                **rows[-1]
            )
        )
    write("transforms", {"rows": rows})


if __name__ == "__main__":
    main()
