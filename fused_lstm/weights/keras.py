"""Keras: keras.layers.LSTM, and Bidirectional of it.

    i, f, z, o = split(x @ kernel + h @ recurrent_kernel + bias)
    c' = sigmoid(f) * c + sigmoid(i) * tanh(z)
    h' = sigmoid(o) * tanh(c')

`kernel` is [I, 4H], `recurrent_kernel` [H, 4H], `bias` [4H]. unit_forget_bias only says how the
bias begins: its 1 stands in the weights. Input is [B, T, I], the same for every backend.

Source: keras/src/layers/rnn/lstm.py, https://keras.io/api/layers/recurrent_layers/lstm/
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..modules import LSTM
from .layers import Side, build, common_sizes, expect, numpy_of, sides_of, tensor

__all__ = ["from_keras", "to_keras"]

# What an LSTM of torch's kind has, by the names of Keras' own configuration.
_FIXED = {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False}


def from_keras(source: Any, *, batch_first: bool = True) -> LSTM:
    """An LSTM with the weights of Keras' LSTM layers.

    Args:
        source: a built keras.layers.LSTM or Bidirectional of one, or what its `get_weights()`
            gives: kernel [I, 4H], recurrent_kernel [H, 4H] and, with use_bias, bias [4H], then the
            same of the backward layer. Or a list of these, one per layer of a stack.
        batch_first: of the new LSTM. True is Keras' layout.

    What return_sequences=False picks is y's last step here (for the backward direction its first),
    or h_n. dropout and recurrent_dropout are not taken over.

    Raises:
        TypeError: another layer, or no array where one should be.
        ValueError: other activations, go_backwards, a merge_mode other than "concat", a layer that
            is not built yet, return_sequences=False before the last layer; shapes that do not fit.
    """
    if hasattr(source, "get_weights") or _is_weights(source):
        source = [source]
    if not isinstance(source, list | tuple):
        raise TypeError(f"source: expected Keras layers or weights, got {type(source).__name__}")
    layers = []
    for k, entry in enumerate(source):
        if hasattr(entry, "get_weights"):
            _check_layer(f"layer {k}", entry, is_last=k == len(source) - 1)
            entry = entry.get_weights()
        layers.append(_sides(f"layer {k}", entry))
    return build(layers, batch_first=batch_first)


def to_keras(lstm: nn.Module) -> list[list[Any]]:
    """The weights of an LSTM as Keras has them, in NumPy arrays.

    Args:
        lstm: without proj_size.

    Returns:
        For each layer what `set_weights` of a keras.layers.LSTM takes, or of a Bidirectional: the
        forward layer's arrays, then the backward layer's. `from_keras` reads it.

    Raises:
        TypeError: lstm is no LSTM, or of bfloat16.
        ValueError: lstm has proj_size.
    """
    layers = []
    for sides in sides_of(lstm, "Keras' LSTM"):
        arrays = []
        for side in sides:
            arrays += [numpy_of(side.w_ih.T), numpy_of(side.w_hh.T)]
            arrays += [] if side.b_ih is None else [numpy_of(side.bias())]
        layers.append(arrays)
    return layers


def _is_weights(source: Any) -> bool:
    """Whether it is one layer's list of arrays, not a list of layers."""
    return isinstance(source, list | tuple) and len(source) > 0 and hasattr(source[0], "shape")


def _check_layer(where: str, layer: Any, is_last: bool) -> None:
    kind = type(layer).__name__
    if kind == "Bidirectional":
        if layer.merge_mode != "concat":
            raise ValueError(f"{where}: expected merge_mode='concat', got {layer.merge_mode!r}")
        backward = (
            layer.backward_layer.get_config()
        )  # go_backwards is what Bidirectional wants there
        _check_config(f"{where}, backward", {**backward, "go_backwards": False})
        layer = layer.forward_layer
        kind = type(layer).__name__
    if kind != "LSTM":
        raise TypeError(f"{where}: expected a Keras LSTM or Bidirectional of one, got {kind}")
    config = layer.get_config()
    _check_config(where, config)
    if not is_last and not config.get("return_sequences"):
        raise ValueError(f"{where}: expected return_sequences=True below another layer")


def _check_config(where: str, config: dict[str, Any]) -> None:
    for name, expected in _FIXED.items():
        if config.get(name, expected) != expected:
            raise ValueError(f"{where}: expected {name}={expected!r}, got {config[name]!r}")


def _sides(where: str, arrays: Sequence[Any]) -> list[Side]:
    if not isinstance(arrays, list | tuple) or len(arrays) not in (2, 3, 4, 6):
        got = len(arrays) if isinstance(arrays, list | tuple) else type(arrays).__name__
        hint = ": the layer is not built yet" if got == 0 else ""
        raise ValueError(
            f"{where}: expected 2 or 3 arrays, or 4 or 6 of two directions, got {got}{hint}"
        )
    directions = 2 if len(arrays) > 3 else 1
    each = len(arrays) // directions
    return [_side(where, *arrays[d * each : (d + 1) * each]) for d in range(directions)]


def _side(where: str, kernel: Any, recurrent_kernel: Any, bias: Any = None) -> Side:
    w_hh = tensor(f"{where}, recurrent_kernel", recurrent_kernel, 2)
    hidden = common_sizes(f"{where}, recurrent_kernel", w_hh, gate_dim=1)
    w_ih = tensor(f"{where}, kernel", kernel, 2)
    expect(f"{where}, kernel", w_ih, "I", 4 * hidden)
    b_ih = None
    if bias is not None:
        b_ih = tensor(f"{where}, bias", bias, 1)
        expect(f"{where}, bias", b_ih, 4 * hidden)
    return Side(w_ih.T, w_hh.T, b_ih)
