"""What gets installed: one version, a complete sdist, a wheel that works, a quick import."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fused_lstm
from fused_lstm import info

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "setup.py").exists():
    pytest.skip("the source folder is not there to be packaged", allow_module_level=True)


def python(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source folder without what building and running left in it."""
    target = tmp_path_factory.mktemp("source") / "fused_lstm"
    left_out = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "build",
        "dist",
        "data",
        "runs",
        "*.so",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
    )
    shutil.copytree(ROOT, target, ignore=left_out)
    return target


def source_files() -> set[str]:
    """What belongs to the project, relative to its folder."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git repository that says which files belong to the project")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = {line for line in listed.splitlines() if (ROOT / line).is_file()}
    assert "setup.py" in files
    return files


def test_one_version() -> None:
    assert metadata.version("fused-lstm") == fused_lstm.__version__
    extension = pytest.importorskip("fused_lstm._C", reason="the extension has not been built")
    assert extension.build_info()["version"] == fused_lstm.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == fused_lstm.__version__
    written = [
        path.name
        for path in (ROOT / "setup.py", ROOT / "pyproject.toml", *ROOT.glob("csrc/binding/*"))
        if f'"{fused_lstm.__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert not written, "the version is written in fused_lstm/__init__.py only"


def test_sdist_is_complete(source_copy: Path, tmp_path: Path) -> None:
    wanted = source_files()
    made = python("setup.py", "--quiet", "sdist", "-d", str(tmp_path), cwd=source_copy)
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert not wanted - held, "not in the sdist: see MANIFEST.in"


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Objects of an earlier build in build/ are used again; everything else is made afresh."""
    settings = tmp_path / "settings.cfg"
    settings.write_text(f"[build]\nbuild_lib = {tmp_path / 'lib'}\n")
    command = ["bdist_wheel", "--bdist-dir", str(tmp_path / "tree"), "-d", str(tmp_path)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    made = python(  # PATH: this environment's ninja
        "setup.py",
        "--quiet",
        *command,
        PATH=path,
        DIST_EXTRA_CONFIG=str(settings),
        FUSED_LSTM_CUDA="auto" if torch.version.cuda is None else "0",
    )
    assert made.returncode == 0, made.stderr
    said = [line for line in made.stdout.splitlines() if "FUSED_LSTM_CUDA=" in line]
    assert len(said) == 1
    assert "for the CPU only" in said[0]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"fused_lstm-{fused_lstm.__version__}-cp")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = file.read(info).decode()
    package = {n for n in names if ".dist-info/" not in n}
    assert all(name.startswith("fused_lstm/") for name in package), package
    sources = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / "fused_lstm").rglob(pattern)
    }
    extension = f"fused_lstm/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert package == sources | {extension}
    assert any(name.endswith("LICENSE") for name in names)
    assert "Requires-Dist: torch>=2.11" in text
    assert "Requires-Python: <3.15,>=3.10" in text
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE))
    assert extras == {
        "bench", "dev", "docs", "keras-test", "models", "onnx", "onnx-test", "tensorboard", "train",
    }  # fmt: skip
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    program = "import fused_lstm._extension as e; print(e.available, e.__file__)"
    seen = python("-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert seen.stdout.split() == ["True", f"{tmp_path}/installed/fused_lstm/_extension.py"]


def test_cuda_switch_refuses() -> None:
    """One line and no traceback; tests/test_cuda_build.py has every case."""
    failed = python("setup.py", "--version", FUSED_LSTM_CUDA="yes")
    assert failed.returncode != 0
    assert "FUSED_LSTM_CUDA: expected auto, 1, 0 or stub, got 'yes'" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_import_is_quick(tmp_path: Path) -> None:
    """`import fused_lstm` adds less than 50 ms to `import torch`: the median of five processes.

    Measured as processor time of that process, which other processes disturb least; and from
    bytecode, which pip writes when it installs, whatever PYTHONDONTWRITEBYTECODE says here.
    """
    program = (
        "import torch, time; t = time.process_time(); import fused_lstm; "
        "print(time.process_time() - t)"
    )
    cached = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    python("-c", program, **cached)
    times = [float(python("-c", program, OMP_NUM_THREADS="1", **cached).stdout) for _ in range(5)]
    assert statistics.median(times) < 0.050, times


def test_import_pulls_in_no_heavy_package() -> None:
    program = (
        "import torch, sys; before = set(sys.modules); import fused_lstm; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    brought = set(python("-c", program).stdout.split())
    assert "fused_lstm" in brought
    assert not brought & {"torchvision", "matplotlib", "sklearn", "tqdm", "numpy", "scipy"}, brought


def test_missing_extension_says_what_why_and_remedy(source_copy: Path) -> None:
    program = (  # without the finder of an editable install, which would find what is missing
        "import sys\n"
        "finders = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]\n"
        "sys.meta_path[:] = finders\n"
        "import fused_lstm._extension as e\n"
        "assert not e.available\n"
        "try: e.require()\n"
        "except ImportError as error: print(error)"
    )
    text = python("-c", program, cwd=source_copy, PYTHONPATH=str(source_copy)).stdout
    assert "fused_lstm._C has not been built" in text
    assert "pip install --no-build-isolation ." in text
    other = source_copy / "fused_lstm" / "_C.cpython-39-x86_64-linux-gnu.so"
    wanted = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    broken = source_copy / "fused_lstm" / wanted
    try:
        other.write_bytes(b"")
        text = python("-c", program, cwd=source_copy, PYTHONPATH=str(source_copy)).stdout
        assert f"built for another Python: found {other.name}, need {wanted}" in text
        broken.write_bytes(b"no shared library")
        text = python("-c", program, cwd=source_copy, PYTHONPATH=str(source_copy)).stdout
        assert f"does not load with torch {torch.__version__}" in text
    finally:
        other.unlink()
        broken.unlink()


def test_info_command() -> None:
    if not fused_lstm._extension.available:
        pytest.skip(fused_lstm._extension.why_missing)
    done = python("-m", "fused_lstm", "--shape", "5", "3", "2", "7", "--threads", "1")
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert f"fused_lstm {fused_lstm.__version__}, torch {torch.__version__}" in first
    assert "T=5 B=3 I=2 H=7, 1 direction(s), float32, on cpu, 1 thread(s):" in others
    assert any(line.startswith("CUDA kernels: ") for line in others)
    assert any(line.startswith("  inference: ") for line in others)
    assert any(line.startswith("  training: ") for line in others)
    wrong = python("-m", "fused_lstm", "--shape", "0", "3", "2", "7")
    assert wrong.returncode == 2
    assert "T: expected a size of at least 1, got 0" in wrong.stderr


def test_info_of_a_projection_and_of_another_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--shape", "5", "3", "2", "7", "--proj-size", "3", "--threads", "1"]) == 0
    told = capsys.readouterr().out
    assert "T=5 B=3 I=2 H=7 P=3, 1 direction(s), float32, on cpu, 1 thread(s):" in told
    assert "h projected after each step" in told
    assert info.main(["--device", "mps"]) == 0
    told = capsys.readouterr().out
    assert "  training: torch's own LSTM (no kernel for device 'mps')" in told
    assert "workspace" not in told
    for wrong, reason in (
        (["--proj-size", "128"], "proj_size: expected 0 to hidden_size - 1 = 127, got 128"),
        (["--device", "nowhere"], "at start of device string: nowhere"),
    ):
        with pytest.raises(SystemExit):
            info.main(wrong)
        assert reason in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"dtype: expected one of float32, .*, got int8"):
        info.describe(dtype="int8")


def test_preflight(tmp_path: Path) -> None:
    """Each missing thing is one line with a remedy; nothing missing is silence."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import preflight
    finally:
        sys.path.pop(0)
    assert "this is 3.9" in preflight.python_version((3, 9))
    assert "this is 3.15" in preflight.python_version((3, 15))
    assert preflight.python_version((3, 10)) is None
    assert preflight.python_version((3, 14)) is None
    assert "no C++ compiler 'no-such-compiler'" in preflight.compiler("no-such-compiler")
    assert "cannot compile C++17" in preflight.compiler("false")
    assert "Python.h is not in" in preflight.python_header(str(tmp_path))
    assert "make room" in preflight.disk_space(str(tmp_path / "new"), needed=1e9)
    assert preflight.disk_space(str(tmp_path / "new"), needed=0.0) is None
    done = python("tools/preflight.py", str(tmp_path), CXX="no-such-compiler")
    assert done.returncode == 1
    assert done.stderr.count("\n") == done.stderr.count("preflight: ") >= 1
