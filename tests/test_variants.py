"""LayerNorm, peepholes, coupled gates and clipping: against loops written from the papers.

The loops below share no line with the package. Ba et al. (2016), arXiv:1607.06450, supplement,
equations 20-22; Graves (2013), arXiv:1308.0850, equations 7-11; Greff et al. (2017),
arXiv:1503.04069, CIFG; TensorFlow's LSTMCell for the order of clipping.
"""

import copy
import io
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, REFUSAL, Case, Operators, error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

import fused_lstm
from fused_lstm import VariantLSTM, reference

DTYPES = (torch.float64, torch.float32)
CASES = (
    Case(
        1, 1, 2, 9
    ),  # LayerNorm of fewer units magnifies rounding: tests/native/test_recurrence.cpp
    Case(6, 4, 3, 7),
    Case(7, 5, 4, 17, hx=False),
    Case(9, 13, 5, 33, bidirectional=True),
    Case(5, 6, 4, 8, num_layers=3, bidirectional=True, batch_first=True),
    Case(4, 3, 6, 16, num_layers=2, bias=False),
    Case(12, 70, 9, 40, hx=False),  # several blocks of rows
    Case(3, 2, 4, 200),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"layer_norm": True},
    {"peepholes": True},
    {"coupled": True},
    {"cell_clip": 0.3},
    {"hidden_clip": 0.1},
    {"layer_norm": True, "peepholes": True},
    {"layer_norm": True, "coupled": True, "cell_clip": 0.3},
    {"peepholes": True, "coupled": True, "hidden_clip": 0.1},
    {"layer_norm": True, "peepholes": True, "coupled": True, "cell_clip": 0.3, "hidden_clip": 0.1},
)


def said(options: dict[str, Any]) -> str:
    return "-".join(name if v is True else f"{name}{v}" for name, v in options.items()) or "plain"


