"""CUDA graphs: forward and backward are captured once and replayed on new numbers.

A replay must equal the eager call to the bit, however often it runs: nothing may be left over from
the last replay (counters, flags), and nothing may depend on the host.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fused_lstm

pytestmark = pytest.mark.cuda_only("CUDA graphs")

SHAPES = ((5, 3, 28, 64), (12, 16, 1, 128), (6, 9, 40, 200), (3, 2, 10, 33))  # T, B, I, H
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def captured(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The graph of one call, and the tensors that each replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def check(call: Callable[[], list[Tensor]], inputs: Tensor) -> None:
    graph, results = captured(call)
    for seed in range(4):
        torch.manual_seed(seed)
        inputs.copy_(torch.randn_like(inputs))
        for tensor in results:
            tensor.fill_(float("nan"))
        graph.replay()
        replayed = [t.clone() for t in results]
        assert all(torch.equal(a, b) for a, b in zip(replayed, call(), strict=True)), seed


def infer(module: fused_lstm.LSTM, x: Tensor | PackedSequence) -> list[Tensor]:
    with torch.no_grad():
        y, (h_n, c_n) = module(x)
    return [y.data if isinstance(y, PackedSequence) else y, h_n, c_n]


def train(module: fused_lstm.LSTM, x: Tensor | PackedSequence, leaf: Tensor) -> list[Tensor]:
    y, (h_n, c_n) = module(x)
    y = y.data if isinstance(y, PackedSequence) else y
    loss = y.square().sum() + h_n.sum() + c_n.sum()
    grads = torch.autograd.grad(loss, [leaf, *module.parameters()])
    return [y.detach(), h_n.detach(), c_n.detach(), *grads]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    T, B, I, H = shape  # noqa: E741
    module = fused_lstm.LSTM(I, H, dtype=dtype, device=device)
    x = torch.randn(T, B, I, dtype=dtype, device=device)
    check(lambda: infer(module, x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    T, B, I, H = shape  # noqa: E741
    module = fused_lstm.LSTM(I, H, num_layers=2, bidirectional=True, dtype=dtype, device=device)
    x = torch.randn(T, B, I, dtype=dtype, device=device, requires_grad=True)
    check(lambda: train(module, x, x), x.data)


def test_each_family(family: str, device: torch.device) -> None:
    module = fused_lstm.LSTM(28, 64, device=device)
    x = torch.randn(7, 5, 28, device=device, requires_grad=True)
    check(lambda: train(module, x, x), x.data)


def test_packed(device: torch.device) -> None:
    """Lengths are the graph's own: they are as they were at capture."""
    module = fused_lstm.LSTM(6, 50, bidirectional=True, device=device)
    data = torch.randn(8, 6, device=device, requires_grad=True)
    x = PackedSequence(data, torch.tensor([3, 3, 2]))
    check(lambda: train(module, x, data), data.data)


def test_two_graphs_replayed_in_turn(device: torch.device) -> None:
    parts = []
    for hidden in (64, 96):
        module = fused_lstm.LSTM(28, hidden, device=device)
        x = torch.randn(9, 8, 28, device=device)
        wanted = [t.clone() for t in infer(module, x)]
        parts.append((*captured(lambda m=module, x=x: infer(m, x)), wanted))
    for _ in range(5):
        for graph, _, _ in parts:
            graph.replay()
    for _, results, wanted in parts:
        assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*AccumulateGrad.*")
def test_make_graphed_callables(device: torch.device) -> None:
    eager = fused_lstm.LSTM(10, 40, device=device)
    graphed = fused_lstm.LSTM(10, 40, device=device)
    graphed.load_state_dict(eager.state_dict())
    x = torch.randn(6, 4, 10, device=device, requires_grad=True)
    call = torch.cuda.make_graphed_callables(graphed, (torch.randn_like(x, requires_grad=True),))
    for _ in range(3):
        found, wanted = call(x)[0], eager(x)[0]
        assert torch.equal(found, wanted)
        (a,) = torch.autograd.grad(found.sum(), x)
        (b,) = torch.autograd.grad(wanted.sum(), x)
        assert torch.equal(a, b)
