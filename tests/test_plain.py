"""The short way of a plain call, `dispatch.plain_layer`: where it is taken it is the long one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_lstm
from fused_lstm import dispatch, functional

T, B, I, H = 5, 3, 4, 6  # noqa: E741


def made(**options: Any) -> fused_lstm.LSTM:
    torch.manual_seed(3)
    return fused_lstm.LSTM(I, H, **options)


def a_state(*sizes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(*sizes).to(dtype), torch.randn(*sizes).to(dtype)


def the_long_way(lstm: fused_lstm.LSTM, x: Tensor, hx: Any) -> Any:
    weights = lstm._current_weights()
    return functional.lstm(x, hx, weights, bias=lstm.bias, batch_first=lstm.batch_first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_same_as_the_long_way(
    dtype: torch.dtype, bias: bool, batch_first: bool, given: bool
) -> None:
    lstm = made(bias=bias, batch_first=batch_first, dtype=dtype)
    x = torch.randn(B, T, I).to(dtype) if batch_first else torch.randn(T, B, I).to(dtype)
    x.requires_grad_()
    hx = a_state(1, B, H, dtype=dtype) if given else None
    assert functional.plain_lstm_layer(x, hx, lstm._current_weights(), batch_first) is not None
    results = []
    for call in (lstm, lambda *own: the_long_way(lstm, *own)):
        y, (h_n, c_n) = call(x, hx)
        grads = torch.autograd.grad((y * y).sum() + c_n.sum(), [x, *lstm.parameters()])
        results.append((y, h_n, c_n, *grads))
    for ours, wanted in zip(*results, strict=True):
        assert ours.shape == wanted.shape
        assert ours.stride() == wanted.stride()
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_is_plain_too(monkeypatch: pytest.MonkeyPatch, given: bool, bias: bool) -> None:
    torch.manual_seed(3)
    cell = fused_lstm.LSTMCell(I, H, bias=bias)
    x, hx = torch.randn(B, I), a_state(B, H) if given else None
    before = cell(x, hx)
    monkeypatch.setattr(dispatch, "_compute", None)  # the long way's
    after = cell(x, hx)
    monkeypatch.undo()
    monkeypatch.setattr(dispatch, "_plain_cell", lambda *_: None)
    for ours, plain, long in zip(before, after, cell(x, hx), strict=True):
        assert torch.equal(ours, plain)
        assert torch.equal(ours, long)


X, HX = (T, B, I), (1, B, H)


@pytest.mark.parametrize("given", [False, True])
def test_the_module_takes_it(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    lstm, x, hx = made(), torch.randn(X), a_state(*HX) if given else None
    wanted = lstm(x, hx)
    monkeypatch.setattr(functional, "lstm", None)
    got = lstm(x, hx)
    assert torch.equal(got[0], wanted[0])


def test_malformed_weights_are_not_plain() -> None:
    lstm = made()
    lstm.bias = False
    with pytest.raises(ValueError, match="weights: expected 2 tensors, got 4"):
        lstm(torch.randn(X))
    for name, sizes in (("hh", (24,)), ("ih", (24, 4, 1)), ("hh", (24, 7))):
        lstm = made()
        setattr(lstm, f"weight_{name}_l0", nn.Parameter(torch.randn(sizes)))
        weights = lstm._current_weights()
        assert functional.plain_lstm_layer(torch.randn(X), a_state(*HX), weights, False) is None


NOT_PLAIN: dict[str, tuple[Any, Any]] = {
    "no tensor": ([1.0], None),
    "unbatched": (torch.randn(T, I), None),
    "no steps": (torch.randn(0, B, I), None),
    "no rows": (torch.randn(T, 0, I), None),
    "other features": (torch.randn(T, B, I + 1), None),
    "another dtype": (torch.randn(X).double(), None),
    "an integer": (torch.ones(X, dtype=torch.int64), None),
    "a device without kernels": (torch.randn(X, device="meta"), None),
    "a list of states": (torch.randn(X), list(a_state(*HX))),
    "one state": (torch.randn(X), (torch.randn(HX),)),
    "a state of other rows": (torch.randn(X), a_state(1, B + 1, H)),
    "a state without its first dimension": (torch.randn(X), a_state(B, H)),
    "a state of another dtype": (torch.randn(X), a_state(*HX, dtype=torch.float64)),
    "no states": (torch.randn(X), (None, None)),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain(name: str) -> None:
    x, hx = NOT_PLAIN[name]
    assert functional.plain_lstm_layer(x, hx, made()._current_weights(), False) is None


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_a_weight_of_another_dtype_is_not_plain(name: str) -> None:
    lstm = made()
    setattr(lstm, name, nn.Parameter(getattr(lstm, name).detach().double()))
    assert functional.plain_lstm_layer(torch.randn(X), None, lstm._current_weights(), False) is None


def test_what_traces_transforms_or_casts_is_not_plain() -> None:
    weights, x = made()._current_weights(), torch.randn(X)
    seen = []

    def call(x: Tensor) -> Tensor:
        seen.append(functional.plain_lstm_layer(x, None, weights, False))
        return x * 1

    with torch.autocast("cpu", dtype=torch.bfloat16):
        call(x)
    torch.func.vmap(call)(x.unsqueeze(0))
    torch.func.jvp(call, (x,), (x,))
    torch.jit.trace(call, x, check_trace=False)
    assert seen
    assert all(found is None for found in seen)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2},
        {"bidirectional": True},
        {"proj_size": 2},
        {"zoneout": 0.1},
        {"recompute": True},
    ],
    ids=str,
)
def test_modules_that_are_not_plain(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the short way was asked")

    lstm = made(**options)
    monkeypatch.setattr(functional, "plain_lstm_layer", refuse)
    lstm(torch.randn(X))
    for asked in ({"reset": torch.zeros(T, B, dtype=torch.bool)}, {"return_cells": True}):
        if "proj_size" not in options:
            made()(torch.randn(X), **asked)


@pytest.mark.parametrize("units", [4, 6, 9, 20, 50])
def test_a_row_is_the_same_in_batches_of_any_size(units: int) -> None:
    """Forward's sums do not depend on how many rows a tile holds, in narrow last panels too."""
    torch.manual_seed(0)
    lstm = fused_lstm.LSTM(8, units)
    x = torch.randn(9, 24, 8)
    with torch.no_grad():
        whole = lstm(x)[0]
        for rows in (6, 7, 8, 12):
            assert torch.equal(lstm(x[:, :rows])[0], whole[:, :rows]), rows
