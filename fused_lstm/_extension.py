"""Loads the compiled half of the package and remembers why if it cannot.

Importing `fused_lstm._C` registers the operators `torch.ops.fused_lstm.*` with their CPU kernels,
importing `fused_lstm._C_cuda` adds the CUDA kernels where torch has CUDA. A missing extension is no
error here: torch's own LSTM can still compute, and whoever needs the kernels asks `require()` or
`require_cuda()`, which say what is missing, why, and what to do about it.
"""

import os
import sysconfig
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch

__all__ = [
    "across_blocks",
    "autotune_file",
    "autotunes",
    "available",
    "constant_in_graphs",
    "cuda_obstacle",
    "load",
    "require",
    "require_cuda",
    "why_missing",
    "why_no_cuda",
]

P = ParamSpec("P")
R = TypeVar("R")

OLDEST_TORCH = (2, 11)
CACHE_VARIABLE = "FUSED_LSTM_CACHE_MB"
KERNELS_VARIABLE = "FUSED_LSTM_CUDA_KERNELS"
AUTOTUNE_VARIABLE = "FUSED_LSTM_AUTOTUNE"

available: bool = False
why_missing: str = "fused_lstm: the extension has not been loaded yet"
why_no_cuda: str = why_missing  # "" once `_C_cuda` is loaded
across_blocks: bool = False  # what FUSED_LSTM_CUDA_KERNELS=all adds may be chosen
autotunes: bool = False  # calls on a GPU are measured, see tuning.py, which also changes these two
autotune_file: str | None = None
_module: ModuleType | None = None
_cuda_module: ModuleType | None = None
_cuda_switched_on: bool = False
_cuda_obstacles: dict[int, str | None] = {}


def load() -> bool:
    """Loads `_C`, then `_C_cuda`, if they are not loaded yet; returns whether `_C` is there.

    Raises:
        ValueError: FUSED_LSTM_CACHE_MB is set to something else than a whole number of megabytes,
            FUSED_LSTM_CUDA_KERNELS to something else than 0, 1 or all, or FUSED_LSTM_AUTOTUNE to
            something else than 0, 1 or the name of a .json file.
    """
    global available, why_missing, why_no_cuda, _module, _cuda_module, _cuda_switched_on
    global across_blocks, autotunes, autotune_file
    if available:
        return True
    cache_limit = _cache_limit()
    switch = _read_cuda_switch()
    _cuda_switched_on = switch != "0"
    autotunes, autotune_file = _read_autotune()
    try:
        module = import_module("fused_lstm._C")
    except ImportError as error:
        why_missing = why_no_cuda = _explain("_C", error)
        return False
    # Kernels may let one thread wait for another only where a parallel loop has real threads.
    module.set_concurrent("ATen parallel backend: OpenMP" in torch.__config__.parallel_info())
    if cache_limit is not None:
        module.set_cache_limit(cache_limit)
    _module, available, why_missing = module, True, ""
    _cuda_module, why_no_cuda = _load_cuda()
    if _cuda_module is not None and switch == "all":
        _cuda_module.set_across_blocks(True)
        across_blocks = True
    return True


def _load_cuda() -> tuple[ModuleType | None, str]:
    """`_C_cuda` and "", or None and why not."""
    if torch.version.cuda is None:
        return None, f"fused_lstm: torch {torch.__version__} is built without CUDA"
    try:
        module = import_module("fused_lstm._C_cuda")
    except ImportError as error:
        return None, _explain("_C_cuda", error)
    toolkit: str = module.build_info()["toolkit"]
    if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        return None, (
            f"fused_lstm: the compiled extension fused_lstm._C_cuda is for CUDA {toolkit}, torch "
            f"{torch.__version__} has CUDA {torch.version.cuda}; with a toolkit of that major "
            f"version, {_rebuild('_C_cuda')}"
        )
    return module, ""


def require() -> ModuleType:
    """The module `fused_lstm._C`.

    Raises:
        ImportError: the extension is missing or built for something else; the message says why and
            what to do.
    """
    if not load() or _module is None:
        raise ImportError(why_missing, name="fused_lstm._C")
    return _module


def require_cuda() -> ModuleType:
    """The module `fused_lstm._C_cuda`.

    Raises:
        ImportError: it is missing or built for something else; the message says why and what to do.
    """
    if not load() or _cuda_module is None:
        raise ImportError(why_no_cuda, name="fused_lstm._C_cuda")
    return _cuda_module


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Has torch.compile call a function while tracing and keep the result in the graph.

    As torch.compiler.assume_constant_result does, without its import of torch._dynamo: a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def cuda_obstacle(index: int) -> str | None:
    """Why our kernels do not compute on this CUDA device, or None when they do."""
    if index not in _cuda_obstacles:
        _cuda_obstacles[index] = _find_cuda_obstacle(index)
    return _cuda_obstacles[index]


def _find_cuda_obstacle(index: int) -> str | None:
    if _cuda_module is None:
        return why_no_cuda
    if not _cuda_switched_on:
        return (
            "the CUDA kernels are off by default: they have run on the CPU stand-in only; "
            f"{KERNELS_VARIABLE}=1 turns them on"
        )
    try:
        arch = _cuda_module.device_facts(index)["arch"]
    except RuntimeError as error:
        return str(error)
    return _cuda_module.obstacle(arch) or None


def _cache_limit() -> int | None:
    """FUSED_LSTM_CACHE_MB in bytes, None when it is not set."""
    text = os.environ.get(CACHE_VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"{CACHE_VARIABLE}: expected a whole number of megabytes, got {text!r}")
    return int(text) << 20


def _read_cuda_switch() -> str:
    """FUSED_LSTM_CUDA_KERNELS: which CUDA kernels may compute.

    "0", also where it is unset: none. "1": those whose blocks never wait for each other. "all":
    the families cluster and grid too.
    """
    text = os.environ.get(KERNELS_VARIABLE, "").strip() or "0"
    if text not in ("0", "1", "all"):
        raise ValueError(f"{KERNELS_VARIABLE}: expected 0, 1 or all, got {text!r}")
    return text


def _read_autotune() -> tuple[bool, str | None]:
    """FUSED_LSTM_AUTOTUNE: whether calls on a GPU are measured, and the file for what is found.

    "0", also where it is unset: they are not. "1": found anew by every process. A name that ends
    in .json: kept in that file.
    """
    text = os.environ.get(AUTOTUNE_VARIABLE, "").strip() or "0"
    if text.endswith(".json"):
        return True, text
    if text not in ("0", "1"):
        raise ValueError(
            f"{AUTOTUNE_VARIABLE}: expected 0, 1 or the name of a .json file, got {text!r}"
        )
    return text == "1", None


def _rebuild(module: str) -> str:
    setting = "FUSED_LSTM_CUDA=1 " if module == "_C_cuda" else ""
    return f"in the source folder: {setting}python -m pip install --no-build-isolation ."


def _explain(module: str, error: ImportError) -> str:
    """What is missing, why, and the remedy, in one line."""
    rebuild = _rebuild(module)
    what = f"fused_lstm: the compiled extension fused_lstm.{module}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return (
            f"{what} needs torch 2.11 or newer, this is torch {torch.__version__}; "
            "python -m pip install --upgrade torch"
        )
    wanted = f"{module}{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = sorted(path.name for path in Path(__file__).parent.glob(f"{module}.*.so"))
    if not built:
        return f"{what} has not been built; {rebuild}"
    if wanted not in built:
        return f"{what} was built for another Python: found {built[0]}, need {wanted}; {rebuild}"
    return f"{what} does not load with torch {torch.__version__}: {error}; rebuild {rebuild}"


load()
