"""torch.export with any batch size and any number of steps, AOTInductor, torch.jit.

A graph with a fixed number of steps holds torch's own operator and runs without this package; with
a dynamic one it holds ours, because torch's cannot be exported so. `export_mode` chooses otherwise.
"""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import OUTPUT_TOLERANCE
from model_cases import CellModel, Model, PackedModel, assert_close
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_sequence

import fused_lstm

TORCHS = torch.ops.aten.lstm.input
OURS = torch.ops.fused_lstm.forward.default
ALL = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}
LENGTHS = ((6, 3), (11, 2), (1, 30), (40, 1))  # T, B that a program is called with after tracing


class StateModel(nn.Module):
    """A recurrent layer that is given its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.layer(x, (h0, c0))
        return output, h, c


def targets(program: torch.export.ExportedProgram) -> set[Any]:
    return {node.target for node in program.graph.nodes} & {TORCHS, OURS}


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    return torch.export.load(saved)


def any_size() -> tuple[dict[str, Any], list[tuple[Tensor, ...]]]:
    """Dynamic shapes of StateModel with ALL, and inputs: the first one for tracing."""
    steps, batch = Dim("steps", min=1), Dim("batch", min=1)
    shapes = {"x": {0: batch, 1: steps}, "h0": {1: batch}, "c0": {1: batch}}
    inputs = [
        (torch.randn(B, T, 4), torch.randn(4, B, 3), torch.randn(4, B, 7))
        for T, B in ((5, 9), *LENGTHS)
    ]
    return shapes, inputs


@pytest.mark.parametrize("strict", [False, True])
def test_any_batch_and_any_number_of_steps(strict: bool) -> None:
    model = StateModel(fused_lstm.LSTM(4, 7, **ALL)).eval()
    shapes, (first, *others) = any_size()
    program = torch.export.export(model, first, dynamic_shapes=shapes, strict=strict)
    assert targets(program) == {OURS}
    for other in (program, saved_and_loaded(program), program.run_decompositions()):
        for inputs in others:
            assert_close(other.module()(*inputs), model(*inputs))


def test_torch_refuses_a_dynamic_number_of_steps() -> None:
    x, shapes = torch.randn(5, 3, 4), {"x": {0: Dim("steps", min=2)}}
    for layer in (nn.LSTM(4, 7), fused_lstm.LSTM(4, 7)):
        with (
            fused_lstm.export_mode("torch"),
            pytest.raises(torch._dynamo.exc.UserError, match="marked steps as dynamic but"),
        ):
            torch.export.export(Model(layer), (x,), dynamic_shapes=shapes)


def test_a_saved_program_runs_in_another_process(tmp_path: Path) -> None:
    """Which imports fused_lstm for our operator, and need not for torch's."""
    model = Model(fused_lstm.LSTM(4, 7)).eval()
    x = torch.randn(5, 3, 4)
    shapes = {"x": {0: Dim("steps", min=1)}}
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), tmp_path / "any.pt2")
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "fixed.pt2")
    torch.save((x, torch.cat([x, x]), model(x)[0], model(torch.cat([x, x]))[0]), tmp_path / "data")
    code = f"""
import sys, torch
folder = {str(tmp_path)!r}
x, longer, y, y_longer = torch.load(folder + "/data")
torch.testing.assert_close(torch.export.load(folder + "/fixed.pt2").module()(x)[0], y)
assert "fused_lstm" not in sys.modules
import fused_lstm
program = torch.export.load(folder + "/any.pt2").module()
torch.testing.assert_close(program(longer)[0], y_longer)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(fused_lstm.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_export_mode() -> None:
    model, x = Model(fused_lstm.LSTM(4, 7)).eval(), torch.randn(5, 3, 4)
    with fused_lstm.export_mode("fused"):
        fused = torch.export.export(model, (x,))
        with fused_lstm.export_mode("auto"):
            assert targets(torch.export.export(model, (x,))) == {TORCHS}
        assert targets(torch.export.export(model, (x,))) == {OURS}
    assert_close(fused.module()(x), model(x))
    assert targets(torch.export.export(model, (x,))) == {TORCHS}
    with (
        pytest.raises(ValueError, match=r"mode: expected one of .*, got 'onnx'"),
        fused_lstm.export_mode("onnx"),
    ):
        pass


def test_our_operator_in_a_program_is_for_inference() -> None:
    """As torch says it itself, of every operator without a derivative."""
    model, x = Model(fused_lstm.LSTM(4, 7)), torch.randn(5, 3, 4, requires_grad=True)
    with fused_lstm.export_mode("fused"):
        program = torch.export.export(model, (x,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program.module()(x)[0].sum().backward()
    assert "an autograd kernel was not registered" in "".join(str(w.message) for w in caught)
    assert x.grad is None


def test_a_cell_keeps_torchs_operator_at_any_batch_size() -> None:
    cell = CellModel(fused_lstm.LSTMCell(4, 7))
    shapes = {"x": {0: Dim("batch", min=1)}}
    program = torch.export.export(cell, (torch.randn(3, 4),), dynamic_shapes=shapes)
    assert not any("fused_lstm" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(11, 4)
    assert_close(program.module()(x), cell(x))


@pytest.mark.compile
def test_aot_inductor(tmp_path: Path) -> None:
    model = StateModel(fused_lstm.LSTM(4, 7, **ALL)).eval()
    shapes, (first, *others) = any_size()
    with torch.no_grad():
        program = torch.export.export(model, first, dynamic_shapes=shapes)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "m.pt2")
        )
    package = torch._inductor.aoti_load_package(path)
    for inputs in others:
        assert_close(package(*inputs), model(*inputs), OUTPUT_TOLERANCE[torch.float32])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_export_holds_an_operator_of_torch(strict: bool, train: bool) -> None:
    model = Model(fused_lstm.LSTM(4, 7, 2)).train(train)
    x = torch.randn(5, 3, 4)
    program = torch.export.export(model, (x,), strict=strict)
    assert torch.ops.aten.lstm.input in {n.target for n in program.graph.nodes}
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    for other in (program, torch.export.load(saved), program.run_decompositions()):
        assert_close(other.module()(x), model(x))
    trained = program.module()(x)[0].sum()
    trained.backward()
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = torch.export.export(model, (x,), dynamic_shapes={"x": {1: batch}}, strict=strict)
    y = torch.randn(5, 11, 4)
    assert_close(dynamic.module()(y), model(y))


# torch.jit ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_trace_at_another_shape_and_from_a_file() -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=True, batch_first=True)
    model = Model(lstm)
    traced = torch.jit.trace(model, torch.randn(3, 5, 4))
    assert "aten::lstm" in str(traced.inlined_graph)  # it also runs without this package
    saved = io.BytesIO()
    torch.jit.save(traced, saved)
    saved.seek(0)
    x = torch.randn(2, 9, 4)
    for other in (traced, torch.jit.load(saved)):
        assert_close(other(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("batch_first", [False, True])
def test_jit_script_of_a_model(batch_first: bool) -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(5, 3, 4)
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(Model(lstm)), saved)
    saved.seek(0)
    scripted = torch.jit.load(saved)
    assert_close(scripted(x), Model(lstm)(x))
    assert_close(scripted(x[0]), Model(lstm)(x[0]))
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 5, 1)], enforce_sorted=False)
    assert_close(torch.jit.script(PackedModel(lstm))(packed), PackedModel(lstm)(packed))
    cell = fused_lstm.LSTMCell(4, 7)
    for row in (x[0], x[0, 0]):
        assert_close(torch.jit.script(CellModel(cell))(row), CellModel(cell)(row))
    lstm(x)  # scripting left the module as it was
    assert type(Model(lstm).layer) is fused_lstm.LSTM


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_with_a_state_and_of_a_cell() -> None:
    lstm, cell = fused_lstm.LSTM(4, 7), fused_lstm.LSTMCell(4, 7)
    state = lambda B: (torch.randn(1, B, 7), torch.randn(1, B, 7))  # noqa: E731
    traced = torch.jit.trace(StateModel(lstm), (torch.randn(5, 3, 4), *state(3)))
    inputs = (torch.randn(9, 2, 4), *state(2))
    for graph in (traced, torch.jit.script(StateModel(lstm))):
        assert_close(graph(*inputs), StateModel(lstm)(*inputs))
    traced_cell = torch.jit.trace(CellModel(cell), torch.randn(3, 4))
    assert_close(traced_cell(inputs[0][0]), CellModel(cell)(inputs[0][0]))
    assert_close(torch.jit.script(cell)(inputs[0][0]), cell(inputs[0][0]))
    frozen = torch.jit.freeze(torch.jit.script(Model(lstm).eval()))
    assert_close(frozen(inputs[0]), Model(lstm)(inputs[0]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_model_trains_and_shares_its_weights() -> None:
    model, x = Model(fused_lstm.LSTM(4, 7, bidirectional=True)), torch.randn(5, 3, 4)
    scripted = torch.jit.script(model)
    scripted(x)[0].square().sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            assert p.grad is not None
            p.sub_(p.grad, alpha=0.1)
    assert_close(scripted(x), model(x))
    model.load_state_dict(Model(fused_lstm.LSTM(4, 7, bidirectional=True)).state_dict())
    assert_close(scripted(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripting_a_layer_alone_is_beyond_torchscript() -> None:
    """Its forward has two overloads, which torch.jit.script takes only inside another module."""
    for layer in (nn.LSTM(4, 7), fused_lstm.LSTM(4, 7)):
        with pytest.raises(AttributeError, match="has no attribute 'forward'"):
            torch.jit.script(layer)(torch.randn(5, 3, 4))
