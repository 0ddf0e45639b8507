"""Resets, lengths and cells under PyTorch's tools, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
from fused_lstm import dispatch, functional

CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)


def example(H: int = 6, **options: Any) -> tuple[fused_lstm.LSTM, Tensor, dict[str, Any]]:
    lstm = fused_lstm.LSTM(3, H, bidirectional=True, **options)
    x = torch.randn(5, 4, 3)
    reset, lengths = torch.rand(5, 4) < 0.3, torch.tensor([5, 0, 3, 1])
    return lstm, x, {"reset": reset, "lengths": lengths, "return_cells": True}


class Model(nn.Module):
    def __init__(self, lstm: fused_lstm.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, reset: Tensor, lengths: Tensor) -> Any:
        return self.lstm(x, reset=reset, lengths=lengths)[0]


def flat(results: Any) -> list[Tensor]:
    y, hs, *cells = results
    return [y, *hs, *cells]


NO_EXTRAS = (None, None, 0.0, 0.0, False)  # keep, h_factors, zoneout_h, zoneout_c, recompute


@pytest.mark.parametrize(("given", "cells"), [(True, True), (False, False)])
def test_opcheck(given: bool, cells: bool) -> None:
    H = 15  # every byte of the reserve is written, as in test_opcheck.py
    lstm, x, own = example(H)
    marks = (own["reset"] * 1 + (torch.rand(5, 4) < 0.2) * 2).to(torch.uint8) if given else None
    state = [torch.randn(2, 4, H), torch.randn(2, 4, H)] if given else [None, None]
    ten = dispatch.ten_weights([p.detach() for p in lstm.parameters()], True, True, 0)
    how: tuple[Any, ...] = NO_EXTRAS
    if given:
        keep = torch.randint(0, 4, (5, 4, 2 * H), dtype=torch.uint8)
        how = (keep, torch.rand(2, 4, H), 0.1, 0.2, True)
    forward = torch.ops.fused_lstm.marked_forward
    backward = torch.ops.fused_lstm.marked_backward
    for save in (True, False):
        arguments = (x, marks, *state, *ten, *how, cells, save)
        torch.library.opcheck(forward.default, arguments, test_utils=CHECKS)
    y, h_n, c_n, out, reserve = forward(x, marks, *state, *ten, *how, cells, True)
    for needs in (1, (1 << 11) - 1 & ~(1 << 6 | 1 << 10)):
        dcells = out if cells else None
        arguments = (y, h_n, c_n, dcells, x, marks, *state, *ten, *how, y, reserve, needs)
        torch.library.opcheck(backward.default, arguments, test_utils=CHECKS)


def test_marks_may_have_any_strides() -> None:
    lstm, x, _ = example()
    ten = dispatch.ten_weights([p.detach() for p in lstm.parameters()], True, True, 0)
    marks = torch.randint(0, 2, (4, 5), dtype=torch.uint8).T
    run = torch.ops.fused_lstm.marked_forward
    strided = run(x, marks, None, None, *ten, *NO_EXTRAS, False, False)[0]
    assert torch.equal(
        strided, run(x, marks.contiguous(), None, None, *ten, *NO_EXTRAS, False, False)[0]
    )


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    lstm, x, own = example(num_layers=2)
    names = ("reset", "lengths")

    def run(x: Tensor, *given: Tensor) -> list[Tensor]:
        return flat(lstm(x, **dict(zip(names, given, strict=True)), return_cells=True))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    given = [own[name] for name in names]
    for function in (run, compiled):
        x.grad = None
        lstm.zero_grad()
        outputs = function(x.requires_grad_(), *given)
        sum(t.square().sum() for t in outputs).backward()
        found = [*outputs, x.grad, *(p.grad for p in lstm.parameters())]
        if function is run:
            expected = [t.detach().clone() for t in found]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_exports() -> None:
    lstm, x, own = example()

    inputs = (x, own["reset"], own["lengths"])
    model = Model(lstm)
    y = model(*inputs)
    torch.testing.assert_close(torch.export.export(model, inputs).module()(*inputs), y)
    with fused_lstm.export_mode("fused"):
        program = torch.export.export(model, inputs)
    assert any("marked_forward" in str(n.target) for n in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), y)


def test_autocast_has_the_types_of_a_plain_call() -> None:
    lstm, x, own = example()
    with torch.autocast("cpu", torch.bfloat16):
        y, (h_n, c_n), cells = lstm(x, **own)
        plain, (h, c) = lstm(x)
    assert (y.dtype, h_n.dtype, c_n.dtype) == (plain.dtype, h.dtype, c.dtype)
    assert cells.dtype is c_n.dtype
    torch.testing.assert_close(y.float(), lstm(x, **own)[0], atol=2e-2, rtol=0)


def test_transforms_of_torch_func() -> None:
    lstm, x, own = example()

    def loss(x: Tensor, reset: Tensor, lengths: Tensor) -> Tensor:
        results = lstm(x, reset=reset, lengths=lengths, return_cells=True)
        return sum(t.square().sum() for t in flat(results))

    inputs = (own["reset"], own["lengths"])
    (expected,) = torch.autograd.grad(loss(x.requires_grad_(), *inputs), x)
    torch.testing.assert_close(torch.func.grad(loss)(x, *inputs), expected)
    rows = [t.detach().unsqueeze(-1) for t in inputs]  # [T, B, 1] and [B, 1]
    mapped = torch.vmap(torch.func.grad(loss), in_dims=(1, 1, 0), out_dims=1)(
        x.detach().unsqueeze(2), *rows
    )
    torch.testing.assert_close(mapped.squeeze(2), expected)
    tangent = torch.randn_like(x)
    _, moved = torch.func.jvp(lambda x: loss(x, *inputs), (x.detach(),), (tangent,))
    torch.testing.assert_close(moved, (tangent * expected).sum())


def test_batched_gradients() -> None:
    lstm, x, own = example()
    y = lstm(x.requires_grad_(), **own)[0]
    cotangents = torch.randn(3, *y.shape)
    own_way = [torch.autograd.grad(y, x, c, retain_graph=True)[0] for c in cotangents]
    (batched,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(own_way))


def test_a_second_backward_and_edits_in_place() -> None:
    lstm, x, own = example()
    y, _, cells = lstm(x.requires_grad_(), **own)
    loss = y.sum() + cells.sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    own["reset"].logical_not_()  # what was passed has been read
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], first)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


def test_other_ways_than_the_kernel() -> None:
    """A subclass of Tensor, the meta device and a traced call go through the specification."""
    lstm, x, own = example()
    expected = flat(lstm(x, **own))
    wrapped = Model(lstm)
    inputs = (x, own["reset"], own["lengths"])
    traced = torch.jit.trace(wrapped, inputs, check_trace=False)
    torch.testing.assert_close(traced(*inputs), expected[0])
    meta = copy.deepcopy(lstm).to("meta")
    results = flat(meta(x.to("meta"), reset=own["reset"].to("meta"), lengths=own["lengths"]))
    assert [t.shape for t in results] == [t.shape for t in expected[:3]]


def test_explain_plan_says_which_way() -> None:
    lstm, *_ = example()
    assert dispatch.explain_plan(lstm, 5, 4, options=True) == dispatch.explain_plan(lstm, 5, 4)
    halves = (100, 32, 64, 64)  # on tiles where there are any
    plan = dispatch.explain_plan(halves, dtype=torch.bfloat16, options=True)
    assert plan.startswith("cpu")
    assert plan == dispatch.explain_plan(halves, dtype=torch.bfloat16)
    projected = fused_lstm.LSTM(3, 6, proj_size=2)
    assert "specification" in dispatch.explain_plan(projected, 5, 4, options=True)
    assert "specification" in dispatch.explain_plan((5, 4, 3, 6), device="cuda", options=True)


class Scripted(nn.Module):
    def __init__(self, lstm: fused_lstm.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        y, _ = self.lstm(x, None, None, lengths)
        return y


def test_script_refuses_in_words() -> None:
    lstm, x, own = example()
    scripted = torch.jit.script(Scripted(lstm))
    torch.testing.assert_close(scripted(x, None), lstm(x)[0])
    with pytest.raises(Exception, match="expected none of them in a scripted module"):
        scripted(x, own["lengths"])


def test_symbolic_trace_keeps_the_options() -> None:
    lstm, x, own = example()
    model = Model(lstm)
    traced = torch.fx.symbolic_trace(model)
    inputs = (x, own["reset"], own["lengths"])
    assert torch.equal(traced(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"reset": [[True]]}, TypeError, "reset: expected a Tensor of torch.bool, got list"),
        ({"reset": torch.zeros(5, 4)}, ValueError, "expected a Tensor of torch.bool, got"),
        (
            {"reset": torch.zeros(4, 5, dtype=torch.bool)},
            ValueError,
            r"reset: expected sizes \[T, B\] = \[5, 4\], got \[4, 5\]",
        ),
        (
            {"reset": torch.zeros(5, 4, dtype=torch.bool, device="meta")},
            ValueError,
            "reset: expected a tensor on device 'cpu' like the input, got one on 'meta'",
        ),
        ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths: expected a Tensor of torch.int64"),
        ({"lengths": torch.ones(4)}, ValueError, "expected a Tensor of torch.int64, got"),
        (
            {"lengths": torch.ones(3, dtype=torch.int64)},
            ValueError,
            r"lengths: expected sizes \[B\] = \[4\], got \[3\]",
        ),
        (
            {"lengths": torch.tensor([1, 6, 2, 3])},
            ValueError,
            "lengths: expected values from 0 to T = 5, got 6",
        ),
        (
            {"lengths": torch.tensor([1, 5, -2, 3])},
            ValueError,
            "lengths: expected values from 0 to T = 5, got -2",
        ),
        (
            {"lengths": torch.ones(4, dtype=torch.int64, device="meta")},
            ValueError,
            "lengths: expected a tensor on device 'cpu' like the input, or on the CPU",
        ),
    ],
)
def test_errors(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    lstm, x, _ = example()
    with pytest.raises(kind, match=words):
        lstm(x, **options)


def test_packed_input_is_refused() -> None:
    lstm, x, own = example()
    packed = pack_sequence([x[:, 0], x[:3, 1]])
    for name, value in own.items():
        with pytest.raises(ValueError, match=f"{name}: expected .* with a PackedSequence"):
            lstm(packed, **{name: value})


def test_the_operators_check_memory() -> None:
    lstm, x, _ = example()
    ten = list(dispatch.ten_weights([p.detach() for p in lstm.parameters()], True, True, 0))
    run = torch.ops.fused_lstm.marked_forward
    with pytest.raises((ValueError, RuntimeError), match=r"marks: expected \[T, B\] = \[5, 4\]"):
        run(x, torch.zeros(4, 5, dtype=torch.uint8), None, None, *ten, *NO_EXTRAS, False, False)
    with pytest.raises((ValueError, RuntimeError), match=r"marks: expected .*uint8"):
        run(x, torch.zeros(5, 4, dtype=torch.bool), None, None, *ten, *NO_EXTRAS, False, False)
    ten[4] = ten[9] = torch.zeros(6, 6)
    with pytest.raises((ValueError, RuntimeError), match="w_hr: expected None with any option"):
        run(x, None, None, None, *ten, *NO_EXTRAS, True, False)


def test_the_function_takes_them_too() -> None:
    lstm, x, own = example()
    weights = list(lstm.parameters())
    y, _, cells = functional.lstm(x, None, weights, bidirectional=True, **own)
    expected, _, others = lstm(x, **own)
    assert torch.equal(y, expected)
    assert torch.equal(cells, others)
