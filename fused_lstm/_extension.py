"""Loads the compiled half of the package, `fused_lstm._C`, and remembers why if it cannot.

Importing `_C` registers the operators `torch.ops.fused_lstm.*`. A missing extension is no error
here: torch's own LSTM can still compute, and whoever needs the kernels asks `require()`, which says
what is missing, why, and what to do about it.
"""

import os
import sysconfig
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["available", "load", "require", "why_missing"]

OLDEST_TORCH = (2, 11)
CACHE_VARIABLE = "FUSED_LSTM_CACHE_MB"

available: bool = False
why_missing: str = "fused_lstm: the extension has not been loaded yet"
_module: ModuleType | None = None


def load() -> bool:
    """Loads `_C` if it is not loaded yet; returns whether the kernels can be used.

    Raises:
        ValueError: FUSED_LSTM_CACHE_MB is set to something else than a whole number of megabytes.
    """
    global available, why_missing, _module
    if available:
        return True
    cache_limit = _cache_limit()
    try:
        module = import_module("fused_lstm._C")
    except ImportError as error:
        why_missing = _explain(error)
        return False
    # Kernels may let one thread wait for another only where a parallel loop has real threads.
    module.set_concurrent("ATen parallel backend: OpenMP" in torch.__config__.parallel_info())
    if cache_limit is not None:
        module.set_cache_limit(cache_limit)
    _module, available, why_missing = module, True, ""
    return True


def require() -> ModuleType:
    """The module `fused_lstm._C`.

    Raises:
        ImportError: the extension is missing or built for something else; the message says why and
            what to do.
    """
    if not load() or _module is None:
        raise ImportError(why_missing, name="fused_lstm._C")
    return _module


def _cache_limit() -> int | None:
    """FUSED_LSTM_CACHE_MB in bytes, None when it is not set."""
    text = os.environ.get(CACHE_VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"{CACHE_VARIABLE}: expected a whole number of megabytes, got {text!r}")
    return int(text) << 20


def _explain(error: ImportError) -> str:
    """What is missing, why, and the remedy, in one line."""
    rebuild = "in the source folder: python -m pip install --no-build-isolation ."
    what = "fused_lstm: the compiled extension fused_lstm._C"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return (
            f"{what} needs torch 2.11 or newer, this is torch {torch.__version__}; "
            "python -m pip install --upgrade torch"
        )
    wanted = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = sorted(path.name for path in Path(__file__).parent.glob("_C.*.so"))
    if not built:
        return f"{what} has not been built; {rebuild}"
    if wanted not in built:
        return f"{what} was built for another Python: found {built[0]}, need {wanted}; {rebuild}"
    return f"{what} does not load with torch {torch.__version__}: {error}; rebuild {rebuild}"


load()
