"""LSTM cells of other frameworks in NumPy, and random weights for them.

The steps follow the published equations that `fused_lstm/weights/` names, gate by gate in their
order, and share nothing with the package.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import fused_lstm
from fused_lstm.weights import FlashRNNWeights, OnnxLSTM, TF1Cell

B, T, I, H = 3, 6, 5, 8  # noqa: E741
DTYPES = {np.float32: torch.float32, np.float64: torch.float64}
Array = Any
Step = Callable[[Array, Array, Array], tuple[Array, Array]]  # x, h, c -> new h, new c


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def tf1_step(kernel: Array, bias: Array, forget_bias: float = 1.0) -> Step:
    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, j, f, o = np.split(np.concatenate([x, h], 1) @ kernel + bias, 4, axis=1)
        c = c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j)
        return np.tanh(c) * sigmoid(o), c

    return step


def keras_step(kernel: Array, recurrent_kernel: Array, bias: Array = 0.0) -> Step:
    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, f, z, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        return sigmoid(o) * np.tanh(c), c

    return step


def haste_step(kernel: Array, recurrent_kernel: Array, bias: Array) -> Step:
    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, g, f, o = np.split(h @ recurrent_kernel + x @ kernel + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    return step


def onnx_step(W: Array, R: Array, B: Array | None) -> Step:
    bias_w, bias_r = (0.0, 0.0) if B is None else np.split(B, 2)

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, o, f, z = np.split(x @ W.T + h @ R.T + bias_w + bias_r, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        return sigmoid(o) * np.tanh(c), c

    return step


def flashrnn_step(R: Array, b: Array, w: Array, w_bias: Array | None = None) -> Step:
    heads, size = b.shape[1:]

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        wx = x @ w.T + (0.0 if w_bias is None else w_bias)
        gates = wx.reshape(-1, 4, heads, size) + b
        for n in range(heads):  # a head at a time
            own = h[:, n * size : (n + 1) * size]
            for g in range(4):
                gates[:, g, n] += own @ R[g, n].T
        i, f, z, o = (gates[:, g].reshape(len(x), -1) for g in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        return sigmoid(o) * np.tanh(c), c

    return step


def run(
    layers: Sequence[Sequence[Step]], x: Array, states: Sequence[tuple[Array, Array]] = ()
) -> Array:
    """Layers of one or two directions over x [B, T, I]; the second direction reads it backwards.

    states: h and c [B, H] of each layer and direction, zeros if not given.
    """
    rest = list(states)
    for sides in layers:
        ys = []
        for d, step in enumerate(sides):
            h, c = rest.pop(0) if rest else (np.zeros((len(x), H), x.dtype),) * 2
            outputs: list[Array] = []
            for t in range(x.shape[1])[:: -1 if d else 1]:
                h, c = step(x[:, t], h, c)
                outputs.insert(0 if d else len(outputs), h)
            ys.append(np.stack(outputs, 1))
        x = np.concatenate(ys, -1)
    return x


def draw(*shape: int, dtype: Any = np.float64) -> Array:
    return torch.randn(*shape, dtype=torch.float64).mul(0.4).numpy().astype(dtype)


def tf1_cell(features: int, dtype: Any = np.float64) -> TF1Cell:
    return TF1Cell(draw(features + H, 4 * H, dtype=dtype), draw(4 * H, dtype=dtype))


def keras_arrays(features: int, dtype: Any = np.float64) -> list[Array]:
    shapes = ((features, 4 * H), (H, 4 * H), (4 * H,))
    return [draw(*shape, dtype=dtype) for shape in shapes]


def onnx_layer(features: int, directions: int, dtype: Any = np.float64, **more: Any) -> OnnxLSTM:
    shapes = ((4 * H, features), (4 * H, H), (8 * H,))
    return OnnxLSTM(
        *(draw(directions, *shape, dtype=dtype) for shape in shapes),
        direction="bidirectional" if directions == 2 else "forward",
        **more,
    )


def onnx_sides(layer: OnnxLSTM) -> list[Step]:
    biases = [None] * len(layer.W) if layer.B is None else layer.B
    return [onnx_step(*side) for side in zip(layer.W, layer.R, biases, strict=True)]


def flashrnn_layer(features: int, heads: int = 2, dtype: Any = np.float64) -> FlashRNNWeights:
    size = H // heads
    shapes = ((4, heads, size, size), (4, heads, size), (4 * H, features), (4 * H,))
    return FlashRNNWeights(*(draw(*shape, dtype=dtype) for shape in shapes))


def random_lstm(**options: Any) -> fused_lstm.LSTM:
    options = {"batch_first": True, "dtype": torch.float64, **options}
    return fused_lstm.LSTM(I, H, **options)
