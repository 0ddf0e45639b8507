"""Who is compared: every way to run one LSTM layer, behind one interface.

`prepare(name, work)` turns a workload into a Candidate: a call to be timed, and a check of what it
computes. All candidates get the weights of one nn.LSTM; before anything is timed their outputs and
gradients are compared with it (`mismatch`). A peer that is not installed, or cannot do what is
asked, raises UnavailableError with the reason; the report lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case

__all__ = [
    "PEERS",
    "Candidate",
    "UnavailableError",
    "Workload",
    "active_isa",
    "expected_result",
    "explain",
    "load_fused",
    "mismatch",
    "prepare",
    "workload",
]

# Largest difference from `expected_result`, as a part of the largest entry of the same tensor. Far
# above rounding, far below a wrong gate, weight or step: exactness is the tests' business.
_TOLERANCE = {
    torch.float32: 1e-3,  # sums of up to T*B = 100352 terms in another order, in dW
    torch.float64: 1e-9,
    torch.bfloat16: 1.5e-1,  # 8 bits of mantissa, and h is rounded to them at every step
    torch.float16: 3e-2,  # 11 bits
}


_HALF = (torch.bfloat16, torch.float16)


class UnavailableError(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark: what is computed, in which mode, from which numbers."""

    case: Case
    mode: str
    dtype: torch.dtype
    threads: int
    module: nn.LSTM  # the owner of the weights that all candidates use
    x: Tensor  # [T, B, I]
    dy: Tensor  # [T, B, H], the gradient that arrives in training

    @property
    def training(self) -> bool:
        """Whether a backward pass is part of it."""
        return self.mode != "inference"


@dataclass(frozen=True)
class Candidate:
    """One way to compute the workload."""

    call: Callable[[], object]  # what is timed
    result: Callable[[], dict[str, Tensor]]  # y, h_n, c_n and, in training, the gradients


def workload(case: Case, mode: str, dtype: torch.dtype, threads: int) -> Workload:
    """The same weights and inputs every time: they depend on the case alone."""
    generator = torch.Generator().manual_seed(case.T * 7 + case.B * 5 + case.I * 3 + case.H)
    module = nn.LSTM(case.I, case.H)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-(case.H**-0.5), case.H**-0.5, generator=generator)
    x = torch.randn(case.T, case.B, case.I, generator=generator).to(dtype)
    dy = torch.randn(case.T, case.B, case.H, generator=generator).to(dtype)
    return Workload(case, mode, dtype, threads, module.to(dtype), x, dy)


Forward = Callable[[Tensor], tuple[Tensor, tuple[Tensor, Tensor]]]


