"""One wheel per Python, beside every torch: builds, audits, installs, tests, and prints a table.

    python tools/wheel_matrix.py --python python3.11 python3.13 --torch 2.11.0 newest

For each Python a wheel is built once, from the sdist, in an empty folder, with the first torch of
the list that this Python can have; auditwheel gives it its manylinux tag and `nm` shows that it
needs no C++ symbol of torch. That one wheel is then installed into an environment of its own for
each torch, the tests of TESTS run there without the source tree, and a row is written to
docs/wheel-matrix.json and docs/wheel-matrix.md. A combination that cannot be had is a row with the
reason. `--over PATH` adds an environment that exists already (a torch with CUDA, say), by a path
file: nothing is written into it. `--cuda 9.0a` builds the CUDA module into the wheels, for that GPU
and with a torch that has CUDA: the page says whether it loads. `--add` keeps the rows of earlier
runs that are not made again, each with its commit; `--discard` removes every environment, of 6 GB,
after its tests. `--wheel-only` is `make wheel`. uv and auditwheel are expected beside the
interpreter that runs this.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What depends on torch: the rest of the suite tests kernels, training, tools or the source tree.
TESTS = (
    "module forward gradients packed errors weights_change autocast higher_order transforms "
    "binding func opcheck convert export compile options options_tools extras variants frozen"
)
# Failures that are torch's own, and why we think so.
DECOMPOSED = (
    "torch 2.11.0 decomposes aten.lstm into something whose h_n and c_n have a dimension too many; "
    "nn.LSTM in the place of ours shows the same"
)
EXPLAINED = {
    f"tests.test_export.test_export_holds_an_operator_of_torch[{a}-{b}]": DECOMPOSED
    for a in (False, True)
    for b in (False, True)
}
CXX_OF_TORCH = re.compile(r"\b(at|c10|torch)::")
KEPT = ("libtorch_cpu.so", "libtorch_cuda.so")  # torch brings them; never copied into the wheel
NEEDED = ["numpy", "pytest>=8", "setuptools>=71", "ninja"]


class FailedError(Exception):
    """A step that did not work; says what it said."""


def run(*command: str | Path, cwd: Path = ROOT, limit: float = 3600, **environment: str) -> str:
    """Runs a command and returns what it said.

    Raises:
        FailedError: it failed; with its last line, or the one that names an error.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"error|cause|because", line, re.IGNORECASE)]
        raise FailedError((telling or lines or ["it said nothing"])[-1][:300])
    return done.stdout


def make_environment(folder: Path, python: str, torch: str) -> Path:
    """An environment with one torch, made once; returns its interpreter."""
    interpreter = folder / "bin" / "python"
    done = folder / ".complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run("uv", "venv", "--python", python, folder)
        version = "torch" if torch == "newest" else f"torch=={torch}"
        try:
            run("uv", "pip", "install", "--python", interpreter, version, *NEEDED)
        except FailedError:
            shutil.rmtree(folder)
            raise
        done.touch()
    return interpreter


def make_environment_over(folder: Path, existing: Path) -> Path:
    """An environment that sees the packages of another one, which stays as it is."""
    shutil.rmtree(folder, ignore_errors=True)
    python = existing / "bin" / "python"
    run("uv", "venv", "--python", python, folder)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    seen = run(python, "-c", ask).strip()
    own = Path(run(folder / "bin" / "python", "-c", ask).strip())
    (own / "existing.pth").write_text(f"{seen}\n", encoding="utf-8")
    return folder / "bin" / "python"


def make_sdist(python: Path, target: Path) -> Path:
    """The source distribution of the working tree; returns the archive."""
    target.mkdir(parents=True, exist_ok=True)
    run(python, "setup.py", "--quiet", "sdist", "-d", target)
    return max(target.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)


