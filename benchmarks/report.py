"""Reads a result, checks its form, computes the geometric means, and prints it as Markdown.

`python benchmarks/report.py benchmarks/results/MACHINE/NAME.json` prints the README's table, and
with `--detail` every figure. Results of run.py (CPU) and gpu.py (GPU) have the same form; a row of
the latter has no number of threads and its `dtype` is one of gpu_cases.PRECISIONS.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` before any other of that name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.cases import LABELS
from benchmarks.gpu_cases import LABELS as GPU_LABELS
from benchmarks.timing import geometric_mean

__all__ = [
    "MODES", "PEER_LABELS", "SCHEMA", "caption", "detail", "geomeans", "load", "main", "on_gpu",
    "table",
]  # fmt: skip

SCHEMA = 1
_KEYS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "name": str,
    "machine": str,
    "isa": str,
    "environment": dict,
    "options": dict,
    "peaks": list,
    "rows": list,
    "geomeans": list,
    "memory": list,
    "training_step": list,
    "import": (dict, type(None)),
    "unavailable": dict,
}
_ROW_KEYS = (
    "shape", "group", "mode", "dtype", "threads", "gflop", "plan", "implementations",
    "fused_versus", "noise",
)  # fmt: skip
MODES = {
    "inference": "inference",
    "training": "training",
    "training_dx": "training, with x's gradient",
    "forward": "training's forward",  # on the GPU
}
PEER_LABELS = {**LABELS, **GPU_LABELS}

Row = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """A result from its file. Raises ValueError with what is wrong where it is not one."""
    try:
        result = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a benchmark result, got {error}") from None
    check(result, str(path))
    return result


def check(result: Any, name: str) -> None:
    """Raises ValueError naming the first key that is missing or of the wrong kind."""
    if not isinstance(result, dict):
        raise ValueError(f"{name}: expected a JSON object, got {type(result).__name__}")
    for key, kind in _KEYS.items():
        if key not in result or not isinstance(result[key], kind):
            got = type(result[key]).__name__ if key in result else "nothing"
            raise ValueError(f"{name}: expected {key} as {kind}, got {got}")
    if result["schema"] != SCHEMA:
        raise ValueError(f"{name}: expected schema {SCHEMA}, got {result['schema']}")
    for row in result["rows"]:
        missing = [key for key in _ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"{name}: expected every row to have {_ROW_KEYS}, missing {missing}")


def _order(values: Iterable[Any]) -> list[Any]:
    """Distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def geomeans(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Geometric means of (peer's time / ours), per group, dtype, thread count, mode and peer.

    `worst` is the shape where ours is least ahead; `noisy` counts rows that other work disturbed.
    """
    sets = _order((r["group"], r["dtype"], r["threads"], r["mode"]) for r in rows)
    found = []
    for group, dtype, threads, mode in sets:
        mine = [
            row
            for row in rows
            if (row["group"], row["dtype"], row["threads"], row["mode"])
            == (group, dtype, threads, mode)
        ]
        for peer in _order(peer for row in mine for peer in row["fused_versus"]):
            ratios = {
                row["shape"]: row["fused_versus"][peer]["median"]
                for row in mine
                if row["fused_versus"].get(peer)
            }
            if not ratios:
                continue
            worst = min(ratios, key=ratios.__getitem__)
            found.append(
                {
                    "group": group,
                    "dtype": dtype,
                    "threads": threads,
                    "mode": mode,
                    "peer": peer,
                    "ratio": round(geometric_mean(ratios.values()), 4),
                    "worst": ratios[worst],
                    "worst_shape": worst,
                    "shapes": len(ratios),
                    "noisy": sum(bool(row["noise"]["noisy"]) for row in mine),
                }
            )
    return found


def caption(result: dict[str, Any]) -> str:
    """Machine, versions, date and commit in one line."""
    environment = result["environment"]
    versions = environment["versions"]
    commit = (environment["git"]["commit"] or "no commit")[:10]
    if environment["git"]["modified"]:
        commit += " with local changes"
    machine = f"{environment['cpu']} ({environment['cores']} cores, kernels: {result['isa']})"
    if on_gpu(result):
        device = result["device"]
        driver = device.get("as_found", {}).get("driver_version", "?")
        machine = (
            f"{device['name']} ({result['isa']}, cuDNN {device.get('cudnn')}, driver {driver})"
        )
    return (
        f"{machine}, "
        f"torch {versions.get('torch', '?')}, fused_lstm {versions.get('fused_lstm', '?')}, "
        f"{environment['date'][:10]}, {commit}"
    )


def on_gpu(result: dict[str, Any]) -> bool:
    """Whether a result is gpu.py's."""
    return "device" in result


def _column(threads: int | None, mode: str) -> str:
    """Head of a table's column; on the GPU there are no threads to count."""
    if threads is None:
        return MODES[mode]
    return f"{MODES[mode]}, {threads} thread" + ("s" if threads > 1 else "")


def table(
    result: dict[str, Any], group: str | None = None, dtype: str = "float32", peer: str = "torch"
) -> str:
    """The README's table: a shape per line, a mode and thread count per column, peer's time / ours.

    Without a group: `core` for the CPU, every shape for a GPU. A figure that other work disturbed
    carries an asterisk. Raises ValueError if nothing matches.
    """
    if group is None and not on_gpu(result):
        group = "core"
    rows = [
        r
        for r in result["rows"]
        if group in (None, r["group"]) and r["dtype"] == dtype and r["fused_versus"].get(peer)
    ]
    if not rows:
        wanted = f"{group or 'any group'}, {dtype}, {peer}"
        raise ValueError(f"group, dtype, peer: no row of the result has {wanted}")
    columns = _order((row["threads"], row["mode"]) for row in rows)
    head = [_column(threads, mode) for threads, mode in columns]
    lines = [
        "| T x B x I x H | " + " | ".join(head) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    by_key = {(row["shape"], row["threads"], row["mode"]): row for row in rows}
    disturbed = False
    for shape in _order(row["shape"] for row in rows):
        cells = []
        for threads, mode in columns:
            row = by_key.get((shape, threads, mode))
            cell = "" if row is None else f"{row['fused_versus'][peer]['median']:.2f}"
            if row is not None and row["noise"]["noisy"]:
                cell, disturbed = cell + "*", True
            cells.append(cell)
        lines.append(f"| {shape.replace('x', ' x ')} | " + " | ".join(cells) + " |")
    means = {
        (m["threads"], m["mode"]): m["ratio"]
        for m in geomeans([{**row, "group": "these"} for row in rows])
        if m["peer"] == peer
    }
    lines.append(
        "| **geometric mean** | "
        + " | ".join(f"**{means[column]:.2f}**" for column in columns)
        + " |"
    )
    lines += ["", f"{caption(result)}. `{result['environment']['command']}`"]
    if disturbed:
        lines.append("\\* other processes disturbed this figure.")
    return "\n".join(lines)


def detail(result: dict[str, Any]) -> str:
    """Every row and implementation: time, speed, share of the machine's peak, ratios."""
    lines = [
        "| T x B x I x H | mode | dtype | threads | implementation | ms | GF/s | of peak "
        "| nn.LSTM's time / its time (quartiles) | |",
        "|---|---|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        for name, one in row["implementations"].items():
            share = "" if one["peak_share"] is None else f"{one['peak_share']:.0%}"
            ratio = one["ratio"]
            text = "" if ratio is None else "{median:.2f} ({low:.2f} to {high:.2f})".format(**ratio)
            lines.append(
                f"| {row['shape'].replace('x', ' x ')} | {MODES[row['mode']]} | {row['dtype']} "
                f"| {row['threads'] or ''} | {PEER_LABELS.get(name, name)} | {one['ms']:.4g} "
                f"| {one['gflops']:.1f} | {share} | {text} "
                f"| {'disturbed' if row['noise']['noisy'] else ''} |"
            )
    if result["geomeans"]:
        lines += [
            "",
            "| shapes | mode | dtype | threads | against | geometric mean | least, and where |",
            "|---|---|---|---:|---|---:|---|",
        ]
    for mean in result["geomeans"]:
        lines.append(
            f"| {mean['group']} ({mean['shapes']}) | {MODES[mean['mode']]} | {mean['dtype']} "
            f"| {mean['threads'] or ''} | {PEER_LABELS.get(mean['peer'], mean['peer'])} "
            f"| {mean['ratio']:.2f} | {mean['worst']:.2f} at {mean['worst_shape']} |"
        )
    if result["memory"]:
        lines += [
            "",
            "| memory of a training step, MiB | threads | fused_lstm | nn.LSTM |",
            "|---|---:|---:|---:|",
        ]
    for one in result["memory"]:
        lines.append(
            f"| {one['shape'].replace('x', ' x ')} | {one['threads']} "
            f"| {one['fused']['step_mib']:.1f} | {one['torch']['step_mib']:.1f} |"
        )
    if result["training_step"]:
        lines += [
            "",
            "| training step of sequential MNIST | threads | --impl fused, ms | --impl torch, ms "
            "| ratio |",
            "|---|---:|---:|---:|---:|",
        ]
    for one in result["training_step"]:
        lines.append(
            f"| {one['order']}, {one['recipe']} recipe ({one['shape']}) | {one['threads']} "
            f"| {one['fused']['ms']:.3g} | {one['torch']['ms']:.3g} "
            f"| {one['ratio']['median']:.2f} |"
        )
    if result["import"]:
        lines += [
            "",
            f"`import fused_lstm` after `import torch`: {result['import']['fused_lstm_ms']:.0f} ms "
            f"(`import torch`: {result['import']['torch_ms']:.0f} ms)",
        ]
    return "\n".join([*lines, "", caption(result)])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Print a benchmark result as Markdown.")
    parser.add_argument("result", type=Path, help="a JSON file written by run.py")
    parser.add_argument("--detail", action="store_true", help="every figure")
    parser.add_argument("--group", help="which shapes (default: core; on a GPU all)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, ...; tf32 on a GPU")
    parser.add_argument("--peer", default="torch", help="against whom (default: torch, nn.LSTM)")
    given = parser.parse_args(arguments)
    try:
        result = load(given.result)
        print(
            detail(result) if given.detail else table(result, given.group, given.dtype, given.peer)
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
