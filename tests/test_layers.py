"""The layers of csrc/README.md are kept: who may include or import whom, and what the module needs.

csrc/kernels <- csrc/binding <- _extension <- ops <- tuning <- function <- marked, recurrence,
wavefront <- dispatch <- options <- functional <- modules <- convert, streaming, variants, weights;
reference and init stand alone;  training, benchmarks and tests come last.
"""

import ast
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fused_lstm"
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
TORCH_HEADER = re.compile(r"(^|/)(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")

# A module may import modules of a lower rank only. reference imports nothing of the package.
RANKS = {
    "_extension": 0,
    "reference": 0,
    "batching": 0,
    "extras": 0,
    "init": 0,
    "direct": 1,
    "ops": 1,
    "tuning": 2,
    "checkpointing": 2,
    "export": 2,
    "masks": 2,
    "function": 3,
    "marked": 4,
    "recurrence": 4,
    "wavefront": 4,
    "dispatch": 5,
    "onnx": 5,
    "frozen": 6,
    "options": 6,
    "functional": 7,
    "modules": 8,
    "convert": 9,
    "streaming": 9,
    "variants": 9,
    "weights": 9,
    "info": 10,
    "__init__": 11,
    "__main__": 12,
    "training": 12,
}


def sources(folder: Path) -> list[Path]:
    found = [p for p in folder.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert found, f"no sources under {folder}"
    return found


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text(encoding="utf-8"))


def test_kernels_know_no_torch() -> None:
    for path in sources(ROOT / "csrc" / "kernels"):
        for header in includes(path):
            assert not TORCH_HEADER.search(header), f"{path.relative_to(ROOT)} includes {header}"
            inside = header.startswith("../") and "binding" in header
            assert not inside, f"{path.relative_to(ROOT)} includes {header}: an arrow points back"


def test_kernels_use_no_instruction_set_of_the_machine() -> None:
    for path in (ROOT / "setup.py", ROOT / "tests" / "native" / "Makefile"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"-m(arch|tune|avx|fma)[=\w]*", text.replace("no -march flag", ""))


# Past the dispatcher: Python's own objects, and the structs of DLPack, a C header without torch.
DIRECT = {"direct.h": ["Python.h"], "direct.cpp": ["ATen/dlpack.h"]}


def test_binding_reaches_torch_by_one_header() -> None:
    """stable.h alone includes torch, and defines the oldest version before it does."""
    for path in sources(ROOT / "csrc" / "binding"):
        torch_headers = [
            h for h in includes(path) if TORCH_HEADER.search(h) and "pybind11" not in h
        ]
        if torch_headers == DIRECT.get(path.name):
            continue
        assert not torch_headers or path.name == "stable.h", f"{path.name}: {torch_headers}"
        assert not any(h.startswith(("ATen/", "c10/", "torch/extension")) for h in torch_headers)
    text = (ROOT / "csrc" / "binding" / "stable.h").read_text(encoding="utf-8")
    assert text.index("#define TORCH_TARGET_VERSION") < text.index("#include <torch/")


def package_imports(path: Path) -> Iterator[str]:
    """The modules of this package that one of its files imports, wherever in the file."""
    folder = path.relative_to(PACKAGE).parts[0]  # of a module in a folder of its own
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (n.split(".")[1] for n in names if n.startswith("fused_lstm."))
            yield from ("__init__" for n in names if n == "fused_lstm")
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0 and module.split(".")[0] != "fused_lstm":
                continue
            if node.level == 1 and not folder.endswith(".py"):
                yield folder
                continue
            parts = module.split(".")[1 if node.level == 0 else 0 :]
            if parts and parts[0]:
                yield parts[0]
            else:  # from . import a, b: modules, or names of the package itself
                yield from (a.name if a.name in RANKS else "__init__" for a in node.names)


def test_python_arrows() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        name = relative.parts[0].removesuffix(".py")
        assert name in RANKS, f"{relative}: give this module its place in RANKS"
        for imported in package_imports(path):
            if imported in {"_C", "_C_cuda"}:
                assert name == "_extension", f"{relative} imports {imported} past _extension.py"
            elif (name, imported) == ("info", "__init__"):
                continue  # the version, read when asked
            elif name != imported:
                lower = RANKS.get(imported, 99) < RANKS[name]
                assert lower, f"{relative} imports {imported}: an arrow points back"
        if name == "reference":
            assert not list(package_imports(path)), "reference.py is plain PyTorch"


def test_info_is_used_by_main_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name not in {"__main__.py", "info.py"}:
            assert "info" not in set(package_imports(path)), path


def built_module() -> Path:
    path = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        import fused_lstm._C as module

        path = Path(str(module.__file__))
    return path


def built_cuda_modules() -> list[Path]:
    """`_C_cuda` of this package, and what `make cuda-build` and `make cuda-link` left in build/."""
    name = f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    found = [*PACKAGE.glob(name), *ROOT.glob(f"build/cuda*/fused_lstm/{name}")]
    if not found:
        pytest.skip("_C_cuda has not been built: make cuda-link, or make cuda-build")
    return found


def undefined_symbols(module: Path) -> list[str]:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    command = [nm, "-D", "-C", "--undefined-only", str(module)]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "aoti_torch_empty_strided" in symbols, "nm shows nothing of torch's C shim"
    return symbols.splitlines()


def needed_libraries(module: Path) -> set[str]:
    """Those of torch and CUDA that the loader will look for."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf (binutils) is not installed")
    command = [readelf, "-d", str(module)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"NEEDED.*\[(lib(?:torch|c10|cu)[^\]]*)\]", text))


# No symbol of torch's C++ is wanted: one build serves every torch from 2.11. And none of ours.
FOREIGN = re.compile(r"\b(at|c10|torch|caffe2|fused_lstm)::")


def test_built_module_uses_the_stable_abi_only() -> None:
    wrong = [s for s in undefined_symbols(built_module()) if FOREIGN.search(s)]
    assert not wrong, "\n".join(wrong)


def test_built_module_links_what_every_torch_has() -> None:
    assert needed_libraries(built_module()) == {"libtorch_cpu.so"}


def test_built_cuda_module_uses_the_stable_abi_only() -> None:
    for module in built_cuda_modules():
        symbols = undefined_symbols(module)
        wrong = [s for s in symbols if FOREIGN.search(s) or re.search(r" (cublas|cuda)\w+", s)]
        assert not wrong, f"{module}: {wrong}"
        assert any("aoti_torch_get_current_cuda_stream" in s for s in symbols)


def test_built_cuda_module_links_torch_and_no_cuda_library() -> None:
    for module in built_cuda_modules():
        assert needed_libraries(module) == {"libtorch_cpu.so", "libtorch_cuda.so"}, module