def build_wheel(
    python: Path, sdist: Path, work: Path, target: Path, cuda: str = ""
) -> tuple[Path, dict]:
    """Builds a wheel from the sdist in an empty folder and lets auditwheel name what it runs on.

    Args:
        python: the interpreter it is for, whose environment has torch.
        sdist: the archive.
        work: emptied, then built in.
        target: receives the wheel.
        cuda: the compute capability that the CUDA module is built for; "" leaves it out.

    Returns:
        The wheel, and what is to be known of it: name, size, torch it was built with, modules.

    Raises:
        FailedError: it cannot be built, needs C++ symbols of torch, or lacks py.typed.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with tarfile.open(sdist) as tar:
        tar.extractall(work / "source", filter="data")
    (source,) = (work / "source").iterdir()
    program = "import sys; from setuptools.build_meta import build_wheel as b; b(sys.argv[1])"
    here = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # this environment's ninja
    wanted = {"FUSED_LSTM_CUDA": "1" if cuda else "0", "FUSED_LSTM_ARCHS": cuda}
    run(python, "-c", program, work / "raw", cwd=source, PATH=here, **wanted)
    (raw,) = (work / "raw").glob("*.whl")
    target.mkdir(parents=True, exist_ok=True)
    excluded = [word for name in KEPT for word in ("--exclude", name)]
    run("auditwheel", "repair", *excluded, "-w", work / "repaired", raw)
    (repaired,) = (work / "repaired").glob("*.whl")
    wheel = target / repaired.name
    shutil.copy2(repaired, wheel)

    shutil.unpack_archive(wheel, work / "content", "zip")
    modules = sorted((work / "content" / "fused_lstm").glob("_C*.so"))
    if len(modules) != (2 if cuda else 1):
        raise FailedError(f"{wheel.name} holds {len(modules)} modules")
    for module in modules:
        needs = run("nm", "-D", "-C", "--undefined-only", module)
        of_torch = [line.split()[-1] for line in needs.splitlines() if CXX_OF_TORCH.search(line)]
        if of_torch:
            raise FailedError(f"{module.name} needs C++ symbols of torch: {of_torch[:3]}")
    for name in ("fused_lstm/py.typed", "fused_lstm/_C.pyi"):
        if not (work / "content" / name).exists():
            raise FailedError(f"{wheel.name} lacks {name}")
    copied = sorted(path.name for path in (work / "content").glob("*.libs/*"))
    if copied:
        raise FailedError(f"auditwheel copied {', '.join(copied)} into the wheel")
    facts = {
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        "built with": run(python, "-c", "import torch; print(torch.__version__)").strip(),
        "modules": [module.name.partition(".")[0] for module in modules],
    }
    wheel.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    return wheel, facts


def earlier_wheel(tag: str, folder: Path) -> tuple[Path, dict] | None:
    """The wheel of an earlier run for this Python, as build_wheel() returned it."""
    for record in folder.glob(f"*-{tag}-*.json"):
        return record.with_suffix(".whl"), json.loads(record.read_text(encoding="utf-8"))
    return None


def cuda_module(says: dict) -> str:
    """What became of the wheel's CUDA module beside a torch: "loaded", or why it cannot be.

    Raises:
        FailedError: this torch has CUDA, so it should have been loaded.
    """
    if says["why_no_cuda"] and says["cuda"]:
        raise FailedError(says["why_no_cuda"])
    return says["why_no_cuda"] or "loaded"


def test_wheel(
    python: Path, wheel: Path, work: Path, tests: list[str], limit: float, cuda: bool
) -> dict:
    """Installs the wheel beside the torch of an environment and runs the tests against it."""
    run("uv", "pip", "install", "--python", python, "--reinstall", "--no-deps", wheel)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", work)  # pytest's settings
    ask = (
        "import json, torch, fused_lstm._extension as e, fused_lstm; "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, "
        "'why_no_cuda': e.why_no_cuda, 'file': fused_lstm.__file__, 'isa': e.require().isa()}))"
    )
    says = json.loads(run(python, "-c", ask, cwd=work).splitlines()[-1])
    if not Path(says["file"]).is_relative_to(python.parent.parent):
        raise FailedError(f"not the installed package was imported but {says['file']}")
    module = {"CUDA module": cuda_module(says)} if cuda else {}
    report = work / "report.xml"
    files = [f"tests/test_{name}.py" for name in tests]
    begun = time.monotonic()
    with contextlib.suppress(FailedError):  # failed tests are counted below
        run(
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
            *files,
            cwd=work,
            limit=limit,
        )
    if not report.exists():
        raise FailedError("pytest ended without a report")
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    names = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "torch": says["torch"],
        **module,
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
        "failures": names,
        "isa": says["isa"],
        "seconds": round(time.monotonic() - begun),
    }


def remarks(rows: list[dict]) -> list[str]:
    """What the page says of the CUDA module, and what no row has."""
    ran = [row for row in rows if "reason" not in row]
    with_module = [row for row in ran if row.get("cuda")]
    lines = []
    if with_module:
        archs = ", ".join(sorted({row["cuda"] for row in with_module}))
        lines += [
            f"The CUDA module is built for {archs}. No kernel of it ran, for want of a GPU: tests",
            "compute on the CPU. What became of it when the package was imported:",
            "",
            *(f"- Python {r['python']}, {r['torch']}: {r['CUDA module']}" for r in with_module),
            "",
        ]
    module = [] if with_module else ["a wheel with the CUDA module"]
    missing = ["Linux on aarch64", "macOS", "Windows", "free-threaded Python", *module, "a GPU"]
    builds = "A torch with `+cu` is a build with CUDA, used on the CPU."
    return [*lines, f"Not tried: {', '.join(missing)}. {builds}"]


def table(record: dict) -> str:
    """The Markdown page of a record."""
    lines = [
        "# One wheel for every torch",
        "",
        "One wheel per Python, built once from the sdist, installed beside each torch in an",
        "environment of its own; then the tests that depend on torch run against the installed",
        "package.",
        "",
        "| Python | torch | wheel built with | passed | failed | skipped | left out | commit |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for row in record["rows"]:
        beginning = f"| {row['python']} | {row['torch']} |"
        if "reason" in row:
            lines.append(f"{beginning} not tried: {row['reason']} | | | | | |")
            continue
        numbers = " | ".join(str(row[key]) for key in ("passed", "failed", "skipped"))
        left_out = ", ".join(row["left out"])
        built = f"{row['built with']}{', with the CUDA module' if row.get('cuda') else ''}"
        lines.append(f"{beginning} {built} | {numbers} | {left_out} | {row.get('commit', '')} |")
    lines += ["", "Wheels (auditwheel's tag; torch's library is not copied in):", ""]
    lines += [
        f"- `{w['wheel']}`, {w['bytes'] / 1e6:.1f} MB, {', '.join(w.get('modules', ['_C']))}"
        for w in record["wheels"]
    ]
    failures = sorted(
        {(n, row["torch"]) for row in record["rows"] for n in row.get("failures", [])}
    )
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- `{n}`, {torch}: {EXPLAINED.get(n, 'a fault')}" for n, torch in failures]
    lines += ["", f"Tests: {', '.join(record['tests'])}. {record['where']}. `make wheel-matrix`."]
    lines += ["", *remarks(record["rows"])]
    return "\n".join(lines) + "\n"


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, Path | None]]:
    """Each (Python, torch, existing environment) that is asked for."""
    for python in options.python:
        for torch in options.torch:
            yield python, torch, None
    for existing in options.over:
        yield str(existing.resolve() / "bin" / "python"), existing.name, existing.resolve()


def with_earlier(record: dict, earlier: dict) -> dict:
    """The record and those rows of earlier runs that it does not hold itself."""

    def key(row: dict) -> tuple[str, str, bool]:
        return row["python"], row["torch"].partition("+")[0], bool(row.get("cuda"))

    known = {key(row) for row in record["rows"]}
    minors = {row["python"].rpartition(".")[0] for row in record["rows"]}
    rows = []
    for row in earlier["rows"]:
        if key(row) in known or ("reason" in row and row["python"] in minors):
            continue
        ran = set(earlier["tests"]) - set(row["left out"])
        rows.append({**row, "left out": [test for test in record["tests"] if test not in ran]})
    made = [(wheel["wheel"], wheel.get("modules", ["_C"])) for wheel in record["wheels"]]
    wheels = [w for w in earlier["wheels"] if (w["wheel"], w.get("modules", ["_C"])) not in made]
    rows = sorted([*rows, *record["rows"]], key=lambda row: (len(row["python"]) < 5, key(row)))
    return {**record, "wheels": [*wheels, *record["wheels"]], "rows": rows}


def main() -> int:
    """Fills the table; 0 when every test that ran has passed or its failure is explained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=["python3"], help="interpreters")
    parser.add_argument("--torch", nargs="*", default=["2.11.0", "2.13.0", "newest"])
    parser.add_argument("--over", nargs="*", type=Path, default=[], help="existing environments")
    parser.add_argument("--tests", nargs="*", default=TESTS.split())
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheel-matrix")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "wheel-matrix")
    parser.add_argument("--limit", type=float, default=1800, help="seconds of one run of the tests")
    parser.add_argument("--keep-wheels", action="store_true", help="test those of an earlier run")
    parser.add_argument("--cuda", default="", metavar="ARCH", help="with the CUDA module, for it")
    parser.add_argument("--add", action="store_true", help="keep other rows of earlier runs")
    parser.add_argument("--discard", action="store_true", help="remove environments after use")
    parser.add_argument(
        "--wheel-only", type=Path, metavar="FOLDER", help="build it, for this Python"
    )
    options = parser.parse_args()
    work = options.work.resolve()
    if options.wheel_only:
        python = Path(sys.executable)
        sdist = make_sdist(python, options.wheel_only.resolve())
        print(build_wheel(python, sdist, work / "build", options.wheel_only.resolve())[1])
        return 0
    record: dict = {
        "where": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "tests": TESTS.split(),
        "wheels": [],
        "rows": [],
    }
    saved = options.out.with_suffix(".json")
    earlier = json.loads(saved.read_text(encoding="utf-8")) if options.add else None
    commit = run("git", "rev-parse", "--short=10", "HEAD").strip()
    wheels: dict[str, tuple[Path, dict]] = {}
    dist = work / ("dist-cuda" if options.cuda else "dist")  # their wheels have the same name
    for python, torch, existing in cells(options):
        version = run(python, "-c", "import platform; print(platform.python_version())").strip()
        tag = "cp" + "".join(version.split(".")[:2])
        name = f"{tag}-{torch}"
        left_out = [test for test in TESTS.split() if test not in options.tests]
        row = {"python": version, "torch": torch, "left out": left_out, "commit": commit}
        row.update({"cuda": options.cuda} if options.cuda else {})
        try:
            if existing:
                interpreter = make_environment_over(work / f"{name}-over", existing)
            else:
                interpreter = make_environment(work / name, python, torch)
            kept = earlier_wheel(tag, dist) if options.keep_wheels else None
            if tag not in wheels and kept:
                wheels[tag] = kept
                record["wheels"].append(kept[1])
            elif tag not in wheels:
                print(f"building the wheel for Python {version}", flush=True)
                sdist = make_sdist(interpreter, dist)
                wheels[tag] = build_wheel(
                    interpreter, sdist, work / f"{tag}-build", dist, options.cuda
                )
                record["wheels"].append(wheels[tag][1])
            wheel, facts = wheels[tag]
            row["built with"] = facts["built with"]
            folder, cuda = work / f"{name}-run", bool(options.cuda)
            row.update(test_wheel(interpreter, wheel, folder, options.tests, options.limit, cuda))
        except (FailedError, subprocess.TimeoutExpired) as error:
            row["reason"] = str(error)
        record["rows"].append(row)
        print(json.dumps(row), flush=True)
        if options.discard:
            shutil.rmtree(work / name, ignore_errors=True)
        whole = with_earlier(record, earlier) if earlier else record
        saved.write_text(json.dumps(whole, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(whole), encoding="utf-8")
    print(options.out.with_suffix(".md").read_text(encoding="utf-8"))
    failures = {name for row in record["rows"] for name in row.get("failures", [])}
    return int(bool(failures - set(EXPLAINED)) or not record["wheels"])


if __name__ == "__main__":
    sys.exit(main())