def normalised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def step(
    w: dict[str, Tensor], m: VariantLSTM, x: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """One row or many of one step, one direction."""
    from_x, from_h = x @ w["weight_ih"].T, h @ w["weight_hh"].T
    if m.layer_norm:
        from_x = w["weight_ln_ih"] * normalised(from_x)
        from_h = w["weight_ln_hh"] * normalised(from_h)
    z = from_x + from_h
    if m.bias:
        z = z + w["bias_ih"] + w["bias_hh"]
    H = m.hidden_size
    i, g, o = z[..., :H], z[..., -2 * H : -H], z[..., -H:]
    if m.peepholes:
        i = i + w["peephole_i"] * c
    i = 1 / (1 + (-i).exp())
    if m.coupled:
        f = 1 - i
    else:
        f = z[..., H : 2 * H] + (w["peephole_f"] * c if m.peepholes else 0)
        f = 1 / (1 + (-f).exp())
    c = f * c + i * g.tanh()
    if m.cell_clip is not None:
        c = torch.where(c.abs() > m.cell_clip, c.sign() * m.cell_clip, c)
    if m.peepholes:
        o = o + w["peephole_o"] * c
    seen = c
    if m.layer_norm:
        seen = w["weight_ln_c"] * normalised(c) + (w["bias_ln_c"] if m.bias else 0)
    h = seen.tanh() / (1 + (-o).exp())
    if m.hidden_clip is not None:
        h = torch.where(h.abs() > m.hidden_clip, h.sign() * m.hidden_clip, h)
    return h, c


def loops(m: VariantLSTM, x: Tensor, hx: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """The whole network, without dropout: y, h_n, c_n."""
    y = x.transpose(0, 1) if m.batch_first else x
    h_n, c_n = [], []
    for layer in range(m.num_layers):
        ys = []
        for d in range(2 if m.bidirectional else 1):
            suffix = f"_l{layer}" + "_reverse" * d
            own = {n.removesuffix(suffix): p for n, p in m.named_parameters() if n.endswith(suffix)}
            zeros = y.new_zeros(y.shape[1], m.hidden_size)
            h, c = (zeros, zeros) if hx is None else (s[len(h_n)] for s in hx)
            out = []
            for t in range(len(y))[:: -1 if d else 1]:
                h, c = step(own, m, y[t], h, c)
                out.append(h)
            ys.append(torch.stack(out[:: -1 if d else 1]))
            h_n.append(h)
            c_n.append(c)
        y = torch.cat(ys, -1)
    return [y.transpose(0, 1) if m.batch_first else y, torch.stack(h_n), torch.stack(c_n)]


def make(case: Case, dtype: torch.dtype = torch.float64, **options: Any) -> VariantLSTM:
    own = {k: v for k, v in case.options.items() if k != "proj_size"}
    m = VariantLSTM(case.I, case.H, dtype=dtype, **own, **options)
    with torch.no_grad():
        for name, p in m.named_parameters():  # gains and biases that can be told from 1 and 0
            if "weight_ln" in name:  # with more, LayerNorm's recurrence is chaotic
                p.uniform_(0.2, 0.6)
            elif "weight" not in name:
                p += 0.5 * torch.randn_like(p)
    return m


def inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    rows = case.num_layers * (2 if case.bidirectional else 1)
    first = (case.B, case.T) if case.batch_first else (case.T, case.B)
    leaves = [torch.randn(*first, case.I)]
    if case.hx:
        leaves += [0.5 * torch.randn(rows, case.B, case.H) for _ in range(2)]
    return [t.to(dtype).requires_grad_() for t in leaves]


def call(m: VariantLSTM, leaves: list[Tensor]) -> list[Tensor]:
    x, *state = leaves
    y, hs = m(x, tuple(state) or None)
    return [y, *hs]


@pytest.mark.parametrize("options", OPTIONS, ids=said)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_papers(case: Case, dtype: torch.dtype, options: dict[str, Any]) -> None:
    if dtype is torch.float32:  # which side of a bound a value is on, float32 cannot always say
        options = {k: 50.0 * v if "clip" in k else v for k, v in options.items()}
        options.pop("hidden_clip", None)
    torch.manual_seed(1)  # 0 draws a dx that cancels to 0.003: float32 loses 1.7e-5 in loops() too
    ours, leaves = make(case, dtype, **options), inputs(case, dtype)
    theirs = copy.deepcopy(ours).double()
    other = [t.detach().double().requires_grad_() for t in leaves]
    actual, (x, *state) = call(ours, leaves), other
    expected = loops(theirs, x, tuple(state) or None)
    with torch.no_grad():
        for a, b in zip(call(ours, leaves), actual, strict=True):
            assert torch.equal(a, b)
    weights = [torch.randn_like(b) for b in expected]
    for a, b in zip(actual, expected, strict=True):
        assert error(a, b) < OUTPUT_TOLERANCE[dtype]
    own = [*leaves, *ours.parameters()]
    grads = torch.autograd.grad(actual, own, [w.to(dtype) for w in weights])
    wanted = torch.autograd.grad(expected, [*other, *theirs.parameters()], weights)
    for a, b in zip(grads, wanted, strict=True):
        assert error(a, b) < GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("options", OPTIONS[:1] + OPTIONS[4:5], ids=said)
def test_without_a_variant_it_is_nn_lstm(options: dict[str, Any]) -> None:
    case = Case(8, 5, 4, 19, num_layers=2, bidirectional=True)
    m = VariantLSTM(case.I, case.H, 2, bidirectional=True, dtype=torch.float64, **options)
    theirs = nn.LSTM(case.I, case.H, 2, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict(m.state_dict())
    m.cell_clip = options and 1e9
    leaves = inputs(case, torch.float64)
    y, _ = theirs(leaves[0], tuple(leaves[1:]))
    assert error(call(m, leaves)[0], y) < OUTPUT_TOLERANCE[torch.float64]


def test_the_kernel_computes() -> None:
    m = VariantLSTM(3, 5, layer_norm=True, bidirectional=True)
    with Operators() as seen:
        m(torch.randn(4, 2, 3))[0].sum().backward()
    assert seen.names == ["recurrence_forward"] * 2 + ["recurrence_backward"] * 2
    assert "recurrence" in fused_lstm.explain_plan(m, 4, 2)
    assert "specification" in fused_lstm.explain_plan(m.to("meta"), 4, 2)


@pytest.mark.parametrize("options", OPTIONS[1:4] + OPTIONS[-1:], ids=said)
@pytest.mark.parametrize(
    "case", [Case(3, 2, 2, 3), Case(3, 3, 2, 2, num_layers=2, bidirectional=True)], ids=str
)
def test_gradcheck_and_gradgradcheck(case: Case, options: dict[str, Any]) -> None:
    m = make(case, **options)
    names = [name for name, _ in m.named_parameters()]

    def run(*leaves: Tensor) -> list[Tensor]:
        x, h0, c0, *weights = leaves
        y, hs = torch.func.functional_call(m, dict(zip(names, weights, strict=True)), (x, (h0, c0)))
        return [y, *hs]

    weights = (p.detach().clone().requires_grad_() for p in m.parameters())
    leaves = [*inputs(case, torch.float64), *weights]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("case", [Case(9, 40, 12, 70), Case(6, 4, 40, 200, bidirectional=True)])
def test_any_number_of_threads(case: Case) -> None:
    m = make(case, torch.float32, **OPTIONS[7] | {"cell_clip": 5.0})
    leaves = inputs(case, torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs = call(m, leaves)
            own = [*leaves, *m.parameters()]
            grads = torch.autograd.grad(outputs, own, [torch.ones_like(t) for t in outputs])
            results.append([*outputs, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert error(a, b) < GRADIENT_TOLERANCE[torch.float32]


def test_unbatched_and_batch_first() -> None:
    m = make(Case(6, 1, 3, 5, num_layers=2, bidirectional=True), torch.float32, layer_norm=True)
    x, h0, c0 = torch.randn(6, 3), torch.randn(4, 5), torch.randn(4, 5)
    y, (h_n, c_n) = m(x, (h0, c0))
    batched, (h, c) = m(x.unsqueeze(1), (h0.unsqueeze(1), c0.unsqueeze(1)))
    assert torch.equal(y, batched[:, 0])
    assert torch.equal(h_n, h[:, 0])
    assert torch.equal(c_n, c[:, 0])
    m.batch_first = True
    assert torch.equal(m(x)[0], m(x.unsqueeze(0))[0][0])


def test_no_rows() -> None:
    m = VariantLSTM(3, 5, layer_norm=True, peepholes=True, bidirectional=True)
    x = torch.randn(4, 0, 3, requires_grad=True)
    y, (h_n, c_n) = m(x)
    assert (y.shape, h_n.shape, c_n.shape) == ((4, 0, 10), (2, 0, 5), (2, 0, 5))
    y.sum().backward()
    assert x.grad is not None
    assert all(not p.grad.any() for p in m.parameters())


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)])
def test_gradients_of_states_without_rows(given: tuple[bool, bool]) -> None:
    lstm = VariantLSTM(4, 7, layer_norm=True)
    hx = tuple(torch.zeros(1, 0, 7, requires_grad=g) for g in given)
    lstm(torch.randn(5, 0, 4), hx)[0].sum().backward()
    for t, wanted in zip(hx, given, strict=True):
        assert (t.grad is not None) == wanted
        assert t.grad is None or t.grad.shape == t.shape


@pytest.mark.parametrize("gone", ["bias_ih_l0", "bias_hh_l0"])
def test_one_bias_alone(gone: str) -> None:
    lstm, x = VariantLSTM(4, 7), torch.randn(5, 3, 4)
    with torch.no_grad():
        getattr(lstm, gone).zero_()
    wanted = lstm(x)[0]
    setattr(lstm, gone, None)
    torch.testing.assert_close(lstm(x)[0], wanted)


def test_some_gradients_only() -> None:
    case = Case(5, 4, 3, 9)
    m, leaves = make(case, layer_norm=True, peepholes=True), inputs(case, torch.float64)
    everything = [*leaves, *m.parameters()]
    y, _, c_n = call(m, leaves)
    whole = torch.autograd.grad([y.sum() + c_n.sum()], everything)
    for k, leaf in enumerate(everything):
        for t in everything:
            t.requires_grad_(t is leaf)
        y, _, c_n = call(m, leaves)
        (alone,) = torch.autograd.grad([y.sum() + c_n.sum()], [leaf])
        assert error(alone, whole[k]) < GRADIENT_TOLERANCE[torch.float64]


def test_gradients_that_are_strided_and_a_second_backward() -> None:
    m = make(Case(5, 4, 3, 9), torch.float32, layer_norm=True)
    x = torch.randn(5, 4, 3, requires_grad=True)
    y, _ = m(x)
    cotangent = torch.randn(4, 9, 5).permute(2, 0, 1)
    first = torch.autograd.grad(y, x, cotangent, retain_graph=True)
    again = torch.autograd.grad(y, x, cotangent.contiguous(), retain_graph=True)
    assert torch.equal(first[0], again[0])
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x, cotangent)


def test_dropout_is_between_layers_and_in_training_only() -> None:
    m = make(Case(5, 4, 3, 40, num_layers=2, bidirectional=True), torch.float32, peepholes=True)
    x = torch.randn(5, 4, 3)
    plain = m(x)[0]
    m.dropout = 0.5
    torch.manual_seed(3)
    dropped = m(x)[0]
    assert not torch.equal(plain, dropped)
    assert torch.equal(m.eval()(x)[0], plain)
    layers = []
    for k, features in ((0, 3), (1, 80)):
        layer = VariantLSTM(features, 40, bidirectional=True, peepholes=True)
        own = {n.replace(f"l{k}", "l0"): p for n, p in m.state_dict().items() if f"_l{k}" in n}
        layer.load_state_dict(own)
        layers.append(layer)
    torch.manual_seed(3)
    between = torch.dropout(layers[0](x)[0], 0.5, True)
    assert torch.equal(layers[1](between)[0], dropped)


@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (2, 6, 6, 1, 4), (4,), (3, 3)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=said)
@pytest.mark.parametrize("hx", [True, False])
def test_packed_rows_are_those_of_each_sequence(
    lengths: tuple[int, ...], options: dict[str, Any], hx: bool
) -> None:
    case = Case(1, len(lengths), 4, 9, num_layers=2, bidirectional=True, hx=hx)
    m = make(case, **options)
    _, *state = inputs(case, torch.float64)
    rows = [torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in lengths]
    y, (h_n, c_n) = m(pack_sequence(rows, enforce_sorted=False), tuple(state) or None)
    found = [*unpack_sequence(y), h_n, c_n]
    ys, hs, cs = [], [], []
    for b, row in enumerate(rows):
        own = tuple(t[:, b : b + 1] for t in state) or None
        y_b, (h_b, c_b) = m(row.unsqueeze(1), own)
        ys, hs, cs = [*ys, y_b.squeeze(1)], [*hs, h_b], [*cs, c_b]
    expected = [*ys, torch.cat(hs, 1), torch.cat(cs, 1)]
    cotangents = [torch.randn_like(t) for t in expected]
    leaves = [*rows, *state, *m.parameters()]
    found += torch.autograd.grad(found, leaves, cotangents)
    expected += torch.autograd.grad(expected, leaves, cotangents)
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < GRADIENT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    m = make(Case(7, 5, 4, 17, num_layers=2), dtype, layer_norm=True)
    x = torch.randn(7, 5, 4, dtype=dtype)
    y, (_, c_n) = m(x)
    wide, (_, c) = copy.deepcopy(m).float()(x.float())
    assert torch.equal(y, wide.to(dtype))
    assert torch.equal(c_n, c.to(dtype))


def test_autocast_casts_nothing_down() -> None:
    m = make(Case(7, 5, 4, 17), torch.float32, layer_norm=True)
    x = torch.randn(7, 5, 4)
    y = m(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        same = m(x)[0]
        low = m(x.bfloat16())[0]
    assert torch.equal(same, y)
    assert low.dtype is torch.float32
    for a, b in zip(
        *(torch.autograd.grad(t.sum(), m.parameters()) for t in (same, y)), strict=True
    ):
        assert torch.equal(a, b)


def test_state_dict_names_and_shapes() -> None:
    m = VariantLSTM(3, 5, layer_norm=True, peepholes=True)
    shapes = {name: tuple(p.shape) for name, p in m.named_parameters()}
    assert shapes == {
        "weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,),
        "peephole_i_l0": (5,), "peephole_f_l0": (5,), "peephole_o_l0": (5,),
        "weight_ln_ih_l0": (20,), "weight_ln_hh_l0": (20,), "weight_ln_c_l0": (5,),
        "bias_ln_c_l0": (5,),
    }  # fmt: skip
    assert (m.weight_ln_hh_l0 == 1).all()
    assert not m.bias_ln_c_l0.any()
    m = VariantLSTM(
        3, 5, 2, False, bidirectional=True, coupled=True, peepholes=True, layer_norm=True
    )
    names = list(m.state_dict())
    each = ["weight_ih", "weight_hh", "peephole_i", "peephole_o"]
    each += ["weight_ln_ih", "weight_ln_hh", "weight_ln_c"]
    suffixes = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    assert names == [name + suffix for suffix in suffixes for name in each]
    assert m.weight_ih_l1_reverse.shape == (15, 10)
    bound = 1 / 5**0.5
    assert 0.5 * bound < m.weight_hh_l1.abs().max() <= bound


def test_copies_pickles_and_files() -> None:
    m = make(Case(4, 2, 3, 5), torch.float32, **OPTIONS[-1])
    x = torch.randn(4, 2, 3)
    file = io.BytesIO()
    torch.save(m.state_dict(), file)
    file.seek(0)
    loaded = VariantLSTM(3, 5, **OPTIONS[-1])
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), loaded):
        assert torch.equal(other(x)[0], m(x)[0])
        assert repr(other) == repr(m)
    assert "coupled=True" in repr(m)
    assert "dropout" not in repr(m)


