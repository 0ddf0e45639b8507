"""Weights from Keras and ONNX, held to Keras and ONNX Runtime themselves.

Marked `compile`: keras, onnx and onnxruntime are installed by `make test-compile`. Keras runs on
its torch backend.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import error
from torch import Tensor, nn

import fused_lstm
import fused_lstm.onnx
from fused_lstm import weights

pytestmark = pytest.mark.compile
# Keras: torch's own operators, as ours; ONNX Runtime: activations that are approximations.
TOLERANCE = {"keras": 4e-6, "onnxruntime": 1e-5}
B, T, I, H = 3, 6, 5, 8  # noqa: E741


@pytest.fixture
def keras() -> ModuleType:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="not installed; make test-compile installs it")


@pytest.fixture
def onnx() -> ModuleType:
    pytest.importorskip("onnxruntime", reason="not installed; make test-compile installs it")
    return pytest.importorskip("onnx", reason="not installed; make test-compile installs it")


def keras_model(keras: ModuleType, layers: list[Any]) -> Any:
    model = keras.Sequential([keras.Input((None, I)), *layers])
    for layer in layers:  # also the biases, which begin with zeros and ones
        layer.set_weights([torch.randn(a.shape).mul(0.4).numpy() for a in layer.get_weights()])
    return model


def keras_layers(keras: ModuleType, kind: str) -> list[Any]:
    LSTM, Bidirectional = keras.layers.LSTM, keras.layers.Bidirectional
    return {
        "one": lambda: [LSTM(H, return_sequences=True)],
        "no bias": lambda: [LSTM(H, return_sequences=True, use_bias=False)],
        "stack": lambda: [LSTM(H, return_sequences=True) for _ in range(3)],
        "both ways": lambda: [
            Bidirectional(LSTM(H, return_sequences=True, recurrent_dropout=0.2)) for _ in range(2)
        ],
    }[kind]()


@pytest.mark.parametrize("kind", ["one", "no bias", "stack", "both ways"])
def test_keras(keras: ModuleType, kind: str) -> None:
    layers = keras_layers(keras, kind)
    model, x = keras_model(keras, layers), torch.randn(B, T, I)
    lstm = weights.from_keras(layers)
    with torch.no_grad():
        assert error(lstm(x)[0], torch.as_tensor(model(x.numpy()))) <= TOLERANCE["keras"]
    other = fused_lstm.LSTM(
        I, H, lstm.num_layers, lstm.bias, True, bidirectional=lstm.bidirectional
    )
    for layer, arrays in zip(layers, weights.to_keras(other), strict=True):
        layer.set_weights(arrays)
    with torch.no_grad():
        assert error(other(x)[0], torch.as_tensor(model(x.numpy()))) <= TOLERANCE["keras"]


def test_keras_final_states_and_what_is_refused(keras: ModuleType) -> None:
    layer = keras.layers.LSTM(H, return_state=True)
    keras_model(keras, [layer])
    x = torch.randn(B, T, I)
    with torch.no_grad():
        _, (h_n, c_n) = weights.from_keras(layer)(x)
        last, h, c = (torch.as_tensor(t) for t in layer(x.numpy()))
    assert error(h_n[0], last) <= TOLERANCE["keras"]
    assert error(h_n[0], h) <= TOLERANCE["keras"]
    assert error(c_n[0], c) <= TOLERANCE["keras"]
    relu = keras.layers.LSTM(H, activation="relu")
    relu.build((None, None, I))
    with pytest.raises(ValueError, match="expected activation='tanh', got 'relu'"):
        weights.from_keras(relu)
    with pytest.raises(ValueError, match="the layer is not built yet"):
        weights.from_keras(keras.layers.LSTM(H))
    summed = keras.layers.Bidirectional(keras.layers.LSTM(H), merge_mode="sum")
    with pytest.raises(ValueError, match="expected merge_mode='concat', got 'sum'"):
        weights.from_keras(summed)


def node_model(onnx: ModuleType, layer: weights.OnnxLSTM, **attributes: Any) -> Any:
    """A model of one LSTM node with x as its input and Y as its output."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    arrays = {n: getattr(layer, n) for n in ("W", "R", "B", "initial_h", "initial_c")}
    names = ["x", "W", "R", "B", "", "initial_h", "initial_c"]
    names = [n if n in ("x", "") or arrays[n] is not None else "" for n in names]
    node = helper.make_node(
        "LSTM", names, ["y"], "lstm", direction=layer.direction, hidden_size=H, **attributes
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [T, B, I])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items() if a is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def computed(model: Any, *inputs: Tensor) -> Tensor:
    import onnxruntime

    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    fed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, fed)[0])


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_node_in_onnxruntime(onnx: ModuleType, bidirectional: bool, with_state: bool) -> None:
    source = fused_lstm.LSTM(I, H, bidirectional=bidirectional, bias=with_state)
    (layer,) = weights.to_onnx(source)
    D, x = (2 if bidirectional else 1), torch.randn(T, B, I)
    if with_state:
        states = [torch.randn(D, B, H).numpy() for _ in range(2)]
        layer = layer._replace(initial_h=states[0], initial_c=states[1])
    model = node_model(onnx, layer)
    lstm, hx = weights.from_onnx(model)
    assert (hx is not None) is with_state
    y = computed(model, x).permute(0, 2, 1, 3).flatten(2)  # [T, D, B, H] -> [T, B, D*H]
    with torch.no_grad():
        assert error(lstm(x, hx)[0], y) <= TOLERANCE["onnxruntime"]
        assert error(source(x, hx)[0], y) <= TOLERANCE["onnxruntime"]


