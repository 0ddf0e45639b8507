"""A drop-in replacement of torch.nn.LSTM and torch.nn.LSTMCell with fused kernels."""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional, init
from ._extension import require as _require
from .convert import convert, revert
from .dispatch import explain_plan
from .export import export_mode
from .functional import lstm
from .modules import LSTM, LSTMCell
from .streaming import Streaming

if TYPE_CHECKING:
    from . import weights

__all__ = [
    "LSTM",
    "LSTMCell",
    "Streaming",
    "__version__",
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
    """`fused_lstm.weights`, imported when it is first used: most programs never do."""
    if name == "weights":
        return importlib.import_module(".weights", __name__)
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
