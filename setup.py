"""The compiled half of fused_lstm; everything else is in pyproject.toml.

Two modules, `fused_lstm._C` and, where toolkit and torch allow it, `fused_lstm._C_cuda`: the
kernels, which know no torch, and the binding, which uses torch's stable ABI only, so that one build
serves every torch from 2.11 on. What is decided about CUDA stands in tools/cuda_build.py.
CPU kernels choose their own instruction sets by pragma and the right one is taken at run time:
no -march flag belongs here.
"""

import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
import cuda_build  # noqa: E402
import objects  # noqa: E402

OLDEST_TORCH = (2, 11)
COMPILER_FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden"]
if sys.platform == "win32":
    COMPILER_FLAGS = ["/O2", "/std:c++17"]


def refuse(reason: str) -> None:
    raise SystemExit(f"fused_lstm: {reason}")


# MSVC knows neither the vector types nor the attributes that the kernels are written in. clang-cl
# does; nobody has tried it.
if sys.platform == "win32" and "clang-cl" not in os.environ.get("CXX", ""):
    refuse(
        "the kernels need GCC or clang, and MSVC cannot compile them: install under WSL, or try "
        "CXX=clang-cl, which is untested"
    )
if sys.platform == "darwin":
    # python.org's Python compiles for two processors at once; torch is there for one.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
if int(setuptools.__version__.split(".")[0]) < 71 and not importlib.util.find_spec("wheel"):
    refuse("setuptools before 71 needs `wheel` here: python -m pip install wheel")
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ModuleNotFoundError as error:
    refuse(
        f"the build needs torch >= 2.11 in this environment ({error}): python -m pip install "
        "'torch>=2.11' first, or leave --no-build-isolation away and pip fetches it for the build"
    )
if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
    refuse(
        f"the build needs torch >= 2.11, this environment has {torch.__version__}: "
        "python -m pip install --upgrade torch"
    )

try:
    plan = cuda_build.decide(
        os.environ, torch.__version__, torch.version.cuda, cuda_build.find_toolkit
    )
except cuda_build.RefusalError as error:
    refuse(str(error))


class Build(BuildExtension):
    """Keeps objects in one place, also for editable installs, so that a rebuild is incremental."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = objects.folder(torch.__version__)

    def build_extensions(self) -> None:
        setting = os.environ.get("FUSED_LSTM_CUDA", "auto")
        print(f"fused_lstm: FUSED_LSTM_CUDA={setting}: {plan.reason}", flush=True)
        self.objects = Path(self.build_temp)
        super().build_extensions()

    def build_extension(self, ext: setuptools.Extension) -> None:
        # The modules share sources and not flags, so each has objects of its own.
        self.build_temp = str(self.objects / ext.name)
        if ext.name.endswith("_cuda"):
            kernels = [ROOT / path for path in files("csrc/kernels/cuda/*.cu")]  # know no torch
            try:
                compiled = cuda_build.compile_kernels(plan, kernels, ROOT / "build" / "nvcc")
            except cuda_build.RefusalError as error:
                refuse(str(error))
            ext.extra_objects = compiled
            if plan.stub:
                ext.library_dirs.append(str(cuda_build.make_stub(self.objects / "stub")))
        super().build_extension(ext)


def files(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def extension(name: str, sources: list[str], libraries: list[str], **more: list) -> CppExtension:
    made = CppExtension(
        name,
        sources,
        depends=files("csrc/**/*.h"),
        define_macros=[("FUSED_LSTM_VERSION", version), *more.get("macros", [])],
        extra_compile_args=COMPILER_FLAGS,
    )
    made.libraries = libraries  # and not torch_python, c10: only C functions are called
    made.include_dirs += more.get("include_dirs", [])
    made.library_dirs += more.get("library_dirs", [])
    made.extra_link_args += more.get("link_args", [])
    return made


init = (ROOT / "fused_lstm" / "__init__.py").read_text(encoding="utf-8")
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)[1]
cuda_binding = files("csrc/binding/*_cuda.cpp")
cpu_binding = sorted(set(files("csrc/binding/*.cpp")) - set(cuda_binding))
# The kernels first: each set takes a minute, and the many short ones fill what is left of it.
extensions = [
    extension("fused_lstm._C", files("csrc/kernels/cpu/*.cpp")[::-1] + cpu_binding, ["torch_cpu"])
]
if plan.toolkit:
    names = ("stable", "arguments", "call", "recurrence_call")
    shared = files(*(f"csrc/binding/{name}.cpp" for name in names))
    extensions.append(
        extension(
            "fused_lstm._C_cuda",
            cuda_binding + shared + files("csrc/kernels/cuda/*.cpp"),
            ["torch_cpu", "cudart_static", "rt", "dl", "pthread"],
            macros=[("USE_CUDA", None), ("FUSED_LSTM_CUDA_ARCHS", ",".join(plan.archs))],
            include_dirs=[str(plan.toolkit.home / "include")],
            library_dirs=[str(cuda_build.library(plan.toolkit.home))],
            # Named even where a stub gives no symbol: without it the module finds no CUDA shim.
            link_args=["-Wl,--no-as-needed", "-ltorch_cuda"],
        )
    )
setuptools.setup(ext_modules=extensions, cmdclass={"build_ext": Build})
