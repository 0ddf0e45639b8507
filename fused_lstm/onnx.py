"""Models that hold a fused LSTM as ONNX: every layer becomes one standard `LSTM` node.

torch.onnx.export alone goes through `aten.lstm`, which it takes apart into single steps or, where
the number of steps may change, into a loop that ONNX Runtime runs step by step, or refuses. Here
the exported graph holds our operator, and this file translates that into the node.

Needs the packages onnx and onnxscript: `pip install fused-lstm[onnx]`. What ONNX's LSTM does not
know, a projection and packed input, raises.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from .export import export_mode

__all__ = ["export", "translations"]


def export(
    model: torch.nn.Module,
    args: tuple[Any, ...] = (),
    f: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """`torch.onnx.export(model, args, f, dynamo=True, **options)` with LSTM nodes.

    Every dimension may be dynamic: `dynamic_shapes={"x": {0: Dim("batch"), 1: Dim("steps")}}`.
    Returns torch's ONNXProgram. The model should be in eval mode, as for any export.

    Raises:
        ImportError: onnxscript is not installed.
        NotImplementedError: a layer has proj_size, or its input is packed. torch wraps it in its
            own ConversionError.
    """
    table = {**translations(), **options.pop("custom_translation_table", {})}
    with export_mode("fused"):
        return torch.onnx.export(
            model, args, f, dynamo=True, custom_translation_table=table, **options
        )


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` that torch.onnx.export needs for a graph with our operator."""
    try:
        from onnxscript import opset18 as op
    except ImportError as error:
        raise ImportError(
            f"fused_lstm.onnx needs onnxscript ({error}); pip install onnx onnxscript",
            name="onnxscript",
        ) from error

    def onnx_gates(w: Any, shape: list[int]) -> Any:
        """From torch's order of gates i, f, g, o to ONNX's i, o, f, g."""
        gates = op.Reshape(w, op.Constant(value_ints=[4, -1]))
        gates = op.Gather(gates, op.Constant(value_ints=[0, 3, 1, 2]), axis=0)
        return op.Reshape(gates, op.Constant(value_ints=shape))

    def of_directions(weights: list[Any]) -> Any:
        return weights[0] if len(weights) == 1 else op.Concat(*weights, axis=0)

    def forward(  # type: ignore[no-untyped-def]
        x,  # [T, B, I]
        batch_sizes=None,
        h0=None,  # [D, B, H]
        c0=None,  # [D, B, H]
        w_ih=None,
        w_hh=None,
        b_ih=None,
        b_hh=None,
        w_hr=None,
        w_ih_reverse=None,
        w_hh_reverse=None,
        b_ih_reverse=None,
        b_hh_reverse=None,
        w_hr_reverse=None,
        save_for_backward: bool = False,
        tf32: bool = False,
    ):
        for name, given in (("packed input", batch_sizes), ("proj_size", w_hr)):
            if given is not None:
                raise NotImplementedError(f"fused_lstm.onnx: ONNX's LSTM has no {name}")
        sides = [(w_ih, w_hh, b_ih, b_hh)]
        if w_ih_reverse is not None:
            sides.append((w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse))
        rows, hidden = w_hh.shape
        w = of_directions([onnx_gates(side[0], [1, rows, -1]) for side in sides])  # [D, 4H, I]
        r = of_directions([onnx_gates(side[1], [1, rows, -1]) for side in sides])  # [D, 4H, H]
        b = None  # [D, 8H]
        if b_ih is not None:
            pairs = [[onnx_gates(b, [1, rows]) for b in side[2:]] for side in sides]
            b = of_directions([op.Concat(*pair, axis=1) for pair in pairs])
        direction = "forward" if len(sides) == 1 else "bidirectional"
        y, h_n, c_n = op.LSTM(x, w, r, b, None, h0, c0, hidden_size=hidden, direction=direction)
        # y [T, D, B, H] -> [T, B, D*H]
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        return y, h_n, c_n, op.Constant(value_ints=[0])

    return {torch.ops.fused_lstm.forward.default: forward}
