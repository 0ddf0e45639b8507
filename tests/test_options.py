"""Resets, lengths and cells: against the specification, nn.LSTMCell, packing and splitting.

Whatever lies past a row's end is NaN in these tests, for nobody may read it.
"""

from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, Case, Operators, error, modules
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_lstm
from fused_lstm import reference

CASES = (
    Case(1, 1, 1, 1),
    Case(6, 4, 3, 7),
    Case(7, 5, 4, 17, hx=False),
    Case(9, 13, 5, 33, bidirectional=True),
    Case(5, 6, 4, 8, num_layers=3, bidirectional=True, batch_first=True, bias=False),
    Case(4, 3, 70, 100, bidirectional=True),
    Case(30, 64, 9, 40),
    Case(40, 3, 2, 130),
    Case(5, 3, 4, 7, proj_size=3, bidirectional=True),  # by the specification
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Inputs:
    """x, hx, reset and lengths of a case; `wanted` says which options are used."""

    def __init__(self, case: Case, dtype: torch.dtype, wanted: str) -> None:
        rows = case.num_layers * (2 if case.bidirectional else 1)
        x = torch.randn(case.T, case.B, case.I)
        self.ended = torch.zeros(case.T, case.B, dtype=torch.bool)
        self.options: dict[str, Any] = {}
        if "lengths" in wanted:
            lengths = torch.randint(0, case.T + 1, (case.B,))
            self.options["lengths"] = lengths
            self.ended = torch.arange(case.T).unsqueeze(1) >= lengths
            x[self.ended] = torch.nan
        if "reset" in wanted:
            reset = torch.rand(case.T, case.B) < 0.2
            self.options["reset"] = reset.T.contiguous() if case.batch_first else reset
        if "cells" in wanted:
            self.options["return_cells"] = True
        x = x.transpose(0, 1) if case.batch_first else x
        self.leaves = [x.contiguous().to(dtype).requires_grad_()]
        if case.hx:
            self.leaves += [
                torch.randn(rows, case.B, n).to(dtype).requires_grad_()
                for n in (case.proj_size or case.H, case.H)
            ]

    def call(self, module: Any) -> list[Tensor]:
        x, *state = self.leaves
        y, hs, *cells = module(x, tuple(state) or None, **self.options)
        return [y, *hs, *cells]


def by_reference(case: Case, module: nn.LSTM) -> Any:
    weights = list(module.parameters())
    options = {k: v for k, v in case.options.items() if k != "lengths"}
    return lambda x, hx, **own: reference.lstm(x, hx, weights, **options, **own)


def compare(
    ours: list[Tensor], theirs: list[Tensor], own: list[Tensor], other: list[Tensor]
) -> None:
    """Outputs, and the gradients of a weighted sum of them; no weight is NaN but for padding."""
    dtype = ours[0].dtype
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b) < OUTPUT_TOLERANCE[dtype]
    weights = [torch.randn_like(b) for b in theirs]
    grads = torch.autograd.grad(ours, own, [w.to(dtype) for w in weights])
    expected = torch.autograd.grad(theirs, other, weights)
    for a, b in zip(grads, expected, strict=True):
        assert error(a, b) < GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("wanted", ["reset", "lengths", "cells", "reset lengths cells"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_specification(case: Case, dtype: torch.dtype, wanted: str) -> None:
    if dtype not in DTYPES[:2] and case not in CASES[1:4]:
        return
    ours, theirs = modules(case, dtype, torch.float64)
    inputs = Inputs(case, dtype, wanted)
    other = Inputs(case, dtype, wanted)
    other.options = inputs.options
    other.leaves = [t.detach().double().requires_grad_() for t in inputs.leaves]
    actual = inputs.call(ours)
    expected = other.call(by_reference(case, theirs))
    with torch.no_grad():
        for a, b in zip(inputs.call(ours), actual, strict=True):
            assert error(a, b) < OUTPUT_TOLERANCE[dtype]
    y = actual[0].transpose(0, 1) if case.batch_first else actual[0]
    assert not y[inputs.ended].any()
    own = [*inputs.leaves, *ours.parameters()]
    compare(actual, expected, own, [*other.leaves, *theirs.parameters()])


@pytest.mark.parametrize("hx", [True, False])
def test_resets_are_those_of_a_loop_over_lstm_cell(hx: bool) -> None:
    case = Case(12, 6, 5, 19, hx=hx)
    ours, theirs = modules(case, torch.float64)
    inputs = Inputs(case, torch.float64, "reset cells")
    cell = nn.LSTMCell(case.I, case.H, dtype=torch.float64)
    for a, b in zip(cell.parameters(), theirs.parameters(), strict=True):
        a.data.copy_(b)
    x, *state = other = [t.detach().clone().requires_grad_() for t in inputs.leaves]
    h, c = (s[0] for s in state) if hx else torch.zeros(2, case.B, case.H, dtype=x.dtype)
    ys, cells = [], []
    for t in range(case.T):
        keep = ~inputs.options["reset"][t].unsqueeze(1)
        h, c = cell(x[t], (h * keep, c * keep))
        ys.append(h)
        cells.append(c)
    expected = [torch.stack(ys), h.unsqueeze(0), c.unsqueeze(0), torch.stack(cells)]
    own = [*inputs.leaves, *ours.parameters()]
    compare(inputs.call(ours), expected, own, [*other, *cell.parameters()])


@pytest.mark.parametrize(
    "case",
    [
        Case(7, 5, 4, 9),
        Case(8, 6, 4, 17, num_layers=2, bidirectional=True, batch_first=True),
        Case(9, 33, 4, 40, bidirectional=True, hx=False),
    ],
    ids=str,
)
def test_lengths_are_those_of_a_packed_sequence(case: Case) -> None:
    ours, theirs = modules(case, torch.float64)
    inputs = Inputs(case, torch.float64, "lengths")
    lengths = inputs.options["lengths"].clamp_(min=1)
    order = {"batch_first": case.batch_first}
    x = torch.randn_like(inputs.leaves[0]).requires_grad_()
    inputs.leaves[0] = x
    other = [t.detach().clone().requires_grad_() for t in inputs.leaves]
    packed = pack_padded_sequence(other[0], lengths, enforce_sorted=False, **order)
    y, hs = theirs(packed, tuple(other[1:]) or None)
    y, _ = pad_packed_sequence(y, total_length=case.T, **order)
    own = [*inputs.leaves, *ours.parameters()]
    compare(inputs.call(ours), [y, *hs], own, [*other, *theirs.parameters()])


def test_resets_are_those_of_sequences_split_there() -> None:
    case = Case(11, 1, 3, 21, bidirectional=True, hx=False)
    ours, _ = modules(case, torch.float64)
    x = torch.randn(case.T, 1, case.I, dtype=torch.float64)
    reset = torch.zeros(case.T, 1, dtype=torch.bool)
    reset[[0, 4, 5]] = True
    y, _ = ours(x, reset=reset)
    forward = torch.cat([ours(part)[0] for part in x.split([4, 1, 6])])[..., : case.H]
    assert error(y[..., : case.H], forward) < OUTPUT_TOLERANCE[torch.float64]
    # In reverse the state is cleared before steps 5, 4 and 0: what follows starts anew.
    reverse = torch.cat([ours(part)[0] for part in x.split([1, 4, 1, 5])])[..., case.H :]
    assert error(y[..., case.H :], reverse) < OUTPUT_TOLERANCE[torch.float64]


def test_a_reset_at_the_first_step_drops_the_initial_state() -> None:
    lstm = fused_lstm.LSTM(3, 5)
    x = torch.randn(4, 2, 3)
    h0, c0 = torch.randn(2, 1, 2, 5).unbind(0)
    h0.requires_grad_(), c0.requires_grad_()
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[0, 1] = True
    y, _ = lstm(x, (h0, c0), reset=reset)
    assert error(y[:, 1], lstm(x[:, 1:])[0][:, 0]) < OUTPUT_TOLERANCE[torch.float32]
    for grad in torch.autograd.grad(y.sum(), (h0, c0)):
        assert grad[0, 0].all()
        assert not grad[0, 1].any()


def test_rows_without_a_step_keep_the_initial_state() -> None:
    lstm = fused_lstm.LSTM(3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(4, 3, 3)
    hx = (torch.randn(4, 3, 5).requires_grad_(), torch.randn(4, 3, 5).requires_grad_())
    y, (h_n, c_n), cells = lstm(x, hx, lengths=torch.tensor([2, 0, 4]), return_cells=True)
    assert torch.equal(h_n[:, 1], hx[0][:, 1])
    assert torch.equal(c_n[:, 1], hx[1][:, 1])
    assert not y[:, 1].any()
    assert not cells[:, 1].any()
    assert torch.equal(cells[3, 2, :5], c_n[2, 2])
    assert torch.equal(cells[0, 2, 5:], c_n[3, 2])
    for grad in torch.autograd.grad([h_n, c_n], hx, [torch.ones_like(h_n)] * 2):
        assert torch.equal(grad[:, 1], torch.ones(4, 5))
    y, (h_n, _) = lstm(x, lengths=torch.zeros(3, dtype=torch.int64))
    assert not y.any()
    assert not h_n.any()


@pytest.mark.parametrize("wanted", ["reset lengths", "reset lengths cells"])
@pytest.mark.parametrize(
    "case",
    [Case(3, 2, 2, 3), Case(3, 3, 2, 2, num_layers=2, bidirectional=True, batch_first=True)],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(case: Case, wanted: str) -> None:
    ours, _ = modules(case, torch.float64)
    inputs = Inputs(case, torch.float64, wanted)
    inputs.leaves[0] = torch.randn_like(inputs.leaves[0]).requires_grad_()
    names = [name for name, _ in ours.named_parameters()]

    def run(*leaves: Tensor) -> list[Tensor]:
        x, h0, c0, *weights = leaves
        y, hs, *cells = torch.func.functional_call(
            ours, dict(zip(names, weights, strict=True)), (x, (h0, c0)), inputs.options
        )
        return [y, *hs, *cells]

    leaves = [*inputs.leaves, *(p.detach().clone().requires_grad_() for p in ours.parameters())]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("case", [Case(9, 40, 12, 70), Case(6, 4, 40, 200, bidirectional=True)])
def test_any_number_of_threads(case: Case) -> None:
    ours, _ = modules(case, torch.float32)
    inputs = Inputs(case, torch.float32, "reset lengths cells")
    own = [*inputs.leaves, *ours.parameters()]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs = inputs.call(ours)
            grads = torch.autograd.grad(outputs, own, [torch.ones_like(t) for t in outputs])
            results.append([*outputs, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert error(a, b) < GRADIENT_TOLERANCE[torch.float32]


def test_unbatched_input() -> None:
    lstm = fused_lstm.LSTM(3, 5, bidirectional=True, batch_first=True)
    x, reset = torch.randn(6, 3), torch.rand(6) < 0.3
    options = {"reset": reset, "lengths": torch.tensor(4)}
    y, (h_n, c_n), cells = lstm(x, return_cells=True, **options)
    options = {"reset": reset.unsqueeze(0), "lengths": torch.tensor([4])}
    batched, (h, c), own = lstm(x.unsqueeze(0), return_cells=True, **options)
    assert torch.equal(y, batched[0])
    assert torch.equal(cells, own[0])
    assert torch.equal(h_n, h[:, 0])
    assert torch.equal(c_n, c[:, 0])


def test_a_call_without_options_is_what_it_was() -> None:
    lstm = fused_lstm.LSTM(3, 5, num_layers=2)
    x = torch.randn(4, 2, 3)
    with Operators() as plain:
        y, _ = lstm(x)
        y.sum().backward()
    assert plain.names == ["forward"] * 2 + ["backward"] * 2
    with Operators() as marked:
        same, _ = lstm(x, reset=torch.zeros(4, 2, dtype=torch.bool))
        same.sum().backward()
    assert marked.names == ["marked_forward"] * 2 + ["marked_backward"] * 2
    assert torch.equal(y, same)
