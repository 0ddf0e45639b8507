"""Autotuning: what it leaves as it was, and that the winner is used. Events are CUDA's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import cuda_kernels, forced

import fused_lstm
from fused_lstm import function, tuning

pytestmark = pytest.mark.cuda_only("events")


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    with fused_lstm.autotune():
        yield


def test_results_are_those_of_the_winner(device: torch.device) -> None:
    """And x, the weights and the generator's state are what they were."""
    module = fused_lstm.LSTM(20, 48, device=device)
    x = torch.randn(30, 8, 20, device=device)
    before = [t.clone() for t in (x, *module.parameters(), torch.cuda.get_rng_state())]
    y, _ = module(x)
    y.sum().backward()
    after = (x, *module.parameters(), torch.cuda.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    plan = fused_lstm.explain_plan(module, 30, 8, training=True)
    assert "chosen because it was measured to be the quickest here" in plan
    call = (30, 8, 20, 48, 48, 1, "float32", True, function.tf32_allowed())
    winner = cuda_kernels().choice(torch.cuda.current_device(), *call, False)
    gradients = [p.grad for p in module.parameters()]
    with forced(winner):
        again, _ = module(x)
        wanted = torch.autograd.grad(again.sum(), list(module.parameters()))
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True) if a is not None)


def test_nothing_is_measured_while_a_graph_is_captured(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fused_lstm.LSTM(20, 40, device=device).requires_grad_(False)
    x = torch.randn(30, 8, 20, device=device)
    fused_lstm.autotune(False)
    module(x)  # handles and code are loaded
    fused_lstm.autotune()
    torch.cuda.synchronize()
    monkeypatch.setattr(tuning, "measure", lambda *_: pytest.fail("measured"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(x)
    graph.replay()
    torch.cuda.synchronize()


def test_a_file_serves_the_next_process(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fused_lstm.LSTM(20, 56, device=device).requires_grad_(False)
    x = torch.randn(30, 8, 20, device=device)
    path = tmp_path / "families.json"
    with fused_lstm.autotune(file=path):
        module(x)
        assert path.exists()
        monkeypatch.setattr(tuning, "_ready", set())
        monkeypatch.setattr(tuning, "_times", {})
        monkeypatch.setattr(tuning, "measure", lambda *_: pytest.fail("measured"))
        module(x)
