"""The GPU scorecard: fused_lstm.LSTM beside nn.LSTM (cuDNN) on this machine's GPU, as JSON.

    python benchmarks/gpu.py --quick              under four minutes
    python benchmarks/gpu.py --seconds 500        as much of the scorecard as the time allows
    python benchmarks/gpu.py --baseline           nn.LSTM alone, where there is nothing of ours yet

See benchmarks/README.md for what is measured and how. Exit code: 0 done, 1 ours disagrees with
nn.LSTM somewhere, 2 it cannot start.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` first, an installed fused_lstm before
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the one in the source tree
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch

from benchmarks.environment import describe
from benchmarks.gpu_cases import MODES, PRECISIONS, GpuCase, flops, select
from benchmarks.gpu_environment import describe_device, device_slug, smi
from benchmarks.gpu_peers import PEERS, check, expected, prepare, tf32, work_for
from benchmarks.gpu_timing import turn_for
from benchmarks.peers import Candidate, UnavailableError, load_fused
from benchmarks.report import SCHEMA, geomeans
from benchmarks.rows import timed
from benchmarks.run import write

_OURS = ("fused", "stepwise", "single_block", "cluster", "grid")
_TIMING_SHARE = 0.5  # of a row's time; the rest goes into preparing, checking and warming up


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what --quick and --baseline imply filled in."""
    parser = argparse.ArgumentParser(description="Compare fused_lstm with nn.LSTM on a GPU.")

    def listing(allowed: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            values = text.replace(" ", "").split(",")
            if not set(values) <= set(allowed):
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(allowed)}")
            return list(dict.fromkeys(values))

        return read

    add = parser.add_argument
    add("--quick", action="store_true", help="fewer shapes and modes: under four minutes")
    add("--baseline", action="store_true", help="nn.LSTM alone")
    add("--shapes", help="scorecard, quick, or TxBxIxH[-2l][-bi][-bf][-packed], with commas")
    add("--modes", type=listing(MODES), help=f"some of {', '.join(MODES)}")
    add("--precisions", type=listing(tuple(PRECISIONS)), default=list(PRECISIONS))
    add("--peers", type=listing(tuple(PEERS)), help=f"some of {', '.join(PEERS)}")
    add("--seconds", type=float, help="for everything (default: 200 with --quick, else 900)")
    add("--budget", type=float, default=1.0, help="seconds of timing per row at most (default: 1)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program")
    add("--name", help="of the result (default: gpu, gpu-quick or gpu-baseline)")
    add("--json", type=Path, help="the result's file (default: results/DEVICE/NAME.json)")
    options = parser.parse_args(arguments)
    options.modes = options.modes or list(MODES[:3:2] if options.quick else MODES[:3])
    options.seconds = options.seconds or (200.0 if options.quick else 900.0)
    kind = "-quick" if options.quick else "-baseline" if options.baseline else ""
    options.name = options.name or f"gpu{kind}"
    options.peers = ["torch"] if options.baseline else options.peers or list(PEERS)
    try:
        options.cases = select(options.shapes or ("quick" if options.quick else "scorecard"))
    except ValueError as error:
        parser.error(str(error))
    return options


def measure(
    case: GpuCase,
    mode: str,
    precision: str,
    peers: Sequence[str],
    budget: float,
    device: torch.device,
    result: dict[str, Any],
) -> dict[str, Any]:
    """One row; who is wrong or takes no part is told in `result`."""
    work = work_for(case, mode, precision, device)
    allowed = PRECISIONS[precision][1]
    wanted = expected(work)
    ready: dict[str, Candidate] = {}
    with tf32(allowed):
        for name in dict.fromkeys(["torch", *peers]):
            candidate: Candidate | None
            try:
                candidate = prepare(name, work)
                fault = check(candidate.result(), wanted, work, allowed)
            except UnavailableError as error:
                result["unavailable"].setdefault(name, str(error))
                continue
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a peer that breaks must not take the scorecard with it
                if name == "torch":
                    raise
                candidate, fault = None, f"{type(error).__name__}: {error}".splitlines()[0]
            if fault:
                where = f"{name} at {case.name}, {mode}, {precision}"
                result["unavailable"][where] = fault
                result["wrong"] += [f"{where}: {fault}"] if name in _OURS else []
            # nn.LSTM is the reference even where it is rough.
            if candidate is not None and (not fault or name == "torch"):
                ready[name] = candidate
        calls = {name: candidate.call for name, candidate in ready.items()}
        figures = timed(calls, flops(case, mode), budget, turn=turn_for(device))
        plan = _plan(work.case, mode, work.dtype, device) if "fused" in ready else None
    for one in figures["implementations"].values():
        one["peak_share"] = None
    return {
        "shape": case.name,
        "group": case.group,
        "mode": mode,
        "dtype": precision,
        "threads": None,
        "gflop": flops(case, mode) / 1e9,
        "plan": plan,
        "input_copies": work.copies,
        **figures,
    }


