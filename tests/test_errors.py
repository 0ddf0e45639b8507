"""Bad input: the error types of torch.nn.LSTM, a TypeError where it fails by accident, and messages
that name the argument, what was expected and what came.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm


def x(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*sizes, dtype=dtype)


def pair(*sizes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return x(*sizes, dtype=dtype), x(*sizes, dtype=dtype)


Call = Callable[[Any], Any]
# What is done to an LSTM(4, 7), the error, and a part of its message. nn.LSTM raises the same type.
SAME: dict[str, tuple[Call, type[Exception], str]] = {
    "features": (lambda m: m(x(5, 3, 6)), RuntimeError, "Expected 4, got 6"),
    "1-D": (lambda m: m(x(4)), ValueError, "Expected input to be 2D or 3D, got 1D"),
    "4-D": (lambda m: m(x(1, 5, 3, 4)), ValueError, "Expected input to be 2D or 3D, got 4D"),
    "0-D": (lambda m: m(torch.tensor(1.0)), ValueError, "Expected input to be 2D or 3D, got 0D"),
    "T = 0": (
        lambda m: m(x(0, 3, 4)),
        RuntimeError,
        "Expected sequence length to be larger than 0",
    ),
    "T = 0 unbatched": (lambda m: m(x(0, 4)), RuntimeError, "Expected sequence length"),
    "T = B = 0": (lambda m: m(x(0, 0, 4)), RuntimeError, "Expected sequence length"),
    "dtype": (lambda m: m(x(5, 3, 4, dtype=torch.float64)), ValueError, "torch.float64"),
    "integers": (lambda m: m(x(5, 3, 4, dtype=torch.int64)), ValueError, "torch.int64"),
    "h0 rows": (
        lambda m: m(x(5, 3, 4), (x(1, 2, 7), x(1, 3, 7))),
        RuntimeError,
        r"hidden\[0\] size \(1, 3, 7\), got \[1, 2, 7\]",
    ),
    "c0 units": (
        lambda m: m(x(5, 3, 4), (x(1, 3, 7), x(1, 3, 8))),
        RuntimeError,
        r"hidden\[1\] size \(1, 3, 7\), got \[1, 3, 8\]",
    ),
    "h0 layers": (lambda m: m(x(5, 3, 4), pair(2, 3, 7)), RuntimeError, r"\(1, 3, 7\), got \[2, 3"),
    "2-D hx": (lambda m: m(x(5, 3, 4), pair(3, 7)), RuntimeError, r"3-D but got \(2-D, 2-D\)"),
    "3-D hx": (lambda m: m(x(5, 4), pair(1, 1, 7)), RuntimeError, r"2-D but got \(3-D, 3-D\)"),
    "hx dtype": (
        lambda m: m(x(5, 3, 4), pair(1, 3, 7, dtype=torch.float64)),
        RuntimeError,
        "float64",
    ),
    "three states": (
        lambda m: m(x(5, 3, 4), (*pair(1, 3, 7), x(1, 3, 7))),
        RuntimeError,
        "two hidden states",
    ),
    "no input": (lambda m: m(), TypeError, "input"),
    "surprise": (lambda m: m(x(5, 3, 4), surprise=1), TypeError, "surprise"),
    "packed dtype": (
        lambda m: m(pack_sequence([x(5, 4, dtype=torch.float64)])),
        RuntimeError,
        "float",
    ),
    "packed features": (
        lambda m: m(pack_sequence([x(5, 6), x(3, 6)])),
        RuntimeError,
        "4",
    ),
}
# nn.LSTM raises an AttributeError or IndexError out of its depths, or no error.
ACCIDENTS: dict[str, tuple[Call, str]] = {
    "a list": (lambda m: m([[1.0]]), "input: expected a Tensor or PackedSequence, got list"),
    "None": (lambda m: m(None), "input: expected a Tensor or PackedSequence, got NoneType"),
    "an array": (lambda m: m(x(5, 3, 4).numpy()), "input: expected .* got ndarray"),
    "hx is a tensor": (lambda m: m(x(5, 3, 4), x(1, 3, 7)), "hx: expected a pair.* got Tensor"),
    "hx has one": (lambda m: m(x(5, 3, 4), (x(1, 3, 7),)), r"hx: expected a pair.* got \(Tensor\)"),
    "hx is empty": (lambda m: m(x(5, 3, 4), ()), r"hx: expected a pair.* got \(\)"),
    "hx of None": (lambda m: m(x(5, 3, 4), (None, None)), r"got \(NoneType, NoneType\)"),
    "hx of numbers": (lambda m: m(x(5, 3, 4), (0.0, 0.0)), r"got \(float, float\)"),
    "packed, hx of None": (lambda m: m(pack_sequence([x(5, 4)]), (None, None)), "NoneType"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_type_is_that_of_nn_lstm(name: str) -> None:
    action, kind, message = SAME[name]
    with pytest.raises(kind):
        action(nn.LSTM(4, 7))
    with pytest.raises(kind, match=message) as ours:
        action(fused_lstm.LSTM(4, 7))
    assert ours.type is kind


@pytest.mark.parametrize("name", ACCIDENTS)
def test_accidents_are_type_errors(name: str) -> None:
    action, message = ACCIDENTS[name]
    with pytest.raises((AttributeError, IndexError, TypeError)):
        action(nn.LSTM(4, 7))
    with pytest.raises(TypeError, match=message):
        action(fused_lstm.LSTM(4, 7))


def test_more_than_one_layer_and_direction() -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=True, batch_first=True)
    with pytest.raises(
        RuntimeError, match=r"Expected hidden\[0\] size \(4, 3, 7\), got \[2, 3, 7\]"
    ):
        lstm(x(3, 5, 4), pair(2, 3, 7))
    with pytest.raises(RuntimeError, match="Expected sequence length"):
        lstm(x(3, 0, 4))


def test_projected_states_have_two_widths() -> None:
    for make in (fused_lstm.LSTM, nn.LSTM):
        lstm = make(4, 7, proj_size=2)
        lstm(x(5, 3, 4), (x(1, 3, 2), x(1, 3, 7)))
        with pytest.raises(RuntimeError, match=r"hidden\[0\] size \(1, 3, 2\), got \[1, 3, 7\]"):
            lstm(x(5, 3, 4), pair(1, 3, 7))


def test_mixed_weights_and_devices_are_runtime_errors() -> None:
    lstm = fused_lstm.LSTM(4, 7)
    lstm.bias_hh_l0 = nn.Parameter(lstm.bias_hh_l0.detach().double())
    with pytest.raises(RuntimeError, match=r"weights\[3\]: expected torch.float32.*torch.float64"):
        lstm(x(5, 3, 4))
    lstm = fused_lstm.LSTM(4, 7)
    with pytest.raises(RuntimeError, match=r"hx\[1\]: expected .* on device 'cpu'.* got .*'meta'"):
        lstm(x(5, 3, 4), (x(1, 3, 7), torch.zeros(1, 3, 7, device="meta")))
    lstm.weight_hh_l0 = nn.Parameter(torch.zeros(28, 7, device="meta"))
    with pytest.raises(RuntimeError, match=r"weights\[1\]: expected .* got .*'meta'"):
        lstm(x(5, 3, 4))


def test_a_weight_of_the_wrong_shape_is_refused() -> None:
    for name, shape in (
        ("weight_hh_l0", (28, 6)),
        ("bias_ih_l0", (27,)),
        ("weight_ih_l0", (27, 4)),
    ):
        lstm = fused_lstm.LSTM(4, 7)
        setattr(lstm, name, nn.Parameter(torch.zeros(shape)))
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            lstm(x(5, 3, 4))


def test_every_weight_is_a_tensor_of_two_dimensions() -> None:
    x, ours = torch.randn(5, 3, 4), fused_lstm.LSTM(4, 7)
    weights: list[Any] = list(ours.parameters())
    for k, wrong in ((0, None), (3, 1.0), (2, "bias")):
        own = [*weights[:k], wrong, *weights[k + 1 :]]
        with pytest.raises(TypeError, match=rf"weights\[{k}\]: expected a Tensor, got"):
            fused_lstm.lstm(x, None, own)
    ours.register_parameter("bias_ih_l0", None)
    with pytest.raises(TypeError, match=r"weights\[2\]: expected a Tensor, got NoneType"):
        ours(x)
    with pytest.raises(ValueError, match=r"weights\[0\]: expected sizes \[4H, I\], got \[28\]"):
        fused_lstm.lstm(x, None, [torch.zeros(28), *weights[1:]])
    with pytest.raises(ValueError, match="num_layers: expected at least 1, got 0"):
        fused_lstm.lstm(x, None, [], num_layers=0)


@pytest.mark.parametrize("gone", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_cell_with_one_bias(gone: str, grad: bool) -> None:
    theirs, ours = torch.nn.LSTMCell(4, 7), fused_lstm.LSTMCell(4, 7)
    ours.load_state_dict(theirs.state_dict())
    setattr(theirs, gone, None), setattr(ours, gone, None)
    x, left = torch.randn(3, 4), "bias_hh" if gone == "bias_ih" else "bias_ih"
    with torch.set_grad_enabled(grad):
        results = ours(x), theirs(x)
    torch.testing.assert_close(results[0], results[1])
    if grad:
        for h, _ in results:
            h.sum().backward()
        torch.testing.assert_close(getattr(ours, left).grad, getattr(theirs, left).grad)


def test_the_number_of_weights_is_checked() -> None:
    weights = list(fused_lstm.LSTM(4, 7).parameters())
    with pytest.raises(ValueError, match="weights: expected 4 tensors, got 3"):
        fused_lstm.lstm(x(5, 3, 4), None, weights[:3])
    with pytest.raises(ValueError, match="weights: expected 8 tensors, got 4"):
        fused_lstm.lstm(x(5, 3, 4), None, weights, bidirectional=True)


CELL: dict[str, tuple[Call, type[Exception]]] = {
    "features": (lambda m: m(x(3, 5)), RuntimeError),
    "3-D": (lambda m: m(x(1, 3, 4)), ValueError),
    "0-D": (lambda m: m(torch.tensor(1.0)), ValueError),
    "dtype": (lambda m: m(x(3, 4, dtype=torch.float64)), RuntimeError),
    "hx dtype": (lambda m: m(x(3, 4), pair(3, 7, dtype=torch.float64)), RuntimeError),
    "hx rows": (lambda m: m(x(3, 4), pair(2, 7)), RuntimeError),
    "hx units": (lambda m: m(x(3, 4), pair(3, 6)), RuntimeError),
    "3-D hx": (lambda m: m(x(3, 4), pair(1, 3, 7)), ValueError),
    "1-D hx": (lambda m: m(x(3, 4), pair(7)), RuntimeError),
    "2-D hx": (lambda m: m(x(4), pair(1, 7)), RuntimeError),
}


@pytest.mark.parametrize("name", CELL)
def test_cell_types_are_those_of_nn_lstmcell(name: str) -> None:
    action, kind = CELL[name]
    with pytest.raises((RuntimeError, ValueError, IndexError)) as theirs:
        action(nn.LSTMCell(4, 7))
    with pytest.raises(kind):
        action(fused_lstm.LSTMCell(4, 7))
    assert theirs.type is kind


def test_cell_accidents_are_type_errors() -> None:
    cell = fused_lstm.LSTMCell(4, 7)
    for action in (lambda m: m([1.0]), lambda m: m(None), lambda m: m(x(3, 4), x(3, 7))):
        with pytest.raises(TypeError, match="expected"):
            action(cell)
