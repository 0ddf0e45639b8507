"""Whose stream, which device, and that the host is never kept waiting.

All of this is CUDA's own and cannot be tried on the CPU.
"""

import threading

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_lstm

pytestmark = pytest.mark.cuda_only("streams and devices")

LONG = 100_000_000  # cycles that torch.cuda._sleep keeps a stream busy: 50 ms at 2 GHz


def step(module: fused_lstm.LSTM, x: Tensor | PackedSequence) -> list[Tensor]:
    """Forward and backward: y and all gradients of the parameters."""
    y, _ = module(x)
    y = y.data if isinstance(y, PackedSequence) else y
    return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), list(module.parameters()))]


def make(device: torch.device, hidden: int = 96) -> tuple[fused_lstm.LSTM, Tensor]:
    module = fused_lstm.LSTM(28, hidden, num_layers=2, device=device)
    return module, torch.randn(12, 16, 28, device=device)


def test_work_is_queued_on_the_current_stream(family: str, device: torch.device) -> None:
    """A late producer on a side stream: whoever used another stream would read the old input."""
    module, x = make(device)
    wanted = step(module, x)
    late = torch.full_like(x, 7.0)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        late.copy_(x)
        found = step(module, late)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_backward_runs_on_the_stream_of_its_forward(device: torch.device) -> None:
    module, x = make(device)
    wanted = step(module, x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        y, _ = module(x)
        loss = y.pow(2).sum()
    found = torch.autograd.grad(loss, list(module.parameters()))  # from the default stream
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted[1:], strict=True))


def test_calls_on_many_streams_share_nothing(family: str, device: torch.device) -> None:
    """A workspace, counter or table common to all calls would mix them up."""
    pairs = [make(device, hidden) for hidden in (32, 64, 96, 128)]
    wanted = [step(*pair) for pair in pairs]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for stream, pair in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                found.append(step(*pair))
        torch.cuda.synchronize()
        for mine, right in zip(found, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, right, strict=True))


def test_calls_from_many_threads(device: torch.device) -> None:
    module, x = make(device)
    wanted = step(module, x)
    torch.cuda.synchronize()
    wrong: list[str] = []

    def work() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(10):
                    found = step(module, x)
                    torch.cuda.current_stream().synchronize()
                    if not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
                        wrong.append("another result")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _packed(device: torch.device) -> PackedSequence:
    rows = [torch.randn(n, 28, device=device) for n in (9, 9, 6, 2, 1)]
    return pack_sequence(rows)


@pytest.mark.parametrize("inputs", ["padded", "packed"])
def test_the_host_never_waits(inputs: str, family: str, device: torch.device) -> None:
    """Neither by torch's calls (it would raise) nor by our own (the stream would be done)."""
    module, padded = make(device)
    x = padded if inputs == "padded" else _packed(device)
    step(module, x)  # handles and modules are loaded at the first call
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda._sleep(20 * LONG)  # a second: far longer than the host needs to queue a step
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, x)
        done.record()
        waited = done.query()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
    assert not waited, "the queue was empty when the call returned: something waited for the GPU"


def test_the_current_device_need_not_be_the_tensors(device: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here: the device guard needs two")
    other = torch.device("cuda", 1)
    module, x = make(torch.device("cuda", 0))
    wanted = step(module, x)
    there = fused_lstm.LSTM(28, 96, num_layers=2, device=other)
    there.load_state_dict(module.state_dict())
    found = step(there, x.to(other))  # while device 0 is current
    assert torch.cuda.current_device() == 0
    assert all(t.device == other for t in found)
    assert all(torch.equal(a.to(0), b) for a, b in zip(found, wanted, strict=True))


def test_default_device_index(device: torch.device) -> None:
    """The devices cuda and cuda:0 are one."""
    module = fused_lstm.LSTM(4, 8, device="cuda:0")
    assert module(torch.randn(3, 2, 4, device="cuda"))[0].device == torch.device("cuda", 0)


def test_freed_outputs_are_not_written_again(device: torch.device) -> None:
    """Outputs freed on the host while the GPU still computes stay whole until it has read them."""
    module, x = make(device)
    wanted = module(x)[0].detach().clone()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    sums = [module(x)[0].detach().sum() for _ in range(30)]
    assert all(torch.equal(s, wanted.sum()) for s in sums)
