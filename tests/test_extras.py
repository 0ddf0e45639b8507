"""Regularisers and memory modes: against a loop over the equations with the same masks, against the
call without them where they must not change a value, and what may be asked for together.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, REFUSAL, Case, Operators, copies, error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import fused_lstm
from fused_lstm import _extension, dispatch, masks, ops

CASES = (
    Case(1, 1, 1, 1),
    Case(7, 5, 4, 17, hx=False),
    Case(9, 13, 5, 33, bidirectional=True),
    Case(5, 6, 4, 8, num_layers=3, bidirectional=True, batch_first=True, bias=False),
    Case(6, 70, 20, 100),
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REGULARISERS: tuple[dict[str, Any], ...] = (
    {"zoneout": 0.3},
    {"zoneout": (0.5, 0.0)},
    {"zoneout": (0.0, 0.4)},
    {"recurrent_dropout": 0.4},
    {"input_dropout": 0.3, "recurrent_dropout": 0.2, "output_dropout": 0.5},
    {"input_dropout": 0.2, "output_dropout": 0.1, "weight_dropout": 0.4},
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """The bits of every mask that a call draws, by its stream."""
    bits: dict[int, Tensor] = {}
    draw = ops.keep_bits

    def keep(like: Tensor, seed: Tensor, stream: int, *rest: Any) -> Tensor:
        bits[stream] = draw(like, seed, stream, *rest)
        return bits[stream]

    monkeypatch.setattr(ops, "keep_bits", keep)
    return bits


def make(case: Case, dtype: torch.dtype, **extras: Any) -> tuple[fused_lstm.LSTM, list[Tensor]]:
    """A module, and x, h0 and c0."""
    lstm = fused_lstm.LSTM(case.I, case.H, dtype=dtype, **case.options, **extras)
    rows = case.num_layers * (2 if case.bidirectional else 1)
    sizes = (case.B, case.T, case.I) if case.batch_first else (case.T, case.B, case.I)
    leaves = [torch.randn(sizes)]
    if case.hx:
        leaves += [torch.randn(rows, case.B, n) for n in (case.proj_size or case.H, case.H)]
    return lstm, copies(leaves, dtype)


def run(lstm: nn.Module, leaves: list[Tensor], **options: Any) -> list[Tensor]:
    x, *state = leaves
    y, hs, *cells = lstm(x, tuple(state) or None, **options)
    return [y, *hs, *cells]


class Loop:
    """The same by a loop over the equations, with the masks that were drawn."""

    def __init__(self, lstm: fused_lstm.LSTM, bits: dict[int, Tensor]) -> None:
        self.lstm, self.bits = lstm, bits
        self.extras: Any = lstm.extras
        self.weights = copies(lstm.parameters(), torch.float64)

    def factors(self, p: float, layer: int, kind: int) -> Any:
        if not p or not self.lstm.training:
            return torch.ones(())
        return (self.bits[layer * masks._KINDS + kind] & 1).double() / (1 - p)

    def __call__(self, leaves: list[Tensor]) -> list[Tensor]:
        lstm, e = self.lstm, self.extras
        x, *state = leaves
        y = x.transpose(0, 1) if lstm.batch_first else x
        D, H = 2 if lstm.bidirectional else 1, lstm.hidden_size
        each = len(self.weights) // (lstm.num_layers * D)
        hs, cs = [], []
        for layer in range(lstm.num_layers):
            y = y * self.factors(e.input_dropout, layer, masks._INPUT)
            outputs = []
            for d in range(D):
                k = layer * D + d
                w_ih, w_hh, *biases = self.weights[k * each : (k + 1) * each]
                dropped = self.factors(e.weight_dropout, layer, masks._WEIGHT)
                w_hh = w_hh * (dropped[d] if dropped.dim() else dropped)
                read = self.factors(e.recurrent_dropout, layer, masks._RECURRENT)
                read = read[d] if read.dim() else read
                h, c = (s[k] for s in state) if state else y.new_zeros(2, y.shape[1], H).unbind()
                ys = [h] * len(y)
                for t in reversed(range(len(y))) if d else range(len(y)):
                    z = y[t] @ w_ih.T + (h * read) @ w_hh.T + sum(biases)
                    i, f, g, o = z.chunk(4, 1)
                    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    new_h = o.sigmoid() * new_c.tanh()
                    kept = [torch.tensor(p, dtype=torch.float64) for p in e.zoneout]
                    if lstm.training and any(e.zoneout):
                        own = self.bits[layer * masks._KINDS + masks._ZONEOUT]
                        own = own[t, :, d * H : (d + 1) * H]
                        kept = [(own & 1).double(), (own >> 1).double()]
                    h = kept[0] * h + (1 - kept[0]) * new_h
                    c = kept[1] * c + (1 - kept[1]) * new_c
                    ys[t] = h
                outputs.append(torch.stack(ys))
                hs.append(h)
                cs.append(c)
            y = torch.cat(outputs, 2)
        y = y * self.factors(e.output_dropout, lstm.num_layers - 1, masks._OUTPUT)
        return [y.transpose(0, 1) if lstm.batch_first else y, torch.stack(hs), torch.stack(cs)]


def compare(
    actual: list[Tensor], own: list[Tensor], expected: list[Tensor], other: list[Tensor]
) -> None:
    """Outputs, and the gradients of a weighted sum of them."""
    dtype = actual[0].dtype
    for a, b in zip(actual, expected, strict=True):
        assert error(a, b) < OUTPUT_TOLERANCE[dtype]
    weights = [torch.randn_like(b) for b in expected]
    grads = torch.autograd.grad(actual, own, [w.to(dtype) for w in weights], allow_unused=True)
    wanted = torch.autograd.grad(expected, other, weights, allow_unused=True)
    for a, b in zip(grads, wanted, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            assert a is not None
            assert error(a, b) < GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("extras", REGULARISERS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_loop_with_the_same_masks(
    drawn: dict[int, Tensor], case: Case, dtype: torch.dtype, extras: dict[str, Any], training: bool
) -> None:
    if dtype not in DTYPES[:2] and case not in CASES[1:3]:
        return
    lstm, leaves = make(case, dtype, **extras)
    lstm.train(training)
    actual = run(lstm, leaves)
    assert bool(drawn) is training
    loop, other = Loop(lstm, drawn), copies(leaves, torch.float64)
    own = [*leaves, *lstm.parameters()]
    compare(actual, own, loop(other), [*other, *loop.weights])


def test_masks_drop_as_often_as_asked_and_differ(drawn: dict[int, Tensor]) -> None:
    lstm = fused_lstm.LSTM(
        60, 64, 2, bidirectional=True, input_dropout=0.3, weight_dropout=0.6, output_dropout=0.1
    )
    lstm(torch.ones(2, 50, 60))
    lstm.extras = fused_lstm.Extras(zoneout=(0.25, 0.75))
    lstm(torch.ones(3, 50, 60))
    shares = {masks._INPUT: 0.7, masks._OUTPUT: 0.9, masks._WEIGHT: 0.4, masks._ZONEOUT: 0.25}
    for stream, bits in drawn.items():
        wanted = shares[stream % masks._KINDS]
        found = float((bits & 1).float().mean())
        assert abs(found - wanted) < 5 * (0.25 / bits.numel()) ** 0.5, (stream, found)
    zoneout = drawn[masks._ZONEOUT]
    assert abs(float((zoneout >> 1).float().mean()) - 0.75) < 0.02
    assert not torch.equal(zoneout, drawn[masks._KINDS + masks._ZONEOUT])
    weight = drawn[masks._WEIGHT]
    assert not torch.equal(weight[0], weight[1])


def test_the_seed_comes_from_torchs_generator() -> None:
    lstm, (x, *_) = make(Case(6, 4, 3, 9, hx=False), torch.float32, zoneout=0.5)
    torch.manual_seed(7)
    first, second = lstm(x)[0], lstm(x)[0]
    state = torch.get_rng_state()
    torch.manual_seed(7)
    again = lstm(x)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(lstm(x)[0], second)
    assert torch.equal(torch.get_rng_state(), state)
    lstm.eval()(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("extras", REGULARISERS, ids=str)
def test_any_number_of_threads_draws_the_same(
    drawn: dict[int, Tensor], extras: dict[str, Any]
) -> None:
    lstm, leaves = make(Case(9, 40, 12, 70, bidirectional=True), torch.float32, **extras)
    own = [*leaves, *lstm.parameters()]
    before, results, bits = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            outputs = run(lstm, leaves)
            grads = torch.autograd.grad(outputs, own, [torch.ones_like(t) for t in outputs])
            results.append([*outputs, *grads])
            bits.append(dict(drawn))
    finally:
        torch.set_num_threads(before)
    for other, others in zip(results[1:], bits[1:], strict=True):
        assert all(torch.equal(bits[0][stream], others[stream]) for stream in bits[0])
        for a, b in zip(results[0], other, strict=True):
            assert error(a, b) < GRADIENT_TOLERANCE[torch.float32]


def with_options(case: Case, wanted: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "reset" in wanted:
        reset = torch.rand(case.T, case.B) < 0.3
        options["reset"] = reset.T if case.batch_first else reset
    if "lengths" in wanted:
        options["lengths"] = torch.randint(0, case.T + 1, (case.B,))
    if "cells" in wanted:
        options["return_cells"] = True
    return options


@pytest.mark.parametrize("wanted", ["reset", "lengths", "reset lengths cells"])
@pytest.mark.parametrize("extras", [{"zoneout": (0.3, 0.5)}, {"recurrent_dropout": 0.4}], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_resets_and_lengths_with_regularisers(
    case: Case, extras: dict[str, Any], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernels as by the specification, which test_is_the_loop holds to the equations."""
    for dtype in DTYPES[: 1 if case.H == 1 else 2]:  # of a single number all digits may cancel
        for training in (True, False):
            lstm, leaves = make(case, dtype, **extras)
            lstm.train(training)
            options = with_options(case, wanted)
            torch.manual_seed(5)
            actual = run(lstm, leaves, **options)
            other = copies(leaves, torch.float64)
            twin = copy.deepcopy(lstm).double()
            torch.manual_seed(5)
            with monkeypatch.context() as patch:
                patch.setattr(dispatch, "_must_use_torch", lambda *_, **__: True)
                expected = run(twin, other, **options)
            own = [*leaves, *lstm.parameters()]
            compare(actual, own, expected, [*other, *twin.parameters()])


