"""The compiled half of fused_lstm; everything else is in pyproject.toml.

One module, `fused_lstm._C`: the kernels, which know no torch, and the binding, which uses torch's
stable ABI only, so that one build serves every torch from 2.11 on. Kernel files choose their own
instruction sets by pragma and the right one is taken at run time: no -march flag belongs here.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)


def refuse(reason: str) -> None:
    raise SystemExit(f"fused_lstm: {reason}")


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

cuda = os.environ.get("FUSED_LSTM_CUDA", "auto")
if cuda not in ("auto", "0", "1"):
    refuse(f"FUSED_LSTM_CUDA: expected auto, 1 or 0, got {cuda!r}")
if cuda == "1":
    refuse(
        "FUSED_LSTM_CUDA=1 cannot be met: this version has no CUDA sources. "
        "Set FUSED_LSTM_CUDA=0 or unset it; on CUDA tensors torch's own LSTM then computes"
    )


class Build(BuildExtension):
    """Keeps objects in one place, also for editable installs, so that a rebuild is incremental."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"build/{sys.implementation.cache_tag}-torch{torch.__version__}"

    def build_extensions(self) -> None:
        print(f"fused_lstm: FUSED_LSTM_CUDA={cuda}: for the CPU only, there are no CUDA sources")
        super().build_extensions()


def files(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


init = (ROOT / "fused_lstm" / "__init__.py").read_text(encoding="utf-8")
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)[1]
extension = CppExtension(
    "fused_lstm._C",
    files("csrc/binding/*.cpp", "csrc/kernels/**/*.cpp"),
    depends=files("csrc/**/*.h"),
    define_macros=[("FUSED_LSTM_VERSION", version)],
    extra_compile_args=["-O3", "-g0", "-std=c++17", "-fvisibility=hidden"],
)
extension.libraries = ["torch_cpu"]  # and not torch_python, c10: only C functions are called
setuptools.setup(ext_modules=[extension], cmdclass={"build_ext": Build})
