"""Ours on the device under test beside nn.LSTM in float64 on the CPU, fed with the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cases import Case, arguments, call, copies, error, gradients
from precisions import Precision
from torch import Tensor, nn

import fused_lstm

__all__ = ["Results", "errors", "run_case", "run_module"]

NAMES = ("y", "h_n", "c_n")


@dataclass(frozen=True)
class Results:
    """y, h_n, c_n, and the gradients of a weighted sum of them."""

    outputs: list[Tensor]
    gradients: list[Tensor]  # of the leaves of `arguments`, then of the parameters


def run_module(
    module: nn.Module, case: Case, leaves: Sequence[Tensor], weights: Sequence[Tensor]
) -> Results:
    """Forward and backward of one module on the device and in the dtype of its parameters."""
    parameter = next(module.parameters())
    mine = [t.detach().to(parameter.device, parameter.dtype).requires_grad_() for t in leaves]
    outputs = call(module, case, mine)
    directions = [w.to(parameter.device) for w in weights]
    return Results([t.detach() for t in outputs], gradients(module, outputs, mine, directions))


def run_case(
    case: Case, precision: Precision, device: torch.device
) -> tuple[Results, Results, Results]:
    """(ours, nn.LSTM in the same precision on the same device, nn.LSTM in float64 on the CPU)."""
    leaves = arguments(case, precision.dtype)
    exact = nn.LSTM(case.I, case.H, **case.options).to(precision.dtype).double()
    rows = case.num_layers * (2 if case.bidirectional else 1)
    wide, width = (2 if case.bidirectional else 1), case.proj_size or case.H
    steps = (
        (sum(case.lengths),)
        if case.lengths
        else ((case.B, case.T) if case.batch_first else (case.T, case.B))
    )
    shapes = ((*steps, wide * width), (rows, case.B, width), (rows, case.B, case.H))
    weights = [torch.randn(shape).to(precision.dtype) for shape in shapes]
    both = []
    for kind in (fused_lstm.LSTM, nn.LSTM):
        module = kind(case.I, case.H, dtype=precision.dtype, device=device, **case.options)
        module.load_state_dict(exact.state_dict())
        both.append(run_module(module, case, leaves, weights))
    return (*both, run_module(exact, case, copies(leaves), weights))


def errors(found: Results, exact: Results) -> tuple[float, float]:
    """Largest error of the outputs and of the gradients; NaN counts as infinite."""
    worst = []
    for got, wanted in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        each = [error(g.cpu(), w) for g, w in zip(got, wanted, strict=True)]
        worst.append(max(float("inf") if e != e else e for e in each))
    return worst[0], worst[1]
