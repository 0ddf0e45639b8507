"""What only a fresh process can tell: peak memory of a training step, and the time of the import.

Each figure comes from a child process, `python benchmarks/fresh.py WHAT ...`, which prints one line
of JSON. A process's peak (VmHWM) never goes down, so each implementation and shape needs its own.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` first, an installed fused_lstm before
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the one in the source tree
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

__all__ = ["import_times", "peak_of", "run_child", "training_memory"]

_STEPS = 3  # training steps whose peak is taken


def _child(*arguments: str) -> Any:
    """Runs this file with the arguments and returns the JSON it prints."""
    return run_child(__file__, *arguments)


def run_child(script: str, *arguments: str) -> Any:
    """Runs a script in a fresh process and returns the JSON of its last line.

    Raises RuntimeError with the child's last line where it fails.
    """
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring {' '.join(arguments)}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def training_memory(shape: str, threads: int, dtype: str = "float32") -> dict[str, Any]:
    """Memory of training steps (all weight gradients, x without), ours beside nn.LSTM's.

    Returns for each: `step_mib`, by how much the process grew at most over what it had with module,
    input and incoming gradient in place; `peak_mib`, its whole peak. `ratio` is nn.LSTM's step_mib
    over ours: 1 or more means that ours needs no more.
    """
    row: dict[str, Any] = {"shape": shape, "dtype": dtype, "threads": threads}
    for name in ("fused", "torch"):
        row[name] = _child("memory", name, shape, dtype, str(threads))
    row["ratio"] = round(row["torch"]["step_mib"] / max(row["fused"]["step_mib"], 0.01), 3)
    return row


def import_times(repeats: int) -> dict[str, Any]:
    """Milliseconds of `import torch` and of `import fused_lstm` after it, in fresh processes."""
    found = [_child("import") for _ in range(repeats)]
    ours = [one["fused_lstm_ms"] for one in found]
    return {
        "torch_ms": round(statistics.median(one["torch_ms"] for one in found), 1),
        "fused_lstm_ms": round(statistics.median(ours), 1),
        "fused_lstm_ms_low": round(min(ours), 1),
        "fused_lstm_ms_high": round(max(ours), 1),
        "repeats": repeats,
    }


def _status_mib(key: str) -> float:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise RuntimeError(f"/proc/self/status: expected {key}, got none")
    return int(match[1]) / 1024


def _measure_memory(name: str, shape: str, dtype: str, threads: str) -> dict[str, float]:
    """In the child: grows by training steps and reports its peak."""
    import torch

    from benchmarks.cases import Case, parse_shapes
    from benchmarks.peers import prepare, workload

    torch.set_num_threads(int(threads))
    kind = getattr(torch, dtype)
    # What a first call of anything costs once (loading code, starting threads) is not the step's.
    prepare(name, workload(Case(2, 2, 2, 2), "training", kind, int(threads))).call()
    case = parse_shapes(shape)[0][1]
    call = prepare(name, workload(case, "training", kind, int(threads))).call

    def steps() -> None:
        for _ in range(_STEPS):
            call()

    found = peak_of(steps)
    return {key: found[key] for key in ("step_mib", "peak_mib")}


def peak_of(call: Callable[[], object]) -> dict[str, float]:
    """By how much this process grows at most while it calls, its whole peak, and the seconds."""
    before = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    peak = _status_mib("VmHWM")
    return {
        "step_mib": round(peak - before, 2),
        "peak_mib": round(peak, 1),
        "seconds": round(seconds, 2),
    }


def _measure_import() -> dict[str, float]:
    """In the child: times the two imports."""
    begin = time.perf_counter()
    import torch  # noqa: F401

    middle = time.perf_counter()
    import fused_lstm  # noqa: F401

    end = time.perf_counter()
    return {"torch_ms": 1e3 * (middle - begin), "fused_lstm_ms": 1e3 * (end - middle)}


def main(arguments: list[str]) -> None:
    """The child's entry: measures what the first argument names and prints it as JSON."""
    what, *rest = arguments
    print(json.dumps(_measure_import() if what == "import" else _measure_memory(*rest)))


if __name__ == "__main__":
    main(sys.argv[1:])