MEMORY_MODES: tuple[dict[str, Any], ...] = (
    {"recompute": True},
    {"checkpoint_steps": 3},
    {"checkpoint_steps": 4, "recompute": True},
    {"checkpoint_steps": 100},
)


@pytest.mark.parametrize("extras", MEMORY_MODES, ids=str)
@pytest.mark.parametrize("together", ["", "reset", "cells", "lengths", "zoneout", "dropouts"])
@pytest.mark.parametrize(
    "case", [*CASES, Case(7, 5, 4, 9, num_layers=2, bidirectional=True, proj_size=5)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_modes_change_no_value(
    case: Case, dtype: torch.dtype, together: str, extras: dict[str, Any]
) -> None:
    if dtype not in DTYPES[:2] and case not in CASES[1:3]:
        return
    others: dict[str, Any] = {}
    if together == "zoneout":
        others = {"zoneout": (0.3, 0.2)}
    elif together == "dropouts":
        others = {"input_dropout": 0.3, "recurrent_dropout": 0.2, "output_dropout": 0.5}
    refused = together == "lengths" and case.bidirectional and "checkpoint_steps" in extras
    if refused or (together == "zoneout" and case.proj_size):
        return
    lstm, leaves = make(case, dtype, **others, **extras)
    plain = fused_lstm.LSTM(case.I, case.H, dtype=torch.float64, **case.options, **others)
    plain.load_state_dict(lstm.state_dict())
    options = with_options(case, together)
    other = copies(leaves, torch.float64)
    torch.manual_seed(9)
    actual = run(lstm, leaves, **options)
    torch.manual_seed(9)
    expected = run(plain, other, **options)
    own = [*leaves, *lstm.parameters()]
    compare(actual, own, expected, [*other, *plain.parameters()])
    with torch.no_grad():
        torch.manual_seed(9)
        for a, b in zip(run(lstm, leaves, **options), actual, strict=True):
            assert error(a, b) < OUTPUT_TOLERANCE[dtype]


def kept_bytes(call: Callable[[], Any]) -> int:
    """Bytes of distinct memory that a call keeps for backward, parameters and inputs included."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(seen.values())


def test_recompute_keeps_a_fifth_of_the_reserve() -> None:
    case = Case(20, 32, 4, 64, hx=False)
    (lstm, (x,)), plain = make(case, torch.float32, recompute=True), fused_lstm.LSTM(4, 64)
    common = 4 * sum(t.numel() for t in (x, *plain.parameters())) + 4 * 20 * 32 * 64  # with y
    reserve = kept_bytes(lambda: plain(x)) - common
    assert reserve == 5 * 4 * 20 * 32 * 64
    assert kept_bytes(lambda: lstm(x)) - common == reserve / 5


def test_checkpointing_keeps_no_reserve_between_passes() -> None:
    """What a graph holds comes back to the pool of scratch memory when the graph dies."""
    x = torch.randn(200, 32, 4)
    reserve = 5 * 4 * 200 * 32 * 64
    for steps, low, high in ((0, reserve, 2 * reserve), (10, 0, reserve // 10)):
        lstm = fused_lstm.LSTM(4, 64, checkpoint_steps=steps)
        outputs = lstm(x)
        fused_lstm.empty_cache()
        del outputs
        assert low <= _extension.require().cache_bytes() <= high


@pytest.mark.parametrize(
    "extras",
    [*REGULARISERS[:1], *REGULARISERS[3:], *MEMORY_MODES[:2], {"zoneout": 0.2, "recompute": True}],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradcheck_and_gradgradcheck(extras: dict[str, Any], training: bool) -> None:
    case = Case(4, 2, 2, 3, bidirectional=True)
    lstm, leaves = make(case, torch.float64, **extras)
    lstm.train(training)
    names = [name for name, _ in lstm.named_parameters()]
    reset = torch.rand(case.T, case.B) < 0.3

    def call(*tensors: Tensor) -> list[Tensor]:
        x, h0, c0, *weights = tensors
        torch.manual_seed(11)
        y, hs = torch.func.functional_call(
            lstm, dict(zip(names, weights, strict=True)), (x, (h0, c0)), {"reset": reset}
        )
        return [y, *hs]

    tensors = [*leaves, *copies(lstm.parameters())]
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("extras", [{"zoneout": 0.3}, {"recompute": True}], ids=str)
def test_forward_mode_and_torch_func(extras: dict[str, Any]) -> None:
    lstm, (x,) = make(Case(4, 3, 2, 5, hx=False), torch.float64, **extras)
    lstm.eval()

    def f(x: Tensor) -> Tensor:
        return lstm(x)[0].square().sum()

    tangent = torch.randn_like(x)
    slope = torch.func.jvp(f, (x,), (tangent,))[1]
    assert error(slope, (torch.func.grad(f)(x) * tangent).sum()) < 1e-12
    assert error(torch.func.grad(f)(x), torch.autograd.grad(f(x), x)[0]) < 1e-12


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("extras", [{"zoneout": 0.3}, {"recompute": True}, {"input_dropout": 0.5}])
def test_packed_input(extras: dict[str, Any], enforce_sorted: bool) -> None:
    lengths = (6, 4, 4, 1) if enforce_sorted else (4, 1, 6, 4)
    lstm = fused_lstm.LSTM(3, 5, 2, bidirectional=True, **extras)
    packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=enforce_sorted)
    hx = (torch.randn(4, 4, 5), torch.randn(4, 4, 5))
    torch.manual_seed(1)
    y, state = lstm(packed, hx)
    x, own = pad_packed_sequence(packed)
    torch.manual_seed(1)
    padded, expected = lstm(x, hx, lengths=own)
    assert isinstance(y, PackedSequence)
    for a, b in zip(y[1:], packed[1:], strict=True):
        assert a is b or torch.equal(a, b)
    assert torch.equal(pad_packed_sequence(y)[0], padded)
    for a, b in zip(state, expected, strict=True):
        assert torch.equal(a, b)


def test_unbatched_input_and_the_function() -> None:
    lstm = fused_lstm.LSTM(3, 5, zoneout=(0.2, 0.6)).eval()
    x = torch.randn(6, 3)
    y, _ = lstm(x)
    assert torch.equal(y, lstm(x.unsqueeze(1))[0].squeeze(1))
    extras = fused_lstm.Extras(zoneout=(0.2, 0.6))
    same, _ = fused_lstm.lstm(x, None, list(lstm.parameters()), extras=extras)
    assert torch.equal(y, same)


def test_in_evaluation_dropouts_leave_the_plain_call() -> None:
    lstm, (x,) = make(Case(5, 3, 4, 7, hx=False), torch.float32, input_dropout=0.5)
    lstm.eval()
    plain = fused_lstm.LSTM(4, 7).eval()
    plain.load_state_dict(lstm.state_dict())
    assert torch.equal(lstm(x)[0], plain(x)[0])
    assert lstm.extras is not None
    assert not lstm.extras.act(False)


def test_checkpoints_inside_transforms() -> None:
    """torch.func knows no hooks for saved tensors: no pieces then, and the same numbers."""
    torch.manual_seed(5)
    lstm, x = fused_lstm.LSTM(4, 7, checkpoint_steps=2).double(), torch.randn(5, 3, 4).double()
    plain = fused_lstm.LSTM(4, 7).double()
    plain.load_state_dict(lstm.state_dict())
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        ours, wanted = (transform(lambda t, m=m: m(t)[0].sin().sum())(x) for m in (lstm, plain))
        torch.testing.assert_close(ours, wanted)


def test_autocast_and_half_modules() -> None:
    lstm = fused_lstm.LSTM(4, 9, zoneout=0.3, recompute=True)
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, (_, c_n) = lstm(x)
    assert y.dtype is torch.bfloat16
    assert c_n.dtype is torch.float32


def test_copies_pickles_and_state_dicts() -> None:
    lstm = fused_lstm.LSTM(3, 5, zoneout=(0.1, 0.2), checkpoint_steps=4)
    buffer = io.BytesIO()
    torch.save(lstm, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(lstm),
        pickle.loads(pickle.dumps(lstm)),
        torch.load(buffer, weights_only=False),
    ):
        assert twin.extras == fused_lstm.Extras(zoneout=(0.1, 0.2), checkpoint_steps=4)
    assert list(lstm.state_dict()) == list(nn.LSTM(3, 5).state_dict())
    assert repr(lstm) == "LSTM(3, 5, zoneout=(0.1, 0.2), checkpoint_steps=4)"
    assert repr(fused_lstm.LSTM(3, 5)) == repr(nn.LSTM(3, 5))


class Holder(nn.Module):
    def __init__(self, lstm: fused_lstm.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return y


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_nothing_goes_lost_on_the_way_to_torch() -> None:
    lstm = fused_lstm.LSTM(3, 5, zoneout=0.1)
    outcomes: list[Any] = []
    fused_lstm.revert(nn.Sequential(lstm), report=outcomes.append)
    assert type(lstm) is fused_lstm.LSTM
    assert "torch.nn.LSTM has no zoneout=(0.1, 0.1)" in str(outcomes[0])
    scripted = torch.jit.script(Holder(lstm))
    with pytest.raises(torch.jit.Error, match="extras: expected none"):
        scripted(torch.randn(2, 1, 3))
    assert torch.jit.script(Holder(fused_lstm.LSTM(3, 5)))(torch.randn(2, 1, 3)).shape == (2, 1, 5)
    assert "zoneout" in fused_lstm.explain_plan(lstm, 5, 2)


class Converted(nn.LSTM):
    pass


def test_a_converted_subclass_has_none() -> None:
    model = fused_lstm.convert(nn.Sequential(Converted(3, 5)))
    model[0](torch.randn(2, 1, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zoneout": 1.5}, "zoneout: expected a probability from 0 to 1, got 1.5"),
        ({"zoneout": (0.1, 0.2, 0.3)}, "zoneout: expected one number or two"),
        ({"input_dropout": -0.1}, "input_dropout: expected a probability from 0 to 1, got -0.1"),
        ({"recurrent_dropout": float("nan")}, "recurrent_dropout: expected a probability"),
        ({"checkpoint_steps": -3}, "checkpoint_steps: expected a number of steps, or 0, got -3"),
        ({"zoneout": 0.1, "output_dropout": 0.1}, "output_dropout: expected 0 with zoneout"),
        ({"zoneout": 0.1, "weight_dropout": 0.1}, "weight_dropout: expected 0 with zoneout"),
        ({"zoneout": 0.1, "proj_size": 2}, "zoneout: expected 0 with proj_size"),
        ({"recurrent_dropout": 0.1, "weight_dropout": 0.1}, "expected 0 with recurrent_dropout"),
        ({"input_dropout": 0.1, "dropout": 0.1, "num_layers": 2}, "expected 0 with dropout"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_lstm.LSTM(3, 5, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zoneout": "0.1"}, "zoneout: expected a number, got str"),
        ({"weight_dropout": None}, "weight_dropout: expected a number, got NoneType"),
        ({"recompute": 1}, "recompute: expected a bool, got int"),
        ({"checkpoint_steps": 2.0}, "checkpoint_steps: expected an int, got float"),
    ],
)
def test_kinds_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fused_lstm.LSTM(3, 5, **wrong)


def test_the_function_checks_as_the_module_does() -> None:
    assert fused_lstm.Extras(zoneout=0.2) == fused_lstm.Extras(zoneout=(0.2, 0.2))
    with pytest.raises(ValueError, match="weight_dropout: expected 0 with zoneout"):
        fused_lstm.Extras(zoneout=0.2, weight_dropout=0.1)
    plain = fused_lstm.LSTM(3, 5, proj_size=2)
    weights, x = list(plain.parameters()), torch.randn(4, 2, 3)
    extras = fused_lstm.Extras(zoneout=0.2)
    with pytest.raises(ValueError, match="zoneout: expected 0 with proj_size"):
        fused_lstm.lstm(x, None, weights, proj_size=2, extras=extras)
    with pytest.raises(TypeError, match="extras: expected Extras or None, got dict"):
        fused_lstm.lstm(x, None, weights, proj_size=2, extras={})  # type: ignore[arg-type]
    plain.extras = extras
    with pytest.raises(ValueError, match="zoneout: expected 0 with proj_size"):
        plain(x)


@pytest.mark.parametrize(
    ("extras", "by_kernel"),
    [
        ({"recompute": True}, True),
        ({"input_dropout": 0.5}, True),
        ({"recurrent_dropout": 0.5}, False),
    ],
    ids=str,
)
def test_a_projection_has_a_kernel_with_some(extras: dict[str, Any], by_kernel: bool) -> None:
    """The plan says so, and what runs is what it says."""
    lstm = fused_lstm.LSTM(3, 5, proj_size=2, **extras)
    assert ("specification" in fused_lstm.explain_plan(lstm, 4, 2)) is not by_kernel
    with Operators() as seen:
        lstm(torch.randn(4, 2, 3))
    assert ("marked_forward" in seen.names) is by_kernel


def test_lengths_with_pieces_of_two_directions_are_refused() -> None:
    lstm = fused_lstm.LSTM(3, 5, bidirectional=True, checkpoint_steps=2)
    with pytest.raises(ValueError, match="lengths: expected None with checkpoint_steps"):
        lstm(torch.randn(4, 2, 3), lengths=torch.tensor([4, 2]))


def test_the_operator_refuses_what_could_leave_memory() -> None:
    seed = torch.tensor(1)
    x = torch.zeros(1)
    assert ops.keep_bits(x, seed, 0, 3, 0, 5, 0.5, 0.5).shape == (3, 0, 5)
    for wrong in ((0, 0, 1, 1), (0, 1, 1, 2**31), (-1, 1, 1, 1), (0, 1, -1, 1)):
        with pytest.raises(REFUSAL, match="expected a number from"):
            ops.keep_bits(x, seed, *wrong, 0.5, 0.5)
    with pytest.raises(REFUSAL, match="expected a probability"):
        ops.keep_bits(x, seed, 0, 1, 1, 1, 1.5, 0.0)
    with pytest.raises(REFUSAL, match="seed"):
        ops.keep_bits(x, torch.ones(2, dtype=torch.int64), 0, 1, 1, 1, 0.5, 0.5)
    inputs = (x, seed, 3, 2, 4, 5, 0.25, 0.5)
    torch.library.opcheck(torch.ops.fused_lstm.keep_bits.default, inputs)
    lstm = fused_lstm.LSTM(3, 5)
    ten = dispatch.ten_weights([p.detach() for p in lstm.parameters()], True, False, 0)
    x = torch.randn(4, 2, 3)
    for options, message in (
        ((torch.zeros(4, 2, 4, dtype=torch.uint8), None, 0.0, 0.0), "keep: expected"),
        ((torch.zeros(4, 2, 5), None, 0.0, 0.0), "keep: expected"),
        ((None, torch.zeros(2, 5), 0.0, 0.0), "h_factors: expected"),
        ((None, None, 1.5, 0.0), "zoneout_h: expected a share"),
        ((None, None, 0.0, float("nan")), "zoneout_c: expected a share"),
    ):
        with pytest.raises(REFUSAL, match=message):
            ops.marked_forward(x, None, None, None, *ten, *options, False, False, False)


@pytest.mark.parametrize(
    "extras",
    [
        {"zoneout": 0.3, "recompute": True},
        {"input_dropout": 0.3, "recurrent_dropout": 0.2, "output_dropout": 0.1},
        {"weight_dropout": 0.4},
    ],
    ids=str,
)
def test_compiles_to_one_graph_for_every_length(extras: dict[str, Any]) -> None:
    torch._dynamo.reset()
    lstm = fused_lstm.LSTM(4, 9, 2, **extras)
    compiled = torch.compile(lstm, backend="aot_eager", fullgraph=True, dynamic=True)
    for T, B in ((5, 6), (8, 10)):
        x = torch.randn(T, B, 4, requires_grad=True)
        results = []
        with torch._dynamo.config.patch(error_on_recompile=T > 5):
            for module in (lstm, compiled):
                torch.manual_seed(1)
                y, _ = module(x)
                grads = torch.autograd.grad(y.square().sum(), [x, *lstm.parameters()])
                results.append([y, *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
