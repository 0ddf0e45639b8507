"""Layers at the same time: the results of one after the other, on whatever stream is current."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import fused_lstm
from fused_lstm import dispatch, wavefront

T, B, I, H, L = 50, 4, 12, 32, 3  # noqa: E741
LONG = 100_000_000  # cycles that torch.cuda._sleep keeps a stream busy: 50 ms at 2 GHz


def make(device: torch.device) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x, the state and the weights, in float64: what any family computes is then the same."""
    module = fused_lstm.LSTM(I, H, L, dtype=torch.float64, device=device)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device, requires_grad=True)
    state = [torch.randn(L, B, H, dtype=torch.float64, device=device) for _ in range(2)]
    return x, [t.requires_grad_() for t in state], list(module.parameters())


def side_by_side(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    groups = [weights[4 * k : 4 * k + 4] for k in range(L)]
    tens = [t for own in groups for t in dispatch.ten_weights(own, True, False, 0)]
    results = wavefront.stack(x, *state, tens, wavefront.Plan(steps=8, lanes=2))
    loss = sum(t.pow(2).sum() for t in results)
    return [*results, *torch.autograd.grad(loss, [x, *state, *weights])]  # type: ignore[arg-type]


def in_order(x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    y, (h, c) = fused_lstm.lstm(x, state, weights, num_layers=L)
    loss = sum(t.pow(2).sum() for t in (y, h, c))
    return [y, h, c, *torch.autograd.grad(loss, [x, *state, *weights])]  # type: ignore[arg-type]


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).detach().abs().max()) <= 1e-12 * float(b.detach().abs().max())


def test_same_as_one_after_the_other(device: torch.device) -> None:
    layers = make(device)
    for _ in range(10):  # memory that was freed comes back in another order
        same(side_by_side(*layers), in_order(*layers))


@pytest.mark.cuda_only("streams")
def test_on_the_stream_that_is_current(device: torch.device) -> None:
    """A late producer and an early consumer: whoever does not wait for the caller reads old x, and
    whoever is not waited for is read too early.
    """
    x, state, weights = make(device)
    wanted = in_order(x, state, weights)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = torch.full_like(x, 7.0)
        torch.cuda._sleep(LONG)
        late.copy_(x.detach())
        found = [t.clone() for t in side_by_side(late.detach().requires_grad_(), state, weights)]
    side.synchronize()
    same(found, wanted)
