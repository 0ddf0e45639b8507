"""Forward and backward compute what nn.LSTM does: every precision, option and kernel family.

Against nn.LSTM in float64 on the CPU, and no worse than nn.LSTM on the same GPU is.
"""

import pytest
import torch
from cases import OPTIONS, PACKED, PROJECTED, SHAPES, Case
from families import may_refuse
from pairs import errors, run_case
from precisions import PRECISIONS, Precision, tf32

import fused_lstm

# At, above and below what one block can hold on some GPU (64, 128, 192), sizes that are no multiple
# of a tile (8, 16), more rows than one block takes, and a single row.
EDGES = (
    Case(3, 9, 64, 63),
    Case(4, 17, 65, 64, hx=False),
    Case(3, 16, 28, 127),
    Case(4, 130, 1, 128),
    Case(3, 5, 29, 129, bidirectional=True),
    Case(2, 8, 16, 191, hx=False),
    Case(3, 33, 7, 192, batch_first=True),
    Case(2, 3, 192, 193),
    Case(3, 2, 5, 320, bidirectional=True, hx=False),
    Case(2, 1, 650, 650),
    Case(5, 40, 28, 100, bidirectional=True, lengths=tuple(1 + k % 5 for k in range(40))),
    Case(3, 70, 12, 192, lengths=tuple(3 - k % 3 for k in range(70))),
)
LONG = (  # the errors of many steps add up; the recurrence forgets, so the bounds stay
    Case(784, 20, 1, 128, hx=False),
    Case(1500, 3, 4, 40),
    Case(400, 2, 3, 260, hx=False),
)
CASES = SHAPES + OPTIONS + PROJECTED + PACKED + EDGES


def kernel_or_skip(case: Case, precision: Precision, device: torch.device) -> None:
    """On the CPU some options may have no kernel of ours; on CUDA all must."""
    if device.type == "cpu":
        if precision.tf32:
            pytest.skip("CUDA only: TF32")
        shape = (case.T, case.B, case.I, case.H)
        plan = fused_lstm.explain_plan(
            shape, proj_size=case.proj_size, dtype=precision.dtype, device=device
        )
        if "torch's own LSTM" in plan:
            pytest.skip(f"on the CPU: {plan}")


def check(case: Case, precision: Precision, family: str, device: torch.device) -> None:
    kernel_or_skip(case, precision, device)
    with tf32(precision.tf32):
        try:
            ours, theirs, exact = run_case(case, precision, device)
        except RuntimeError as refusal:
            if f"{family} was forced" in str(refusal):
                refused(case, precision, family, str(refusal))
            raise
    found, bar = errors(ours, exact), errors(theirs, exact)
    limits = (precision.output, precision.gradient)
    for what, mine, other, limit in zip(("outputs", "gradients"), found, bar, limits, strict=True):
        # A narrow projection can amplify rounding beyond the limit: for nn.LSTM too, and more.
        assert mine <= max(limit, other), f"{what}: off by {mine:.2e}, allowed {limit:.0e}"
        # Half the limit is rounding in another order; beyond it ours may not be the worse one.
        assert mine <= max(limit / 2, 2 * other), f"{what}: off by {mine:.2e}, nn.LSTM {other:.2e}"


def refused(case: Case, precision: Precision, family: str, reason: str) -> None:
    """A refusal is right beyond the limits, and a failure where the family holds the weights."""
    why = may_refuse(family, precision.name, case.H, case.proj_size)
    if not why:
        pytest.fail(f"{family} holds H = {case.H} in {precision}, but: {reason}")
    pytest.skip(why)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_values(case: Case, precision: Precision, family: str, device: torch.device) -> None:
    check(case, precision, family, device)


@pytest.mark.parametrize("case", LONG, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_long_sequences(
    case: Case, precision: Precision, family: str, device: torch.device
) -> None:
    check(case, precision, family, device)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_inference_equals_training(precision: Precision, family: str, device: torch.device) -> None:
    case = Case(6, 5, 28, 100, bidirectional=True)
    kernel_or_skip(case, precision, device)
    module = fused_lstm.LSTM(28, 100, bidirectional=True, dtype=precision.dtype, device=device)
    x = torch.randn(6, 5, 28, dtype=precision.dtype, device=device)
    with tf32(precision.tf32):
        try:
            trained, state = module(x)
            with torch.no_grad():
                inferred, other = module(x)
        except RuntimeError as refusal:
            if f"{family} was forced" in str(refusal):
                refused(case, precision, family, str(refusal))
            raise
    for a, b in zip((trained, *state), (inferred, *other), strict=True):
        allowed = precision.output * float(a.detach().abs().max())
        assert float((a - b).detach().abs().max()) <= allowed


def test_strided_inputs_and_gradients(family: str, device: torch.device) -> None:
    """Slices, expanded rows and transposed views, coming in and going back."""
    module = fused_lstm.LSTM(6, 33, device=device)
    plain = torch.nn.LSTM(6, 33).double()
    plain.load_state_dict(module.state_dict())
    source = torch.randn(7, 5, 13, device=device)
    for view in (
        source[:, :, 1:13:2],
        source[..., :6].transpose(0, 1),
        source[:, :1, :6].expand(7, 4, 6),
        source[::2, :, 2:8],
    ):
        x = view.detach().requires_grad_()
        with tf32(False):
            y, _ = module(x)
            (dx,) = torch.autograd.grad(y, x, torch.ones(1, 1, 1, device=device).expand_as(y))
        z = view.detach().cpu().double().requires_grad_()
        wanted, _ = plain(z)
        (dz,) = torch.autograd.grad(wanted, z, torch.ones_like(wanted))
        limit = PRECISIONS["f32"]
        assert float((y.detach().cpu() - wanted).abs().max() / wanted.abs().max()) <= limit.output
        assert float((dx.cpu() - dz).abs().max() / dz.abs().max()) <= limit.gradient


def test_cell(device: torch.device) -> None:
    cell, plain = fused_lstm.LSTMCell(9, 31, device=device), torch.nn.LSTMCell(9, 31).double()
    plain.load_state_dict(cell.state_dict())
    x, h, c = torch.randn(4, 9), torch.randn(4, 31), torch.randn(4, 31)
    with tf32(False):
        found = cell(x.to(device), (h.to(device), c.to(device)))
    wanted = plain(x.double(), (h.double(), c.double()))
    for a, b in zip(found, wanted, strict=True):
        assert float((a.detach().cpu() - b).abs().max()) <= PRECISIONS["f32"].output
