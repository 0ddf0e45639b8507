"""Which operator torch.export puts into a graph for an LSTM: torch's own or ours.

Torch's, `aten.lstm`, runs where this package is not installed, and can be trained, but no graph can
hold it for a number of steps that may change. Ours, `fused_lstm::forward`, takes any number of
steps and computes by the fused kernels, also in a package of AOTInductor; whoever loads the graph
has to import fused_lstm first, and it is for inference only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["export_mode", "holds_fused", "is_exporting"]

MODES = ("auto", "torch", "fused")
_mode = "auto"


@contextmanager
def export_mode(mode: str) -> Iterator[None]:
    """Chooses the operator for every `torch.export.export` inside the block, in any thread.

    Args:
        mode: "auto", which holds outside of every block: torch's operator where the number of steps
            is fixed, ours where it is dynamic. "torch" or "fused": that one in every case.

    Raises:
        ValueError: another mode.
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def is_exporting() -> bool:
    """torch.compiler.is_exporting(), which Dynamo takes for true in torch.compile before 2.13."""
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


def holds_fused(steps: Any) -> bool:
    """Whether a graph that is being exported gets our operator, for T steps (or N packed rows)."""
    if _mode == "auto":
        return not torch.fx.experimental.symbolic_shapes.has_static_value(steps)
    return _mode == "fused"
