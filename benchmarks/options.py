"""The command line of run.py: what may be selected, and what is chosen by default."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.environment import RESTRICTIONS, machine_slug

__all__ = ["KEYS", "command_line", "parse"]

SECTIONS = ("rows", "steps", "memory", "import")
KEYS = (  # the options that a result records
    "shapes", "modes", "dtypes", "threads", "peers", "only", "budget", "retries", "isa", "quick",
)  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with what --quick leaves open filled in. Exits with code 2 on bad ones."""
    parser = argparse.ArgumentParser(
        description="Compare fused_lstm.LSTM with nn.LSTM and others on this machine."
    )

    def listing(allowed: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            values = [value for value in text.replace(" ", "").split(",") if value]
            wrong = [value for value in values if value not in allowed]
            if wrong or not values:
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(allowed)}, got {text!r}"
                )
            return list(dict.fromkeys(values))

        return read

    def counts(text: str) -> list[int]:
        values = text.replace(" ", "").split(",")
        if not all(value.isascii() and value.isdigit() and int(value) > 0 for value in values):
            raise argparse.ArgumentTypeError(f"expected positive integers like 1,2, got {text!r}")
        return list(dict.fromkeys(int(value) for value in values))

    peers = tuple(cases.LABELS)
    add = parser.add_argument
    add("--quick", action="store_true", help="few shapes and peers: under two minutes")
    add("--shapes", help=f"{', '.join(cases.GROUPS)}, all, or TxBxIxH, comma-separated")
    add("--modes", type=listing(cases.MODES), help=f"some of {', '.join(cases.MODES)}")
    add("--dtypes", type=listing(cases.DTYPES), default=["float32"], help="default: float32")
    add("--threads", type=counts, help="thread counts (default: 1,2 where there are two cores)")
    add("--peers", type=listing(peers), help=f"some of {', '.join(peers)}")
    add("--only", type=listing(SECTIONS), default=list(SECTIONS), help=f"{', '.join(SECTIONS)}")
    add("--budget", type=float, help="seconds of timing per row (default: 3; with --quick 0.6)")
    add("--retries", type=int, default=1, help="repeats of a row that other work disturbed")
    add("--isa", choices=tuple(RESTRICTIONS), help="hold both sides to one instruction set")
    add("--name", help="name of the result (default: full or quick, with the --isa given)")
    add("--machine", help="folder of the result (default: from the processor's name)")
    add("--out", type=Path, help="folder instead of benchmarks/results; - writes nothing")
    options = parser.parse_args(arguments)

    quick = options.quick
    options.shapes = options.shapes or (cases.QUICK if quick else "core,deepbench")
    options.modes = options.modes or list(cases.MODES[:2] if quick else cases.MODES)
    options.threads = options.threads or list(range(1, min(2, os.cpu_count() or 1) + 1))
    if not options.peers:
        options.peers = ["fused", "torch", "onnxruntime"] if quick else list(peers)
        if not {"bfloat16", "float16"} & set(options.dtypes):
            options.peers = [peer for peer in options.peers if peer != "fused_float32"]
    options.peers = list(dict.fromkeys(["fused", "torch", *options.peers]))
    options.budget = (0.6 if quick else 3.0) if options.budget is None else options.budget
    options.name = options.name or ("quick" if quick else "full") + (
        f"-{options.isa}" if options.isa else ""
    )
    options.machine = options.machine or machine_slug()
    options.out = options.out or Path(__file__).resolve().parent / "results"
    try:
        options.cases = cases.parse_shapes(options.shapes)
    except ValueError as error:
        parser.error(str(error))
    for key in ("name", "machine"):
        if Path(getattr(options, key)).name != getattr(options, key):
            parser.error(f"--{key}: expected a plain name, got {getattr(options, key)!r}")
    return options


def command_line(arguments: Sequence[str], script: str = "run.py") -> str:
    """The command to repeat this run, without where its result went."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--out" and not argument.startswith("--out="):
            kept.append(argument)
        skip = argument == "--out"
    return shlex.join(["python", f"benchmarks/{script}", *kept])
