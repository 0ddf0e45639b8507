"""What comes out: values, layouts, memory, and the odd inputs that torch.nn.LSTM also takes."""

import pytest
import torch
from cases import (
    ALL_CASES,
    DTYPES,
    OUTPUT_TOLERANCE,
    VALUES,
    Case,
    arguments,
    call,
    copies,
    error,
    modules,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm


@pytest.mark.parametrize(("case", "dtype"), VALUES, ids=str)
def test_values(case: Case, dtype: torch.dtype) -> None:
    ours, exact = modules(case, dtype, torch.float64)
    leaves = arguments(case, dtype)
    expected = call(exact, case, copies(leaves, torch.float64))
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            results = call(ours, case, leaves)
        for name, actual, right in zip(("output", "h_n", "c_n"), results, expected, strict=True):
            assert actual.dtype is dtype
            assert error(actual, right) <= OUTPUT_TOLERANCE[dtype], (name, context)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_strides_are_those_of_nn_lstm(case: Case, grad: bool) -> None:
    ours, theirs = modules(case, torch.float32)
    leaves = arguments(case, torch.float32)
    with torch.set_grad_enabled(grad):
        for a, b in zip(call(ours, case, leaves), call(theirs, case, leaves), strict=True):
            assert a.stride() == b.stride() or min(a.shape) == 1
            assert a.is_contiguous() == b.is_contiguous()


@pytest.mark.parametrize("proj_size", [0, 2])
def test_the_fused_operator_computes_it(proj_size: int) -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    lstm = fused_lstm.LSTM(3, 5, num_layers=2, proj_size=proj_size)
    with Names():
        lstm(torch.randn(4, 2, 3))[0].sum().backward()
    assert seen.count("fused_lstm.forward.default") == 2
    assert seen.count("fused_lstm.backward.default") == 2
    assert not any("lstm" in name for name in seen if not name.startswith("fused_lstm"))


def test_layouts_of_x() -> None:
    lstm = fused_lstm.LSTM(5, 9)
    x = torch.randn(7, 3, 5)
    expected, _ = lstm(x)
    wide = torch.randn(7, 3, 11)
    wide[..., ::2][..., :5] = x
    for same in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        wide[..., ::2][..., :5],
        torch.cat([x, x], dim=2)[..., :5],
    ):
        assert torch.equal(same, x)
        assert torch.equal(lstm(same)[0], expected)
    row = torch.randn(7, 1, 5)
    assert torch.equal(lstm(row.expand(7, 3, 5))[0], lstm(row.expand(7, 3, 5).contiguous())[0])
    step = torch.randn(1, 3, 5)
    assert torch.equal(lstm(step.expand(7, 3, 5))[0], lstm(step.expand(7, 3, 5).contiguous())[0])


def test_batch_first_is_read_and_written_without_a_copy() -> None:
    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func is not torch.ops.aten.clone.default, "a copy"
            assert func is not torch.ops.aten.copy_.default, "a copy"
            return func(*args, **(kwargs or {}))

    lstm = fused_lstm.LSTM(5, 9, batch_first=True)
    with torch.no_grad(), Copies():
        output, _ = lstm(torch.randn(3, 7, 5))
    assert output.stride() == (9, 3 * 9, 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype: torch.dtype, bidirectional: bool) -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=bidirectional, dtype=dtype)
    x = torch.randn(5, 0, 4, dtype=dtype, requires_grad=True)
    d = 2 if bidirectional else 1
    output, (h_n, c_n) = lstm(x)
    assert output.shape == (5, 0, d * 7)
    assert h_n.shape == c_n.shape == (2 * d, 0, 7)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for p in lstm.parameters():
        assert p.grad is not None
        assert not p.grad.any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(batch_first: bool) -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=True, batch_first=batch_first)
    x, h0, c0 = torch.randn(5, 4), torch.randn(4, 7), torch.randn(4, 7)
    dim = 0 if batch_first else 1
    for hx, state in ((None, None), ((h0, c0), (h0.unsqueeze(1), c0.unsqueeze(1)))):
        output, (h_n, c_n) = lstm(x, hx)
        batched, (h, c) = lstm(x.unsqueeze(dim), state)
        assert torch.equal(output, batched.squeeze(dim))
        assert torch.equal(h_n, h.squeeze(1))
        assert torch.equal(c_n, c.squeeze(1))


