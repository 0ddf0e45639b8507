"""ONNX: one standard LSTM node per layer, run by ONNX Runtime at other sizes than it was traced at.

`fused_lstm.onnx.export` goes through torch.export and our operator, the old exporter of torch.onnx
(dynamo=False) through `aten.lstm`. All but the tests of errors are marked `compile`: onnx,
onnxscript and onnxruntime are installed by `make test-compile`.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import error
from model_cases import CellModel, Model
from test_export import StateModel
from torch import Tensor, nn
from torch.export import Dim

import fused_lstm
import fused_lstm.onnx

TOLERANCE = 1e-5  # ONNX Runtime's activations are approximations of their own
LENGTHS = ((6, 3), (11, 2), (1, 1), (5, 30))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"bidirectional": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
)


def require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed; make test-compile installs it")


def inputs_of(options: dict[str, Any], has_state: bool, T: int, B: int) -> tuple[Tensor, ...]:
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x = torch.randn(*((B, T) if options.get("batch_first") else (T, B)), 4)
    return (x, torch.randn(rows, B, 7), torch.randn(rows, B, 7)) if has_state else (x,)


def check(path: Path, model: nn.Module, options: dict[str, Any], has_state: bool) -> None:
    """A valid file, an LSTM node per layer and no loop, that computes what the model does."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("LSTM") == options.get("num_layers", 1)
    assert not {"Loop", "Scan", "MatMul", "Gemm"} & set(nodes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for T, B in LENGTHS:
        inputs = inputs_of(options, has_state, T, B)
        fed = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
        for own, expected in zip(session.run(None, fed), model(*inputs), strict=True):
            assert error(torch.from_numpy(own), expected) <= TOLERANCE


@pytest.mark.compile
@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_export(options: dict[str, Any], has_state: bool, tmp_path: Path) -> None:
    require_onnx()
    model = (StateModel if has_state else Model)(fused_lstm.LSTM(4, 7, **options)).eval()
    steps, batch = Dim("steps", min=1), Dim("batch", min=1)
    of_x = {0: batch, 1: steps} if options.get("batch_first") else {0: steps, 1: batch}
    shapes = (of_x, {1: batch}, {1: batch}) if has_state else (of_x,)
    fused_lstm.onnx.export(
        model,
        inputs_of(options, has_state, 5, 9),
        tmp_path / "model.onnx",
        dynamic_shapes=shapes,
        opset_version=18 if has_state else None,
        verbose=False,
    )
    check(tmp_path / "model.onnx", model, options, has_state)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("has_state", [False, True])
def test_the_old_exporter(has_state: bool, tmp_path: Path) -> None:
    require_onnx()
    options = OPTIONS[-1]
    model = (StateModel if has_state else Model)(fused_lstm.LSTM(4, 7, **options)).eval()
    names = ["x", "h0", "c0"] if has_state else ["x"]
    axes = {"x": {0: "batch", 1: "steps"}, "h0": {1: "batch"}, "c0": {1: "batch"}}
    torch.onnx.export(
        model,
        inputs_of(options, has_state, 5, 9),
        tmp_path / "model.onnx",
        dynamo=False,
        input_names=names,
        dynamic_axes={name: axes[name] for name in names},
    )
    check(tmp_path / "model.onnx", model, options, has_state)


@pytest.mark.compile
def test_a_cell_and_what_onnx_does_not_know() -> None:
    require_onnx()
    cell = CellModel(fused_lstm.LSTMCell(4, 7))
    shapes = ({0: Dim("batch", min=1)},)
    program = fused_lstm.onnx.export(
        cell, (torch.randn(3, 4),), dynamic_shapes=shapes, verbose=False
    )
    nodes = [node.op_type for node in program.model_proto.graph.node]
    assert nodes.count("LSTM") == 2  # two steps
    x = torch.randn(9, 4)
    for own, expected in zip(program(x), cell(x), strict=True):
        assert error(own, expected) <= TOLERANCE
    projected = Model(fused_lstm.LSTM(4, 7, proj_size=3)).eval()
    with pytest.raises(torch.onnx.OnnxExporterError, match="ONNX's LSTM has no proj_size"):
        fused_lstm.onnx.export(projected, (torch.randn(5, 3, 4),), verbose=False)


def test_without_onnxscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"fused_lstm\.onnx needs onnxscript .*pip install onnx"):
        fused_lstm.onnx.export(Model(fused_lstm.LSTM(4, 7)), (torch.randn(5, 3, 4),))
