"""Who is compared on the GPU, behind the interface of peers.py: calls to time, results to check.

All get the weights of one nn.LSTM. Where the input is smaller than the GPU's second-level cache,
calls rotate among copies of it, so that no one reads from the cache what a real batch would bring
from memory; weights stay where the last call left them, as in training.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.gpu_cases import PRECISIONS, GpuCase
from benchmarks.peers import Candidate, UnavailableError, load_fused, mismatch

__all__ = ["PEERS", "GpuWork", "check", "expected", "prepare", "tf32", "work_for"]

_MOST_COPIES = 8


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Sets cuDNN's TF32 switch, which decides for nn.LSTM and for us."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class GpuWork:
    """One row: what is computed, in which mode and precision, from which numbers."""

    case: GpuCase
    mode: str
    dtype: torch.dtype
    device: torch.device
    weights: dict[str, Tensor]  # nn.LSTM's state_dict, float32 numbers that dtype can hold
    x: Tensor  # [T, B, I], or [B, T, I] when batch_first
    dy: Tensor  # the gradient that arrives: like y, or like a packed y's data
    copies: int

    @property
    def training(self) -> bool:
        """Whether a backward pass is part of it."""
        return self.mode.startswith("training")


def work_for(case: GpuCase, mode: str, precision: str, device: torch.device) -> GpuWork:
    """The same weights and inputs every time: they depend on the case alone."""
    dtype = getattr(torch, PRECISIONS[precision][0])
    generator = torch.Generator().manual_seed(case.T * 7 + case.B * 5 + case.I * 3 + case.H)
    module = nn.LSTM(case.I, case.H, case.num_layers, bidirectional=case.bidirectional)
    for parameter in module.parameters():
        parameter.data.uniform_(-(case.H**-0.5), case.H**-0.5, generator=generator)
    weights = {k: v.to(dtype).float() for k, v in module.state_dict().items()}
    shape = (case.B, case.T) if case.batch_first else (case.T, case.B)
    rows = (sum(case.lengths),) if case.packed else shape
    x = torch.randn(*shape, case.I, generator=generator).to(device, dtype)
    dy = torch.randn(*rows, case.directions * case.H, generator=generator).to(device, dtype)
    copies = 1
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        copies = max(1, min(_MOST_COPIES, 1 + 2 * cache // (x.numel() * x.element_size())))
    return GpuWork(case, mode, dtype, device, weights, x, dy, copies)


def _module(kind: Any, work: GpuWork, dtype: torch.dtype) -> Any:
    case = work.case
    module = kind(
        case.I, case.H, case.num_layers, batch_first=case.batch_first,
        bidirectional=case.bidirectional, device=work.device, dtype=dtype,
    )  # fmt: skip
    module.load_state_dict(work.weights)
    return module


def _candidate(module: Any, work: GpuWork, dtype: torch.dtype) -> Candidate:
    """A module like nn.LSTM as a candidate."""
    needs_dx = work.mode == "training_dx"
    dy = work.dy.to(dtype)
    inputs = []
    for _ in range(work.copies):
        x = work.x.to(dtype).clone().requires_grad_(needs_dx)
        inputs.append((x, _packed(x, work.case) if work.case.packed else x))
    turn = itertools.cycle(inputs)
    parameters = dict(module.named_parameters())

    def infer() -> Any:
        with torch.no_grad():
            return module(next(turn)[1])

    def forward() -> Any:
        return module(next(turn)[1])

    def train() -> Any:
        x, given = next(turn)
        for leaf in (x, *parameters.values()):
            leaf.grad = None
        y, state = module(given)
        data = y.data if isinstance(y, PackedSequence) else y
        data.backward(dy)
        return y, state, x

    call = {"inference": infer, "forward": forward}.get(work.mode, train)

    def result() -> dict[str, Tensor]:
        y, (h_n, c_n), *rest = call()
        y = y.data if isinstance(y, PackedSequence) else y
        found = {"y": y.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
        if work.training:
            found |= {f"d{name}": p.grad for name, p in parameters.items() if p.grad is not None}
            if needs_dx:
                found["dx"] = rest[0].grad
        return found

    return Candidate(call, result)


def _packed(x: Tensor, case: GpuCase) -> PackedSequence:
    return pack_padded_sequence(x, torch.tensor(case.lengths), batch_first=case.batch_first)


def _torch(work: GpuWork) -> Candidate:
    return _candidate(_module(nn.LSTM, work, work.dtype), work, work.dtype)


def _fused(work: GpuWork) -> Candidate:
    fused = load_fused()
    if work.device.type == "cuda":
        obstacle = fused._extension.cuda_obstacle(torch.cuda.current_device())
        if obstacle:
            raise UnavailableError(obstacle)
    return _candidate(_module(fused.LSTM, work, work.dtype), work, work.dtype)


def _forced(family: str) -> Callable[[GpuWork], Candidate]:
    """Ours with one family of kernels for every call."""

    def make(work: GpuWork) -> Candidate:
        if work.device.type != "cuda":
            raise UnavailableError("kernel families exist on CUDA only")
        candidate = _fused(work)
        force = load_fused()._extension.require_cuda().force_family

        def held(function: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                force(family)
                try:
                    return function()
                finally:
                    force(None)

            return call

        try:
            held(candidate.call)()
        except RuntimeError as refusal:
            if family not in str(refusal):
                raise
            raise UnavailableError(f"{family} cannot compute every shape") from None
        return Candidate(held(candidate.call), held(candidate.result))

    return make


def _other(name: str, package: str) -> Callable[[GpuWork], Candidate]:
    """A library that may be installed: one padded layer in one direction, forward only."""

    def make(work: GpuWork) -> Candidate:
        case = work.case
        if importlib.util.find_spec(package) is None:
            raise UnavailableError("not installed")
        if (case.num_layers, case.bidirectional, case.packed) != (1, False, False):
            raise UnavailableError("compared at one padded layer in one direction")
        if work.mode != "inference" or case.batch_first:
            raise UnavailableError("compared in inference, time first")
        from benchmarks import gpu_others

        return _candidate(getattr(gpu_others, name)(work), work, work.dtype)

    return make


PEERS: dict[str, Callable[[GpuWork], Candidate]] = {
    "fused": _fused,
    "torch": _torch,
    "stepwise": _forced("stepwise"),
    "single_block": _forced("single_block"),
    "cluster": _forced("cluster"),
    "grid": _forced("grid"),
    "haste": _other("haste", "haste_pytorch"),
    "flashrnn": _other("flashrnn", "flashrnn"),
}


def prepare(name: str, work: GpuWork) -> Candidate:
    """The candidate of that name, or UnavailableError."""
    return PEERS[name](work)


def expected(work: GpuWork) -> dict[str, Tensor]:
    """nn.LSTM's result from the same numbers in strict float32, whatever the row's precision."""
    with tf32(False):
        return _candidate(_module(nn.LSTM, work, torch.float32), work, torch.float32).result()


def check(found: dict[str, Tensor], wanted: dict[str, Tensor], work: GpuWork, loose: bool) -> str:
    """Empty when they agree; TF32 (`loose`) rounds operands to float16's 11 bits."""
    return mismatch(found, wanted, torch.float16 if loose else work.dtype)
