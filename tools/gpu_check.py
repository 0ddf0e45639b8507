"""All evidence that a GPU can give, by one command: `make gpu-check`, and `make gpu-baseline`.

    python3 tools/gpu_check.py --out FOLDER [--stages build tests ...] [--limit SECONDS]

For a machine that is ours for minutes: no network, no virtual environment, no installation. Stages
(gpu_stages.py) run one after the other, each for a bounded time, in processes of their own; one
that fails, hangs or crashes does not stop the others. FOLDER receives a log per stage, the figures,
and gpu-check.json, which is written anew after every stage, so that nothing is lost if the machine
goes away.

Exit code: 0 all is well, 1 a stage failed, 2 there is no usable GPU here.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_stages import BASELINE, CHECK, STAGES, Context, Outcome

ROOT = Path(__file__).resolve().parent.parent
_FACTS = """
import json, sys, torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU")
p = torch.cuda.get_device_properties(0)
print(json.dumps({
    "gpu": p.name, "arch": f"{p.major}.{p.minor}", "gpus": torch.cuda.device_count(),
    "sms": p.multi_processor_count, "memory_gib": round(p.total_memory / 2**30, 1),
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "python": f"{sys.version_info[0]}.{sys.version_info[1]}", "tag": sys.implementation.cache_tag,
}))
"""


def facts(python: str = sys.executable) -> dict[str, Any]:
    """What is here, as the interpreter's own torch sees it. Raises RuntimeError without a GPU."""
    done = subprocess.run([python, "-c", _FACTS], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"no usable GPU here: {last} ({python})")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def allowance(names: Sequence[str], at: int, left: float) -> float:
    """Seconds that stage `at` may take when `left` remain and those after it need theirs."""
    later = sum(STAGES[name].least for name in names[at + 1 :])
    return max(0.0, min(STAGES[names[at]].most, left - later))


def run_stages(names: Sequence[str], context: Context, limit: float) -> list[dict[str, Any]]:
    """Every stage in order; what came of it, one entry each."""
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    for at, name in enumerate(names):
        seconds = allowance(names, at, limit - (time.monotonic() - begin))
        started = time.monotonic()
        print(f"== {name} (at most {seconds:.0f} s)", flush=True)
        if seconds < STAGES[name].least / 2:
            outcome = Outcome("failed", f"no time left: {seconds:.0f} s, {STAGES[name].least} kept")
        else:
            try:
                outcome = STAGES[name].run(context, seconds)
            except Exception as error:  # a stage that breaks is a finding, not the end
                outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        took = time.monotonic() - started
        row = {"stage": name, "status": outcome.status, "seconds": round(took, 1)}
        rows.append({**row, "note": outcome.note, "figures": outcome.figures})
        print(f"   {outcome.status} after {took:.0f} s: {outcome.note}", flush=True)
        write(context, rows)
    return rows


def write(context: Context, rows: list[dict[str, Any]]) -> None:
    """gpu-check.json, whole or as it was."""
    path = context.out / "gpu-check.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"machine": context.facts, "stages": rows}, indent=1) + "\n")
    partial.replace(path)


def table(rows: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
    """One line per stage, for a reader who sees the end of the output only."""
    head = f"{found['gpu']} (sm {found['arch']}), torch {found['torch']}, CUDA {found['cuda']}"
    lines = [head, f"{'stage':<10} {'status':<9} {'s':>5}  note"]
    lines += [f"{r['stage']:<10} {r['status']:<9} {r['seconds']:>5.0f}  {r['note']}" for r in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build, test and measure on this machine's GPU.")
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "runs" / "gpu-check", help="folder of the results")
    add("--stages", nargs="+", choices=tuple(STAGES), help=f"default: {' '.join(CHECK)}")
    add("--baseline", action="store_true", help=f"instead: {' '.join(BASELINE)}")
    add("--limit", type=float, default=1800, help="seconds for all stages together")
    options = parser.parse_args(arguments)
    try:
        found = facts()
    except RuntimeError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    names = options.stages or list(BASELINE if options.baseline else CHECK)
    options.out.mkdir(parents=True, exist_ok=True)
    context = Context(ROOT, options.out.resolve(), sys.executable, found)
    for build in ("build", "build-cpu"):
        needed = any(STAGES[name].needs == build for name in names)
        if needed and build not in names and not context.is_built(build):
            names.insert(0, build)
    rows = run_stages(names, context, options.limit)
    print("\n" + table(rows, found), flush=True)
    return 0 if all(row["status"] in ("passed", "refused") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
