"""Calls with what nn.LSTM lacks: resets, lengths, cells, regularisers, gates computed again.

Against our CPU kernels in float64, which the rest of the suite holds to the specification. The same
seed gives the same masks on every device, so that regularised calls compare too.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import Case, error
from families import FAMILIES, absent, forced, may_refuse
from precisions import PRECISIONS, Precision, tf32
from torch import Tensor

import fused_lstm
from fused_lstm import ops

CASES = (
    Case(6, 4, 3, 7),
    Case(9, 13, 5, 33, bidirectional=True),
    Case(5, 6, 4, 8, num_layers=3, bidirectional=True, batch_first=True, bias=False),
    Case(30, 40, 70, 64, hx=False),
    Case(12, 19, 6, 100, bidirectional=True),
)
LARGE = (Case(5, 9, 20, 192), Case(5, 6, 70, 190), Case(7, 33, 64, 300, bidirectional=True))
WANTED = ("reset", "lengths", "cells", "reset lengths cells")
# Probabilities whose factors no dtype rounds.
EXTRAS: tuple[dict[str, Any], ...] = (
    {"zoneout": (0.1, 0.3)},
    {"recurrent_dropout": 0.5, "input_dropout": 0.5},
    {"weight_dropout": 0.5, "output_dropout": 0.5},
    {"recompute": True},
    {"zoneout": 0.2, "recompute": True},
    {"checkpoint_steps": 2, "recompute": True},
)


@pytest.fixture(params=["chosen", *FAMILIES])
def family(request: pytest.FixtureRequest, device: torch.device) -> Iterator[str]:
    """The plan's own choice, then each family."""
    if request.param != "chosen" and device.type != "cuda":
        pytest.skip("CUDA only: kernel families")
    if why := absent(request.param):
        pytest.skip(why)
    with nullcontext() if request.param == "chosen" else forced(request.param):
        yield request.param


def options_of(case: Case, wanted: str) -> tuple[dict[str, Any], Tensor]:
    """The options of a call, and where rows have ended [T, B]."""
    options: dict[str, Any] = {}
    ended = torch.zeros(case.T, case.B, dtype=torch.bool)
    if "lengths" in wanted:
        lengths = torch.randint(0, case.T + 1, (case.B,))
        options["lengths"] = lengths
        ended = torch.arange(case.T).unsqueeze(1) >= lengths
    if "reset" in wanted:
        reset = torch.rand(case.T, case.B) < 0.2
        options["reset"] = reset.T.contiguous() if case.batch_first else reset
    if "cells" in wanted:
        options["return_cells"] = True
    return options, ended


def results(
    module: fused_lstm.LSTM, leaves: list[Tensor], options: dict[str, Any], weights: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs, and the gradients of a sum of them with the first ones of weights."""
    parameter = next(module.parameters())
    device = parameter.device
    x, *state = own = [t.to(device, parameter.dtype).requires_grad_() for t in leaves]
    here = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    torch.manual_seed(5)
    y, hs, *cells = module(x, tuple(state) or None, **here)
    outputs = [y, *hs, *cells]
    cotangents = [w.to(device, y.dtype) for w in weights[: len(outputs)]]
    return outputs, list(torch.autograd.grad(outputs, [*own, *module.parameters()], cotangents))


def compare(
    case: Case,
    precision: Precision,
    device: torch.device,
    wanted: str,
    extras: dict[str, Any],
    family: str = "chosen",
) -> None:
    if why := may_refuse(family, precision.name, case.H):
        pytest.skip(why)
    if precision.tf32 and device.type == "cpu":
        pytest.skip("CUDA only: TF32")
    directions = 2 if case.bidirectional else 1
    rows = case.num_layers * directions
    options, ended = options_of(case, wanted)
    x = torch.randn(case.T, case.B, case.I).to(precision.dtype)
    x[ended] = torch.nan
    x = x.transpose(0, 1) if case.batch_first else x
    state = (torch.randn(2, rows, case.B, case.H) if case.hx else x.new_empty(0)).unbind(0)
    leaves = [x.contiguous(), *(t.to(precision.dtype) for t in state)]
    wide = torch.randn(*x.shape[:2], directions * case.H)
    weights = [wide, *torch.randn(2, rows, case.B, case.H), wide.flip(0)]
    exact = fused_lstm.LSTM(case.I, case.H, **case.options, **extras).to(precision.dtype).double()
    module = fused_lstm.LSTM(
        case.I, case.H, **case.options, **extras, dtype=precision.dtype, device=device
    )
    module.load_state_dict(exact.state_dict())
    with tf32(precision.tf32):
        outputs, gradients = results(module, leaves, options, weights)
    right, right_gradients = results(exact, leaves, options, weights)
    for found, expected in zip(outputs, right, strict=True):
        assert error(found.cpu(), expected) <= precision.output
    for found, expected in zip(gradients, right_gradients, strict=True):
        assert error(found.cpu(), expected) <= precision.gradient
    y = outputs[0].transpose(0, 1) if case.batch_first else outputs[0]
    assert not y.cpu()[ended].any()


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_resets_lengths_and_cells(
    case: Case, precision: Precision, wanted: str, family: str, device: torch.device
) -> None:
    compare(case, precision, device, wanted, {}, family)


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_regularisers_and_memory_modes(
    case: Case, precision: Precision, extras: dict[str, Any], family: str, device: torch.device
) -> None:
    compare(case, precision, device, "reset cells", extras, family)


@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_large_layers(case: Case, precision: Precision, family: str, device: torch.device) -> None:
    extras = {"zoneout": 0.2, "recompute": True}
    compare(case, precision, device, "reset lengths cells", extras, family)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_recompute_with_a_projection(precision: Precision, device: torch.device) -> None:
    """Alone it has a kernel there; with other options the specification computes."""
    if precision.tf32 and device.type == "cpu":
        pytest.skip("CUDA only: TF32")
    kept, again = (
        fused_lstm.LSTM(9, 33, proj_size=8, recompute=r, dtype=precision.dtype, device=device)
        for r in (False, True)
    )
    again.load_state_dict(kept.state_dict())
    x = torch.randn(11, 6, 9, dtype=precision.dtype, device=device)
    found = []
    with tf32(precision.tf32):
        for module in (kept, again):
            y, _ = module(x)
            found.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert error(b, a) <= precision.gradient


@pytest.mark.no_kernel
def test_bits_are_those_of_the_cpu(device: torch.device) -> None:
    seed = torch.tensor(-5)
    for sizes in ((1, 1, 1), (3, 4, 7), (50, 33, 130), (2, 1, 4096)):
        here = ops.keep_bits(torch.empty(0, device=device), seed, 3, *sizes, 0.25, 0.5)
        there = ops.keep_bits(torch.empty(0), seed, 3, *sizes, 0.25, 0.5)
        assert here.device.type == device.type
        assert torch.equal(here.cpu(), there)


@pytest.mark.cuda_only("torch counts device memory")
def test_recompute_keeps_a_fifth(device: torch.device) -> None:
    T, B, H = 100, 64, 256
    x = torch.randn(T, B, 64, device=device)
    kept = []
    for recompute in (False, True):
        module = fused_lstm.LSTM(64, H, recompute=recompute, device=device)
        before = torch.cuda.memory_allocated(device)
        y, _ = module(x)
        kept.append(torch.cuda.memory_allocated(device) - before)
        del y
    assert kept[0] - kept[1] >= 4 * T * B * H * 4 - (2 << 20)
