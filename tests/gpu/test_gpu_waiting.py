"""The families whose blocks wait for each other: grid, which meets on counters, and cluster.

What only a GPU can show: that all blocks are there at once, that what one wrote the others read,
step after step beside other work, and that nobody waits for ever. They are forced here; the plan
chooses them with FUSED_LSTM_CUDA_KERNELS=all.
"""

import random
import re

import pytest
import torch
from families import absent, cuda_kernels, forced
from precisions import tf32
from torch import Tensor

import fused_lstm

pytestmark = pytest.mark.cuda_only("blocks that wait for each other")

WAITING = ("cluster", "grid")
DTYPES = (torch.float32, torch.bfloat16)
STEPS = 100_000  # of the soak test, all calls together


@pytest.fixture(autouse=True)
def _on_gpus_that_have_it(request: pytest.FixtureRequest) -> None:
    parameters = getattr(request.node, "callspec", None)
    family = parameters.params.get("waiting", "grid") if parameters else "grid"
    if why := absent(family):
        pytest.skip(why)


def hidden_of(family: str) -> int:
    return 256 if family == "cluster" else 768


def infer(module: fused_lstm.LSTM, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        y, (h_n, c_n) = module(x)
    return [y, h_n, c_n]


def train(module: fused_lstm.LSTM, x: Tensor) -> list[Tensor]:
    y, _ = module(x)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), list(module.parameters()))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("waiting", WAITING)
def test_soak(waiting: str, dtype: torch.dtype, device: torch.device) -> None:
    """1e5 steps with random delays, beside a stream that is never idle: the same bits every time.

    A product on the other stream takes the multiprocessors in turn with ours, so the blocks of a
    call start late and run unevenly; a read of a stale copy of h would change the results.
    """
    steps = 2000
    module = fused_lstm.LSTM(64, hidden_of(waiting), dtype=dtype, device=device)
    x = torch.randn(steps, 16, 64, dtype=dtype, device=device)
    busy, other = torch.cuda.Stream(), torch.randn(2048, 2048, device=device)
    delays = random.Random(1)
    with forced(waiting):
        wanted = infer(module, x)
        torch.cuda.synchronize()
        for _ in range(STEPS // steps):
            with torch.cuda.stream(busy):
                for _ in range(delays.randrange(1, 30)):
                    other = torch.tanh(other @ other)
                    torch.cuda._sleep(delays.randrange(1, 200_000))
            torch.cuda._sleep(delays.randrange(1, 200_000))
            found = infer(module, x)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("waiting", WAITING)
def test_many_trainings_give_the_same_bits(
    waiting: str, dtype: torch.dtype, device: torch.device
) -> None:
    module = fused_lstm.LSTM(
        64, hidden_of(waiting) // 2, bidirectional=True, dtype=dtype, device=device
    )
    x = torch.randn(50, 24, 64, dtype=dtype, device=device)
    with forced(waiting):
        wanted = train(module, x)
        for _ in range(20):
            found = train(module, x)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("waiting", WAITING)
def test_sequences_of_several_launches(waiting: str, device: torch.device) -> None:
    """More steps than one launch takes (4096) are what stepwise makes of them."""
    module = fused_lstm.LSTM(8, 64, device=device)
    x = torch.randn(9000, 3, 8, device=device)
    with tf32(False):
        with forced("stepwise"):
            wanted = train(module, x)
        with forced(waiting):
            found = train(module, x)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) <= 1e-3 * float(b.abs().max())


@pytest.mark.parametrize("hidden", [512, 768, 1024, 1280])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_grid_of_large_layers(hidden: int, dtype: torch.dtype, device: torch.device) -> None:
    """Sizes whose slices fill registers and shared memory, beside stepwise on the same GPU."""
    module = fused_lstm.LSTM(32, hidden, dtype=dtype, device=device)
    x = torch.randn(12, 17, 32, dtype=dtype, device=device)
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    with tf32(False):
        with forced("stepwise"):
            wanted = train(module, x)
        with forced("grid"):
            found = train(module, x)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).float().abs().max()) <= limit * float(b.float().abs().max())


@pytest.mark.parametrize("waiting", WAITING)
def test_after_giving_up_the_next_call_raises(waiting: str, device: torch.device) -> None:
    """Once, without waiting for the GPU; families that wait for nobody do not ask."""
    module, x = fused_lstm.LSTM(8, 64, device=device), torch.randn(5, 3, 8, device=device)
    wanted = infer(module, x)
    cuda_kernels().set_fault(torch.cuda.current_device())
    infer(module, x)
    with forced(waiting):
        with pytest.raises(RuntimeError, match="waited in vain for another and gave up"):
            module(x)
        found = infer(module, x)
    assert float((found[0] - wanted[0]).abs().max()) <= 1e-2


def test_the_plan_chooses_them_only_where_they_are_on(device: torch.device) -> None:
    module = fused_lstm.LSTM(64, 768, dtype=torch.bfloat16, device=device)
    shape = (100, 16, 64, 768)
    cuda_kernels().set_across_blocks(False)
    plan = fused_lstm.explain_plan(shape, dtype=torch.bfloat16, device=device)
    assert re.search(r"sm_\d+: stepwise", plan)
    cuda_kernels().set_across_blocks(True)
    try:
        plan = fused_lstm.explain_plan(shape, dtype=torch.bfloat16, device=device)
        found = infer(module, torch.randn(9, 16, 64, dtype=torch.bfloat16, device=device))
    finally:
        cuda_kernels().set_across_blocks(False)
    if torch.cuda.get_device_capability(device) == (9, 0):  # elsewhere stepwise may be chosen
        assert re.search(r"sm_\d+: (grid|cluster),", plan)
    assert all(bool(t.isfinite().all()) for t in found)
