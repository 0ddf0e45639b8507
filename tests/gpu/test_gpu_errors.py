"""What is refused, how it is said, and that the device works on afterwards."""

import pytest
import torch
from families import FAMILIES, absent, forced
from precisions import tf32

import fused_lstm


def still_works(device: torch.device) -> None:
    y, _ = fused_lstm.LSTM(4, 8, device=device)(torch.randn(3, 2, 4, device=device))
    assert bool(y.isfinite().all())


@pytest.mark.cuda_only("two devices")
@pytest.mark.parametrize("what", ["input", "state", "weights"])
def test_tensors_on_two_devices(what: str, device: torch.device) -> None:
    module = fused_lstm.LSTM(4, 8, device="cpu" if what == "weights" else device)
    x = torch.randn(3, 2, 4, device="cpu" if what == "input" else device)
    state = torch.zeros(1, 2, 8, device="cpu" if what == "state" else x.device)
    with pytest.raises(RuntimeError, match=r"device.*cpu|cpu.*device"):
        module(x, (state, state))
    still_works(device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_mixed_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    module = fused_lstm.LSTM(4, 8, device=device)
    state = torch.zeros(1, 2, 8, device=device, dtype=dtype)
    with pytest.raises(ValueError, match="dtype"):
        module(torch.randn(3, 2, 4, device=device, dtype=dtype))
    with pytest.raises(RuntimeError, match=r"expected torch\.float32"):
        module(torch.randn(3, 2, 4, device=device), (state, state))
    still_works(device)


def test_wrong_sizes(device: torch.device) -> None:
    module = fused_lstm.LSTM(4, 8, device=device)
    with pytest.raises(RuntimeError, match="Expected 4, got 5"):
        module(torch.randn(3, 2, 5, device=device))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 8\)"):
        module(torch.randn(3, 2, 4, device=device), (torch.zeros(1, 3, 8, device=device),) * 2)
    with pytest.raises(RuntimeError, match="sequence length"):
        module(torch.randn(0, 2, 4, device=device))
    still_works(device)


def test_the_operator_guards_memory_itself(device: torch.device) -> None:
    """Called past the Python checks, the binding refuses what would read beyond a tensor."""
    x = torch.randn(3, 2, 4, device=device)
    w_ih, w_hh = torch.randn(32, 4, device=device), torch.randn(32, 7, device=device)
    with pytest.raises((RuntimeError, ValueError), match="w_hh: expected"):
        torch.ops.fused_lstm.forward(x, None, None, None, w_ih, w_hh, *[None] * 8, False)
    still_works(device)


def test_no_rows(device: torch.device) -> None:
    """B = 0 has empty outputs and weight gradients of zero, as nn.LSTM's."""
    module = fused_lstm.LSTM(4, 8, device=device)
    y, (h_n, c_n) = module(torch.randn(3, 0, 4, device=device))
    assert (y.shape, h_n.shape, c_n.shape) == ((3, 0, 8), (1, 0, 8), (1, 0, 8))
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


@pytest.mark.cuda_only("kernel families")
def test_a_family_that_does_not_exist(device: torch.device) -> None:
    with pytest.raises((ValueError, TypeError), match="stepwise"):
        forced("no such family").__enter__()
    still_works(device)


@pytest.mark.cuda_only("kernel families")
def test_a_family_that_cannot_compute_says_so(device: torch.device) -> None:
    for sizes, dtype in (((4, 8), torch.float64), ((4, 3000), torch.float32)):
        module = fused_lstm.LSTM(*sizes, dtype=dtype, device=device)
        x = torch.randn(2, 2, 4, dtype=dtype, device=device)
        for family in FAMILIES[1:]:
            with forced(family), pytest.raises(RuntimeError, match=f"{family} was forced"):
                module(x)
    still_works(device)


@pytest.mark.no_kernel
@pytest.mark.cuda_only("kernel families")
@pytest.mark.parametrize("training", [False, True])
def test_explain_plan_tells_the_family(training: bool, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for hidden in (64, 2048):
            plan = fused_lstm.explain_plan(
                (28, 64, 28, hidden), dtype=dtype, device=device, training=training
            )
            assert any(family in plan.replace(" ", "_") for family in FAMILIES), plan
    large = fused_lstm.explain_plan((28, 64, 28, 2048), device=device, training=training)
    assert "stepwise" in large


@pytest.mark.cuda_only("kernel families")
def test_families_agree(device: torch.device) -> None:
    """One call through each family: other sums, the same values."""
    module = fused_lstm.LSTM(28, 64, device=device)
    x = torch.randn(28, 32, 28, device=device)
    found = []
    with tf32(False):
        for family in FAMILIES:
            if absent(family):
                continue
            with forced(family):
                found.append(module(x)[0].detach())
    for other in found[1:]:
        assert float((found[0] - other).abs().max()) <= 1e-5
    assert float(found[0].abs().max()) > 0.1