class Stack(nn.Module):
    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("by", ["fused_lstm", "torch"])
def test_a_file_comes_back(onnx: ModuleType, by: str, tmp_path: Path) -> None:
    """What fused_lstm.onnx.export writes, and what torch's old exporter writes for nn.LSTM."""
    path, x = tmp_path / "model.onnx", torch.randn(T, B, I)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    if by == "torch":
        model = Stack(nn.LSTM(I, H, **options)).eval()
        torch.onnx.export(model, (x,), path, dynamo=False)
    else:
        pytest.importorskip("onnxscript", reason="not installed; make test-compile installs it")
        model = Stack(fused_lstm.LSTM(I, H, **options)).eval()
        fused_lstm.onnx.export(model, (x,), path, verbose=False)
    with pytest.raises(ValueError, match="expected the names of LSTM nodes") as caught:
        weights.from_onnx(path)
    nodes = [n.name or n.output[0] for n in onnx.load(path).graph.node if n.op_type == "LSTM"]
    assert str(nodes) in str(caught.value)
    lstm, _ = weights.from_onnx(path, nodes=nodes)
    with torch.no_grad():
        expected = model(x)
        assert error(lstm(x)[0], expected) <= TOLERANCE["keras"]
        assert error(computed(str(path), x), expected) <= TOLERANCE["onnxruntime"]
    with pytest.raises(ValueError, match=r"nodes: expected some of .* got 'other'"):
        weights.from_onnx(path, nodes="other")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ({"clip": 2.0}, "expected no clip, got 2.0"),
        ({"input_forget": 1}, "expected input_forget=0, got 1"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "expected activations Sigmoid"),
    ],
)
def test_attributes_that_are_refused(
    onnx: ModuleType, attribute: dict[str, Any], message: str
) -> None:
    (layer,) = weights.to_onnx(fused_lstm.LSTM(I, H))
    with pytest.raises(ValueError, match=message):
        weights.from_onnx(node_model(onnx, layer, **attribute))


def test_inputs_that_are_refused(onnx: ModuleType) -> None:
    (layer,) = weights.to_onnx(fused_lstm.LSTM(I, H))
    model = node_model(onnx, layer)
    node = model.graph.node[0]
    node.input.append("P")
    peepholes = torch.randn(1, 3 * H).numpy()
    model.graph.initializer.append(onnx.numpy_helper.from_array(peepholes, "P"))
    with pytest.raises(ValueError, match="expected no peepholes, got P"):
        weights.from_onnx(model)
    node.input.pop()
    node.input[1] = "elsewhere"
    with pytest.raises(ValueError, match="lstm: expected W to be a constant, got 'elsewhere'"):
        weights.from_onnx(model)
