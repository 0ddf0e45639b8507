"""What `fused_lstm.weights` refuses, and in which words: argument, expected, got."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from weight_cells import (
    Array,
    H,
    I,
    draw,
    flashrnn_layer,
    keras_arrays,
    onnx_layer,
    random_lstm,
    tf1_cell,
)

from fused_lstm import LSTM, weights


class Layer(SimpleNamespace):
    """What from_keras asks of a layer."""

    def get_config(self) -> dict[str, Any]:
        return vars(self)["config"]

    def get_weights(self) -> list[Array]:
        return vars(self).get("arrays", [])


def keras_layer(kind: str = "LSTM", arrays: Any = None, **config: Any) -> Any:
    """A stand-in: keras.layers.LSTM as far as it is looked at."""
    config = {"activation": "tanh", "recurrent_activation": "sigmoid", **config}
    arrays = keras_arrays(I) if arrays is None else arrays
    return type(kind, (Layer,), {})(config=config, arrays=arrays)


def two_stacks() -> dict[str, Array]:
    path = "bidirectional_rnn/{}/multi_rnn_cell/cell_{}/basic_lstm_cell/{}"
    cells = {(d, k): tf1_cell(I if k == 0 else H) for d in ("fw", "bw") for k in (0, 1)}
    return {
        path.format(d, k, kind): value
        for (d, k), cell in cells.items()
        for kind, value in cell._asdict().items()
    }


W = weights
CELL = "rnn/basic_lstm_cell"
REFUSED: tuple[tuple[str, type[Exception], Callable[[], Any]], ...] = (
    (
        "kernel .I . H, 4H. and bias .4H., got",
        ValueError,
        lambda: W.from_tf1([(draw(13, 32), draw(28))]),
    ),
    ("got .8, 32. and", ValueError, lambda: W.from_tf1([(draw(8, 32), draw(32))])),  # no I
    ("layer 0: expected .kernel, bias.", ValueError, lambda: W.from_tf1([draw(13, 32)])),
    (
        "bias: expected floating point numbers, got torch.int64",
        TypeError,
        lambda: W.from_tf1([(draw(13, 32), np.arange(32))]),
    ),
    ("kernel: expected an array", TypeError, lambda: W.from_tf1([("kernel", draw(32))])),
    (
        "expected names with lstm_cell/kernel, got .'dense/kernel'",
        ValueError,
        lambda: W.from_tf1({"dense/kernel": draw(2, 2)}),
    ),
    (f"{CELL}/bias is missing", ValueError, lambda: W.from_tf1({f"{CELL}/kernel": draw(13, 32)})),
    (
        "no peephole and no projection, got .*w_f_diag",
        ValueError,
        lambda: W.from_tf1({"rnn/lstm_cell/w_f_diag": draw(8)}),
    ),
    (
        "no peephole and no projection, got .*projection/kernel",
        ValueError,
        lambda: W.from_tf1({"rnn/lstm_cell/projection/kernel": draw(8, 3)}),
    ),
    (
        "encoder/.* and decoder/.* would be the same layer",
        ValueError,
        lambda: W.from_tf1(
            {
                f"{n}/lstm_cell/{k}": v
                for n in ("encoder", "decoder")
                for k, v in tf1_cell(I)._asdict().items()
            }
        ),
    ),
    (
        "layers or directions are missing",
        ValueError,
        lambda: W.from_tf1({f"cell_1/lstm_cell/{k}": v for k, v in tf1_cell(I)._asdict().items()}),
    ),
    ("belongs to a stack of one direction", ValueError, lambda: W.from_tf1(two_stacks())),
    (
        "layer 1, input weights: expected shape .32, 8., got .32, 5.",
        ValueError,
        lambda: W.from_tf1([tf1_cell(I), tf1_cell(I)]),
    ),
    (
        "layer 1: expected torch.float64 as in layer 0, got torch.float32",
        TypeError,
        lambda: W.from_tf1([tf1_cell(I), tf1_cell(H, np.float32)]),
    ),
    ("expected at least one layer", ValueError, lambda: W.from_tf1([])),
    (
        "expected activation='tanh', got 'relu'",
        ValueError,
        lambda: W.from_keras(keras_layer(activation="relu")),
    ),
    (
        "expected recurrent_activation='sigmoid', got 'hard_sigmoid'",
        ValueError,
        lambda: W.from_keras(keras_layer(recurrent_activation="hard_sigmoid")),
    ),
    (
        "expected go_backwards=False, got True",
        ValueError,
        lambda: W.from_keras(keras_layer(go_backwards=True)),
    ),
    (
        "expected a Keras LSTM or Bidirectional of one, got GRU",
        TypeError,
        lambda: W.from_keras(keras_layer("GRU")),
    ),
    ("got 0: the layer is not built yet", ValueError, lambda: W.from_keras(keras_layer(arrays=[]))),
    (
        "layer 0: expected return_sequences=True below",
        ValueError,
        lambda: W.from_keras([keras_layer(), keras_layer()]),
    ),
    (
        "layer 0, kernel: expected shape .I, 32., got .5, 31.",
        ValueError,
        lambda: W.from_keras([draw(5, 31), draw(8, 32), draw(32)]),
    ),
    (
        "recurrent_kernel: expected shape .H, 4H., got .8, 31.",
        ValueError,
        lambda: W.from_keras([draw(5, 32), draw(8, 31), draw(32)]),
    ),
    (
        "bias: expected shape .32., got .64.",
        ValueError,
        lambda: W.from_keras([draw(5, 32), draw(8, 32), draw(64)]),
    ),
    (
        "layer 1: expected biases in all layers or in none",
        ValueError,
        lambda: W.from_keras([keras_arrays(I), keras_arrays(H)[:2]]),
    ),
    (
        "layer 1: expected 1 direction.s. as layer 0, got 2",
        ValueError,
        lambda: W.from_keras([keras_arrays(I), keras_arrays(H) * 2]),
    ),
    ("source: expected Keras layers or weights, got int", TypeError, lambda: W.from_keras(7)),
    (
        "expected no peepholes, got P",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1, P=draw(1, 24))),
    ),
    (
        "expected input_forget=0, got 1",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1, input_forget=1)),
    ),
    ("expected no clip, got 3.0", ValueError, lambda: W.from_onnx(onnx_layer(I, 1, clip=3.0))),
    (
        "got reverse: torch has no LSTM that only goes backwards",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1)._replace(direction="reverse")),
    ),
    (
        "expected activations Sigmoid, Tanh, Tanh, got .'Relu'",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1, activations=["Relu", "Tanh", "Tanh"])),
    ),
    (
        "B: expected shape .1, 64., got .1, 32.",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1)._replace(B=draw(1, 32))),
    ),
    (
        "R: expected D = 2, got shape .1, 32, 8.",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1)._replace(direction="bidirectional")),
    ),
    (
        "R: expected hidden_size = 9",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1, hidden_size=9)),
    ),
    (
        "W: expected 3 dimensions, got shape .32, 5.",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1)._replace(W=draw(32, 5))),
    ),
    (
        "layer 1: expected one layout in all layers",
        ValueError,
        lambda: W.from_onnx([onnx_layer(I, 1), onnx_layer(H, 1, layout=1)]),
    ),
    (
        "initial_c, as .D, B, H.: expected shape .1, 3, 8., got .1, 2, 8.",
        ValueError,
        lambda: W.from_onnx(onnx_layer(I, 1, initial_h=draw(1, 3, 8), initial_c=draw(1, 2, 8))),
    ),
    (
        "source: expected a path, an onnx.ModelProto or OnnxLSTM, got int",
        TypeError,
        lambda: W.from_onnx(7),
    ),
    ("layer 0: expected an OnnxLSTM, got int", TypeError, lambda: W.from_onnx([7])),
    (
        "missing recurrent_kernel",
        ValueError,
        lambda: W.from_haste({"kernel": draw(5, 32), "bias": draw(32)}),
    ),
    (
        "expected zoneout=0, got 0.1: it changes h at inference too",
        ValueError,
        lambda: W.from_haste(SimpleNamespace(zoneout=0.1)),
    ),
    (
        "kernel: expected shape .I, 32., got .5, 28.",
        ValueError,
        lambda: W.from_haste(
            {"kernel": draw(5, 28), "recurrent_kernel": draw(8, 32), "bias": draw(32)}
        ),
    ),
    (
        "R: expected shape .4, 2, 4, 4., got .3, 2, 4, 4.",
        ValueError,
        lambda: W.from_flashrnn(flashrnn_layer(I)._replace(R=draw(3, 2, 4, 4))),
    ),
    (
        "w: expected shape .32, I., got .5, 32.",
        ValueError,
        lambda: W.from_flashrnn(flashrnn_layer(I)._replace(w=draw(5, 32))),
    ),
    (
        "w_bias: expected shape .32., got .8.",
        ValueError,
        lambda: W.from_flashrnn(flashrnn_layer(I)._replace(w_bias=draw(8))),
    ),
    (
        "layer 0: expected FlashRNNWeights, got ndarray",
        TypeError,
        lambda: W.from_flashrnn([draw(2, 2)]),
    ),
    (
        "expected weight_hh_l0 to be block-diagonal, 2 blocks of 4 x 4",
        ValueError,
        lambda: W.to_flashrnn(random_lstm(), 2),
    ),
    (
        "num_heads: expected a divisor of H = 8, got 3",
        ValueError,
        lambda: W.to_flashrnn(random_lstm(), 3),
    ),
    (
        "expected one direction as FlashRNN has",
        ValueError,
        lambda: W.to_flashrnn(random_lstm(bidirectional=True), 1),
    ),
    (
        "expected one direction as haste has",
        ValueError,
        lambda: W.to_haste(random_lstm(bidirectional=True)),
    ),
    ("lstm: expected an LSTM, got GRU", TypeError, lambda: W.to_keras(nn.GRU(2, 3))),
    (
        "expected no projection, for ONNX's LSTM has none, got proj_size=3",
        ValueError,
        lambda: W.to_onnx(random_lstm(proj_size=3)),
    ),
)


@pytest.mark.parametrize(("message", "kind", "call"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_refused(message: str, kind: type[Exception], call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("to", [W.to_haste, W.to_tf1, W.to_keras, W.to_onnx])
def test_zoneout_acts_in_evaluation_and_is_not_lost(to: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="lstm: expected no zoneout"):
        to(LSTM(3, 4, zoneout=0.1))
    to(LSTM(3, 4, input_dropout=0.1))  # in training alone


def test_one_stray_weight_is_enough_to_refuse() -> None:
    lstm = weights.from_flashrnn(flashrnn_layer(I, 2))
    weights.to_flashrnn(lstm, 2)
    with torch.no_grad():
        lstm.weight_hh_l0[2, 6] = 1e-30  # unit 2 is of head 0, unit 6 of head 1
    with pytest.raises(ValueError, match="got 1 other weights that are not zero"):
        weights.to_flashrnn(lstm, 2)


def test_a_bidirectional_layer_of_keras_has_to_join_by_concatenation() -> None:
    inner = keras_layer()
    kind: Any = type("Bidirectional", (Layer,), {})
    layer = kind(config={}, arrays=keras_arrays(I) * 2, forward_layer=inner, backward_layer=inner)
    layer.merge_mode = "sum"
    with pytest.raises(ValueError, match="expected merge_mode='concat', got 'sum'"):
        weights.from_keras(layer)
    layer.merge_mode = "concat"
    assert weights.from_keras(layer).bidirectional


def test_a_file_of_onnx_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs the package onnx .*pip install onnx"):
        weights.from_onnx("model.onnx")
