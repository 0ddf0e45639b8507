"""The same bits on every run, whatever lay in memory before and whatever runs beside."""

import pytest
import torch
from cases import Case, arguments, call
from families import may_refuse
from precisions import PRECISIONS, Precision, tf32
from test_gpu_values import kernel_or_skip
from torch import Tensor

import fused_lstm

CASES = (
    Case(29, 33, 28, 64, bidirectional=True),
    Case(12, 7, 65, 128, num_layers=2),
    Case(6, 5, 9, 300, hx=False),
    Case(5, 9, 4, 100, lengths=(5, 5, 4, 4, 3, 2, 2, 1, 1)),
)


def poison(device: torch.device, size: int = 64 << 20) -> None:
    """Leaves NaN in the memory that the next allocations get."""
    blocks = [torch.full((size // 8,), float("nan"), device=device) for _ in range(2)]
    blocks += [torch.full((n,), float("nan"), device=device) for n in (256, 4096, 65536) * 8]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_every_run_gives_the_same_bits(
    case: Case, precision: Precision, family: str, device: torch.device
) -> None:
    kernel_or_skip(case, precision, device)
    if why := may_refuse(family, precision.name, case.H):
        pytest.skip(why)
    module = fused_lstm.LSTM(case.I, case.H, dtype=precision.dtype, device=device, **case.options)
    leaves = [t.detach().to(device).requires_grad_() for t in arguments(case, precision.dtype)]

    def run() -> list[Tensor]:
        outputs = call(module, case, leaves)
        loss = sum(o.float().square().sum() for o in outputs)
        wanted = [*leaves, *module.parameters()]
        return [*(o.detach() for o in outputs), *torch.autograd.grad(loss, wanted)]

    with tf32(precision.tf32):
        first = run()
        assert all(bool(t.isfinite().all()) for t in first)
        for attempt in range(8):
            poison(device)
            if device.type == "cuda" and attempt % 2:
                with torch.cuda.stream(torch.cuda.Stream()):  # another kernel's blocks beside ours
                    busy = torch.randn(2048, 2048, device=device)
                    for _ in range(4):
                        busy = busy @ busy * 1e-3
            again = run()
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), attempt


def test_nan_in_one_row_stays_in_that_row(family: str, device: torch.device) -> None:
    module = fused_lstm.LSTM(5, 48, device=device)
    x = torch.randn(6, 20, 5, device=device)
    x[3, 11, 2] = float("nan")
    y, (h_n, c_n) = module(x)
    rows = torch.arange(20, device=device) != 11
    assert bool(y[:, rows].isfinite().all())
    assert bool(y[:3, 11].isfinite().all())
    assert bool(y[3:, 11].isnan().all())
    assert bool(h_n[0, rows].isfinite().all())
    assert bool(c_n[0, 11].isnan().all())


def test_large_and_tiny_preactivations(family: str, device: torch.device) -> None:
    """Gates that saturate give 0 and 1, never NaN; infinities in c come through."""
    module = fused_lstm.LSTM(3, 40, device=device)
    for scale in (1e30, 1e4, 1e-30, 0.0):
        y, (h_n, c_n) = module(scale * torch.randn(4, 3, 3, device=device))
        for t in (y, h_n, c_n):
            assert bool(t.isfinite().all())
        assert float(y.detach().abs().max()) <= 1
