"""How numbers are held and multiplied in the GPU tests, and the errors that follow from it.

One table. An error is the largest difference from nn.LSTM in float64 on the CPU, fed with the same
rounded numbers, relative to the largest entry of the float64 result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["PRECISIONS", "Precision", "tf32"]


@dataclass(frozen=True)
class Precision:
    """A dtype, whether float32 products may be rounded to TF32, and what error that allows."""

    name: str
    dtype: torch.dtype
    tf32: bool
    output: float
    gradient: float

    def __str__(self) -> str:
        return self.name


PRECISIONS = {
    p.name: p
    for p in (
        # Some hundred roundings of 1.1e-16; gradients sum over steps and rows, of both signs.
        Precision("f64", torch.float64, False, 1e-13, 1e-12),
        # Some dozens of roundings of 6e-8, sums over I + H in an order of the GPU's own; expf and
        # tanhf of CUDA are off by up to 2 units in the last place.
        Precision("f32", torch.float32, False, 5e-6, 3e-5),
        # Operands are rounded to 11 bits (5e-4) for every product, sums are float32: as float16,
        # but h and the gradients themselves are kept in float32.
        Precision("tf32", torch.float32, True, 2e-3, 6e-3),
        # h is rounded to 8 bits (4e-3) at every step, y and incoming gradients likewise; c, dc and
        # sums are float32.
        Precision("bf16", torch.bfloat16, False, 1.5e-2, 5e-2),
        # The same with 11 bits (5e-4).
        Precision("f16", torch.float16, False, 2e-3, 6e-3),
    )
}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """CuDNN's switch for RNNs, which nn.LSTM and we obey; only it is touched.

    The switches for convolutions and for RNNs are set alike, because torch refuses to answer
    `cudnn.allow_tf32` while they differ.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
