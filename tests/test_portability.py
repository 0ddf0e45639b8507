"""Other systems than Linux: what belongs to one stands behind a switch, with an alternative."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import wheel_matrix  # noqa: E402

if not (ROOT / "setup.py").exists():
    pytest.skip("the source folder is not there", allow_module_level=True)

# Headers that every C++17 compiler has; torch, pybind11 and DLPack come with torch.
STANDARD = re.compile(r"<([a-z_]+|torch/.+|pybind11/.+|ATen/dlpack\.h|Python\.h)>")
SYSTEM_CALL = re.compile(
    r"\b(mmap|munmap|madvise|mprotect|sysconf|sched_\w+|pthread_\w+|dlsym|dlopen|syscall|"
    r"__builtin_(?:cpu|ia32)_\w+|__get_cpuid\w*)\("
)
GUARD = re.compile(r"__(linux|unix|APPLE|x86_64|i386|aarch64)__|_SC_\w+|FUSED_LSTM_SIMD")


def unguarded(text: str) -> list[str]:
    """Lines that use something of one system or processor outside every #if that asks for it."""
    found, guards = [], []
    for line in text.splitlines():
        code = line.partition("//")[0]
        directive = re.match(r"\s*#\s*(if\w*|el\w+|endif)\b(.*)", code)
        if directive:
            if directive[1].startswith("if"):
                guards.append(directive[2])
            elif directive[1] == "endif":
                guards.pop()
            else:  # the other side of a switch is one, too
                guards[-1] = directive[2] + " " + guards[-1] if directive[1] == "elif" else ""
            continue
        header = re.match(r"\s*#\s*include\s*(<.*>)", code)
        special = header is not None and not STANDARD.fullmatch(header[1])
        if (special or SYSTEM_CALL.search(code)) and not any(GUARD.search(g) for g in guards):
            found.append(line.strip())
    return found


def test_nothing_of_one_system_without_a_switch() -> None:
    sources = [p for p in ROOT.glob("csrc/**/*") if p.suffix in {".h", ".cpp"}]
    sources = [p for p in sources if "cuda" not in p.as_posix().partition("csrc")[2]]
    assert len(sources) > 30
    found = {str(p.relative_to(ROOT)): unguarded(p.read_text(encoding="utf-8")) for p in sources}
    assert not {name: lines for name, lines in found.items() if lines}


def test_msvc_is_refused_in_one_line() -> None:
    program = (
        "import importlib.util, os, platform, runpy, sys, setuptools; sys.platform = 'win32'; "
        "os.environ.pop('CXX', None); runpy.run_path('setup.py')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "need GCC or clang" in line
    assert "CXX=clang-cl" in line


def test_wheel_matrix_is_as_measured() -> None:
    """The page is made from the record, the record has the oldest torch and no failure of ours."""
    record = json.loads((ROOT / "docs" / "wheel-matrix.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "wheel-matrix.md").read_text(encoding="utf-8")
    assert page == wheel_matrix.table(record)
    ran = [row for row in record["rows"] if "reason" not in row]
    assert {row["torch"].split("+")[0] for row in ran} >= {"2.11.0", "2.13.0"}
    assert all(row["passed"] > 100 for row in ran)
    assert {name for row in ran for name in row["failures"]} <= set(wheel_matrix.EXPLAINED)


def test_wheel_matrix_says_what_became_of_the_cuda_module() -> None:
    plain = {"python": "3.11.7", "torch": "2.14.1+cu130"}
    row = {**plain, "cuda": "9.0a", "CUDA module": "loaded"}
    assert "a wheel with the CUDA module" in wheel_matrix.remarks([plain])[-1]
    assert "a wheel with the CUDA module" in wheel_matrix.remarks([{**row, "reason": "nvcc"}])[-1]
    said = wheel_matrix.remarks([plain, row])
    assert "- Python 3.11.7, 2.14.1+cu130: loaded" in said
    assert "a wheel with the CUDA module" not in said[-1]
    assert said[-1].partition(".")[0].endswith("a GPU")


def test_wheel_matrix_refuses_a_cuda_module_that_does_not_load() -> None:
    """Only a torch without CUDA may do without it."""
    assert wheel_matrix.cuda_module({"cuda": "13.0", "why_no_cuda": ""}) == "loaded"
    assert wheel_matrix.cuda_module({"cuda": None, "why_no_cuda": "no CUDA"}) == "no CUDA"
    with pytest.raises(wheel_matrix.FailedError, match="undefined symbol"):
        wheel_matrix.cuda_module({"cuda": "13.0", "why_no_cuda": "undefined symbol"})
