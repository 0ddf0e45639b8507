"""FlashRNN: `flashrnn(Wx, R, b, function="lstm")`.

    i, f, z, o = Wx + R h + b
    c' = sigmoid(f) * c + sigmoid(i) * tanh(z)
    h' = sigmoid(o) * tanh(c')

for each of N heads alone: H = N * D, and head n of h meets only its own D x D block of each gate.
So one matrix W_hh of all heads is block-diagonal. `R` is [4, N, D, D] (gate, head, new unit,
previous unit: "GHDP" in its configuration, the default), `b` [4, N, D]. It has no input weights: Wx
[B, T, 4, N, D] comes from the caller, as a rule out of an nn.Linear(I, 4H).

Source: NX-AI/flashrnn, flashrnn/vanilla/lstm.py and vanilla_fwbw/fw.py; Pöppel, Beck, Hochreiter,
"FlashRNN" (2024), https://arxiv.org/abs/2412.07752
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modules import LSTM
from .layers import Side, build, expect, sides_of, tensor

__all__ = ["FlashRNNWeights", "from_flashrnn", "to_flashrnn"]


class FlashRNNWeights(NamedTuple):
    """The weights of one layer, together with those of the linear layer that makes its Wx."""

    R: Any  # [4, N, D, D], gates i, f, z, o
    b: Any  # [4, N, D]
    w: Any  # [4H, I], the nn.Linear's weight
    w_bias: Any = None  # [4H], its bias, None for none


def from_flashrnn(
    layers: FlashRNNWeights | tuple[Any, ...] | list[Any], *, batch_first: bool = True
) -> LSTM:
    """An LSTM with the weights of FlashRNN's "lstm".

    Args:
        layers: `FlashRNNWeights`, or a list of them, one per layer of a stack. b goes into
            `bias_hh`, w_bias into `bias_ih`. Heads become blocks of a dense W_hh: zeros elsewhere,
            which training may fill.
        batch_first: of the new LSTM. True is FlashRNN's layout.

    Raises:
        TypeError: no array where one should be.
        ValueError: shapes that do not fit.
    """
    entries = [layers] if isinstance(layers, FlashRNNWeights) else layers
    sides = []
    for k, entry in enumerate(entries):
        if not isinstance(entry, tuple | list) or not 3 <= len(entry) <= 4:
            raise TypeError(f"layer {k}: expected FlashRNNWeights, got {type(entry).__name__}")
        sides.append([_side(f"layer {k}", *entry)])
    return build(sides, batch_first=batch_first)


def to_flashrnn(lstm: nn.Module, num_heads: int) -> list[FlashRNNWeights]:
    """The weights of an LSTM as FlashRNN has them.

    Args:
        lstm: of one direction, without proj_size.
        num_heads: N. 1 fits every LSTM.

    Returns:
        For each layer its `FlashRNNWeights`, w_bias zero. `from_flashrnn` reads it.

    Raises:
        TypeError: lstm is no LSTM.
        ValueError: N does not divide H; lstm has two directions or proj_size, or a W_hh that is not
            block-diagonal: some head listens to another one, which FlashRNN does not have.
    """
    layers = []
    for k, sides in enumerate(sides_of(lstm, "FlashRNN")):
        if len(sides) == 2:
            raise ValueError("lstm: expected one direction as FlashRNN has, got bidirectional=True")
        w_ih, w_hh = sides[0].w_ih, sides[0].w_hh
        hidden = w_hh.shape[1]
        if num_heads < 1 or hidden % num_heads:
            raise ValueError(f"num_heads: expected a divisor of H = {hidden}, got {num_heads}")
        size = hidden // num_heads
        split = w_hh.reshape(4, num_heads, size, num_heads, size)
        R = torch.stack([split[:, n, :, n] for n in range(num_heads)], dim=1)
        stray = int(w_hh.count_nonzero() - R.count_nonzero())
        if stray:
            raise ValueError(
                f"lstm: expected weight_hh_l{k} to be block-diagonal, {num_heads} blocks of "
                f"{size} x {size} in each gate, got {stray} other weights that are not zero"
            )
        b = sides[0].bias().reshape(4, num_heads, size)
        layers.append(FlashRNNWeights(R, b, w_ih.clone()))
    return layers


def _side(where: str, R: Any, b: Any, w: Any, w_bias: Any = None) -> Side:
    R, b, w = tensor(f"{where}, R", R, 4), tensor(f"{where}, b", b, 3), tensor(f"{where}, w", w, 2)
    _, heads, size, _ = R.shape
    hidden = heads * size
    expect(f"{where}, R", R, 4, heads, size, size)
    expect(f"{where}, b", b, 4, heads, size)
    expect(f"{where}, w", w, 4 * hidden, "I")
    w_hh = torch.stack([torch.block_diag(*gate) for gate in R]).reshape(4 * hidden, hidden)
    b_ih: Tensor = b.new_zeros(4 * hidden)
    if w_bias is not None:
        b_ih = tensor(f"{where}, w_bias", w_bias, 1)
        expect(f"{where}, w_bias", b_ih, 4 * hidden)
    return Side(w, w_hh, b_ih, b.reshape(4 * hidden))
