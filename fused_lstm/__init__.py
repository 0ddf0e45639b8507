"""A drop-in replacement of torch.nn.LSTM and torch.nn.LSTMCell with fused kernels."""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional
from ._extension import require as _require
from .convert import convert, revert
from .dispatch import explain_plan
from .export import export_mode
from .extras import Extras
from .functional import lstm
from .modules import LSTM, LSTMCell

if TYPE_CHECKING:
    from . import init, weights
    from .streaming import Streaming
    from .tuning import autotune
    from .variants import VariantLSTM

__all__ = [
    "LSTM",
    "Extras",
    "LSTMCell",
    "Streaming",
    "VariantLSTM",
    "__version__",
    "autotune",
    "convert",
    "empty_cache",
    "explain_plan",
    "export_mode",
    "functional",
    "init",
    "lstm",
    "revert",
    "weights",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What most programs never use, imported when it is first used."""
    if name in ("init", "weights"):
        return importlib.import_module(f".{name}", __name__)
    if name == "Streaming":
        return importlib.import_module(".streaming", __name__).Streaming
    if name == "autotune":
        return importlib.import_module(".tuning", __name__).autotune
    if name == "VariantLSTM":
        return importlib.import_module(".variants", __name__).VariantLSTM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def empty_cache() -> int:
    """Gives the scratch memory of the CPU kernels that nobody uses back to the system.

    It is kept for reuse between calls, up to FUSED_LSTM_CACHE_MB; memory of a call or a graph that
    still lives is not touched.

    Returns:
        How many bytes were given back.

    Raises:
        ImportError: the extension is missing; the message says why and what to do.
    """
    return _require().empty_cache()
