"""`Streaming`: pieces give what the whole gives, and where that is so to the last bit.

The promise has three parts, each with a test that names it: within the tolerance of the dtype for
any cut; to the bit in float32 and float64 from five rows on, in pieces of two steps or more (beyond
32 rows in any); to the bit for any cut, shape and dtype with exact=True.
"""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import DTYPES, OUTPUT_TOLERANCE, Case, error
from torch import Tensor, nn
from torch.nn.utils import prune

import fused_lstm
from fused_lstm import Streaming

CASES = (
    Case(24, 1, 5, 7),
    Case(24, 1, 33, 40, num_layers=2),
    Case(13, 2, 16, 33, bias=False),
    Case(13, 3, 4, 17, batch_first=True),
    Case(13, 4, 12, 24, num_layers=2, proj_size=9),
    Case(13, 5, 3, 17, num_layers=3, batch_first=True),
    Case(13, 5, 100, 40, num_layers=2, proj_size=9),
    Case(13, 8, 31, 64),
    Case(9, 33, 28, 50),
)
CASE = Case(5, 3, 4, 7)
X = torch.zeros(5, 3, 4)
FULL = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)


def cuts(T: int) -> list[list[int]]:
    return [[1] * T, [T], [T // 2, T - T // 2], [3, 1, 1, T - 5], [T - 1, 1], [2, 3, T - 5]]


def eval_lstm(case: Case, dtype: torch.dtype = torch.float32, **options: Any) -> fused_lstm.LSTM:
    return fused_lstm.LSTM(case.I, case.H, dtype=dtype, **case.options, **options).eval()


def sequence(case: Case, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (case.B, case.T) if case.batch_first else (case.T, case.B)
    return torch.randn(*shape, case.I).to(dtype)


def whole(lstm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        y, (h, c) = lstm(x)
    return y, h, c


def in_pieces(
    stream: Streaming, x: Tensor, sizes: Sequence[int], batch_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    stream.reset()
    time = 1 if batch_first else 0
    y = torch.cat([stream(piece) for piece in x.split(list(sizes), time)], time)
    return y, *stream.state


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_cut_gives_the_whole(case: Case, dtype: torch.dtype) -> None:
    lstm, x = eval_lstm(case, dtype), sequence(case, dtype)
    expected, stream = whole(lstm, x), Streaming(lstm, case.B)
    for sizes in cuts(case.T):
        for own, other in zip(in_pieces(stream, x, sizes, case.batch_first), expected, strict=True):
            assert own.shape == other.shape
            assert error(own, other) <= OUTPUT_TOLERANCE[dtype]
        if len(sizes) == 1:
            assert torch.equal(stream.state[0], expected[1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("case", [case for case in CASES if case.B >= 5], ids=str)
def test_to_the_bit_from_five_rows_on(case: Case, dtype: torch.dtype, threads: int) -> None:
    """There two steps form the same sums as many. The whole is nothing but lstm(x)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lstm, x = eval_lstm(case, dtype), sequence(case, dtype)
        expected, stream = whole(lstm, x), Streaming(lstm, case.B)
        chosen = [sizes for sizes in cuts(case.T) if case.B > 32 or 1 not in sizes]
        assert len(chosen) == (6 if case.B > 32 else 3)
        for sizes in chosen:
            own = in_pieces(stream, x, sizes, case.batch_first)
            assert all(map(torch.equal, own, expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_is_to_the_bit_for_any_cut(case: Case, dtype: torch.dtype) -> None:
    lstm, x = eval_lstm(case, dtype), sequence(case, dtype)
    stream = Streaming(lstm, case.B, exact=True)
    at_once = in_pieces(stream, x, [case.T], case.batch_first)
    for sizes in cuts(case.T):
        own = in_pieces(stream, x, sizes, case.batch_first)
        assert all(map(torch.equal, own, at_once))
    steps = in_pieces(Streaming(lstm, case.B), x, [1] * case.T, case.batch_first)
    assert all(map(torch.equal, steps, at_once))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES[1:6:2], ids=str)
def test_a_single_step_has_no_time(case: Case, dtype: torch.dtype) -> None:
    lstm, x = eval_lstm(case, dtype), sequence(case, dtype)
    stream = Streaming(lstm, case.B)
    expected = in_pieces(stream, x, [1] * case.T, case.batch_first)
    stream.reset()
    time = 1 if case.batch_first else 0
    y = torch.stack([stream(step) for step in x.unbind(time)], time)
    assert torch.equal(y, expected[0])
    assert torch.equal(stream.state[1], expected[2])


def test_steps_after_pieces_and_no_history() -> None:
    case = CASES[4]
    lstm, x = eval_lstm(case), sequence(case)
    stream = Streaming(lstm, case.B)
    assert torch.is_grad_enabled()
    y = torch.cat([stream(x[:5]), stream(x[5:6]), stream(x[6]).unsqueeze(0), stream(x[7:])])
    assert torch.is_grad_enabled()
    assert error(y, whole(lstm, x)[0]) <= OUTPUT_TOLERANCE[torch.float32]
    assert not any(t.requires_grad for t in (y, *stream.state))
    assert not y.is_inference()
    with pytest.raises(RuntimeError, match="at least one step"):
        stream(x[:0])
    assert torch.is_grad_enabled()


def test_reset_of_rows() -> None:
    case = Case(6, 5, 3, 7, num_layers=2)
    lstm, x = eval_lstm(case), sequence(case)
    mask = [False, True, False, False, True]
    for rows in ([1, 4], mask, torch.tensor(mask), torch.tensor([1, -1])):
        stream = Streaming(lstm, case.B)
        stream.reset(rows)  # before the first piece: nothing to forget
        first = stream(x)
        stream.state[0].fill_(7)  # a copy
        stream.reset(rows)
        for t in stream.state:
            assert bool((t[:, [1, 4]] == 0).all())
            assert bool((t[:, [0, 2, 3]] != 0).all())
        second = stream(x)
        assert torch.equal(second[:, [1, 4]], first[:, [1, 4]])
        assert not torch.equal(second[:, 0], first[:, 0])
    stream.reset()
    assert torch.equal(stream(x), first)


def test_a_row_of_nan_can_be_reset() -> None:
    stream = Streaming(eval_lstm(Case(2, 2, 3, 4)), 2)
    x = torch.randn(2, 2, 3)
    x[:, 1] = float("nan")
    assert stream(x)[:, 1].isnan().all()
    stream.reset([1])
    assert stream(torch.randn(1, 2, 3)).isfinite().all()


def test_inference_mode_may_come_and_go() -> None:
    case = CASES[1]
    lstm, x = eval_lstm(case), sequence(case)
    stream = Streaming(lstm, case.B)
    with torch.inference_mode():
        first = stream(x[:5])
    y = torch.cat([first, stream(x[5:9])])
    with torch.inference_mode():
        y = torch.cat([y, stream(x[9:])])
    assert error(y, whole(lstm, x)[0]) <= OUTPUT_TOLERANCE[torch.float32]
    stream.reset([0])
    assert not stream.state[0].any()
    assert error(stream(x), y) <= OUTPUT_TOLERANCE[torch.float32]


def test_the_state_of_one_layer_is_a_copy() -> None:
    stream = Streaming(eval_lstm(CASE), 3)
    stream(X)
    stream.state[0].fill_(7)
    stream.state[1].fill_(7)
    assert all(bool((t != 7).all()) for t in stream.state)


def test_state_goes_out_and_in() -> None:
    case = Case(8, 3, 4, 6, num_layers=2, proj_size=5)
    lstm, x = eval_lstm(case), sequence(case)
    stream, other = Streaming(lstm, 3), Streaming(lstm, 3)
    assert not any(t.any() for t in stream.state)
    stream(x[:5])
    kept = stream.state
    assert [t.shape for t in kept] == [(2, 3, 5), (2, 3, 6)]
    other.state = list(kept)
    rest = stream(x[5:])
    kept[0].zero_()  # was copied on the way in and out
    assert torch.equal(other(x[5:]), rest)
    y = stream(x[:1])
    y.fill_(9)
    again = stream.state
    stream.reset(), stream(x), stream(x[:1])
    assert all(map(torch.equal, stream.state, again))
    with torch.no_grad():
        initial = [torch.randn_like(t) for t in again]
        expected, _ = lstm(x, tuple(initial))
    stream.state = [t.requires_grad_() for t in initial]
    assert torch.equal(stream(x), expected)
    assert not stream.state[0].requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_stream_is_copied_with_its_state(copied: Any) -> None:
    case = CASES[1]
    stream, x = Streaming(eval_lstm(case), case.B), sequence(case)
    stream(x[:5])
    again = copied(stream)
    assert torch.equal(again(x[5:]), stream(x[5:]))


def test_weights_are_read_with_every_piece() -> None:
    case = CASES[0]
    lstm, x = eval_lstm(case), sequence(case)
    stream = Streaming(lstm, case.B)
    before = stream(x)
    lstm.weight_hh_l0.data.mul_(0.5)
    lstm.bias_ih_l0 = nn.Parameter(torch.ones(28))
    stream.reset()
    after = stream(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, whole(lstm, x)[0])


def test_hooks_and_parametrizations_are_called() -> None:
    case = CASES[4]
    lstm, x = eval_lstm(case), sequence(case)
    seen: list[int] = []
    lstm.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    stream = Streaming(lstm, case.B)
    y = torch.cat([stream(piece) for piece in x.split(5)])
    assert seen == [5, 5, 3]
    assert error(y, whole(lstm, x)[0]) <= OUTPUT_TOLERANCE[torch.float32]
    after = eval_lstm(case)
    after.register_forward_hook(lambda module, args, result: (result[0] + 1, result[1]))
    assert torch.equal(Streaming(after, case.B)(x), whole(after, x)[0])
    normed = nn.utils.parametrizations.weight_norm(eval_lstm(case), "weight_hh_l0")
    assert torch.equal(Streaming(normed, case.B)(x), whole(normed, x)[0])
    pruned = prune.random_unstructured(eval_lstm(case), "weight_hh_l0", 0.5)
    assert torch.equal(Streaming(pruned, case.B)(x), whole(pruned, x)[0])


def test_autocast_and_batch_first_go_through_the_module() -> None:
    case = Case(9, 3, 4, 17, num_layers=2, batch_first=True)
    lstm, x = eval_lstm(case), sequence(case)
    stream = Streaming(lstm, case.B)
    with torch.autocast("cpu", torch.bfloat16):
        expected = whole(lstm, x)[0]
        y = torch.cat([stream(piece) for piece in x.split(3, 1)], 1)
    assert y.dtype is expected.dtype is torch.bfloat16
    assert error(y, expected) <= OUTPUT_TOLERANCE[torch.bfloat16]


@pytest.mark.compile
def test_a_compiled_step_is_the_same() -> None:
    case = CASES[4]
    lstm, x = eval_lstm(case), sequence(case)
    stream = Streaming(lstm, case.B)
    step = torch.compile(lambda piece: stream(piece) * 2, backend="eager")
    y = torch.cat([step(piece) for piece in x.split(1)])
    assert error(y, whole(lstm, x)[0] * 2) <= OUTPUT_TOLERANCE[torch.float32]


class OwnForward(fused_lstm.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input * 2, hx)


def train_mode(stream: Streaming) -> Streaming:
    stream._lstm.train()
    return stream


def in_double(stream: Streaming) -> Streaming:
    stream(torch.randn(2, 3, 4))
    stream._lstm.double()
    return stream


S: Any = Streaming
REFUSED: tuple[tuple[str, type[Exception], Any], ...] = (
    ("got LSTM; fused_lstm.convert makes one of it", TypeError, lambda: S(nn.LSTM(2, 3).eval())),
    ("with its own forward, got OwnForward", TypeError, lambda: S(OwnForward(2, 3).eval())),
    ("expected a fused_lstm.LSTM .* got GRU", TypeError, lambda: S(nn.GRU(2, 3).eval())),
    (
        "expected one direction, got bidirectional=True: the second direction begins at the end",
        ValueError,
        lambda: S(fused_lstm.LSTM(2, 3, bidirectional=True).eval()),
    ),
    ("expected eval mode, got training mode", RuntimeError, lambda: S(fused_lstm.LSTM(2, 3))),
    ("batch_size: expected at least 1, got 0", ValueError, lambda: S(eval_lstm(CASE), 0)),
    ("batch_size: expected an int, got float", TypeError, lambda: S(eval_lstm(CASE), 1.0)),
    (
        "expected eval mode, got training",
        RuntimeError,
        lambda: train_mode(S(eval_lstm(CASE), 3))(X),
    ),
    ("x: expected a Tensor, got list", TypeError, lambda: S(eval_lstm(CASE), 3)([1.0])),
    (
        "x: expected .T, 3, 4. or, for one step, .3, 4., got .5, 2, 4.",
        ValueError,
        lambda: S(eval_lstm(CASE), 3)(X[:, :2]),
    ),
    ("got .5, 3, 3.", ValueError, lambda: S(eval_lstm(CASE), 3)(X[..., :3])),
    ("got .4.", ValueError, lambda: S(eval_lstm(CASE), 3)(X[0, 0])),
    (
        "expected torch.float32 as the weights, got torch.float64",
        ValueError,
        lambda: S(eval_lstm(CASE), 3)(X.double()),
    ),
    ("expected at least one step", RuntimeError, lambda: S(eval_lstm(CASE), 3)(X[:0])),
    (
        "expected no gradient to be asked for",
        RuntimeError,
        lambda: S(eval_lstm(CASE), 3)(X.clone().requires_grad_()),
    ),
    (
        "weights are torch.float64 now, its state is torch.float32: reset",
        ValueError,
        lambda: in_double(S(eval_lstm(CASE), 3))(X.double()),
    ),
    (
        "rows: expected a mask .3., got .2.",
        IndexError,
        lambda: S(eval_lstm(CASE), 3).reset(torch.ones(2).bool()),
    ),
    (
        "rows: expected numbers of 3 streams, got .3.",
        IndexError,
        lambda: S(eval_lstm(CASE), 3).reset([3]),
    ),
    (
        "rows: expected bool or int64, got torch.float32",
        TypeError,
        lambda: S(eval_lstm(CASE), 3).reset(torch.ones(3)),
    ),
    (
        "state: expected a pair of Tensors",
        TypeError,
        lambda: setattr(S(eval_lstm(CASE), 3), "state", X),
    ),
    (
        "state: expected c to be a Tensor, got int",
        TypeError,
        lambda: setattr(S(eval_lstm(CASE), 3), "state", (X[:1, :, :1].expand(1, 3, 7), 2)),
    ),
    (
        "state: expected h to be .1, 3, 7. of torch.float32 on device 'cpu', got .5, 3, 4.",
        ValueError,
        lambda: setattr(S(eval_lstm(CASE), 3), "state", (X, X)),
    ),
)


@pytest.mark.parametrize(("message", "kind", "call"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_refused(message: str, kind: type[Exception], call: Any) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_a_gradient_may_be_asked_for_where_none_is_recorded() -> None:
    stream = Streaming(eval_lstm(CASE), 3)
    with torch.no_grad():
        assert stream(X.clone().requires_grad_()).shape == (5, 3, 7)


def test_converted_models_stream() -> None:
    lstm = nn.LSTM(4, 7, dropout=0.5, num_layers=2).eval()
    x = torch.randn(5, 3, 4)
    expected = whole(lstm, x)[0]
    stream = Streaming(fused_lstm.convert(lstm), 3)
    y = torch.cat([stream(piece) for piece in x.split(1)])
    assert error(y, expected) <= OUTPUT_TOLERANCE[torch.float32]
    assert repr(stream) == "Streaming(LSTM(4, 7, num_layers=2, dropout=0.5), batch_size=3)"


def test_inside_a_transform_it_is_refused() -> None:
    """The state would be the transform's, and nobody could go on with it outside."""
    stream, x = Streaming(fused_lstm.LSTM(4, 7).eval(), 3), torch.randn(2, 5, 3, 4)
    with pytest.raises(RuntimeError, match=r"x: expected nothing that torch\.func transforms"):
        torch.func.vmap(stream)(x)
    wanted = stream(x[0])
    stream.reset()
    seen = []
    torch.func.vmap(lambda t: seen.append(stream(x[0])) or t)(x)  # beside what is transformed
    assert torch.equal(seen[0], wanted)
    assert stream(x[0]).shape == (5, 3, 7)


def test_a_forward_of_the_instance_is_refused() -> None:
    lstm: Any = fused_lstm.LSTM(4, 7).eval()
    lstm.forward = lambda *_: None
    with pytest.raises(TypeError, match=r"lstm: expected a fused_lstm\.LSTM with"):
        Streaming(lstm)


@pytest.mark.parametrize("rows", ["a", {1}, object()], ids=["text", "set", "object"])
def test_what_is_no_number_of_a_stream(rows: Any) -> None:
    with pytest.raises(TypeError, match="rows: expected"):
        Streaming(fused_lstm.LSTM(4, 7).eval(), 3).reset(rows)
