"""TensorFlow 1: tf.nn.rnn_cell.BasicLSTMCell, and LSTMCell without peepholes and projection.

    i, j, f, o = split([x, h] @ kernel + bias)
    c' = sigmoid(f + forget_bias) * c + sigmoid(i) * tanh(j)
    h' = sigmoid(o) * tanh(c')

`kernel` is [I + H, 4H], `bias` [4H]. forget_bias, 1.0 if nobody said otherwise, is no variable: it
is added at run time, and stands in no checkpoint.

Source: tensorflow/python/ops/rnn_cell_impl.py,
https://www.tensorflow.org/api_docs/python/tf/compat/v1/nn/rnn_cell/BasicLSTMCell
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..modules import LSTM
from .layers import Side, build, forget_gate, numpy_of, reorder, sides_of, tensor

__all__ = ["TF1Cell", "from_tf1", "to_tf1"]

_SWAP_F_AND_G = (0, 2, 1, 3)  # i, j, f, o <-> i, f, g, o: its own inverse
_KINDS = {"kernel": "kernel", "weights": "kernel", "bias": "bias", "biases": "bias"}


class TF1Cell(NamedTuple):
    """The variables of one cell."""

    kernel: Any  # [I + H, 4H], gates i, j, f, o
    bias: Any  # [4H]


def from_tf1(
    cells: Mapping[str, Any] | Sequence[Any],
    *,
    forget_bias: float = 1.0,
    batch_first: bool = True,
) -> LSTM:
    """An LSTM with the weights of TensorFlow 1's BasicLSTMCell.

    Args:
        cells: for each layer the pair (kernel [I + H, 4H], bias [4H]), or two such pairs, forward
            and backward. Or variables by name, as a checkpoint has them: those of a cell are found
            by `lstm_cell` in their path, layers by `cell_0`, `cell_1`, ... of MultiRNNCell,
            directions by `fw` and `bw`; other variables may be there too.
        forget_bias: what the cells add to f at run time. It is kept in `bias_hh`, so that
            `to_tf1` gives the bias back to the bit.
        batch_first: of the new LSTM. True is dynamic_rnn's layout unless it was time_major.

    Raises:
        TypeError: no array where one should be, or one of integers.
        ValueError: shapes that do not fit; missing or ambiguous names; peepholes or a projection; a
            bidirectional_dynamic_rnn of several layers, whose directions meet only at the end.
    """
    if isinstance(cells, Mapping):
        entries = _by_layer(cells)
    else:
        entries = [cells] if isinstance(cells, TF1Cell) else list(cells)
    layers = []
    for k, entry in enumerate(entries):
        pairs = [entry] if _is_pair(entry) else entry
        is_list = isinstance(pairs, tuple | list) and 1 <= len(pairs) <= 2
        if not is_list or not all(map(_is_pair, pairs)):
            raise ValueError(f"layer {k}: expected (kernel, bias), or two such pairs")
        layers.append([_side(f"layer {k}", pair[0], pair[1], forget_bias) for pair in pairs])
    return build(layers, batch_first=batch_first)


def to_tf1(lstm: nn.Module, *, forget_bias: float = 1.0) -> list[Any]:
    """The weights of an LSTM as TensorFlow 1's BasicLSTMCell has them, in NumPy arrays.

    Args:
        lstm: without proj_size.
        forget_bias: what the cells will add to f; it is subtracted here.

    Returns:
        For each layer a `TF1Cell`, or a pair of them, forward and backward. `from_tf1` reads it.

    Raises:
        TypeError: lstm is no LSTM, or of bfloat16.
        ValueError: lstm has proj_size.
    """
    layers: list[Any] = []
    for sides in sides_of(lstm, "BasicLSTMCell"):
        cells = []
        for side in sides:
            w = torch.cat([side.w_ih, side.w_hh], dim=1)
            kernel = reorder(w, _SWAP_F_AND_G).T
            bias = reorder(side.bias(added=forget_bias), _SWAP_F_AND_G)
            cells.append(TF1Cell(numpy_of(kernel), numpy_of(bias)))
        layers.append(cells[0] if len(cells) == 1 else tuple(cells))
    return layers


def _is_pair(entry: Any) -> bool:
    """Whether it is a kernel and a bias, and not two pairs."""
    return isinstance(entry, tuple | list) and len(entry) == 2 and not isinstance(
        entry[0], tuple | list
    )  # fmt: skip


def _side(where: str, kernel: Any, bias: Any, forget_bias: float) -> Side:
    kernel = tensor(f"{where}, kernel", kernel, 2)
    bias = tensor(f"{where}, bias", bias, 1)
    hidden = len(bias) // 4
    if len(bias) % 4 or not hidden or kernel.shape[1] != len(bias) or len(kernel) <= hidden:
        raise ValueError(
            f"{where}: expected kernel [I + H, 4H] and bias [4H], got {[*kernel.shape]} and "
            f"{[*bias.shape]}"
        )
    w = reorder(kernel.T, _SWAP_F_AND_G)
    features = len(kernel) - hidden
    added = torch.zeros_like(bias)
    forget_gate(added).fill_(forget_bias)
    return Side(w[:, :features], w[:, features:], reorder(bias, _SWAP_F_AND_G), added)


def _by_layer(variables: Mapping[str, Any]) -> list[Any]:
    """Finds the cells among named variables, in the order of their layers."""
    cells: dict[str, dict[str, Any]] = {}
    for name, value in variables.items():
        parent, _, last = name.removesuffix(":0").rpartition("/")
        if re.search(r"lstm_cell(_\d+)?/projection$", parent) or (
            "lstm_cell" in parent and re.fullmatch(r"w_[fio]_diag", last)
        ):
            raise ValueError(f"cells: expected no peephole and no projection, got {name}")
        if re.search(r"lstm_cell(_\d+)?$", parent) and last in _KINDS:
            cells.setdefault(parent, {})[_KINDS[last]] = value
    if not cells:
        raise ValueError(f"cells: expected names with lstm_cell/kernel, got {sorted(variables)}")
    places: dict[tuple[int, str], str] = {}
    for parent, found in cells.items():
        if missing := {"kernel", "bias"} - set(found):
            raise ValueError(f"cells: {parent}/{missing.pop()} is missing")
        place = _place(parent)
        if place in places:
            raise ValueError(
                f"cells: {places[place]} and {parent} would be the same layer; pass the variables "
                "of one LSTM only"
            )
        places[place] = parent
    numbers = sorted({number for number, _ in places})
    directions = sorted({direction for _, direction in places}, reverse=True)  # fw, bw
    if numbers != list(range(len(numbers))) or len(places) != len(numbers) * len(directions):
        raise ValueError(f"cells: layers or directions are missing beside {sorted(cells)}")
    if directions not in ([""], ["fw"], ["fw", "bw"]):
        raise ValueError(f"cells: expected fw and bw, or neither, got {sorted(cells)}")
    if len(directions) == 2 and len(numbers) > 1:
        apart = [p for p in cells if re.search(r"/(fw|bw)/(?:.*/)?cell_\d+/", f"/{p}/")]
        if apart:
            raise ValueError(
                f"cells: {apart[0]} belongs to a stack of one direction: bidirectional_dynamic_rnn "
                "joins the directions after the last layer, torch after each. Make one LSTM of each"
            )
    layers = []
    for number in numbers:
        pairs = [TF1Cell(**cells[places[number, direction]]) for direction in directions]
        layers.append(pairs[0] if len(pairs) == 1 else pairs)
    return layers


def _place(parent: str) -> tuple[int, str]:
    """The number of the layer and the direction, "" for none, that a path names."""
    number = re.search(r"(?:^|/)cell_(\d+)(?:/|$)", parent)
    direction = re.search(r"(?:^|/)(fw|bw)(?:/|$)", parent)
    return int(number[1]) if number else 0, direction[1] if direction else ""
