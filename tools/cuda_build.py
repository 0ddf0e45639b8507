"""What setup.py does about CUDA: whether `fused_lstm._C_cuda` is built, for which GPUs, and how.

Toolkit and torch decide, never a GPU that happens to be visible: a build in a container has none.
nvcc is called from here and not through torch's cpp_extension, because the kernels know no torch,
because that refuses a CPU-only torch, and because it guesses the architectures from present GPUs.

    FUSED_LSTM_CUDA   auto (default): built where it can be; 1: built, or the build fails with the
                      remedy; 0: not built; stub: built even with a CPU-only torch, against an empty
                      libtorch_cuda.so, to see that everything compiles and links
    FUSED_LSTM_ARCHS  compute capabilities instead of the default list, as in "8.0;9.0a;12.0+PTX";
                      where it is not set, TORCH_CUDA_ARCH_LIST
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# 9.0a and not 9.0: Hopper's own instructions exist there only, and no other GPU runs 9.0 code.
DEFAULT_ARCHS = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
OLDEST_ARCH = 75
ARCH = re.compile(r"(?P<major>\d+)\.(?P<minor>\d)(?P<suffix>[af]?)(?P<ptx>\+PTX)?")
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")


class Toolkit(NamedTuple):
    home: Path
    version: tuple[int, int]
    known: frozenset[int]  # 75, 80, ...: what this nvcc can compile for


class Plan(NamedTuple):
    """Whether to build, why, and with what; without a toolkit nothing is built."""

    reason: str
    toolkit: Toolkit | None = None
    archs: tuple[str, ...] = ()
    stub: bool = False


class RefusalError(Exception):
    """What was asked for cannot be had; the message says why, and the remedy."""


def decide(
    environment: Mapping[str, str],
    torch_version: str,
    torch_cuda: str | None,  # as in "13.0"; None: torch is built without CUDA
    find: Callable[[Mapping[str, str]], Toolkit | None],  # find_toolkit
) -> Plan:
    """Whether to build for CUDA.

    Raises:
        RefusalError: FUSED_LSTM_CUDA=1 cannot be met, or a setting makes no sense.
    """
    setting = environment.get("FUSED_LSTM_CUDA", "auto")
    if setting not in ("auto", "0", "1", "stub"):
        raise RefusalError(f"FUSED_LSTM_CUDA: expected auto, 1, 0 or stub, got {setting!r}")
    if setting == "0":
        return Plan("for the CPU only, as asked")
    stub = setting == "stub" and torch_cuda is None
    toolkit = find(environment) if torch_cuda or stub else None
    obstacle = _obstacle(torch_version, torch_cuda, toolkit, stub)
    if obstacle or toolkit is None:
        if setting == "auto":
            return Plan(f"for the CPU only, {obstacle.partition(':')[0]}")
        raise RefusalError(f"FUSED_LSTM_CUDA={setting} cannot be met: {obstacle}")
    archs = _archs(environment, toolkit)
    reason = (
        f"with CUDA {toolkit.version[0]}.{toolkit.version[1]} for {';'.join(archs)}, "
        f"torch {torch_version} has CUDA {torch_cuda or 'not: linked to a stub'}"
    )
    return Plan(reason, toolkit, archs, stub)


def _obstacle(
    torch_version: str, torch_cuda: str | None, toolkit: Toolkit | None, stub: bool
) -> str:
    """Why it cannot be built, a colon, and the remedy; or ""."""
    if torch_cuda is None and not stub:
        return (
            f"torch {torch_version} is built without CUDA: install a torch with CUDA in this "
            "environment and build with --no-build-isolation, or set FUSED_LSTM_CUDA=0"
        )
    if toolkit is None:
        return (
            "no CUDA toolkit was found: install one with nvcc, include/cuda_runtime.h and "
            f"libcudart_static.a{f' of CUDA {torch_cuda}' if torch_cuda else ''}, or set CUDA_HOME"
        )
    if torch_cuda is not None and int(torch_cuda.split(".")[0]) != toolkit.version[0]:
        return (
            f"torch {torch_version} has CUDA {torch_cuda} but the toolkit in {toolkit.home} is "
            f"{toolkit.version[0]}.{toolkit.version[1]}: set CUDA_HOME to one of major version "
            f"{torch_cuda.split('.')[0]}, or install a torch for CUDA {toolkit.version[0]}"
        )
    return ""


def _archs(environment: Mapping[str, str], toolkit: Toolkit) -> tuple[str, ...]:
    """The architectures to compile for.

    Raises:
        RefusalError: a setting names something that this nvcc or these kernels do not know.
    """
    for variable in ("FUSED_LSTM_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        text = environment.get(variable, "").strip()
        if not text:
            continue
        wanted = [arch for arch in re.split(r"[;,\s]+", text) if arch]
        for arch in wanted:
            if not ARCH.fullmatch(arch):
                raise RefusalError(f"{variable}: expected numbers such as 8.0;9.0a, got {arch!r}")
        # A list for all of torch may well begin with older GPUs than these kernels run on.
        found = tuple(arch for arch in wanted if _number(arch) >= OLDEST_ARCH)
        unknown = [arch for arch in found if _number(arch) not in toolkit.known]
        if unknown or not found:
            raise RefusalError(
                f"{variable}={text}: the kernels need 7.5 or newer and nvcc "
                f"{toolkit.version[0]}.{toolkit.version[1]} compiles for "
                f"{', '.join(f'{n // 10}.{n % 10}' for n in sorted(toolkit.known))}"
            )
        return found
    return tuple(arch for arch in DEFAULT_ARCHS.split(";") if _number(arch) in toolkit.known)


def _number(arch: str) -> int:
    """75 for "7.5"."""
    match = ARCH.fullmatch(arch)
    assert match is not None
    return 10 * int(match["major"]) + int(match["minor"])


def settings_for_here(environment: Mapping[str, str]) -> str:
    """What to set so that a build serves this machine alone: its GPUs, or none.

    As `NAME=value`; empty where something is set already.
    """
    set_already = ("FUSED_LSTM_CUDA", "FUSED_LSTM_ARCHS", "TORCH_CUDA_ARCH_LIST")
    if any(environment.get(name) for name in set_already):
        return ""
    nvidia_smi = shutil.which("nvidia-smi", path=environment.get("PATH"))
    said = (
        _output(nvidia_smi, "--query-gpu=compute_cap", "--format=csv,noheader")
        if nvidia_smi
        else ""
    )
    present = {
        int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", said, re.MULTILINE)
    }
    if not any(number >= OLDEST_ARCH for number in present):
        return "FUSED_LSTM_CUDA=0"
    names = {_number(arch): arch.removesuffix("+PTX") for arch in DEFAULT_ARCHS.split(";")}
    archs = [names.get(n, f"{n // 10}.{n % 10}") for n in sorted(present) if n >= OLDEST_ARCH]
    return f"FUSED_LSTM_ARCHS={','.join(archs)}"


def gencode(arch: str) -> list[str]:
    """The flags of nvcc for one architecture."""
    match = ARCH.fullmatch(arch)
    assert match is not None
    name = f"{_number(arch)}{match['suffix']}"
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}"]
    if match["ptx"]:
        flags.append(f"-gencode=arch=compute_{name},code=compute_{name}")
    return flags


def find_toolkit(environment: Mapping[str, str]) -> Toolkit | None:
    """The toolkit of CUDA_HOME, of the nvcc on PATH, or of /usr/local; newest last resort first.

    The nvcc on PATH may be a script elsewhere than the toolkit, so the headers decide.
    """
    on_path = shutil.which("nvcc", path=environment.get("PATH"))
    candidates = [environment.get("CUDA_HOME"), environment.get("CUDA_PATH")]
    candidates += [str(Path(on_path).resolve().parent.parent) if on_path else None]
    versions = sorted(str(path) for path in Path("/usr/local").glob("cuda-*"))
    candidates += ["/usr/local/cuda", *reversed(versions)]
    for home in (Path(candidate) for candidate in candidates if candidate):
        nvcc = home / "bin" / "nvcc"
        if nvcc.exists() and (home / "include" / "cuda_runtime.h").exists() and library(home):
            version = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
            codes = re.findall(r"sm_(\d+)", _output(nvcc, "--list-gpu-code"))
            if version is not None:
                numbers = (int(version[1]), int(version[2]))
                return Toolkit(home, numbers, frozenset(map(int, codes)))
    return None


def library(home: Path) -> Path | None:
    """The folder of a toolkit that holds the static runtime."""
    found = sorted(home.glob("lib*/libcudart_static.a")) or sorted(
        home.glob("targets/*/lib/libcudart_static.a")
    )
    return found[0].parent if found else None


def _output(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True).stdout


def compile_kernels(plan: Plan, sources: list[Path], folder: Path) -> list[str]:
    """Compiles the .cu files that changed, several at a time; returns all their objects.

    Raises:
        RefusalError: nvcc failed; it has said why.
    """
    assert plan.toolkit is not None
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*NVCC_FLAGS, *(flag for arch in plan.archs for flag in gencode(arch))]
    nvcc = str(plan.toolkit.home / "bin" / "nvcc")

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        command = [nvcc, *flags, "-c", str(source), "-o", str(target)]
        if not _is_fresh(target, " ".join(command)):
            print(" ".join(command), flush=True)
            done = subprocess.run([*command, "-MD", "-MF", f"{target}.d"])
            if done.returncode != 0:
                raise RefusalError(f"nvcc could not compile {source}, see above")
            Path(f"{target}.command").write_text(" ".join(command))
        return str(target)

    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_one, sources))


def _is_fresh(target: Path, command: str) -> bool:
    """Whether an object was made by this command and is newer than all that it was made from."""
    said, depends = Path(f"{target}.command"), Path(f"{target}.d")
    if not (target.exists() and depends.exists() and said.exists()):
        return False
    words = depends.read_text().replace("\\\n", " ").partition(":")[2].split()
    made = target.stat().st_mtime
    newer = [w for w in words if not Path(w).exists() or Path(w).stat().st_mtime > made]
    return said.read_text() == command and not newer


def make_stub(folder: Path) -> Path:
    """An empty libtorch_cuda.so to link against; the real one takes its place when it loads."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "libtorch_cuda.so"
    source = ["-x", "c", "/dev/null", "-o", str(folder / name)]
    subprocess.run(
        [os.environ.get("CC", "gcc"), "-shared", f"-Wl,-soname,{name}", *source], check=True
    )
    return folder


if __name__ == "__main__":  # for the Makefile, and whether there is a toolkit for .ci/run
    if sys.argv[1:] == ["--here"]:
        print(settings_for_here(os.environ))
        raise SystemExit(0)
    found = find_toolkit(os.environ)
    print(f"CUDA toolkit: {found.home if found else 'none'}")
    raise SystemExit(0 if found else 1)
