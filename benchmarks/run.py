"""Compares fused_lstm.LSTM with nn.LSTM and others on this machine, and writes the result as JSON.

    python benchmarks/run.py --quick          under two minutes
    python benchmarks/run.py                  the full comparison, about half an hour
    python benchmarks/run.py --isa avx2       everyone held to AVX2, as on an older machine
    python benchmarks/run.py --only memory,import

See benchmarks/README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` first, an installed fused_lstm before
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the one in the source tree
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

# torch is imported inside functions: its instruction sets are chosen by the environment at import.
from benchmarks import cases
from benchmarks.environment import describe, restricted_environment
from benchmarks.options import KEYS, command_line, parse

_HELD = "FUSED_LSTM_BENCHMARK_HELD_TO"  # set in the process that --isa started


def say(text: str = "") -> None:
    """Prints at once, so that a long run can be watched."""
    print(text, flush=True)


def say_row(row: dict[str, Any], peak: float | None) -> None:
    """One line for a measured row; peak: GF/s of the machine as known so far."""
    parts = []
    for name, one in row["implementations"].items():
        text = f"{cases.LABELS[name]} {one['ms']:.4g} ms"
        if name == "fused":
            share = f", {one['gflops'] / peak:.0%} of peak" if peak else ""
            ratio = "{median:.2f} ({low:.2f} to {high:.2f})".format(**one["ratio"])
            text += f", {one['gflops']:.0f} GF/s{share}, ratio {ratio}"
        elif name != "torch":
            text += f" / ours {row['fused_versus'][name]['median']:.2f}"
        if one["cores"] > row["threads"] + 0.3:
            text += f" [kept {one['cores']:.1f} cores busy]"
        parts.append(text)
    say(f"{row['shape']:<18} {row['mode']:<11}: {'; '.join(parts)}")


def measure_rows(options: argparse.Namespace, result: dict[str, Any], isa: str) -> None:
    """The main section: every shape in every mode, dtype and thread count."""
    from benchmarks.noise import Disturbance
    from benchmarks.peak import ISAS, PeakMeter
    from benchmarks.report import geomeans
    from benchmarks.rows import measure_row

    meter = PeakMeter()
    if meter.reason:
        say(f"no share of the peak: {meter.reason}")
    active = isa if isa in ISAS else "portable"
    rows: list[dict[str, Any]] = result["rows"]
    said = set()
    for threads, dtype in itertools.product(options.threads, options.dtypes):
        say(f"\n{dtype}, {threads} thread{'s' if threads > 1 else ''}")
        first = len(rows)
        for group, case in options.cases:
            for mode in (mode for mode in options.modes if mode in case.modes):
                peak = meter.best(active, dtype, threads)
                row = measure_row(
                    group, case, mode, dtype, threads, options.peers, options.budget,
                    options.retries, result["unavailable"],
                )  # fmt: skip
                rows.append(row)
                say_row(row, peak)
                if row["plan"] not in said:
                    said.add(row["plan"])
                    say(f"  kernel: {row['plan']}")
                noise = {k: v for k, v in row["noise"].items() if k != "attempt"}
                if noise["noisy"]:
                    say(f"  {Disturbance(**noise).describe()}")
        peaks = {name: meter.best(name, dtype, threads) for name in ISAS}
        add_peaks(result["peaks"], rows[first:], peaks, active)
    meter.close()
    result["geomeans"] = geomeans(rows)
    say("\ngeometric mean (least) of its time / ours")
    for key, means in itertools.groupby(
        result["geomeans"], lambda m: (m["group"], m["mode"], m["dtype"], m["threads"])
    ):
        found = list(means)
        text = "; ".join(
            f"{cases.LABELS[mean['peer']]} {mean['ratio']:.2f} ({mean['worst']:.2f} at "
            f"{mean['worst_shape']})"
            for mean in found
        )
        noisy = f"; NOISY in {found[0]['noisy']} rows" if found[0]["noisy"] else ""
        say(f"  {key[0]} {key[1]} {key[2]} x{key[3]}: {text}{noisy}")
    for peer, reason in result["unavailable"].items():
        say(f"  not everywhere: {peer} ({reason})")


def add_peaks(
    peaks: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    measured: dict[str, float | None],
    active: str,
) -> None:
    """Records the peaks of one dtype and thread count, and every figure's share of the active one.

    Shares are of fused_lstm's instruction set; a peer that uses a wider one may pass 100 %.
    """
    ceiling = measured.get(active)
    for name, gflops in measured.items():
        if gflops and rows:
            peaks.append(
                {
                    "isa": name,
                    "dtype": rows[0]["dtype"],
                    "threads": rows[0]["threads"],
                    "gflops": round(gflops, 1),
                }
            )
    for row in rows:
        for one in row["implementations"].values():
            one["peak_share"] = round(one["gflops"] / ceiling, 4) if ceiling else None


def measure_rest(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """The sections besides the rows: training steps, memory, import."""
    from benchmarks.fresh import import_times, training_memory

    if "steps" in options.only:
        from benchmarks.steps import CONFIGURATIONS, training_step

        say("\ntraining step of sequential MNIST")
        for threads in options.threads:
            for recipe, order in CONFIGURATIONS:
                row = training_step(recipe, order, threads, options.budget)
                result["training_step"].append(row)
                say(
                    f"  {recipe} {order:<6} x{threads}: --impl fused {row['fused']['ms']:.4g} ms; "
                    f"--impl torch {row['torch']['ms']:.4g} ms; ratio {row['ratio']['median']:.2f}"
                    f"{'; NOISY' if row['noise']['noisy'] else ''}"
                )
    if "memory" in options.only:
        say("\npeak memory of a training step, MiB over module and input")
        shapes = [case.name for group, case in options.cases if "training" in case.modes]
        if not Path("/proc/self/clear_refs").exists():
            say("  unknown: this system has no /proc/self/clear_refs")
            shapes = []
        for shape in shapes[: 2 if options.quick else None]:
            row = training_memory(shape, options.threads[-1])
            result["memory"].append(row)
            say(
                f"  {shape:<18} x{row['threads']}: fused_lstm {row['fused']['step_mib']:.1f}; "
                f"nn.LSTM {row['torch']['step_mib']:.1f}; ratio {row['ratio']:.2f}"
            )
    if "import" in options.only:
        times = import_times(3 if options.quick else 9)
        result["import"] = times
        say(
            f"\nimport fused_lstm after torch: {times['fused_lstm_ms']:.1f} ms "
            f"({times['fused_lstm_ms_low']:.1f} to {times['fused_lstm_ms_high']:.1f}); "
            f"import torch: {times['torch_ms']:.0f} ms"
        )


def write(result: dict[str, Any], folder: Path, name: str) -> Path:
    """Writes folder/name.json whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = folder / f".{name}.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 when it is done, 1 where results differ, 2 where it cannot start."""
    begin = time.perf_counter()
    options = parse(arguments)
    if options.isa and os.environ.get(_HELD) != options.isa:
        environment = {**restricted_environment(options.isa), _HELD: options.isa}
        os.execve(sys.executable, sys.orig_argv, environment)

    from benchmarks.peers import UnavailableError, active_isa

    try:
        isa = active_isa()
    except UnavailableError as error:
        print(f"benchmarks/run.py: {error}", file=sys.stderr)
        return 2
    if options.isa and isa != options.isa:
        print(f"--isa: expected the kernels to use {options.isa}, got {isa}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "schema": 1,
        "name": options.name,
        "machine": options.machine,
        "isa": isa,
        "environment": describe(command_line(sys.argv[1:] if arguments is None else arguments)),
        "options": {key: getattr(options, key) for key in KEYS},
        "peaks": [],
        "rows": [],
        "geomeans": [],
        "memory": [],
        "training_step": [],
        "import": None,
        "unavailable": {},
    }
    if options.isa and "onnxruntime" in options.peers:
        options.peers.remove("onnxruntime")
        result["unavailable"]["onnxruntime"] = f"cannot be held to {options.isa}"
    environment = result["environment"]
    say(f"{environment['cpu']}, {environment['cores']} cores; fused_lstm kernels: {isa}")
    say(", ".join(f"{name} {version}" for name, version in environment["versions"].items()))

    from benchmarks.rows import MismatchError

    try:
        if "rows" in options.only:
            measure_rows(options, result, isa)
        measure_rest(options, result)
    except (MismatchError, RuntimeError) as error:
        print(f"benchmarks/run.py: {error}", file=sys.stderr)
        return 1
    say(f"\n{time.perf_counter() - begin:.0f} s")
    if str(options.out) != "-":
        try:
            path = write(result, options.out / options.machine, options.name)
        except OSError as error:
            print(f"--out: expected a folder that can be written, got: {error}", file=sys.stderr)
            return 2
        say(f"wrote {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
