"""ONNX: the LSTM node.

    i, o, f, z = split(x W^T + Wb + h R^T + Rb)
    c' = sigmoid(f) * c + sigmoid(i) * tanh(z)
    h' = sigmoid(o) * tanh(c')

`W` is [D, 4H, I], `R` [D, 4H, H], `B` [D, 8H], Wb then Rb. A node is one layer; x is [T, B, I] with
layout 0 and [B, T, I] with layout 1.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modules import LSTM
from .layers import Side, build, common_sizes, expect, numpy_of, reorder, sides_of, tensor

__all__ = ["OnnxLSTM", "from_onnx", "to_onnx"]

_FROM_ONNX = (0, 2, 3, 1)  # i, o, f, z -> i, f, g, o
_TO_ONNX = (0, 3, 1, 2)
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class OnnxLSTM(NamedTuple):
    """What an LSTM node holds: its constant inputs and its attributes."""

    W: Any  # [D, 4H, I], gates i, o, f, z
    R: Any  # [D, 4H, H]
    B: Any = None  # [D, 8H]
    initial_h: Any = None  # [D, B, H], [B, D, H] with layout 1
    initial_c: Any = None  # likewise
    P: Any = None  # peepholes [D, 3H], refused
    direction: str = "forward"
    layout: int = 0
    activations: Sequence[str] | None = None
    clip: float | None = None
    input_forget: int = 0
    hidden_size: int | None = None


def from_onnx(
    source: Any, *, nodes: str | Sequence[str] | None = None
) -> tuple[LSTM, tuple[Tensor, Tensor] | None]:
    """An LSTM with the weights of ONNX's LSTM nodes, and the initial state that they hold.

    Args:
        source: a file's path or an onnx.ModelProto, or an `OnnxLSTM`, or a list of these, one per
            layer of a stack.
        nodes: which LSTM nodes of a file or model, by name, lowest layer first; None for the only
            one there is.

    Returns:
        The LSTM, batch_first where layout is 1, and (h_0, c_0), each [L*D, B, H], where constants
        are given for them; None where there are none or where they come at run time. So do
        `sequence_lens`: pass a PackedSequence.

    Raises:
        ImportError: source is a file, and the package onnx is not installed.
        TypeError: another kind of source; no array where one should be.
        ValueError: peepholes, input_forget, clip, other activations, direction "reverse"; shapes
            that do not fit; weights that the graph computes; no such node, or several and no names.
    """
    if isinstance(source, OnnxLSTM):
        entries = [source]
    elif isinstance(source, list | tuple):
        entries = list(source)
    else:
        entries = _read(source, nodes)
    for k, entry in enumerate(entries):
        if not isinstance(entry, OnnxLSTM):
            raise TypeError(f"layer {k}: expected an OnnxLSTM, got {type(entry).__name__}")
        _check_supported(f"layer {k}", entry)
        if entry.layout != entries[0].layout:
            raise ValueError(f"layer {k}: expected one layout in all layers, got {entry.layout}")
    layers = [_sides(f"layer {k}", entry) for k, entry in enumerate(entries)]
    lstm = build(layers, batch_first=bool(entries and entries[0].layout))
    return lstm, _initial_state(entries, lstm)


def to_onnx(lstm: nn.Module) -> list[OnnxLSTM]:
    """The weights of an LSTM as ONNX's LSTM nodes have them, in NumPy arrays.

    `fused_lstm.onnx.export` writes a whole model; this is for graphs that are put together by hand.

    Args:
        lstm: without proj_size.

    Returns:
        For each layer an `OnnxLSTM`. `from_onnx` reads it.

    Raises:
        TypeError: lstm is no LSTM, or of bfloat16.
        ValueError: lstm has proj_size.
    """
    layers = []
    for sides in sides_of(lstm, "ONNX's LSTM"):
        w = torch.stack([reorder(side.w_ih, _TO_ONNX) for side in sides])
        r = torch.stack([reorder(side.w_hh, _TO_ONNX) for side in sides])
        b = None
        if sides[0].b_ih is not None:
            pairs = [[reorder(t, _TO_ONNX) for t in side[2:] if t is not None] for side in sides]
            b = numpy_of(torch.stack([torch.cat(pair) for pair in pairs]))
        layers.append(
            OnnxLSTM(
                numpy_of(w),
                numpy_of(r),
                b,
                direction="bidirectional" if len(sides) == 2 else "forward",
                layout=int(getattr(lstm, "batch_first", False)),
                hidden_size=r.shape[2],
            )
        )
    return layers


def _check_supported(where: str, entry: OnnxLSTM) -> None:
    if entry.P is not None:
        raise ValueError(f"{where}: expected no peepholes, got P")
    if entry.input_forget:
        raise ValueError(f"{where}: expected input_forget=0, got {entry.input_forget}")
    if entry.clip is not None:
        raise ValueError(f"{where}: expected no clip, got {entry.clip}")
    if entry.direction not in ("forward", "bidirectional"):
        raise ValueError(
            f"{where}: expected direction forward or bidirectional, got {entry.direction}: torch "
            "has no LSTM that only goes backwards"
        )
    if entry.layout not in (0, 1):
        raise ValueError(f"{where}: expected layout 0 or 1, got {entry.layout}")
    if entry.activations:
        directions = 2 if entry.direction == "bidirectional" else 1
        names = [str(name).lower() for name in entry.activations]
        if names != ["sigmoid", "tanh", "tanh"] * directions:
            raise ValueError(
                f"{where}: expected activations Sigmoid, Tanh, Tanh, got {list(entry.activations)}"
            )


def _sides(where: str, entry: OnnxLSTM) -> list[Side]:
    W, R = tensor(f"{where}, W", entry.W, 3), tensor(f"{where}, R", entry.R, 3)
    directions = 2 if entry.direction == "bidirectional" else 1
    if len(R) != directions:
        raise ValueError(f"{where}, R: expected D = {directions}, got shape {[*R.shape]}")
    hidden = common_sizes(f"{where}, R without D", R[0], gate_dim=0)
    if entry.hidden_size not in (None, hidden):
        raise ValueError(
            f"{where}, R: expected hidden_size = {entry.hidden_size}, got shape {[*R.shape]}"
        )
    expect(f"{where}, W", W, directions, 4 * hidden, "I")
    if entry.B is None:
        return [
            Side(reorder(W[d], _FROM_ONNX), reorder(R[d], _FROM_ONNX)) for d in range(directions)
        ]
    B = tensor(f"{where}, B", entry.B, 2)
    expect(f"{where}, B", B, directions, 8 * hidden)
    return [
        Side(*(reorder(t, _FROM_ONNX) for t in (W[d], R[d], *B[d].chunk(2))))
        for d in range(directions)
    ]


def _initial_state(entries: Sequence[OnnxLSTM], lstm: LSTM) -> tuple[Tensor, Tensor] | None:
    """h_0 and c_0 of all layers; zeros for those that have none beside others that do."""
    names = ("initial_h", "initial_c")
    given = {}
    for k, entry in enumerate(entries):
        for name in names:
            if getattr(entry, name) is not None:
                t = tensor(f"layer {k}, {name}", getattr(entry, name), 3)
                given[k, name] = t.transpose(0, 1) if entry.layout else t
    if not given:
        return None
    directions, hidden = 2 if lstm.bidirectional else 1, lstm.hidden_size
    some = next(iter(given.values()))
    batch = some.shape[1]
    states = []
    for name in names:
        zeros = some.new_zeros(directions, batch, hidden)
        rows = [given.get((k, name), zeros) for k in range(len(entries))]
        for k, t in enumerate(rows):
            expect(f"layer {k}, {name}, as [D, B, H]", t, directions, batch, hidden)
        states.append(torch.cat(rows))
    return states[0], states[1]


# Reading a model


def _read(source: Any, names: str | Sequence[str] | None) -> list[OnnxLSTM]:
    if isinstance(source, str | os.PathLike):
        try:
            import onnx
        except ImportError as error:
            raise ImportError(
                f"from_onnx of a file needs the package onnx ({error}); pip install onnx",
                name="onnx",
            ) from error
        source = onnx.load(os.fspath(source))
    if not hasattr(source, "graph"):
        raise TypeError(
            f"source: expected a path, an onnx.ModelProto or OnnxLSTM, got {type(source).__name__}"
        )
    constants = _constants(source.graph)
    found = [node for node in source.graph.node if node.op_type == "LSTM"]
    labels = [node.name or node.output[0] for node in found]
    if names is None and len(found) != 1:
        raise ValueError(f"nodes: expected the names of LSTM nodes of one stack, out of {labels}")
    wanted = labels if names is None else [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in labels:
            raise ValueError(f"nodes: expected some of {labels}, got {name!r}")
    return [_node(found[labels.index(name)], name, constants) for name in wanted]


def _constants(graph: Any) -> dict[str, Any]:
    """Arrays by name: initializers and Constant nodes, still as ONNX has them."""
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _node(node: Any, label: str, constants: dict[str, Any]) -> OnnxLSTM:
    from onnx import helper, numpy_helper

    values: dict[str, Any] = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    for unknown in set(values) - set(OnnxLSTM._fields) - {"activation_alpha", "activation_beta"}:
        raise ValueError(f"{label}: {unknown}={values[unknown]!r} is not known")
    values = {name: value for name, value in values.items() if name in OnnxLSTM._fields}
    values["direction"] = values.get("direction", b"forward").decode()
    values["activations"] = [name.decode() for name in values.get("activations", [])]
    for name, given in zip(_INPUTS, node.input, strict=False):
        if not given or name not in OnnxLSTM._fields:
            continue
        if given in constants:
            values[name] = numpy_helper.to_array(constants[given])
        elif not name.startswith("initial"):
            raise ValueError(
                f"{label}: expected {name} to be a constant, got {given!r}, which the graph "
                "computes or is given: fold its constants first"
            )
    return OnnxLSTM(**values)