def _plan(case: GpuCase, mode: str, dtype: torch.dtype, device: torch.device) -> str:
    """What fused_lstm says it does, for the first layer."""
    explained = load_fused().explain_plan(
        (case.T, case.B, case.I, case.H), bidirectional=case.bidirectional, dtype=dtype,
        device=device, training=mode != "inference",
    )  # fmt: skip
    return str(explained)


def say_row(row: dict[str, Any]) -> None:
    """One line for a measured row, at once."""
    parts = [f"{name} {one['ms']:.4g} ms" for name, one in row["implementations"].items()]
    ratio = row["fused_versus"].get("torch")
    parts += [f"ratio {ratio['median']:.2f}"] if ratio else []
    print(f"{row['shape']:<24} {row['mode']:<11} {row['dtype']:<8}: {'; '.join(parts)}", flush=True)


def measure_all(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Every row for which there is time; the others are named in `left_out`."""
    device = torch.device(options.device)
    end = time.perf_counter() + options.seconds
    todo = [(c, m, p) for p in options.precisions for c in options.cases for m in options.modes]
    for k, (case, mode, precision) in enumerate(todo):
        left = end - time.perf_counter()
        if left <= 0:
            result["left_out"] = [f"{c.name} {m} {p}" for c, m, p in todo[k:]]
            break
        budget = min(options.budget, _TIMING_SHARE * left / (len(todo) - k))
        try:
            row = measure(case, mode, precision, options.peers, budget, device, result)
        except torch.OutOfMemoryError as error:
            result["unavailable"][f"{case.name}, {mode}, {precision}"] = str(error).split(".")[0]
            continue
        result["rows"].append(row)
        say_row(row)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scorecard; see the exit codes above."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"benchmarks/gpu.py: torch {torch.__version__} sees no GPU", file=sys.stderr)
        return 2
    kept = [
        word for at, word in enumerate(given) if "--json" not in (word, *given[max(at - 1, 0) : at])
    ]
    device = describe_device(torch.device(options.device))
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "name": options.name,
        "machine": device_slug(device["name"]),
        "isa": device.get("arch", "cpu"),
        "device": device,
        "environment": describe(shlex.join(["python", "benchmarks/gpu.py", *kept])),
        "options": {"seconds": options.seconds, "modes": options.modes, "peers": options.peers},
        "peaks": [],
        "rows": [],
        "geomeans": [],
        "memory": [],
        "training_step": [],
        "import": None,
        "unavailable": {},
        "left_out": [],
        "wrong": [],
    }
    print(", ".join(f"{key} {value}" for key, value in device.items() if key != "as_found"))
    measure_all(options, result)
    result["device"]["at_the_end"] = smi() if options.device == "cuda" else {}
    result["geomeans"] = geomeans(result["rows"])
    path = options.json or Path(__file__).parent / "results" / result["machine"] / (
        f"{options.name}.json"
    )
    path = write(result, path.parent, path.stem)
    for name, reason in result["unavailable"].items():
        print(f"  not everywhere: {name} ({reason})")
    print(f"wrote {os.path.relpath(path)}")
    means = [
        f"{m['group']} {m['mode']} {m['dtype']} {m['ratio']:.2f} (least {m['worst']:.2f})"
        for m in result["geomeans"]
        if m["peer"] == "torch"
    ]
    left = f"; {len(result['left_out'])} left out for time" if result["left_out"] else ""
    wrong = f"; WRONG in {len(result['wrong'])}" if result["wrong"] else ""
    print(f"{len(result['rows'])} rows{left}{wrong}; nn.LSTM's time / ours: {', '.join(means)}")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