def test_hx_may_be_a_list_a_keyword_and_strided() -> None:
    lstm = fused_lstm.LSTM(4, 7)
    x, h0, c0 = torch.randn(5, 3, 4), torch.randn(1, 3, 7), torch.randn(1, 3, 7)
    expected, _ = lstm(x, (h0, c0))
    assert torch.equal(lstm(x, [h0, c0])[0], expected)
    assert torch.equal(lstm(x, hx=(h0, c0))[0], expected)
    assert torch.equal(lstm(input=x, hx=(h0, c0))[0], expected)
    strided = tuple(t.repeat_interleave(2, 2)[..., ::2] for t in (h0, c0))
    assert torch.equal(lstm(x, strided)[0], expected)
    one = torch.randn(1, 1, 7)
    expanded = (one.expand(1, 3, 7), one.expand(1, 3, 7))
    assert torch.equal(lstm(x, expanded)[0], lstm(x, [t.contiguous() for t in expanded])[0])


def test_results_share_no_memory() -> None:
    for T, layers in ((1, 1), (4, 1), (4, 2)):
        lstm = fused_lstm.LSTM(4, 7, layers)
        x = torch.randn(T, 3, 4)
        hx = (torch.randn(layers, 3, 7), torch.randn(layers, 3, 7))
        before = [x.clone(), *(t.clone() for t in hx)]
        with torch.no_grad():
            output, (h_n, c_n) = lstm(x, hx)
            for changed in (output, h_n, c_n):
                others = [t for t in (output, h_n, c_n) if t is not changed]
                values = [t.clone() for t in others]
                changed.fill_(9)
                assert all(torch.equal(a, b) for a, b in zip(others, values, strict=True))
        assert all(torch.equal(a, b) for a, b in zip((x, *hx), before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype) -> None:
    lstm = fused_lstm.LSTM(28, 100, bidirectional=True, dtype=dtype)
    x = torch.randn(13, 50, 28, dtype=dtype)
    first = lstm(x)[0]
    assert all(torch.equal(lstm(x)[0], first) for _ in range(5))
    with torch.no_grad():
        assert error(lstm(x)[0], first) <= OUTPUT_TOLERANCE[dtype]


# NaN and Inf --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
def test_non_finite_values_appear_where_nn_lstm_has_them(where: str, value: float) -> None:
    case = Case(5, 4, 3, 9, bidirectional=True)
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    with torch.no_grad():
        for module in (ours, theirs):
            if where in dict(module.named_parameters()):
                module.get_parameter(where).view(-1)[1] = value
        if where in ("x", "h0", "c0"):
            leaf = leaves[("x", "h0", "c0").index(where)]
            leaf.select(1, 1).select(0, 0)[0] = value
    for a, b in zip(call(ours, case, leaves), call(theirs, case, leaves), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


def test_a_nan_stays_in_its_row() -> None:
    lstm = fused_lstm.LSTM(4, 9)
    x = torch.randn(5, 6, 4)
    x[2, 3, 1] = float("nan")
    output, (h_n, c_n) = lstm(x)
    rows = output.isnan().any(2)
    assert rows[2:, 3].all()
    assert int(rows.sum()) == 3
    assert (
        h_n.isnan().any(2).nonzero().tolist() == c_n.isnan().any(2).nonzero().tolist() == [[0, 3]]
    )


def test_an_inf_in_x_saturates_the_gates() -> None:
    lstm = fused_lstm.LSTM(4, 9)
    x = torch.randn(5, 6, 4)
    x[2, 3, 1] = float("inf")
    assert lstm(x)[0].isfinite().all()


def test_denormals_are_kept() -> None:
    lstm = fused_lstm.LSTM(1, 8, bias=False)
    with torch.no_grad():
        for p in lstm.parameters():
            p.zero_()
    c0 = torch.full((1, 1, 8), 1e-39)
    _, (_, c_n) = lstm(torch.zeros(1, 1, 1), (torch.zeros(1, 1, 8), c0))
    assert torch.equal(c_n, 0.5 * c0)
    assert (c_n > 0).all()


# Dropout ------------------------------------------------------------------------------------------


def test_dropout_has_the_masks_of_nn_lstm() -> None:
    case = Case(7, 5, 4, 9, num_layers=3, bidirectional=True)
    ours, theirs = modules(case, torch.float64)
    ours.dropout = theirs.dropout = 0.4
    x = torch.randn(7, 5, 4, dtype=torch.float64)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(module(x)[0])
    assert error(*outputs) <= OUTPUT_TOLERANCE[torch.float64]


def test_dropout_is_fresh_seeded_and_off_in_eval() -> None:
    lstm = fused_lstm.LSTM(4, 9, 2, dropout=0.5)
    x = torch.randn(7, 5, 4)
    torch.manual_seed(1)
    first = lstm(x)[0]
    assert not torch.equal(lstm(x)[0], first)
    torch.manual_seed(1)
    assert torch.equal(lstm(x)[0], first)
    lstm.eval()
    state = torch.get_rng_state()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_inverted_and_elementwise() -> None:
    # A second layer that passes its input through, so that zeros show what was dropped.
    lstm = fused_lstm.LSTM(1, 1, 2, dropout=0.25)
    with torch.no_grad():
        for p in lstm.parameters():
            p.zero_()
        lstm.bias_ih_l0.copy_(torch.tensor([50.0, -50.0, 50.0, 50.0]))  # layer 0: h = tanh(1)
        lstm.weight_ih_l1.copy_(torch.tensor([[0.0], [0.0], [1.0], [0.0]]))
        lstm.bias_ih_l1.copy_(torch.tensor([50.0, -50.0, 0.0, 50.0]))  # layer 1: tanh(tanh(x))
    output = lstm(torch.zeros(100, 100, 1))[0]
    kept = output.abs() > 1e-6  # a dropped step leaves about 1e-22 of the one before
    assert abs(float(kept.double().mean()) - 0.75) < 0.02  # 10^4 draws: 4.6 standard deviations
    scaled = torch.tensor(1.0).tanh() / 0.75
    assert error(output[kept], torch.full_like(output[kept], float(scaled.tanh().tanh()))) < 1e-6
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[:, 0], kept[:, 1])


def test_dropout_of_everything_gives_zeros_to_the_next_layer() -> None:
    lstm = fused_lstm.LSTM(4, 9, 2, dropout=1.0)
    x = torch.randn(7, 5, 4)
    zeros, _ = fused_lstm.functional.lstm(torch.zeros(7, 5, 9), None, lstm.all_weights[1])
    assert torch.equal(lstm(x)[0], zeros)


# The cell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_cell(dtype: torch.dtype, bias: bool) -> None:
    for rows, features, hidden in ((1, 1, 1), (3, 5, 8), (7, 28, 100), (2, 3, 33)):
        ours = fused_lstm.LSTMCell(features, hidden, bias, dtype=dtype)
        exact = nn.LSTMCell(features, hidden, bias, dtype=torch.float64)
        exact.load_state_dict(ours.state_dict())
        x = torch.randn(rows, features, dtype=dtype)
        hx = (torch.randn(rows, hidden, dtype=dtype), torch.randn(rows, hidden, dtype=dtype))
        for state in (None, hx, list(hx)):
            precise = None if state is None else tuple(t.double() for t in state)
            results = ours(x, state)
            for a, b in zip(results, exact(x.double(), precise), strict=True):
                assert error(a, b) <= OUTPUT_TOLERANCE[dtype]
        one = ours(x[0], (hx[0][0], hx[1][0]))
        for a, b in zip(one, ours(x[:1], (hx[0][:1], hx[1][:1])), strict=True):
            assert torch.equal(a, b[0])


def test_cell_of_sizes_that_only_torch_computes() -> None:
    for rows, features, hidden in ((0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)):
        ours, theirs = fused_lstm.LSTMCell(features, hidden), nn.LSTMCell(features, hidden)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(rows, features)
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert a.shape == b.shape
            assert error(a, b) <= OUTPUT_TOLERANCE[torch.float32]


def test_the_function_is_the_module() -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 5, 4)
    y, _ = fused_lstm.lstm(
        x, None, list(lstm.parameters()), num_layers=2, bidirectional=True, batch_first=True
    )
    assert torch.equal(y, lstm(x)[0])
