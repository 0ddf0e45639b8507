"""Frozen weights beside what else makes an LSTM quick with one row: how fast, and how accurate.

`python benchmarks/frozen.py` compares, in inference, our ordinary kernel, the three ways to freeze,
nn.LSTM, torch.ao's dynamically quantised LSTM (qint8) and ONNX Runtime in float32 and quantised by
its own tool. It prints a table and writes results/<machine>/frozen.json. Ways take turns in one
process; a figure is a median, a ratio the median of the ratios within a round (timing.py). Errors
are those of y against nn.LSTM in float64 with the same float32 weights and inputs.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # see fresh.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch
from torch import Tensor, nn

import fused_lstm
from benchmarks import onnx_peer, peers, timing
from benchmarks.cases import Case
from benchmarks.ways import write

SHAPES = (  # T, B, I, H
    (1, 1, 1024, 1024),
    (10, 1, 1024, 1024),
    (100, 1, 1024, 1024),
    (10, 2, 1024, 1024),
    (10, 4, 1024, 1024),
    (10, 8, 1024, 1024),
    (1, 1, 512, 512),
    (100, 1, 512, 512),
    (1, 1, 256, 256),
    (100, 1, 256, 256),
)
PLAIN = "fused_lstm"
WAYS = ("float32", "bfloat16", "int8")

Way = tuple[Callable[[], object], Callable[[], Tensor]]  # what is timed, and y


def named(work: peers.Workload) -> dict[str, Way]:
    """Every way there is here to compute the workload."""

    def of(module: nn.Module) -> Way:
        def call() -> Any:
            with torch.no_grad():
                return module(work.x)

        return call, lambda: call()[0]

    def ours() -> fused_lstm.LSTM:
        lstm = fused_lstm.LSTM(work.case.I, work.case.H).eval()
        lstm.load_state_dict(work.module.state_dict())
        return lstm

    ways = {PLAIN: of(ours())}
    for way in WAYS:
        ways[f"{PLAIN}, frozen {way}"] = of(ours().freeze(way))
    ways["nn.LSTM"] = of(work.module.eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(work.module), {nn.LSTM}, dtype=torch.qint8
        )
    ways["torch.ao dynamic qint8"] = of(quantised)
    for name, how in (("ONNX Runtime", False), ("ONNX Runtime, dynamic int8", True)):
        try:
            candidate = onnx_peer.candidate(work, how)
        except peers.UnavailableError as error:
            print(f"{name}: {error}")
            continue
        ways[name] = candidate.call, lambda candidate=candidate: candidate.result()["y"]
    return ways


def measure(shape: tuple[int, ...], threads: int, budget: float) -> list[dict[str, Any]]:
    """One row for each way, printed as it is known."""
    torch.set_num_threads(threads)
    work = peers.workload(Case(*shape), "inference", torch.float32, threads)
    ways = named(work)
    exact = nn.LSTM(work.case.I, work.case.H, dtype=torch.float64)
    exact.load_state_dict(work.module.state_dict())
    with torch.no_grad():
        y = exact(work.x.double())[0]
    calls = {name: call for name, (call, _) in ways.items()}
    principals = [name for name in calls if name.startswith(PLAIN)]
    series = timing.interleave(calls, budget, principals=principals, threads=threads)
    rows = []
    for name, (_, result) in ways.items():
        wrong = (result().double() - y).abs()
        ratio = timing.ratio_of_rounds(series[PLAIN], series[name])
        row = {
            **dict(zip("TBIH", shape, strict=True)),
            "threads": threads,
            "way": name,
            "us": 1e6 * timing.spread(series[name].measured).median,
            "speed": ratio.median if ratio else None,  # of our ordinary kernel's
            "largest_error": float(wrong.max()),
            "mean_error": float(wrong.mean()),
            "cores": series[name].cores,
            "rounds": len(series[name].measured),
        }
        rows.append(row)
        print(
            "T{T} B{B} I{I} H{H} {threads} thread(s) {way:32} {us:9.1f} us {speed:6.2f}x  "
            "error {largest_error:.1e}, mean {mean_error:.1e}".format(**row),
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budget", type=float, default=6.0, help="seconds for each shape")
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar="N", help="T B I H")
    parser.add_argument("--note", default="", help="what else ran there, for the file")
    parser.add_argument("--out", type=Path, help="default: results/<machine>/frozen.json")
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        for shape in options.shape or SHAPES:
            rows += measure(tuple(shape), threads, options.budget)
    write("frozen", {"note": options.note, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
