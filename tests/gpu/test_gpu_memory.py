"""How much device memory a call takes, that it all comes back, and what happens when there is none.

CUDA only: torch's caching allocator counts there.
"""

from collections.abc import Callable

import pytest
import torch
from cases import error
from precisions import PRECISIONS
from torch import Tensor

import fused_lstm

pytestmark = pytest.mark.cuda_only("torch counts device memory")

MIB = 1 << 20
SLACK = 2 * MIB  # the allocator's rounding, small tables
SHAPE = (200, 64, 96, 128)  # T, B, I, H: every big array is some MiB


def peak(call: Callable[[], None], device: torch.device) -> int:
    """Bytes by which a call's peak exceeds what was allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before


def make(dtype: torch.dtype, device: torch.device) -> tuple[fused_lstm.LSTM, Tensor]:
    T, B, I, H = SHAPE  # noqa: E741
    module = fused_lstm.LSTM(I, H, dtype=dtype, device=device)
    return module, torch.randn(T, B, I, dtype=dtype, device=device)


def step(module: torch.nn.Module, x: Tensor) -> None:
    y, _ = module(x)
    torch.autograd.grad(y.sum(), list(module.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_a_call_may_take(
    dtype: torch.dtype, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    T, B, _, H = SHAPE
    module, x = make(dtype, device)
    plain = torch.nn.LSTM(x.shape[2], H, dtype=dtype, device=device)
    step(module, x)
    step(plain, x)
    size, computed = x.element_size(), max(4, x.element_size())
    y = T * B * H * size
    projection = 4 * T * B * H * computed  # the input's part of the gates, summed in float32
    reserve = 4 * T * B * H * size + T * B * H * computed
    dgates = 4 * T * B * H * computed

    def infer() -> None:
        with torch.no_grad():
            module(x)

    found = {"inference": peak(infer, device), "training": peak(lambda: step(module, x), device)}
    torchs = peak(lambda: step(plain, x), device)
    record_property("MiB", {**{k: v / MIB for k, v in found.items()}, "nn.LSTM": torchs / MIB})
    assert found["inference"] <= y + projection + SLACK
    # dy and the loss's own gradient are y's size each; the projection is gone before backward.
    most = reserve + y + max(projection, dgates + 2 * y) + SLACK
    assert found["training"] <= most, (found, torchs)
    kept = torch.cuda.memory_allocated(device)
    out = module(x)
    kept = torch.cuda.memory_allocated(device) - kept
    assert kept <= y + reserve + SLACK
    del out


def test_nothing_is_kept_from_call_to_call(family: str, device: torch.device) -> None:
    module, x = make(torch.float32, device)
    step(module, x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    for _ in range(20):
        step(module, x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated(device) == before


def test_a_full_device_is_an_error_and_no_more(device: torch.device) -> None:
    """Out of memory inside a call: an error that says so, nothing lost, the next one works."""
    module = fused_lstm.LSTM(16, 512, device=device)
    x = torch.randn(2000, 64, 16, device=device)  # y is 250 MiB, the gates a GiB
    small = x[:3].contiguous()
    wanted = module(small)[0].detach()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((before + 400 * MIB) / total, device)
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            module(x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert torch.cuda.memory_allocated(device) <= before + wanted.numel() * 4
    assert torch.equal(module(small)[0], wanted)


def test_more_elements_than_32_bits_count(device: torch.device) -> None:
    """Offsets beyond 2^31 elements, in bytes and in elements, in y and in the gates."""
    free, _ = torch.cuda.mem_get_info(device)
    if free < 50 << 30:
        pytest.skip(f"needs 50 GiB of free device memory, there are {free >> 30}")
    T, B, H = 3, 2_200_000, 128  # 8.4e8 elements of y, 3.4e9 of the gates
    module = fused_lstm.LSTM(1, H, dtype=torch.float16, device=device)
    x = torch.randn(T, B, 1, dtype=torch.float16, device=device, requires_grad=True)
    y, _ = module(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    end = x[:, -64:].detach().contiguous().requires_grad_()
    wanted, _ = module(end)
    (wanted_dx,) = torch.autograd.grad(wanted, end, torch.ones_like(wanted))
    limit = PRECISIONS["f16"]
    assert error(y[:, -64:], wanted) <= limit.output
    assert error(dx[:, -64:], wanted_dx) <= limit.gradient
