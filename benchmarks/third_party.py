"""Times models of other packages before and after `fused_lstm.convert`, and writes table and JSON.

    make bench-models                                      in the environment with those packages
    python benchmarks/third_party.py --threads 1 --only sb3
    python benchmarks/third_party.py --table benchmarks/results/MACHINE/third_party.json

Each model is made twice with the same weights, one of the two is converted, and both take turns in
one process (`timing.py`). Ratios are of the whole model: what is no LSTM costs the same in both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` first, an installed fused_lstm before
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the one in the source tree
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch

import fused_lstm
from benchmarks.environment import describe, machine_slug
from benchmarks.noise import Watch
from benchmarks.third_party_models import MODELS, Subject
from benchmarks.timing import interleave, ratio_of_rounds

PACKAGES = ("sb3-contrib", "pytorch-forecasting", "easyocr", "gluonts", "stanza")
MODES = ("inference", "training")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes the JSON; with --table only prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds per model and mode")
    parser.add_argument("--only", default="", help="a part of the models' names")
    parser.add_argument("--out", type=Path, help="default: this machine's folder of results")
    parser.add_argument("--table", type=Path, help="print the table of this JSON file")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    torch.set_num_threads(options.threads)
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    command = f'make bench-models ARGS="{given}"' if given else "make bench-models"
    result: dict[str, Any] = {"environment": describe(command)}
    result["environment"]["versions"].update({name: version(name) for name in PACKAGES})
    result["threads"] = options.threads
    result["rows"] = []
    for name in MODELS:
        if options.only in name:
            for mode in MODES:
                row = measure(name, mode, options.budget, options.threads)
                result["rows"].append(row)
                print(f"{name}, {mode}: {row['ratio']['median']:.2f} {row['note']}", flush=True)
    out = options.out or Path(__file__).parent / "results" / machine_slug() / "third_party.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


def measure(name: str, mode: str, budget: float, threads: int) -> dict[str, Any]:
    """One model in one mode: milliseconds before and after, and the ratio within rounds."""
    calls = {}
    for which in ("before", "after"):
        torch.manual_seed(0)
        subject = MODELS[name]()
        if which == "after":
            fused_lstm.convert(subject.model)
        calls[which] = _call(subject, mode)
    watch = Watch(threads)
    series = interleave(calls, budget, principals=list(calls), threads=threads)
    disturbance = watch.stop()
    ratio = ratio_of_rounds(series["before"], series["after"])
    assert ratio is not None
    milliseconds = {
        which: sorted(one.measured)[len(one.measured) // 2] * 1e3 for which, one in series.items()
    }
    return {
        "model": name,
        "mode": mode,
        "milliseconds": milliseconds,
        "ratio": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
        "rounds": len(series["after"].measured),
        "noisy": disturbance.noisy,
        "note": disturbance.describe(),
    }


def _call(subject: Subject, mode: str) -> Callable[[], object]:
    subject.model.train(mode == "training")
    parameters = [p for p in subject.model.parameters() if p.requires_grad]

    def infer() -> object:
        with torch.no_grad():
            return subject.infer()

    def train() -> object:
        loss = torch.stack([y.square().mean() for y in subject.train()]).sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return train if mode == "training" else infer


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown, with quartiles, and below it what they were measured on and how."""
    lines = [
        "| model | call | before, ms | after, ms | before / after (quartiles) |",
        "|---|---|---:|---:|---:|",
    ]
    for row in result["rows"]:
        before, after = row["milliseconds"]["before"], row["milliseconds"]["after"]
        ratio = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"])
        times = " | ".join(f"{t:.0f}" if t >= 100 else f"{t:.3g}" for t in (before, after))
        lines.append(f"| {row['model']} | {row['mode']} | {times} | {ratio} |")
    environment, noisy = result["environment"], sum(bool(row["noisy"]) for row in result["rows"])
    versions = environment["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", *PACKAGES))
    busy = f" Other work ran beside {noisy} of the {len(result['rows'])} rows." if noisy else ""
    lines += [
        "",
        f"{environment['cpu']}, {result['threads']} thread(s), {packages}, "
        f"{environment['date'][:10]}. `{environment['command']}`.{busy}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
