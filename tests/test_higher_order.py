"""Derivatives of derivatives, which torch.nn.LSTM has on the CPU: backward through backward."""

import pytest
import torch
from cases import (
    GRADIENT_TOLERANCE,
    OPTIONS,
    PACKED,
    PROJECTED,
    Case,
    arguments,
    call,
    copies,
    error,
    modules,
    small,
)
from torch import Tensor, nn

import fused_lstm

CASES = [small(c) for c in OPTIONS[:7] + PROJECTED[:1]] + [PACKED[0]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradgradcheck(case: Case) -> None:
    ours, _ = modules(case, torch.float64)
    names = list(dict(ours.named_parameters()))
    leaves = arguments(case, torch.float64)

    def f(*tensors: Tensor) -> tuple[Tensor, ...]:
        for name, t in zip(names, tensors[len(leaves) :], strict=True):
            ours._parameters[name] = t  # type: ignore[assignment]
        return call(ours, case, tensors[: len(leaves)])

    assert torch.autograd.gradgradcheck(f, [*leaves, *copies(ours.parameters())])


@pytest.mark.parametrize("case", OPTIONS + PROJECTED[:3] + PACKED[1:5] + PACKED[6:], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradient_penalty(case: Case, dtype: torch.dtype) -> None:
    ours, exact = modules(case, dtype, torch.float64)
    leaves = arguments(case, dtype)
    results = []
    for module, own in ((ours, leaves), (exact, copies(leaves, torch.float64))):
        outputs = call(module, case, own)
        loss = sum((t.sin() * t).sum() for t in outputs)
        first = torch.autograd.grad(loss, own, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        wanted = [*own, *module.parameters()]
        results.append(torch.autograd.grad(penalty, wanted, materialize_grads=True))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 2 * GRADIENT_TOLERANCE[dtype]  # two passes, one after the other


def test_first_gradients_do_not_depend_on_create_graph() -> None:
    ours, _ = modules(Case(5, 3, 4, 7, bidirectional=True), torch.float64)
    leaves = arguments(Case(5, 3, 4, 7, bidirectional=True), torch.float64)
    wanted = [*leaves, *ours.parameters()]
    loss = call(ours, Case(5, 3, 4, 7), leaves)[0].square().sum()
    kernel = torch.autograd.grad(loss, wanted, retain_graph=True)
    recomputed = torch.autograd.grad(loss, wanted, create_graph=True)
    for a, b in zip(kernel, recomputed, strict=True):
        assert error(b, a) <= GRADIENT_TOLERANCE[torch.float64]
        assert b.requires_grad


def test_inputs_computed_from_each_other_are_not_counted_twice() -> None:
    # h0 and c0 come from the weights, x from c0, and both layers share one set of weights.
    results = []
    source = [torch.randn(28, 7, dtype=torch.float64), torch.randn(28, 7, dtype=torch.float64)]
    for make in (fused_lstm.LSTM, nn.LSTM):
        module = make(7, 7, num_layers=2, bias=False, dtype=torch.float64)
        w_ih, w_hh = copies(source)
        module.weight_ih_l0 = module.weight_ih_l1 = nn.Parameter(w_ih.detach())
        w_ih = module.weight_ih_l0
        module.weight_hh_l0 = module.weight_hh_l1 = nn.Parameter(w_hh.detach())
        h0 = w_ih[:6].sin().view(2, 3, 7)
        c0 = (w_ih[6:12] * h0.view(6, 7)).view(2, 3, 7)
        x = torch.cat([c0, h0]).cos()
        output, _ = module(x, (h0, c0))
        grads = torch.autograd.grad(
            output.square().sum(), list(module.parameters()), create_graph=True
        )
        second = torch.autograd.grad(sum(g.sin().sum() for g in grads), list(module.parameters()))
        results.append([*grads, *second])
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


def test_three_times() -> None:
    results = []
    case = Case(3, 2, 2, 3)
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    for module in (ours, theirs):
        value = call(module, case, leaves)[0].square().sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, leaves[0], create_graph=True)
            value = grad.square().sum()
        results.append(grad)
    assert error(*results) <= 10 * GRADIENT_TOLERANCE[torch.float64]  # three passes in a row


def test_cell() -> None:
    cell = fused_lstm.LSTMCell(2, 3, dtype=torch.float64)
    leaves = [torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3)]
    assert torch.autograd.gradgradcheck(lambda x, h, c: cell(x, (h, c)), leaves)
