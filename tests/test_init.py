"""First values of the forget gate: added where they belong, and nothing else is touched."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fused_lstm
from fused_lstm.init import chrono_, forget_bias_

H = 64
OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 3}
MAKERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: fused_lstm.LSTM(3, H, **OPTIONS),
    lambda: nn.LSTM(3, H, **OPTIONS),
    lambda: fused_lstm.LSTMCell(3, H),
    lambda: nn.LSTMCell(3, H),
    lambda: nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"inner": fused_lstm.LSTM(3, H)})),
    lambda: nn.ModuleList([nn.GRU(3, H), nn.LSTM(3, H)]),
)


def changes(model: nn.Module, function: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """Old and new values of the parameters that a function changes."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert function(model) is model
    after = dict(model.named_parameters())
    assert all(p.requires_grad for p in after.values())
    return {n: (t, after[n]) for n, t in before.items() if not torch.equal(t, after[n])}


@pytest.mark.parametrize("make", MAKERS)
def test_the_forget_gate_alone_is_raised(make: Callable[[], nn.Module]) -> None:
    model = make()
    found = changes(model, lambda m: forget_bias_(m, 1.5))
    lstms = [p for p in model.modules() if "LSTM" in type(p).__name__]
    names = {n for p in lstms for n, _ in p.named_parameters() if "bias_ih" in n}
    assert {name.rpartition(".")[2] for name in found} == names
    for old, new in found.values():
        raised = old.clone()
        raised[H : 2 * H] += 1.5
        assert torch.equal(new, raised)


@pytest.mark.parametrize("make", MAKERS)
def test_memories_of_all_lengths(make: Callable[[], nn.Module]) -> None:
    model = make()
    found = changes(model, lambda m: chrono_(m, 100))
    lstms = [p for p in model.modules() if "LSTM" in type(p).__name__]
    names = {n for p in lstms for n, _ in p.named_parameters() if "bias" in n}
    assert {name.rpartition(".")[2] for name in found} == names
    for name, (_, new) in found.items():
        i, f, g, o = new.detach().chunk(4)
        assert not g.any()
        assert not o.any()
        assert torch.equal(i, -f)
        if "bias_hh" in name:
            assert not f.any()
        else:
            assert 0 <= f.min() < math.log(20)  # of 64 units some are short, some are long
            assert math.log(80) < f.max() <= math.log(99)


def test_what_is_tied_is_raised_once() -> None:
    first, second = nn.LSTM(3, H), nn.LSTM(3, H)
    second.bias_ih_l0 = first.bias_ih_l0
    expected = first.bias_ih_l0.detach()[H : 2 * H] + 1
    forget_bias_(nn.ModuleList([first, second, first]))
    assert torch.equal(first.bias_ih_l0[H : 2 * H], expected)


@pytest.mark.parametrize(
    ("message", "kind", "call"),
    [
        ("expected a torch.nn.Module, got list", TypeError, lambda: forget_bias_([])),  # type: ignore[type-var]
        ("or a model with one, got GRU", TypeError, lambda: forget_bias_(nn.GRU(2, 3))),
        (
            "1 has bias=False",
            ValueError,
            lambda: chrono_(nn.ModuleList([nn.LSTM(2, 3), nn.LSTM(2, 3, bias=False)]), 9),
        ),
        ("steps: expected at least 3, got 2", ValueError, lambda: chrono_(nn.LSTM(2, 3), 2)),
    ],
)
def test_what_is_refused(message: str, kind: type[Exception], call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=message):
        call()
