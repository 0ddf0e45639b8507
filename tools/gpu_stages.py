"""The stages of gpu_check.py: what each runs, how long it may take, and how its result is read.

A stage gets the context and its seconds and returns an Outcome. "refused" is for a tool that is not
here or that the machine's runtime does not allow: said in the table, no failure. Standard library
only; torch is imported by the children.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["BASELINE", "CHECK", "STAGES", "Context", "Outcome"]

CHECK = ("build", "tests", "sanitizer", "scorecard", "steps")
BASELINE = ("build-cpu", "baseline", "cpu-bench", "cpu-tests")
TIMED_OUT = 124
_REFUSALS = ("Device not supported", "not supported on", "error 999", "LibraryNotLoaded")
_ERRORS_FOUND = 9  # exit code that we ask of compute-sanitizer


class Outcome(NamedTuple):
    status: str  # passed, failed, timed out, refused
    note: str
    figures: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Context:
    """Where everything is; `facts` is what gpu_check.facts() found."""

    root: Path
    out: Path
    python: str
    facts: dict[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)  # of every child's environment

    def site(self, build: str) -> Path:
        """The folder that `build` or `build-cpu` fills, and from which everything is imported."""
        kind = "cpu" if build == "build-cpu" else f"sm{self.facts['arch'].replace('.', '')}"
        name = f"{self.facts['tag']}-torch{self.facts['torch']}-{kind}"
        return self.root / "build" / "gpu-check" / name

    def is_built(self, build: str) -> bool:
        module = "_C.*.so" if build == "build-cpu" else "_C_cuda.*.so"
        return any((self.site(build) / "fused_lstm").glob(module))

    def child(
        self,
        log: str,
        command: Sequence[str],
        seconds: float,
        build: str = "build",
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Runs a command in the folder of a build, killed with all its children after `seconds`.

        Its output is added to the log; returns exit code (124: killed) and that output. The working
        directory holds the package that was built, so that no other fused_lstm can be imported.
        """
        path = self.out / f"{log}.log"
        site = self.site(build)
        where = site if site.is_dir() else self.root
        settings = {"PYTHONPATH": str(site), "PYTHONUNBUFFERED": "1", **self.settings}
        if build == "build":
            settings["FUSED_LSTM_CUDA_KERNELS"] = "1"
        with path.open("ab") as stream:
            begin = stream.tell()
            process = subprocess.Popen(
                [str(word) for word in command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=where,
                env={**os.environ, **settings, **(environment or {})},
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = TIMED_OUT
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        with path.open("rb") as stream:
            stream.seek(begin)
            return code, stream.read().decode(errors="replace")


def _ended(code: int, text: str, passed: str) -> Outcome:
    """The outcome of a stage that is judged by its exit code; the note is the last line it said."""
    last = (text.strip().splitlines() or ["no output"])[-1][:160]
    if code == TIMED_OUT:
        return Outcome("timed out", f"killed; last line: {last}")
    return (
        Outcome("passed", passed) if code == 0 else Outcome("failed", f"exit code {code}: {last}")
    )


def _build(context: Context, seconds: float, build: str = "build") -> Outcome:
    """For the present device only, past pip: nothing is fetched, nothing installed."""
    site = context.site(build)
    # Objects stay in build/, so this costs a link only. While it is gone, children run in the root.
    shutil.rmtree(site, ignore_errors=True)
    settings = {
        "FUSED_LSTM_CUDA": "0",
        "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)),
    }
    if build == "build":
        arch = context.facts["arch"]
        settings |= {"FUSED_LSTM_CUDA": "1", "FUSED_LSTM_ARCHS": "9.0a" if arch == "9.0" else arch}
    begin = time.monotonic()
    command = [context.python, "setup.py", "build", "--build-lib", str(site)]
    code, text = context.child(build, command, seconds, build, settings)
    if code != 0:
        return _ended(code, text, "")
    left = seconds - (time.monotonic() - begin)
    module = "require_cuda" if build == "build" else "require"
    look = f"from fused_lstm import _extension as e; print(e.{module}().build_info())"
    code, text = context.child(build, [context.python, "-c", look], max(left, 10), build)
    return _ended(code, text, (text.strip().splitlines() or [""])[-1][:120])


def _tests(context: Context, seconds: float) -> Outcome:
    """Each file in a process of its own: an illegal access or a hang takes down that file only."""
    deadline = time.monotonic() + seconds
    total: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    wrong = []
    report = context.out / "cases.partial"
    folder = context.root / "tests" / "gpu"
    for file in sorted(folder.glob("test_gpu_*.py")):
        report.unlink(missing_ok=True)
        left = deadline - time.monotonic()
        command = [
            context.python, "-m", "pytest", file, "--device", "cuda", "--gpu-report", report,
            "-c", context.root / "pyproject.toml", "--rootdir", context.root,
            "-p", "no:cacheprovider", "-q", "--tb=short", "-o", "faulthandler_timeout=100",
        ]  # fmt: skip
        code, _ = context.child("tests", command, left) if left > 5 else (TIMED_OUT, "")
        if code != 0:
            wrong.append(f"{file.stem} ({'timed out' if code == TIMED_OUT else f'exit {code}'})")
        if report.exists():
            counts = json.loads(report.read_text())
            total.update({key: counts[key] for key in ("gpu_cases", "passed", "failed")})
            skipped.update(counts["skipped"])
    report.unlink(missing_ok=True)
    figures = {**total, "skipped": dict(skipped.most_common()), "files_that_failed": wrong}
    note = f"{total['passed']} of {total['gpu_cases']} GPU cases passed, {skipped.total()} skipped"
    if total["gpu_cases"] == 0:
        return Outcome(
            "failed", "zero GPU cases executed" + "".join(f"; {w}" for w in wrong), figures
        )
    if wrong:
        return Outcome("failed", f"{note}; {', '.join(wrong)}", figures)
    return Outcome("passed", note, figures)


def sanitizer_options(known: str) -> list[str]:
    """What is asked of compute-sanitizer, of the options that its help (`known`) names.

    Our kernels alone are watched: torch's and cuBLAS's would take all the time. Calls of CUDA that
    fail are not counted, because torch tries some that may; ours raise.
    """
    options: list[str] = []
    for name in ("--kernel-name", "--kernel-regex"):  # since CUDA 13, before
        if name in known and not options:
            options = [name, "kns=fused_lstm"]
    return [*options, *(["--report-api-errors", "no"] if "--report-api-errors" in known else [])]


def sanitizer_verdict(tool: str, code: int, text: str) -> Outcome:
    """What one run of compute-sanitizer says."""
    if code == TIMED_OUT:
        return Outcome("timed out", f"{tool}: killed")
    if any(words in text for words in _REFUSALS) and "sanitized.py: done" not in text:
        words = next(words for words in _REFUSALS if words in text)
        return Outcome("refused", f"{tool}: the runtime refuses ({words})")
    lines = [line.strip("= ") for line in text.splitlines() if "SUMMARY:" in line]
    summary = lines[-1] if lines else "no summary"
    if code == 0 and lines and "sanitized.py: done" in text:
        return Outcome("passed", f"{tool}: {summary}")
    return Outcome("failed", f"{tool}: {summary}, exit code {code}")


def _sanitizer(context: Context, seconds: float) -> Outcome:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    program = shutil.which("compute-sanitizer") or shutil.which(home / "bin/compute-sanitizer")
    if program is None:
        return Outcome("refused", "compute-sanitizer is not installed here")
    asked = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    options = sanitizer_options(asked.stdout)
    script = context.root / "tests" / "gpu" / "sanitized.py"
    verdicts = {}
    for tool in ("memcheck", "racecheck"):
        command = [
            program, "--tool", tool, *options, "--error-exitcode", _ERRORS_FOUND,
            context.python, script,
        ]  # fmt: skip
        settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or it would see a few large blocks
        code, text = context.child("sanitizer", command, seconds / 2, environment=settings)
        verdicts[tool] = sanitizer_verdict(tool, code, text)
    worst = next(
        status
        for status in ("failed", "timed out", "refused", "passed")
        if any(v.status == status for v in verdicts.values())
    )
    return Outcome(worst, "; ".join(v.note for v in verdicts.values()))


def _measure(script: str, name: str, *options: str, build: str = "build") -> Any:
    """A stage that runs one of benchmarks/ for the time it has and leaves NAME.json."""

    def run(context: Context, seconds: float) -> Outcome:
        path = context.out / f"{name}.json"
        path.unlink(missing_ok=True)
        budget = str(int(max(10, seconds - 25)))  # the rest is for starting and checking
        command = [context.python, context.root / "benchmarks" / script, *options]
        code, text = context.child(
            name, [*command, "--seconds", budget, "--json", path], seconds, build
        )
        outcome = _ended(code, text, (text.strip().splitlines() or [""])[-1][:160])
        if outcome.status == "passed" and not path.exists():
            return Outcome("failed", f"left no {path.name}")
        return outcome

    return run


def _cpu_bench(context: Context, seconds: float) -> Outcome:
    command = [context.python, context.root / "benchmarks" / "run.py", "--quick", "--name", "cpu"]
    code, text = context.child(
        "cpu-bench", [*command, "--machine", "cpu", "--out", context.out], seconds, "build-cpu"
    )
    return _ended(code, text, (text.strip().splitlines() or [""])[-1][:120])


def _cpu_tests(context: Context, seconds: float) -> Outcome:
    command = [
        context.python, "-m", "pytest", context.root / "tests", "-q", "-p", "no:cacheprovider",
        "-c", context.root / "pyproject.toml", "--rootdir", context.root,
    ]  # fmt: skip
    code, text = context.child("cpu-tests", command, seconds, "build-cpu")
    return _ended(code, text, (text.strip().splitlines() or [""])[-1][:120])


class Stage(NamedTuple):
    run: Callable[[Context, float], Outcome]
    most: int  # seconds it may take
    least: int  # seconds kept for it when time is short
    needs: str = ""  # the build that it imports


STAGES: dict[str, Stage] = {
    "build": Stage(_build, 420, 60),
    "tests": Stage(_tests, 420, 90, "build"),
    "sanitizer": Stage(_sanitizer, 240, 60, "build"),
    "scorecard": Stage(_measure("gpu.py", "scorecard"), 420, 90, "build"),
    "steps": Stage(_measure("gpu_steps.py", "steps"), 120, 40, "build"),
    "build-cpu": Stage(lambda context, s: _build(context, s, "build-cpu"), 300, 60),
    "baseline": Stage(
        _measure("gpu.py", "baseline", "--baseline", build="build-cpu"), 300, 60, "build-cpu"
    ),
    "cpu-bench": Stage(_cpu_bench, 180, 60, "build-cpu"),
    "cpu-tests": Stage(_cpu_tests, 400, 60, "build-cpu"),
}
