"""`make gpu-check` is honest where no GPU is: what fails, hangs, is refused or never ran shows.

The stages themselves need a GPU; here their runner is driven with stages that misbehave, and the
GPU tests' own logic runs on the CPU kernels.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

import gpu_check  # noqa: E402
import gpu_stages  # noqa: E402
from gpu_stages import Context, Outcome, Stage  # noqa: E402

FACTS = {"gpu": "A GPU", "arch": "9.0", "torch": "2.11.0", "cuda": "13.0", "tag": "cpython-312"}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "out").mkdir()
    settings = {"PYTHONPATH": str(ROOT)}
    return Context(tmp_path, tmp_path / "out", sys.executable, FACTS, settings)


def stage(command: list[str], most: int = 20, least: int = 0) -> Stage:
    def run(context: Context, seconds: float) -> Outcome:
        return gpu_stages._ended(*context.child("log", command, seconds), "fine")

    return Stage(run, most, least)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and was not reaped does not."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def broken(context: Context, seconds: float) -> Outcome:
    raise KeyError("figure")


@no_gpu
def test_without_a_gpu_it_ends_at_once_and_says_so(tmp_path: Path) -> None:
    for extra in ([], ["--baseline"]):
        command = [
            sys.executable,
            str(ROOT / "tools" / "gpu_check.py"),
            "--out",
            str(tmp_path / "o"),
        ]
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "no usable GPU here: torch" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "o").exists()


def test_a_stage_that_fails_hangs_or_breaks_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {
        "good": stage(["true"]),
        "bad": stage(["sh", "-c", "echo what went wrong; exit 4"]),
        "hangs": stage(["sh", "-c", "echo begun; sleep 60 & echo $!; wait"], most=1),
        "breaks": Stage(broken, 5, 0),
        "last": stage(["true"]),
    }
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    monkeypatch.setattr(gpu_check, "CHECK", tuple(stages))
    monkeypatch.setattr(gpu_check, "facts", lambda: FACTS)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    sleeper = int((tmp_path / "log.log").read_text().split("begun")[1].split()[0])
    assert not is_running(sleeper)  # the children of what was killed went with it
    rows = {r["stage"]: r for r in json.loads((tmp_path / "gpu-check.json").read_text())["stages"]}
    assert [(name, row["status"]) for name, row in rows.items()] == [
        ("good", "passed"),
        ("bad", "failed"),
        ("hangs", "timed out"),
        ("breaks", "failed"),
        ("last", "passed"),
    ]
    assert rows["bad"]["note"] == "exit code 4: what went wrong"
    assert str(sleeper) in rows["hangs"]["note"]
    assert "KeyError" in rows["breaks"]["note"]
    printed = capsys.readouterr().out
    assert "A GPU (sm 9.0), torch 2.11.0" in printed
    assert "hangs      timed out" in printed
    monkeypatch.setattr(gpu_check, "CHECK", ("good", "last"))
    assert gpu_check.main(["--out", str(tmp_path)]) == 0


def test_a_refusal_is_said_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = Stage(lambda c, s: Outcome("refused", "no such tool"), 5, 0)
    monkeypatch.setattr(gpu_check, "STAGES", {"tool": refusal})
    monkeypatch.setattr(gpu_check, "CHECK", ("tool",))
    monkeypatch.setattr(gpu_check, "facts", lambda: FACTS)
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert "refused       0  no such tool" in capsys.readouterr().out


def test_time_is_kept_for_the_stages_that_follow() -> None:
    names = list(gpu_stages.CHECK)
    later = sum(gpu_stages.STAGES[name].least for name in names[1:])
    assert gpu_check.allowance(names, 0, 10_000) == gpu_stages.STAGES["build"].most
    assert gpu_check.allowance(names, 0, later + 70) == 70
    assert gpu_check.allowance(names, 0, later - 1) == 0
    assert gpu_check.allowance(names, 4, 33) == 33
    least = sum(gpu_stages.STAGES[name].least for name in names)
    assert least < 570  # one command of ten minutes can hold them all


def test_what_the_build_is_missing_is_built_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def note(name: str, needs: str = "") -> Stage:
        return Stage(lambda c, s: (ran.append(name), Outcome("passed", ""))[1], 5, 0, needs)

    stages = {
        "build": note("build"),
        "build-cpu": note("build-cpu"),
        "tests": note("tests", "build"),
    }
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    facts = {**FACTS, "torch": "0.0.never-built"}
    monkeypatch.setattr(gpu_check, "facts", lambda: facts)
    assert gpu_check.main(["--out", str(tmp_path), "--stages", "tests"]) == 0
    assert ran == ["build", "tests"]


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [
        (0, "sanitized.py: done\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (9, "sanitized.py: done\n========= ERROR SUMMARY: 3 errors\n", "failed"),
        (9, "sanitized.py: done\n========= RACECHECK SUMMARY: 1 hazard displayed\n", "failed"),
        (0, "========= ERROR SUMMARY: 0 errors\n", "failed"),  # the program never came to its end
        (0, "sanitized.py: done\n", "failed"),  # the tool never summed up
        (1, "Error: Device not supported\n", "refused"),
        (1, "RuntimeError: a mistake of ours\n", "failed"),
        (124, "", "timed out"),
    ],
)
def test_what_the_sanitizer_says(code: int, text: str, status: str) -> None:
    verdict = gpu_stages.sanitizer_verdict("memcheck", code, text)
    assert verdict.status == status
    assert verdict.note.startswith("memcheck: ")


def test_the_sanitizer_watches_our_kernels_alone() -> None:
    rest = "  --report-api-errors arg (=explicit)\n"
    options = gpu_stages.sanitizer_options
    assert options(f"  --kernel-name arg\n  --kernel-name-exclude arg\n{rest}") == [
        "--kernel-name", "kns=fused_lstm", "--report-api-errors", "no",
    ]  # fmt: skip
    assert options("  --kernel-regex arg\n") == ["--kernel-regex", "kns=fused_lstm"]
    assert options("") == []


def test_a_missing_sanitizer_is_a_refusal(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_stages.shutil, "which", lambda name: None)
    assert gpu_stages.STAGES["sanitizer"].run(context, 10).status == "refused"


def small_suite(context: Context, body: str) -> None:
    """The GPU tests' conftest with one test file."""
    folder = context.root / "tests" / "gpu"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", context.root)
    for name in ("conftest.py", "families.py"):
        shutil.copy(ROOT / "tests" / "gpu" / name, folder)
    (folder / "test_gpu_one.py").write_text(body)


