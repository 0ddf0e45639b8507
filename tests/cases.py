"""The shapes, options and tolerances that the tests share, and the pairs of modules they compare.

Shapes are awkward on purpose: primes, ones, and sizes just below, at and above the vector widths 4,
8 and 16. A bug that a shape found adds that shape here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm

# Largest error allowed, relative to the largest entry of the float64 result, and why.
# Outputs are a chain of T steps of sums over I + H products; gradients add sums over T * B rows.
OUTPUT_TOLERANCE = {
    torch.float64: 1e-13,  # some hundred roundings of 1.1e-16
    torch.float32: 4e-6,  # some dozens of roundings of 6e-8
    torch.float16: 2e-3,  # h is rounded to 11 bits (5e-4) at every step; sums are float32
    torch.bfloat16: 1.5e-2,  # h is rounded to 8 bits (4e-3) at every step; sums are float32
}
GRADIENT_TOLERANCE = {
    torch.float64: 1e-12,  # sums over rows and steps, of both signs
    torch.float32: 2e-5,  # likewise
    torch.float16: 6e-3,  # y and the incoming gradients are rounded to 11 bits
    torch.bfloat16: 5e-2,  # y and the incoming gradients are rounded to 8 bits
}
DTYPES = tuple(OUTPUT_TOLERANCE)
# What an operator's refusal becomes, with the same words.
REFUSAL = (
    RuntimeError if torch.__version__ >= torch.torch_version.TorchVersion("2.15") else ValueError
)


@dataclass(frozen=True)
class Case:
    """One LSTM and one input. Letters: T steps, B rows, I features, H hidden units."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    proj_size: int = 0
    hx: bool = True  # whether an initial state is given
    lengths: tuple[int, ...] = ()  # of packed sequences, in the caller's order; B of them

    def __str__(self) -> str:
        words = [f"T{self.T}B{self.B}I{self.I}H{self.H}"]
        words += [f"L{self.num_layers}"] if self.num_layers > 1 else []
        words += [f"P{self.proj_size}"] if self.proj_size else []
        words += ["bi"] if self.bidirectional else []
        words += ["bf"] if self.batch_first else []
        words += [] if self.bias else ["nobias"]
        words += [] if self.hx else ["zeros"]
        words += ["packed"] if self.lengths else []
        return "-".join(words)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the constructor, after input_size and hidden_size."""
        names = ("num_layers", "bias", "batch_first", "bidirectional", "proj_size")
        return {name: getattr(self, name) for name in names}


# Sizes around the vector widths, at odd numbers of steps and rows.
SHAPES = (
    Case(1, 1, 1, 1),
    Case(1, 1, 3, 7, hx=False),
    Case(2, 1, 5, 8),
    Case(3, 2, 1, 15, hx=False),
    Case(5, 3, 4, 16),
    Case(7, 5, 8, 17),
    Case(1, 13, 2, 31),
    Case(4, 11, 17, 33, hx=False),
    Case(3, 4, 9, 100),
    Case(29, 1, 28, 100, hx=False),
    Case(13, 50, 28, 100),
    Case(2, 37, 64, 64),
    Case(9, 2, 3, 257),
    Case(97, 3, 2, 5),
)
# Every option, alone and together with others.
OPTIONS = (
    Case(5, 3, 4, 7, bias=False),
    Case(5, 3, 4, 7, batch_first=True),
    Case(6, 1, 4, 9, batch_first=True, hx=False),
    Case(5, 3, 4, 7, bidirectional=True),
    Case(11, 7, 5, 17, bidirectional=True, bias=False, hx=False),
    Case(5, 3, 4, 16, bidirectional=True, batch_first=True),
    Case(1, 5, 4, 7, num_layers=2),
    Case(5, 3, 4, 9, num_layers=3, bidirectional=True, batch_first=True),
    Case(4, 3, 4, 8, num_layers=2, bias=False, hx=False),
)
PROJECTED = (
    Case(5, 3, 4, 7, proj_size=3),
    Case(5, 3, 4, 8, proj_size=1, bidirectional=True, num_layers=2, hx=False),
    Case(5, 3, 4, 7, proj_size=6, bias=False, batch_first=True),
    Case(1, 1, 3, 17, proj_size=9),
    Case(7, 13, 5, 100, proj_size=33, bidirectional=True),
)
PACKED = (
    Case(1, 1, 1, 1, lengths=(1,)),
    Case(5, 3, 4, 7, lengths=(5, 3, 1)),
    Case(6, 4, 3, 16, lengths=(2, 6, 6, 1), hx=False),
    Case(7, 5, 4, 17, bidirectional=True, lengths=(1, 7, 3, 3, 2)),
    Case(9, 13, 5, 33, bidirectional=True, lengths=(9, 1, 5, 5, 2, 8, 9, 3, 1, 1, 4, 7, 6)),
    Case(5, 3, 4, 9, num_layers=2, bidirectional=True, bias=False, lengths=(3, 5, 4)),
    Case(5, 3, 4, 7, proj_size=3, lengths=(3, 5, 4)),
    Case(6, 4, 3, 17, proj_size=9, bidirectional=True, lengths=(2, 6, 6, 1)),
)
ALL_CASES = SHAPES + OPTIONS + PROJECTED + PACKED
VALUES = [(c, d) for c in ALL_CASES for d in DTYPES]


def modules(
    case: Case, dtype: torch.dtype, reference_dtype: torch.dtype | None = None
) -> tuple[fused_lstm.LSTM, nn.LSTM]:
    """Ours in dtype, and nn.LSTM with exactly the same weights (in reference_dtype if given)."""
    ours = fused_lstm.LSTM(case.I, case.H, dtype=dtype, **case.options)
    theirs = nn.LSTM(case.I, case.H, dtype=dtype, **case.options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.to(reference_dtype or dtype)


def arguments(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Random leaf tensors: x (one per sequence when packed), then h0 and c0 if the case has hx."""
    rows = case.num_layers * (2 if case.bidirectional else 1)
    if case.lengths:
        leaves = [torch.randn(n, case.I) for n in case.lengths]
    elif case.batch_first:
        leaves = [torch.randn(case.B, case.T, case.I)]
    else:
        leaves = [torch.randn(case.T, case.B, case.I)]
    if case.hx:
        leaves.append(torch.randn(rows, case.B, case.proj_size or case.H))
        leaves.append(torch.randn(rows, case.B, case.H))
    return [t.to(dtype).requires_grad_() for t in leaves]


def call(module: nn.Module, case: Case, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a module on the tensors of `arguments`: output (the data of a packed one), h_n, c_n."""
    hx = tuple(leaves[-2:]) if case.hx else None
    inputs = list(leaves[:-2] if case.hx else leaves)
    x = pack_sequence(inputs, enforce_sorted=False) if case.lengths else inputs[0]
    output, (h_n, c_n) = module(x, hx)
    return (output.data if isinstance(output, PackedSequence) else output), h_n, c_n


def copies(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """New leaves with the same values."""
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def gradients(
    module: nn.Module,
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of a weighted sum of the outputs for all leaves, then all parameters."""
    wanted = [*leaves, *module.parameters()]
    return list(torch.autograd.grad(outputs, wanted, [w.to(outputs[0].dtype) for w in weights]))


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry expected."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((actual - expected).abs().max() / scale)


class Operators(TorchDispatchMode):
    """Records which of our operators run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fused_lstm":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def small(case: Case) -> Case:
    """The same options at sizes that numerical differentiation can afford."""
    return replace(case, T=3, B=2, I=2, H=3, proj_size=min(case.proj_size, 2))
