"""What is measured: shapes, modes, names, and how many floating-point operations each costs.

A shape is TxBxIxH: steps, batch, input features, hidden units; one layer, one direction. `core` is
the list whose geometric mean the README quotes. The DeepBench shapes are those of Baidu's
`code/kernels/rnn_problems.h` (cell type "lstm", where the input has as many features as units).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DTYPES", "GROUPS", "LABELS", "MODES", "QUICK", "Case", "flops", "parse_shapes"]

MODES = (
    "inference",  # forward under no_grad
    "training",  # forward and backward, gradients of all weights and biases
    "training_dx",  # the same, and the gradient of x
)

# Who is compared, by the name in results; what each is stands in peers.py.
LABELS = {
    "fused": "fused_lstm",
    "torch": "nn.LSTM",
    "fused_float32": "fused_lstm f32",
    "cell": "nn.LSTMCell loop",
    "python": "Python loop",
    "onnxruntime": "ONNX Runtime",
    "jax": "JAX scan",
}

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """One shape; `modes` are those in which it is worth measuring."""

    T: int
    B: int
    I: int  # noqa: E741  the project's letter for input features
    H: int
    modes: tuple[str, ...] = MODES

    @property
    def name(self) -> str:
        """`TxBxIxH`, as `--shapes` reads it."""
        return f"{self.T}x{self.B}x{self.I}x{self.H}"


def flops(case: Case, mode: str) -> float:
    """Floating-point operations of the matrix products that the mode cannot do without.

    Forward multiplies [T*B, I+H] by [I+H, 4H]. Training adds the recurrence of dh (H columns), dW
    (I+H) and, in `training_dx`, dx (I). Activations are not counted, so that a share of the FMA
    peak can be told.
    """
    columns = {
        "inference": case.I + case.H,
        "training": 2 * (case.I + case.H) + case.H,
        "training_dx": 3 * (case.I + case.H),
    }[mode]
    return 2.0 * case.T * case.B * 4 * case.H * columns


def deepbench(units: Sequence[int], sizes: dict[int, Sequence[tuple[int, int]]]) -> list[Case]:
    """Cases of the DeepBench table `sizes[H] = [(T, B), ...]` for the listed H."""
    return [Case(T, B, H, H) for H in units for T, B in sizes[H]]


_TRAINING: dict[int, Sequence[tuple[int, int]]] = {
    256: [(150, 16), (150, 32), (150, 64)],
    512: [(25, 16), (25, 32), (25, 64), (25, 128)],
    1024: [(25, 16), (25, 32), (25, 64), (25, 128)],
    1536: [(50, 8), (50, 16), (50, 32)],
    2048: [(25, 16), (25, 32), (25, 64), (25, 128)],
    4096: [(25, 16), (25, 32), (25, 64), (25, 128)],
}
_SERVER: dict[int, Sequence[tuple[int, int]]] = {
    256: [(150, 1), (150, 2), (150, 4)],
    512: [(25, 1), (25, 2), (25, 4)],
    1024: [(25, 1), (25, 2), (25, 4)],
    1536: [(50, 1), (50, 2), (50, 4)],
    2048: [(25, 1), (25, 2), (25, 4)],
}

_INFERENCE = ("inference",)


def inference_only(cases: Sequence[Case]) -> list[Case]:
    """The same shapes, measured in inference alone."""
    return [Case(c.T, c.B, c.I, c.H, _INFERENCE) for c in cases]


GROUPS: dict[str, list[Case]] = {
    "core": [
        Case(28, 50, 28, 100),  # MNIST by rows, as the well-known tutorial has it
        Case(28, 128, 28, 128),
        Case(784, 50, 1, 128),  # MNIST by pixels
        Case(784, 128, 1, 128),
        Case(100, 32, 256, 256),
        Case(50, 64, 512, 512),
        Case(25, 16, 512, 512),
        Case(50, 1, 256, 256),
        Case(200, 1, 128, 128),
        Case(1, 1, 128, 128),  # latency of one step
        Case(25, 32, 1024, 1024),
        Case(128, 64, 40, 320),  # speech: 40 filter banks
    ],
    # DeepBench up to 1024 units: the training set, and the server set in inference.
    "deepbench": deepbench((256, 512, 1024), _TRAINING)
    + inference_only(deepbench((256, 512, 1024), _SERVER)),
    # The rest of it: minutes per row on a small machine.
    "deepbench-large": deepbench((1536, 2048, 4096), _TRAINING)
    + inference_only(deepbench((1536, 2048), _SERVER)),
    # Few rows against many units: where reading the weights, not multiplying, is the bound.
    "small-batch": [
        Case(60, 1, 384, 384),
        Case(40, 1, 512, 512),
        Case(50, 1, 1024, 1024),
        Case(50, 4, 256, 256),
        Case(20, 8, 512, 512),
        Case(15, 24, 1024, 1024),
    ],
}

# What `--quick` measures: one small, one long, one square, one large, one single-row shape.
QUICK = "28x50x28x100,784x50x1x128,100x32x256x256,25x16x512x512,200x1x128x128"


def parse_shapes(text: str) -> list[tuple[str, Case]]:
    """Reads `--shapes`: names of groups, `all`, or shapes like 28x50x28x100, separated by commas.

    Returns (group, case) pairs without repeats; a shape given by its numbers belongs to the first
    group that has it, else to "given".
    Raises ValueError with the argument, what was expected and what was given.
    """
    found: dict[str, tuple[str, Case]] = {}
    for part in text.replace(" ", "").split(","):
        for group, case in _read_part(part):
            found.setdefault(case.name, (group, case))
    return list(found.values())


def _read_part(part: str) -> list[tuple[str, Case]]:
    if part == "all":
        return [(group, case) for group, cases in GROUPS.items() for case in cases]
    if part in GROUPS:
        return [(part, case) for case in GROUPS[part]]
    numbers = part.split("x")
    if len(numbers) != 4 or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers):
        raise ValueError(
            f"--shapes: expected {', '.join(GROUPS)}, all, or TxBxIxH with positive integers, "
            f"got {part!r}"
        )
    for group, cases in GROUPS.items():
        for known in cases:
            if known.name == part:
                return [(group, known)]
    T, B, I, H = (int(n) for n in numbers)  # noqa: E741
    return [("given", Case(T, B, I, H))]
