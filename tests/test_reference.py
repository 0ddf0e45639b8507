"""reference.py is the specification, so it is held to torch.nn.LSTM before it tests anything."""

import pytest
import torch
from cases import ALL_CASES, GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, Case, arguments, copies, error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fused_lstm import reference


def run(module: nn.LSTM, case: Case, leaves: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """(output, h_n, c_n) of nn.LSTM and of the reference, from the same arguments."""
    hx = tuple(leaves[-2:]) if case.hx else None
    inputs = leaves[:-2] if case.hx else leaves
    options = {**case.options, "training": False}
    weights = [getattr(module, name) for name in module._flat_weights_names]
    if not case.lengths:
        theirs, state = module(inputs[0], hx)
        ours, own_state = reference.lstm(inputs[0], hx, weights, **options)
        return [(theirs, *state), (ours, *own_state)]
    packed = pack_sequence(inputs, enforce_sorted=False)
    theirs, state = module(packed, hx)
    assert isinstance(theirs, PackedSequence)
    if hx is not None:  # the reference takes rows in the order of the packed data
        hx = tuple(t.index_select(1, packed.sorted_indices) for t in hx)
    ours, own_state = reference.lstm(
        packed.data, hx, weights, batch_sizes=packed.batch_sizes, **options
    )
    own_state = tuple(t.index_select(1, packed.unsorted_indices) for t in own_state)
    return [(theirs.data, *state), (ours, *own_state)]


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_equals_nn_lstm_in_float64(case: Case) -> None:
    module = nn.LSTM(case.I, case.H, dtype=torch.float64, **case.options)
    leaves = arguments(case, torch.float64)
    results = run(module, case, leaves)
    weights = [torch.randn_like(t) for t in results[0]]
    wanted = [*leaves, *module.parameters()]
    for theirs, ours in zip(*results, strict=True):
        assert error(ours, theirs) <= OUTPUT_TOLERANCE[torch.float64]
    grads = [torch.autograd.grad(r, wanted, weights, retain_graph=True) for r in results]
    for theirs, ours in zip(*grads, strict=True):
        assert error(ours, theirs) <= GRADIENT_TOLERANCE[torch.float64]


def test_a_cell_is_nn_lstmcell() -> None:
    cell = nn.LSTMCell(4, 7, dtype=torch.float64)
    x, h, c = (torch.randn(3, n, dtype=torch.float64) for n in (4, 7, 7))
    ours = reference.lstm_cell(x, h, c, *cell.parameters())
    for a, b in zip(ours, cell(x, (h, c)), strict=True):
        assert error(a, b) <= OUTPUT_TOLERANCE[torch.float64]


def test_dropout_acts_between_layers_while_training_only() -> None:
    module = nn.LSTM(4, 7, num_layers=2, dropout=1.0, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    weights = list(module.parameters())
    for training in (True, False):
        expected, _ = module.train(training)(x)
        y, _ = reference.lstm(x, None, weights, num_layers=2, dropout=1.0, training=training)
        assert error(y, expected) <= OUTPUT_TOLERANCE[torch.float64]


def test_is_differentiable_twice() -> None:
    case = Case(3, 2, 2, 3, bidirectional=True)
    module = nn.LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    leaves = copies(arguments(case, torch.float64))
    weights = list(module.parameters())

    def f(x: Tensor, h0: Tensor, c0: Tensor) -> Tensor:
        return reference.lstm(x, (h0, c0), weights, bidirectional=True)[0]

    assert torch.autograd.gradgradcheck(f, leaves)