@no_gpu
def test_zero_gpu_cases_are_a_failure(context: Context) -> None:
    small_suite(context, "def test_nothing(device):\n    pass\n")
    outcome = gpu_stages.STAGES["tests"].run(context, 60)
    assert outcome.status == "failed"
    assert "zero GPU cases executed" in outcome.note
    (reason,) = outcome.figures["skipped"]
    assert "sees no device" in reason


BODY = """
import fused_lstm, pytest, torch

def test_ours(device):
    fused_lstm.LSTM(2, 3, device=device)(torch.zeros(2, 1, 2, device=device))

def test_not_ours(device):
    torch.nn.LSTM(2, 3, device=device)(torch.zeros(2, 1, 2, device=device))

def test_wrong(device):
    fused_lstm.LSTM(2, 3, device=device)(torch.zeros(2, 1, 2, device=device))
    assert False

@pytest.mark.cuda_only("graphs")
def test_graph(device):
    raise RuntimeError
"""


def run_suite(context: Context, *arguments: str) -> tuple[int, dict[str, Any]]:
    report = context.out / "cases.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    command += ["--gpu-report", str(report), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=context.root, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(report.read_text())


def test_only_what_our_kernels_computed_counts(context: Context) -> None:
    small_suite(context, BODY)
    code, counts = run_suite(context, "--device", "cpu")
    assert code == 1
    assert (counts["passed"], counts["failed"], counts["gpu_cases"]) == (1, 1, 0)
    assert counts["skipped"] == {"CUDA only: graphs": 1}
    code, counts = run_suite(context, "--device", "cpu", "-k", "test_not_ours")
    assert (code, counts["passed"]) == (1, 0)  # torch's own LSTM passed in our place


@no_gpu
def test_require_gpu(context: Context) -> None:
    small_suite(context, BODY)
    assert run_suite(context, "--require-gpu")[0] == 3
    code, _ = run_suite(context, "--require-gpu", "--device", "cpu", "-k", "test_ours")
    assert code == 3  # the CPU proves nothing of a GPU


def test_the_gpu_tests_run_on_the_cpu_kernels(tmp_path: Path) -> None:
    """Their logic, kept alive: a selection of every file that the CPU can try."""
    report = tmp_path / "cases.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    command += ["--device", "cpu", "--gpu-report", str(report), "-k"]
    words = "T4B11 or cell or strided or penalty or accumulation or autocast_values or dropout"
    words += " or nan_in or preactivations or wrong_sizes or no_rows or guards"
    done = subprocess.run([*command, words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(report.read_text())["passed"] >= 15
