"""ONNX Runtime as a peer: one ONNX LSTM node with the module's weights, inference in float32.

It is given its best conditions: all graph optimisations, weights packed when the session is made,
input and outputs bound to fixed memory, so that a call neither copies nor allocates. Its workers
spin while a call runs and stop when it returns; otherwise they would take a core from the next
candidate's turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Candidate, UnavailableError, Workload

__all__ = ["candidate"]

_ONNX_ORDER = [0, 3, 1, 2]  # torch has the gates as i f g o, ONNX as i o f c


def _reorder(weight: Tensor) -> Tensor:  # [4H, n] or [4H] -> [1, 4H, n] or [1, 4H]
    gates = weight.detach().unflatten(0, (4, -1))
    return gates[_ONNX_ORDER].flatten(0, 1)[None].contiguous()


def candidate(work: Workload, quantised: bool = False) -> Candidate:
    """A session with `work.threads` threads; UnavailableError in training and for other dtypes.

    Quantised: by onnxruntime's own quantize_dynamic, weights to 8-bit integers per channel.
    """
    if work.training:
        raise UnavailableError("inference only")
    if work.dtype != torch.float32:
        raise UnavailableError("its CPU LSTM computes in float32 only")
    try:
        import numpy as np
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise UnavailableError(
            f"not installed ({error.name}); pip install onnxruntime onnx"
        ) from None

    case = work.case
    w_ih, w_hh, b_ih, b_hh = (_reorder(p) for p in work.module.parameters())
    constants = {"W": w_ih, "R": w_hh, "B": torch.cat([b_ih, b_hh], dim=1)}
    shapes = {
        "x": [case.T, case.B, case.I],
        "y": [case.T, 1, case.B, case.H],
        "h_n": [1, case.B, case.H],
        "c_n": [1, case.B, case.H],
    }
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    outputs = ["y", "h_n", "c_n"]
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], outputs, hidden_size=case.H)],
        "lstm",
        [infos["x"]],
        [infos[name] for name in outputs],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        _quantised(model) if quantised else model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    x = work.x.numpy()
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shapes[name], np.float32)
        for name in outputs
    }
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    for name, value in values.items():
        binding.bind_ortvalue_output(name, value)

    def call() -> None:
        session.run_with_iobinding(binding)

    def result() -> dict[str, Tensor]:
        call()
        y, h_n, c_n = (torch.from_numpy(values[name].numpy().copy()) for name in outputs)
        return {"y": y[:, 0], "h_n": h_n, "c_n": c_n}

    return Candidate(call, result)


def _quantised(model: Any) -> bytes:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise UnavailableError(f"onnxruntime.quantization does not import: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8)
        data = path.read_bytes()
    if b"DynamicQuantizeLSTM" not in data:
        raise UnavailableError("quantize_dynamic left the LSTM as it was")
    return data
