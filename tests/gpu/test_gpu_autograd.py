"""What autograd may ask for: numerical gradients, subsets, repeats, second derivatives."""

from dataclasses import replace

import pytest
import torch
from cases import OPTIONS, PACKED, PROJECTED, Case, arguments, call, small
from families import may_refuse
from precisions import PRECISIONS, Precision, tf32
from test_gpu_values import kernel_or_skip
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fused_lstm

NUMERICAL = tuple(small(c) for c in OPTIONS + PROJECTED) + tuple(
    replace(small(c), B=len(lengths), lengths=lengths)
    for c, lengths in ((PACKED[3], (2, 3, 1)), (PACKED[5], (1, 3)))
)


def make(case: Case, device: torch.device, dtype: torch.dtype) -> fused_lstm.LSTM:
    return fused_lstm.LSTM(case.I, case.H, dtype=dtype, device=device, **case.options)


def leaves_of(case: Case, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(device).requires_grad_() for t in arguments(case, dtype)]


@pytest.mark.parametrize("case", NUMERICAL, ids=str)
def test_gradcheck(case: Case, device: torch.device) -> None:
    kernel_or_skip(case, PRECISIONS["f64"], device)
    module, leaves = make(case, device, torch.float64), leaves_of(case, device, torch.float64)
    inputs = (*leaves, *module.parameters())
    assert torch.autograd.gradcheck(lambda *ts: call(module, case, ts[: len(leaves)]), inputs)


@pytest.mark.parametrize("case", NUMERICAL[:5:2], ids=str)
def test_gradgradcheck(case: Case, device: torch.device) -> None:
    module, leaves = make(case, device, torch.float64), leaves_of(case, device, torch.float64)
    inputs = (*leaves, *module.parameters())
    assert torch.autograd.gradgradcheck(lambda *ts: call(module, case, ts[: len(leaves)]), inputs)


def test_gradient_penalty_in_float32(device: torch.device) -> None:
    """Double backward where nn.LSTM on cuDNN has none, against float64 on the CPU."""

    def penalty(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
        y, _ = module(x)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return list(torch.autograd.grad(dx.pow(2).sum(), list(module.parameters())))

    ours = fused_lstm.LSTM(5, 20, bidirectional=True, device=device)
    plain = torch.nn.LSTM(5, 20, bidirectional=True).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(6, 3, 5)
    with tf32(False):
        found = penalty(ours, x.to(device).requires_grad_())
    for a, b in zip(found, penalty(plain, x.double().requires_grad_()), strict=True):
        assert float((a.cpu() - b).abs().max() / b.abs().max()) <= PRECISIONS["f32"].gradient


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=str)
def test_second_backward_gives_the_same_bits(
    precision: Precision, family: str, device: torch.device
) -> None:
    case = Case(9, 5, 28, 64, bidirectional=True)
    kernel_or_skip(case, precision, device)
    if why := may_refuse(family, precision.name, case.H):
        pytest.skip(why)
    module, leaves = make(case, device, precision.dtype), leaves_of(case, device, precision.dtype)
    with tf32(precision.tf32):
        y, h_n, c_n = call(module, case, leaves)
        loss = y.sum() + h_n.sum() + c_n.sum()
        wanted = [*leaves, *module.parameters()]
        first = torch.autograd.grad(loss, wanted, retain_graph=True)
        call(module, case, leaves_of(case, device, precision.dtype))[0].sum().backward()
        second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2)], ids=["y", "h_n", "c_n", "h_n,c_n"])
def test_only_some_outputs_and_some_gradients(
    used: tuple[int, ...], family: str, device: torch.device
) -> None:
    """Every subset gives what the whole gives, and asks for no gradient that nobody wants."""
    case = Case(5, 4, 6, 40, bidirectional=True)
    module, leaves = make(case, device, torch.float32), leaves_of(case, device, torch.float32)

    def grads(wanted: list[Tensor]) -> list[Tensor]:
        outputs = call(module, case, leaves)
        return list(torch.autograd.grad([outputs[k].pow(2).sum() for k in used], wanted))

    with tf32(False):
        every = [*leaves, *module.parameters()]
        whole = grads(every)
        for k, leaf in enumerate(every):
            (alone,) = grads([leaf])
            assert torch.equal(alone, whole[k]), k


def test_frozen_weights_and_input_that_needs_no_gradient(device: torch.device) -> None:
    module = fused_lstm.LSTM(6, 40, num_layers=2, device=device)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("l1" in name)
    module(torch.randn(5, 4, 6, device=device))[0].sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == ("l1" in name)


def test_accumulation_and_two_live_graphs(family: str, device: torch.device) -> None:
    module = fused_lstm.LSTM(7, 50, device=device)
    a, b = (torch.randn(6, 3, 7, device=device) for _ in range(2))
    y_a, y_b = module(a)[0], module(b)[0]  # both live
    y_b.sum().backward()
    second = [p.grad.clone() for p in module.parameters()]
    y_a.sum().backward()
    both = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(a)[0].sum().backward()
    for first, total, last in zip(module.parameters(), both, second, strict=True):
        assert torch.equal(last + first.grad, total)


def test_checkpoint_and_anomaly_mode(device: torch.device) -> None:
    module = fused_lstm.LSTM(7, 50, device=device)
    x = torch.randn(6, 3, 7, device=device, requires_grad=True)
    (plain,) = torch.autograd.grad(module(x)[0].sum(), x)
    with torch.autograd.detect_anomaly(check_nan=True):
        again = checkpoint(lambda t: module(t)[0], x, use_reentrant=False)
        (recomputed,) = torch.autograd.grad(again.sum(), x)
    assert torch.equal(plain, recomputed)


def test_edits_in_place_are_seen(device: torch.device) -> None:
    """h_n and c_n may be edited before backward; x, y and the weights may not."""
    module = fused_lstm.LSTM(5, 33, device=device)
    x = torch.randn(4, 3, 5, device=device, requires_grad=True)
    (wanted,) = torch.autograd.grad(module(x)[0].sum(), x)
    y, (h_n, c_n) = module(x)
    h_n.mul_(3)
    c_n.mul_(3)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(found, wanted)
    for what in ("y", "a weight"):
        y, _ = module(x)
        loss = y.sum()
        with torch.no_grad():
            (y if what == "y" else module.weight_hh_l0).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
