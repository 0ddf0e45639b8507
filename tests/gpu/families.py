"""The families of CUDA kernels (csrc/kernels/cuda/cuda.h), and how a test forces one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fused_lstm import _extension

__all__ = ["FAMILIES", "cuda_kernels", "forced"]

FAMILIES = ("stepwise", "single_block")


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
