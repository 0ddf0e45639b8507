"""Weights from elsewhere: each format against its own published equations, in NumPy.

tests/weight_cells.py has those equations. tests/test_weights_frameworks.py compares with Keras and
ONNX Runtime themselves.
"""

from typing import Any

import numpy as np
import pytest
import torch
from cases import OUTPUT_TOLERANCE, error
from torch import nn
from weight_cells import (
    DTYPES,
    Array,
    B,
    H,
    I,
    T,
    draw,
    flashrnn_layer,
    flashrnn_step,
    haste_step,
    keras_arrays,
    keras_step,
    onnx_layer,
    onnx_sides,
    random_lstm,
    run,
    tf1_cell,
    tf1_step,
)

import fused_lstm
from fused_lstm import weights


def assert_computes(lstm: nn.Module, x: Array, expected: Array, hx: Any = None) -> None:
    """The LSTM gives what NumPy computed, in its own dtype and within its tolerance."""
    own = torch.from_numpy(x).to(next(lstm.parameters()).dtype)
    if not lstm.batch_first:
        own = own.transpose(0, 1)
    with torch.no_grad():
        y, _ = lstm(own, hx)
    y = y if lstm.batch_first else y.transpose(0, 1)
    assert error(y, torch.from_numpy(expected)) <= OUTPUT_TOLERANCE[y.dtype]


# From elsewhere


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 2.5])
def test_from_tf1(forget_bias: float, dtype: Any) -> None:
    cells = [tf1_cell(I, dtype), tf1_cell(H, dtype), tf1_cell(H, dtype)]
    lstm = weights.from_tf1(cells, forget_bias=forget_bias)
    assert (lstm.num_layers, lstm.weight_ih_l0.dtype) == (3, DTYPES[dtype])
    x = draw(B, T, I, dtype=dtype)
    assert_computes(lstm, x, run([[tf1_step(*cell, forget_bias)] for cell in cells], x))
    one = weights.from_tf1(cells[0], forget_bias=forget_bias, batch_first=False)
    assert_computes(one, x, run([[tf1_step(*cells[0], forget_bias)]], x))


def test_from_tf1_by_the_names_of_a_checkpoint() -> None:
    cells = [tf1_cell(I), tf1_cell(H)]
    names = {"dense/kernel": draw(3, 4), "dense/bias": draw(4), "global_step": np.array(7)}
    for k in (1, 0):
        path = f"model/rnn/multi_rnn_cell/cell_{k}/basic_lstm_cell"
        names |= {f"{path}/kernel": cells[k].kernel, f"{path}/bias:0": cells[k].bias}
        names[f"{path}/kernel/Adam_1"] = draw(2, 2)
    x = draw(B, T, I)
    assert_computes(weights.from_tf1(names), x, run([[tf1_step(*cell)] for cell in cells], x))
    oldest = {
        "rnn/basic_lstm_cell/weights": cells[0].kernel,
        "rnn/basic_lstm_cell/biases": cells[0].bias,
    }
    assert_computes(weights.from_tf1(oldest), x, run([[tf1_step(*cells[0])]], x))


