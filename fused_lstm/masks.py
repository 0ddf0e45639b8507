"""The random masks of one call that trains with a regulariser of `extras.py`.

A seed is drawn from torch's generator, as dropout draws from it, and everything else follows from
the seed and the place of an element (`ops.keep_bits`): a mask is the same on the CPU and on a GPU,
for any number of threads, and when backward computes a part of forward again.
"""

from typing import Any

import torch
from torch import Tensor

from . import _extension, ops
from .extras import Extras

__all__ = ["Masks"]

Sizes = tuple[int, int, int]

_INPUT, _RECURRENT, _OUTPUT, _WEIGHT, _ZONEOUT, _KINDS = range(6)


class Masks:
    """Draws every mask of a call on x's device; none in evaluation."""

    def __init__(self, extras: Extras, training: bool, x: Tensor) -> None:
        self._extras, self._x = extras, x
        self._training = training and extras.draws
        self._seed: Any = None
        if self._training:
            least = -(2**63)
            self._seed = torch.randint(least, 2**63 - 1, (), dtype=torch.int64, device="cpu")

    def input(self, y: Tensor, layer: int) -> Tensor:
        """A layer's input [T, B, features], the same features of a row zeroed at every step."""
        return self._over_time(y, self._extras.input_dropout, layer, _INPUT)

    def output(self, y: Tensor, layer: int) -> Tensor:
        """The last layer's output, likewise."""
        return self._over_time(y, self._extras.output_dropout, layer, _OUTPUT)

    def recurrent(self, layer: int, D: int, B: int, P: int) -> Tensor | None:
        """What h is multiplied by before the gates read it, [D, B, P]."""
        return self._factors(self._extras.recurrent_dropout, layer, _RECURRENT, (D, B, P))

    def weight(self, layer: int, D: int, gates: int, P: int) -> Tensor | None:
        """What W_hh is multiplied by, [D, 4H, P]."""
        return self._factors(self._extras.weight_dropout, layer, _WEIGHT, (D, gates, P))

    def zoneout(self, layer: int, T: int, B: int, units: int) -> tuple[Tensor | None, float, float]:
        """Which of D*H units keep h and c, [T, B, units], or None and the share of either."""
        h, c = self._extras.zoneout
        if not self._training or not (h or c):
            return None, h, c
        return self._bits(layer, _ZONEOUT, (T, B, units), h, c), h, c

    def _over_time(self, y: Tensor, p: float, layer: int, kind: int) -> Tensor:
        factors = self._factors(p, layer, kind, (1, y.shape[1], y.shape[2]))
        return y if factors is None else y * factors

    def _factors(self, p: float, layer: int, kind: int, sizes: Sizes) -> Tensor | None:
        """0 with probability p, otherwise 1 / (1 - p); None where nothing is dropped."""
        if not self._training or not p:
            return None
        kept = self._bits(layer, kind, sizes, 1.0 - p, 0.0)
        return kept.to(self._x.dtype) * (1.0 / (1.0 - p) if p < 1 else 0.0)

    def _bits(self, layer: int, kind: int, sizes: Sizes, h: float, c: float) -> Tensor:
        x, stream = self._x, layer * _KINDS + kind
        if x.is_cpu or (x.is_cuda and _extension.cuda_obstacle(x.device.index) is None):
            return ops.keep_bits(x, self._seed, stream, *sizes, h, c)
        return ops.keep_bits(self._seed, self._seed, stream, *sizes, h, c).to(x.device)
