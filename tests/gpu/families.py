"""The families of CUDA kernels (csrc/kernels/cuda/cuda.h), and how a test forces one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fused_lstm import _extension

__all__ = ["FAMILIES", "absent", "cuda_kernels", "forced", "may_refuse"]

FAMILIES = ("stepwise", "single_block", "cluster", "grid")

# H that a forced family takes for certain on the GPU that these were designed on (sm_90): least
# and most, by precision. A cluster has two blocks at least, and a block 16 units.
_HELD = {
    "single_block": (1, {"f32": 128, "tf32": 128, "bf16": 192, "f16": 192}),
    "cluster": (17, {"f32": 400, "tf32": 400, "bf16": 512, "f16": 512}),
    "grid": (1, {"f32": 1024, "tf32": 1024, "bf16": 1024, "f16": 1024}),
}


def absent(family: str) -> str:
    """Why this GPU has none of a family, or ""."""
    if family not in _HELD or not torch.cuda.is_available():
        return ""
    oldest = (9, 0) if family == "cluster" else (8, 0)
    here = torch.cuda.get_device_capability()
    return "" if oldest <= here < (10, 0) else f"{family}: none for compute capability {here}"


def may_refuse(family: str, precision: str, hidden: int, proj_size: int = 0) -> str:
    """Why a forced family may refuse a layer, or "" where it must not."""
    if family not in _HELD:
        return ""
    least, most = _HELD[family]
    if precision not in most:
        return f"{family} has no {precision}"
    if proj_size:
        return f"{family} has no projection"
    if not least <= hidden <= most[precision]:
        return f"{family} takes H from {least} to {most[precision]} in {precision}"
    if why := absent(family):
        return why
    every = family == "single_block" and hidden <= 64  # what every block holds from sm_80 on
    if not every and torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
        return f"{family}: limits are known for sm_90 only"
    return ""


def cuda_kernels() -> Any:
    """The binding's CUDA half, `fused_lstm._C_cuda`: `force_family(name or None)`."""
    return _extension.require_cuda()


@contextmanager
def forced(family: str | None) -> Iterator[None]:
    """Every call inside is computed by this family, or refused; None leaves the choice."""
    cuda_kernels().force_family(family)
    try:
        yield
    finally:
        cuda_kernels().force_family(None)