def test_first_values_of_the_forget_gate() -> None:
    for coupled, gate, sign in ((False, slice(5, 10), 1), (True, slice(0, 5), -1)):
        m = VariantLSTM(3, 5, 2, coupled=coupled, layer_norm=True)
        before = m.bias_ih_l1.detach().clone()
        fused_lstm.init.forget_bias_(m, 2.0)
        before[gate] += sign * 2.0
        assert torch.equal(m.bias_ih_l1, before)
        fused_lstm.init.chrono_(m, 10)
        kept = torch.sigmoid(m.bias_ih_l0[gate] * sign)  # t / (1 + t), t from 1 to 9
        assert ((kept >= 0.5) & (kept <= 0.9)).all()
        assert len(m.bias_ih_l0) == (15 if coupled else 20)


def test_transforms_of_torch_func() -> None:
    m = make(Case(4, 3, 2, 5), **OPTIONS[-1])
    x = torch.randn(4, 3, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        y, (h_n, c_n) = m(x)
        return y.square().sum() + h_n.sum() + c_n.sum()

    (expected,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    tangent = torch.randn_like(x)
    _, moved = torch.func.jvp(loss, (x.detach(),), (tangent,))
    torch.testing.assert_close(moved, (tangent * expected).sum())
    y = m(x)[0]
    cotangents = torch.randn(3, *y.shape, dtype=y.dtype)
    own_way = [torch.autograd.grad(y, x, c, retain_graph=True)[0] for c in cotangents]
    (batched,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(own_way))


def operands(norm: bool, gates: int, dtype: torch.dtype, H: int = 9) -> list[Any]:
    T, B = 5, 3

    def make(*n: int) -> Tensor:
        return torch.randn(*n, dtype=dtype)

    rows = gates * H
    ln = [make(rows), make(H), make(H)] if norm else [None, None, None]
    small = [make(gates - 1, H)] if norm else [None]
    return [make(T, B, rows), make(B, H), None, make(rows, H) / 3, *small, *ln]


@pytest.mark.parametrize(("norm", "gates"), [(True, 3), (False, 4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(norm: bool, gates: int, dtype: torch.dtype) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    checks += ("test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    # With 15 units every byte of the reserve is written, as in test_opcheck.py.
    tensors, options = operands(norm, gates, dtype, 15), (True, 0.5, float("inf"))
    forward = torch.ops.fused_lstm.recurrence_forward
    for save in (True, False):
        torch.library.opcheck(forward.default, (*tensors, *options, save), test_utils=checks)
    y, h_n, c_n, reserve = forward(*tensors, *options, True)
    backward = torch.ops.fused_lstm.recurrence_backward.default
    for incoming in ((y, h_n, c_n), (y, None, None)):
        torch.library.opcheck(backward, (*incoming, *tensors, *options, reserve), test_utils=checks)


def test_the_operators_refuse_what_could_leave_memory() -> None:
    options = (False, float("inf"), float("inf"))
    forward = torch.ops.fused_lstm.recurrence_forward
    good = operands(True, 4, torch.float32)
    wrong: list[tuple[int, Any, str]] = [
        (0, good[0][..., :-1], r"zx: expected \[T, B, G\*H\] .* = 36, got \[5, 3, 35\]"),
        (0, good[0].half(), "zx: expected dtype float32 or float64, got float16"),
        (1, good[1][:2], r"h0: expected \[B, H\] = \[3, 9\], got \[2, 9\]"),
        (3, torch.randn(18, 9), r"w_hh: expected sizes \[4H, H\], or \[3H, H\] .*, got \[18, 9\]"),
        (4, good[4][:2], r"peepholes: expected \[G-1, H\] = \[3, 9\], got \[2, 9\]"),
        (5, good[5].double(), "ln_hh: expected dtype float32, got float64"),
        (6, None, "ln_c: expected a tensor exactly where ln_hh is one, got None"),
    ]
    for k, value, message in wrong:
        with pytest.raises(REFUSAL, match=message):
            forward(*good[:k], value, *good[k + 1 :], *options, False)
    with pytest.raises(REFUSAL, match="cell_clip: expected a number above 0"):
        forward(*good, False, 0.0, 1.0, False)
    y, *_, reserve = forward(*good, *options, True)
    backward = torch.ops.fused_lstm.recurrence_backward
    with pytest.raises(REFUSAL, match=r"reserve: expected \[bytes\]"):
        backward(y, None, None, *good, *options, reserve[1:])
    with pytest.raises(REFUSAL, match=r"grad_y: expected \[T, B, H\]"):
        backward(y[1:], None, None, *good, *options, reserve)


def test_constructor_refuses() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"hidden_size": 0}, "hidden_size: expected a whole number above 0, got 0"),
        ({"num_layers": 1.5}, r"num_layers: expected a whole number above 0, got 1\.5"),
        ({"dropout": 2}, "dropout: expected a probability from 0 to 1, got 2"),
        ({"cell_clip": 0}, "cell_clip: expected None or a number above 0, got 0"),
        ({"cell_clip": float("inf")}, "cell_clip: expected None or a number above 0, got inf"),
        ({"hidden_clip": 1.0}, r"hidden_clip: expected None or a number between 0 and 1.*got 1\.0"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            VariantLSTM(**{"input_size": 3, "hidden_size": 5} | options)
    for name, value in (("dropout", "a"), ("dropout", None), ("cell_clip", "1"), ("dropout", True)):
        with pytest.raises(TypeError, match=f"{name}: expected a number, got {value!r}"):
            VariantLSTM(3, 5, **{name: value})
    with pytest.raises(ValueError, match="num_layers: expected a whole number above 0, got True"):
        VariantLSTM(3, 5, True)


@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_hh_l1", "peephole_o_l0", "weight_ln_c_l1"])
def test_a_weight_unlike_the_others_is_refused(name: str) -> None:
    lstm = VariantLSTM(4, 7, 2, peepholes=True, layer_norm=True)
    setattr(lstm, name, nn.Parameter(torch.zeros(getattr(lstm, name).shape, device="meta")))
    with pytest.raises(RuntimeError, match=rf"{name}: expected a tensor on device 'cpu'"):
        lstm(torch.randn(5, 3, 4))


def test_layer_norm_may_be_of_another_dtype() -> None:
    lstm = VariantLSTM(4, 7, layer_norm=True, dropout=0.0, cell_clip=np.float32(3.0))
    x, wanted = torch.randn(5, 3, 4), lstm.bfloat16()(torch.ones(5, 3, 4).bfloat16())[0]
    lstm.weight_ln_ih_l0.data = lstm.weight_ln_ih_l0.data.float()
    assert torch.equal(lstm(torch.ones(5, 3, 4).bfloat16())[0], wanted)
    assert lstm(x.bfloat16())[0].dtype is torch.bfloat16


def test_a_call_refuses() -> None:
    m = VariantLSTM(3, 5, 2, layer_norm=True)
    x, h = torch.randn(4, 2, 3), torch.zeros(2, 2, 5)
    wrong: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((pack_sequence([x[:, 0].double()]),), ValueError, r"input: expected torch\.float32 like"),
        ((pack_sequence([x[:, 0, 1:]]),), RuntimeError, "input: expected 3 features in its last"),
        ((pack_sequence([x]),), ValueError, r"input: expected packed rows of features, \[N, I\]"),
        ((pack_sequence([x[:, 0]]), (h, h)), RuntimeError, r"hx\[0\]: expected sizes \[2, 1, 5\]"),
        (
            (PackedSequence(x[:, 0], torch.tensor([1, 3])),),
            ValueError,
            r"input: expected batch_sizes that never rise and sum up to 4 rows, got \[1, 3\]",
        ),
        (([1],), TypeError, "input: expected a Tensor, got list"),
        ((x[0, 0],), ValueError, "input: expected 2 or 3 dimensions, got 1"),
        ((x.double(),), ValueError, r"input: expected torch\.float32 like the weights, got"),
        ((x[..., 1:],), RuntimeError, "input: expected 3 features in its last dimension, got 2"),
        ((x[:0],), RuntimeError, "input: expected at least one step"),
        ((x.to("meta"),), RuntimeError, "input: expected a tensor on device 'cpu'"),
        ((x, h), TypeError, r"hx: expected a pair of Tensors \(h_0, c_0\), got Tensor"),
        ((x, (h, None)), TypeError, r"hx\[1\]: expected a Tensor, got NoneType"),
        ((x, (h[:1], h)), RuntimeError, r"hx\[0\]: expected sizes \[2, 2, 5\], got \[1, 2, 5\]"),
        ((x, (h, h.double())), RuntimeError, r"hx\[1\]: expected torch\.float32"),
    ]
    for arguments, kind, message in wrong:
        with pytest.raises(kind, match=message):
            m(*arguments)


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    m = make(Case(5, 4, 3, 6, num_layers=2, bidirectional=True), torch.float32, **OPTIONS[6])

    def run(x: Tensor) -> list[Tensor]:
        y, hs = m(x)
        return [y, *hs]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    found = []
    for function in (run, compiled):
        x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        m.zero_grad()
        outputs = function(x)
        sum(t.square().sum() for t in outputs).backward()
        found.append([*outputs, x.grad, *(p.grad.clone() for p in m.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_exports() -> None:
    m = make(Case(5, 4, 3, 6, num_layers=2, bidirectional=True), torch.float32, **OPTIONS[7]).eval()
    x = torch.randn(5, 4, 3)
    y = m(x)[0]
    program = torch.export.export(m, (x,))
    assert not any("fused_lstm" in str(n.target) for n in program.graph.nodes)
    torch.testing.assert_close(program.module()(x)[0], y)
    with fused_lstm.export_mode("fused"):
        program = torch.export.export(m, (x,))
    assert any("recurrence_forward" in str(n.target) for n in program.graph.nodes)
    assert torch.equal(program.module()(x)[0], y)


def test_the_specification_is_what_the_kernel_computes() -> None:
    for norm, gates, reverse in itertools.product((True, False), (3, 4), (True, False)):
        tensors, options = operands(norm, gates, torch.float64), (reverse, 0.5, 0.2)
        expected = reference.variant_direction(*tensors, *options)
        actual = torch.ops.fused_lstm.recurrence_forward(*tensors, *options, False)
        for a, b in zip(actual, expected, strict=False):
            assert error(a, b) < OUTPUT_TOLERANCE[torch.float64]