def _torch_candidate(forward: Forward, parameters: list[Tensor], work: Workload) -> Candidate:
    """A candidate from a differentiable forward; parameters: w_ih, w_hh, b_ih, b_hh."""
    x = work.x.clone().requires_grad_(work.mode == "training_dx")
    leaves = [*parameters, x] if x.requires_grad else parameters

    def infer() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with torch.no_grad():
            return forward(x)

    def train() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        for leaf in leaves:
            leaf.grad = None
        y, state = forward(x)
        y.backward(work.dy)
        return y, state

    call = train if work.training else infer

    def result() -> dict[str, Tensor]:
        y, (h_n, c_n) = call()
        found = {"y": y.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
        if work.training:
            for name, leaf in zip(("dw_ih", "dw_hh", "db_ih", "db_hh", "dx"), leaves, strict=False):
                if leaf.grad is None:
                    raise RuntimeError(f"{name}: expected a gradient, got none")
                found[name] = leaf.grad
        return found

    return Candidate(call, result)


def load_fused() -> Any:
    """The module fused_lstm with its extension; UnavailableError with the reason otherwise."""
    try:
        import fused_lstm
        from fused_lstm import _extension

        _extension.require()
    except ImportError as error:
        raise UnavailableError(str(error)) from None
    return fused_lstm


def active_isa() -> str:
    """The instruction set that fused_lstm's kernels run with."""
    return str(load_fused()._extension.require().isa())


def explain(work: Workload) -> str:
    """Which kernel fused_lstm uses for this workload, in its own words."""
    c = work.case
    plan = load_fused().explain_plan(
        (c.T, c.B, c.I, c.H), dtype=work.dtype, training=work.training, threads=work.threads
    )
    return str(plan)


def _fused(work: Workload) -> Candidate:
    module = load_fused().LSTM(work.case.I, work.case.H, dtype=work.dtype)
    module.load_state_dict(work.module.state_dict())
    return _torch_candidate(module, list(module.parameters()), work)


def _fused_float32(work: Workload) -> Candidate:
    """Our own float32 speed on the same numbers, beside a half-precision row."""
    if work.dtype not in _HALF:
        raise UnavailableError("compared with bfloat16 and float16 only")
    module = load_fused().LSTM(work.case.I, work.case.H)
    module.load_state_dict(work.module.state_dict())
    single = replace(work, x=work.x.float(), dy=work.dy.float())
    return _torch_candidate(module, list(module.parameters()), single)


def _torch(work: Workload) -> Candidate:
    module = nn.LSTM(work.case.I, work.case.H, dtype=work.dtype)
    module.load_state_dict(work.module.state_dict())
    return _torch_candidate(module, list(module.parameters()), work)


def _cell(work: Workload) -> Candidate:
    """nn.LSTMCell in a loop over the steps."""
    cell = nn.LSTMCell(work.case.I, work.case.H, dtype=work.dtype)
    with torch.no_grad():
        for mine, theirs in zip(cell.parameters(), work.module.parameters(), strict=True):
            mine.copy_(theirs)

    def forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = c = x.new_zeros(x.shape[1], work.case.H)
        steps = []
        for x_t in x.unbind(0):
            h, c = cell(x_t, (h, c))
            steps.append(h)
        return torch.stack(steps), (h[None], c[None])

    return _torch_candidate(forward, list(cell.parameters()), work)


def _python(work: Workload) -> Candidate:
    """The equations written out: what a researcher starts from. The projection is hoisted."""
    weights = [p.detach().clone().requires_grad_() for p in work.module.parameters()]
    w_ih, w_hh, b_ih, b_hh = weights

    def forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = c = x.new_zeros(x.shape[1], work.case.H)
        steps = []
        for projected in (x @ w_ih.T + (b_ih + b_hh)).unbind(0):
            i, f, g, o = (projected + h @ w_hh.T).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            steps.append(h)
        return torch.stack(steps), (h[None], c[None])

    return _torch_candidate(forward, weights, work)


def _onnxruntime(work: Workload) -> Candidate:
    from benchmarks.onnx_peer import candidate

    return candidate(work)


def _jax(work: Workload) -> Candidate:
    from benchmarks.jax_peer import candidate

    return candidate(work)


PEERS: dict[str, Callable[[Workload], Candidate]] = {
    "fused": _fused,
    "torch": _torch,
    "fused_float32": _fused_float32,
    "cell": _cell,
    "python": _python,
    "onnxruntime": _onnxruntime,
    "jax": _jax,
}


def prepare(name: str, work: Workload) -> Candidate:
    """The candidate of that name, or UnavailableError."""
    return PEERS[name](work)


def expected_result(work: Workload) -> dict[str, Tensor]:
    """What nn.LSTM computes; for bfloat16 and float16, from the same numbers in float32.

    In half precision nn.LSTM itself sums gradients over the steps in that precision and may be off
    by more than what it is compared with.
    """
    if work.dtype not in _HALF:
        return prepare("torch", work).result()
    module = nn.LSTM(work.case.I, work.case.H)
    module.load_state_dict(work.module.state_dict())
    single = replace(work, dtype=torch.float32, module=module, x=work.x.float(), dy=work.dy.float())
    return prepare("torch", single).result()


def mismatch(result: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> str:
    """Empty when every tensor agrees with nn.LSTM's; else a sentence on the first that does not.

    A candidate need not return h_n and c_n's gradients; it must return y and, in training, every
    gradient that nn.LSTM returned.
    """
    for name, wanted in expected.items():
        if name not in result:
            return f"{name}: expected it among the results, got {', '.join(result)}"
        got = result[name].double()
        if got.shape != wanted.shape:
            return f"{name}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}"
        error = (got - wanted.double()).abs().max().item()
        limit = _TOLERANCE[dtype] * max(wanted.abs().max().item(), 1e-30)
        if not error <= limit:  # a NaN is a mismatch
            return f"{name}: expected nn.LSTM's values within {limit:.1e}, got off by {error:.1e}"
    return ""
