"""haste: haste_pytorch.LSTM.

    i, g, f, o = split(x @ kernel + h @ recurrent_kernel + bias)
    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h' = sigmoid(o) * tanh(c')

`kernel` is [I, 4H], `recurrent_kernel` [H, 4H], `bias` [4H]. Its forget_bias is how the bias
begins, no more. Its dropout (of recurrent weights) is for training alone; its zoneout is not: at
inference h' is the mean (1 - zoneout) * h' + zoneout * h, which no LSTM of torch's kind computes.

Source: lmnt-com/haste, frameworks/pytorch/lstm.py and lib/lstm_forward_gpu.cu.cc,
https://github.com/lmnt-com/haste/blob/master/docs/pytorch/haste_pytorch/LSTM.md
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..modules import LSTM
from .layers import Side, build, common_sizes, expect, reorder, sides_of, tensor

__all__ = ["from_haste", "to_haste"]

_SWAP_F_AND_G = (0, 2, 1, 3)  # i, g, f, o <-> i, f, g, o: its own inverse
_NAMES = ("kernel", "recurrent_kernel", "bias")


def from_haste(source: Any, *, batch_first: bool | None = None) -> LSTM:
    """An LSTM with the weights of haste_pytorch.LSTM.

    Args:
        source: a haste_pytorch.LSTM or its state_dict, with kernel [I, 4H], recurrent_kernel
            [H, 4H] and bias [4H]; or a list of these, one per layer of a stack.
        batch_first: of the new LSTM; None: as the first module has it, False for a state_dict.

    Raises:
        TypeError: no array where one should be.
        ValueError: names that are missing, shapes that do not fit, a module with zoneout.
    """
    entries = source if isinstance(source, list | tuple) else [source]
    if batch_first is None:
        batch_first = bool(entries and getattr(entries[0], "batch_first", False))
    layers = [[_side(f"layer {k}", entry)] for k, entry in enumerate(entries)]
    return build(layers, batch_first=batch_first)


def to_haste(lstm: nn.Module) -> list[dict[str, Tensor]]:
    """The weights of an LSTM as haste has them.

    Args:
        lstm: of one direction, without proj_size.

    Returns:
        For each layer the state_dict of a haste_pytorch.LSTM. `from_haste` reads it.

    Raises:
        TypeError: lstm is no LSTM.
        ValueError: lstm has two directions or proj_size.
    """
    layers = []
    for sides in sides_of(lstm, "haste's LSTM"):
        if len(sides) == 2:
            raise ValueError("lstm: expected one direction as haste has, got bidirectional=True")
        w_ih, w_hh, bias = (
            reorder(t, _SWAP_F_AND_G) for t in (sides[0].w_ih, sides[0].w_hh, sides[0].bias())
        )
        arrays = (w_ih.T.contiguous(), w_hh.T.contiguous(), bias)
        layers.append(dict(zip(_NAMES, arrays, strict=True)))
    return layers


def _side(where: str, entry: Any) -> Side:
    if getattr(entry, "zoneout", 0.0):
        raise ValueError(
            f"{where}: expected zoneout=0, got {entry.zoneout}: it changes h at inference too"
        )
    if not isinstance(entry, Mapping):
        entry = {name: getattr(entry, name) for name in _NAMES if hasattr(entry, name)}
    if missing := [name for name in _NAMES if name not in entry]:
        raise ValueError(f"{where}: expected {', '.join(_NAMES)}; missing {', '.join(missing)}")
    w_ih, w_hh = (tensor(f"{where}, {name}", entry[name], 2) for name in _NAMES[:2])
    bias = tensor(f"{where}, bias", entry["bias"], 1)
    hidden = common_sizes(f"{where}, recurrent_kernel", w_hh, gate_dim=1)
    expect(f"{where}, kernel", w_ih, "I", 4 * hidden)
    expect(f"{where}, bias", bias, 4 * hidden)
    return Side(*(reorder(t, _SWAP_F_AND_G) for t in (w_ih.T, w_hh.T, bias)))