def test_from_tf1_of_two_directions() -> None:
    cells = [[tf1_cell(I), tf1_cell(I)], [tf1_cell(2 * H), tf1_cell(2 * H)]]
    x = draw(B, T, I)
    expected = run([[tf1_step(*cell) for cell in pair] for pair in cells], x)
    assert_computes(weights.from_tf1(cells), x, expected)
    names = {
        f"stack_bidirectional_rnn/cell_{k}/bidirectional_rnn/{d}/lstm_cell/{kind}": value
        for k, pair in enumerate(cells)
        for d, cell in zip(("fw", "bw"), pair, strict=True)
        for kind, value in cell._asdict().items()
    }
    assert_computes(weights.from_tf1(names), x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_from_keras(directions: int, use_bias: bool, dtype: Any) -> None:
    layers = []
    for features in (I, directions * H):
        sides = [keras_arrays(features, dtype)[: 3 if use_bias else 2] for _ in range(directions)]
        layers.append([array for side in sides for array in side])
    each = 3 if use_bias else 2
    steps = [
        [keras_step(*arrays[k : k + each]) for k in range(0, len(arrays), each)]
        for arrays in layers
    ]
    lstm, x = weights.from_keras(layers), draw(B, T, I, dtype=dtype)
    assert (lstm.bias, lstm.bidirectional) == (use_bias, directions == 2)
    assert_computes(lstm, x, run(steps, x))
    assert_computes(weights.from_keras(layers[0]), x, run(steps[:1], x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("directions", [1, 2])
def test_from_onnx(directions: int, layout: int, dtype: Any) -> None:
    layers = [
        onnx_layer(I, directions, dtype, layout=layout),
        onnx_layer(
            directions * H,
            directions,
            dtype,
            layout=layout,
            activations=["Sigmoid", "Tanh", "Tanh"] * directions,
        ),
    ]
    lstm, hx = weights.from_onnx(layers)
    assert hx is None
    assert lstm.batch_first is (layout == 1)
    x = draw(B, T, I, dtype=dtype)
    assert_computes(lstm, x, run([onnx_sides(layer) for layer in layers], x))
    bare = layers[0]._replace(B=None)
    assert_computes(weights.from_onnx(bare)[0], x, run([onnx_sides(bare)], x))


@pytest.mark.parametrize("layout", [0, 1])
def test_initial_states_of_onnx(layout: int) -> None:
    """Given for one layer only: the other begins with zeros."""
    h, c = draw(2, B, H), draw(2, B, H)
    own = (h, c) if layout == 0 else (h.swapaxes(0, 1), c.swapaxes(0, 1))
    given = {"initial_h": own[0], "initial_c": own[1]}
    layers = [onnx_layer(I, 2, layout=layout, **given), onnx_layer(2 * H, 2, layout=layout)]
    lstm, hx = weights.from_onnx(layers)
    x = draw(B, T, I)
    states = [(h[0], c[0]), (h[1], c[1])]
    assert_computes(lstm, x, run([onnx_sides(layer) for layer in layers], x, states), hx)


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_haste(dtype: Any) -> None:
    layers = [keras_arrays(I, dtype), keras_arrays(H, dtype)]
    names = ("kernel", "recurrent_kernel", "bias")
    entries = [
        {n: torch.from_numpy(a) for n, a in zip(names, arrays, strict=True)} for arrays in layers
    ]
    x = draw(B, T, I, dtype=dtype)
    expected = run([[haste_step(*arrays)] for arrays in layers], x)
    assert_computes(weights.from_haste(entries), x, expected)
    module = nn.Module()  # with the attributes of haste_pytorch.LSTM
    for name, value in entries[0].items():
        setattr(module, name, nn.Parameter(value))
    module.zoneout, module.batch_first = 0.0, True
    lstm = weights.from_haste(module)
    assert lstm.batch_first
    assert_computes(lstm, x, run([[haste_step(*layers[0])]], x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_from_flashrnn(heads: int, dtype: Any) -> None:
    layers = [flashrnn_layer(I, heads, dtype), flashrnn_layer(H, heads, dtype)]
    x = draw(B, T, I, dtype=dtype)
    lstm = weights.from_flashrnn(layers)
    assert_computes(lstm, x, run([[flashrnn_step(*layer)] for layer in layers], x))
    bare = layers[0]._replace(w_bias=None)
    assert_computes(weights.from_flashrnn(bare), x, run([[flashrnn_step(*bare)]], x))


# To elsewhere: an LSTM whose two biases differ, computed by each format's equations


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_to_each(directions: int, bias: bool) -> None:
    both = directions == 2
    lstm = random_lstm(num_layers=2, bias=bias, bidirectional=both)
    x = draw(B, T, I)
    tf1 = weights.to_tf1(lstm, forget_bias=0.75)
    pairs = [layer if both else [layer] for layer in tf1]
    assert_computes(lstm, x, run([[tf1_step(*cell, 0.75) for cell in pair] for pair in pairs], x))
    each, keras = (3 if bias else 2), weights.to_keras(lstm)
    sides = [[keras_step(*a[k : k + each]) for k in range(0, len(a), each)] for a in keras]
    assert_computes(lstm, x, run(sides, x))
    onnx = weights.to_onnx(lstm)
    assert (onnx[0].layout, onnx[0].hidden_size) == (1, H)
    assert_computes(lstm, x, run([onnx_sides(layer) for layer in onnx], x))
    if both:
        return
    haste = weights.to_haste(lstm)
    assert_computes(
        lstm, x, run([[haste_step(*(t.numpy() for t in d.values()))] for d in haste], x)
    )
    flashrnn = weights.to_flashrnn(lstm, 1)
    arrays = [[t.numpy() for t in layer[:3]] for layer in flashrnn]
    assert_computes(lstm, x, run([[flashrnn_step(*layer)] for layer in arrays], x))


def equal(a: Any, b: Any) -> bool:
    """To the bit, through lists, tuples and dicts."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if a is None or isinstance(a, str | int):
        return bool(a == b)
    return np.array_equal(np.asarray(a), np.asarray(b)) and a.dtype == b.dtype


def test_there_and_back_is_the_same_to_the_bit() -> None:
    """Also a bias of 1e-12, which 1.0 + 1e-12 - 1.0 would lose in float32."""
    cell = tf1_cell(I, np.float32)
    cell.bias[:] *= 1e-12
    assert equal(weights.to_tf1(weights.from_tf1(cell)), [cell])
    for arrays in (keras_arrays(I, np.float32), keras_arrays(I)[:2], keras_arrays(I) * 2):
        assert equal(weights.to_keras(weights.from_keras(arrays)), [arrays])
    layer = onnx_layer(I, 2, np.float32, hidden_size=H)
    assert equal(weights.to_onnx(weights.from_onnx(layer)[0]), [layer])
    haste = weights.to_haste(random_lstm(num_layers=2, dtype=torch.float32))
    assert equal(weights.to_haste(weights.from_haste(haste)), haste)
    heads = flashrnn_layer(I, 4, np.float32)
    back = weights.to_flashrnn(weights.from_flashrnn(heads._replace(w_bias=None)), 4)
    assert equal([t.numpy() for t in back[0][:3]], list(heads[:3]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_of_torch(dtype: torch.dtype) -> None:
    lstm = random_lstm(dtype=dtype)
    again = weights.from_haste(weights.to_haste(lstm), batch_first=True)
    assert again.weight_hh_l0.dtype is dtype
    x = torch.randn(B, T, I).to(dtype)
    assert error(again(x)[0], lstm(x)[0]) <= OUTPUT_TOLERANCE[dtype]
    if dtype is torch.bfloat16:
        with pytest.raises(TypeError, match="NumPy has no bfloat16"):
            weights.to_keras(lstm)
    else:
        assert weights.to_keras(lstm)[0][0].dtype == np.float16


def test_no_random_numbers_are_drawn_and_nothing_is_shared() -> None:
    arrays = keras_arrays(I)
    before = torch.get_rng_state()
    lstm = weights.from_keras(arrays)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad for p in lstm.parameters())
    kept = lstm.weight_hh_l0.clone()
    arrays[1][:] = 0
    assert torch.equal(lstm.weight_hh_l0, kept)
    weights.to_keras(lstm)[0][1][:] = 0
    assert torch.equal(lstm.weight_hh_l0, kept)


def test_an_nn_lstm_goes_elsewhere_too() -> None:
    theirs = nn.LSTM(I, H)
    ours = fused_lstm.LSTM(I, H)
    ours.load_state_dict(theirs.state_dict())
    assert equal(weights.to_tf1(theirs), weights.to_tf1(ours))
