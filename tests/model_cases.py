"""Small models around a recurrent layer, as whole-program tools take them, and how to compare."""

from typing import Any

import torch
from cases import OUTPUT_TOLERANCE, error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class Model(nn.Module):
    """A recurrent layer inside a model; returns flat tensors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.layer(x)
        return output, h, c


class PackedModel(nn.Module):
    """Likewise for a packed input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: PackedSequence) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.layer(x)
        return output.data, h, c


class CellModel(nn.Module):
    """Two steps of a cell."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(x)
        h, c = self.cell(x, state)
        return h, c


def assert_close(
    actual: Any, expected: Any, tolerance: float = OUTPUT_TOLERANCE[torch.float32]
) -> None:
    pairs = zip(
        torch.utils._pytree.tree_leaves(actual),
        torch.utils._pytree.tree_leaves(expected),
        strict=True,
    )
    for a, b in pairs:
        assert error(a, b) <= tolerance
