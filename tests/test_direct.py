"""The short way of inference, `direct.py`: the results of the long way, to the bit, wherever it is
taken; and not taken where somebody would miss the operator.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm
from fused_lstm import direct

T, B, I, H = 5, 3, 4, 6  # noqa: E741
X, HX = (T, B, I), (1, B, H)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.manual_seed(11)
    with torch.no_grad():
        yield


def made(*sizes: int, **options: Any) -> fused_lstm.LSTM:
    return fused_lstm.LSTM(*(sizes or (I, H)), **options).eval()


def states(lstm: nn.LSTM, *rows: int, dtype: torch.dtype = torch.float32) -> Any:
    layers = lstm.num_layers * (2 if lstm.bidirectional else 1)
    widths = lstm.proj_size or lstm.hidden_size, lstm.hidden_size
    return tuple(torch.randn(layers, *rows, width).to(dtype) for width in widths)


def taken(lstm: Any, x: Any, hx: Any = None) -> Any:
    own = lstm.bias, lstm.batch_first, lstm.bidirectional, lstm.proj_size
    return direct.stack(x, hx, lstm._current_weights(), lstm.num_layers, *own)


@pytest.fixture
def the_long_way(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def call(module: nn.Module, *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(direct, "_direct", None)
            return module(*arguments)

    return call


def assert_same(ours: Any, wanted: Any) -> None:
    for a, b in zip((ours[0], *ours[1]), (wanted[0], *wanted[1]), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        assert torch.equal(a, b)
        assert not a.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"batch_first": True},
        {"num_layers": 2, "proj_size": 2},
        {"num_layers": 3, "bidirectional": True, "batch_first": True},
        {"num_layers": 4, "bidirectional": True, "bias": False, "proj_size": 5},
    ],
    ids=str,
)
def test_the_same_as_the_long_way(
    dtype: torch.dtype, given: bool, options: dict[str, Any], the_long_way: Any
) -> None:
    lstm = made(dtype=dtype, **options)
    for sizes in ((T, B, I), (1, 1, I), (T, I)):
        swapped = len(sizes) == 3 and lstm.batch_first
        x = torch.randn((sizes[1], sizes[0], I) if swapped else sizes).to(dtype)
        hx = states(lstm, *sizes[1:-1], dtype=dtype) if given else None
        results = taken(lstm, x, hx)
        assert results is not None
        assert_same(results, the_long_way(lstm, x, hx))
        assert_same(lstm(x, hx), results)


def test_numbers_are_nn_lstms() -> None:
    torch.manual_seed(5)
    theirs = nn.LSTM(I, H, 2, bidirectional=True).eval()
    ours = made(I, H, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(X)
    results = taken(ours, x)
    assert results is not None
    torch.testing.assert_close(results, theirs(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cell(bias: bool, given: bool, dtype: torch.dtype, the_long_way: Any) -> None:
    cell = fused_lstm.LSTMCell(I, H, bias=bias, dtype=dtype)
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    x = torch.randn(B, I).to(dtype)
    hx = (torch.randn(B, H).to(dtype), torch.randn(B, H).to(dtype)) if given else None
    results = direct.cell(x, hx, weights)
    assert results is not None
    for a, b, c in zip(results, the_long_way(cell, x, hx), cell(x, hx), strict=True):
        assert a.shape == b.shape == (B, H)
        assert torch.equal(a, b)
        assert torch.equal(a, c)


STRIDED: dict[str, Callable[[], Tensor]] = {
    "every other feature": lambda: torch.randn(T, B, 2 * I)[..., ::2],
    "steps that overlap": lambda: torch.randn(T + 3, B, I).as_strided(X, (B * I, I, 1), 2),
    "one row for all": lambda: torch.randn(T, 1, I).expand(X),
    "one step for all": lambda: torch.randn(1, B, I).expand(X),
    "part of wider rows": lambda: torch.randn(T, B, I + 3)[..., 1 : I + 1],
    "backwards in memory": lambda: torch.randn(B, T, I).transpose(0, 1),
}


@pytest.mark.parametrize("name", STRIDED)
def test_strides_of_x(name: str, the_long_way: Any) -> None:
    lstm, x = made(), STRIDED[name]()
    assert (taken(lstm, x) is None) == (name == "every other feature")
    assert_same(lstm(x), the_long_way(lstm, x.contiguous()))


def with_negative_bit(*sizes: int) -> Tensor:
    """Contiguous all the same."""
    x = torch._neg_view(torch.randn(*sizes))
    assert x.is_neg()
    assert x.is_contiguous()
    return x


NOT_TAKEN: dict[str, Callable[[], tuple[Any, Any]]] = {
    "no tensor": lambda: ([1.0], None),
    "a subclass": lambda: (torch.randn(X).as_subclass(Watched), None),
    "the negative of what lies there": lambda: (with_negative_bit(*X), None),
    "zeros without memory": lambda: (torch._efficientzerotensor(X), None),
    "no steps": lambda: (torch.randn(0, B, I), None),
    "no rows": lambda: (torch.randn(T, 0, I), None),
    "one feature too many": lambda: (torch.randn(T, B, I + 1), None),
    "four dimensions": lambda: (torch.randn(1, T, B, I), None),
    "one dimension": lambda: (torch.randn(I), None),
    "another dtype": lambda: (torch.randn(X).double(), None),
    "an integer": lambda: (torch.ones(X, dtype=torch.int64), None),
    "complex": lambda: (torch.randn(X, dtype=torch.complex64), None),
    "another device": lambda: (torch.randn(X, device="meta"), None),
    "sparse": lambda: (torch.randn(X).to_sparse(), None),
    "a list of states": lambda: (torch.randn(X), [torch.randn(HX)] * 2),
    "one state": lambda: (torch.randn(X), (torch.randn(HX),)),
    "states of other rows": lambda: (torch.randn(X), (torch.randn(1, B + 1, H),) * 2),
    "a c of other units": lambda: (torch.randn(X), (torch.randn(HX), torch.randn(1, B, H + 1))),
    "no first dimension": lambda: (torch.randn(X), (torch.randn(B, H),) * 2),
    "states with gaps": lambda: (torch.randn(X), (torch.randn(1, B, 2 * H)[..., ::2],) * 2),
    "a state of another dtype": lambda: (torch.randn(X), (torch.randn(HX).double(),) * 2),
    "no states": lambda: (torch.randn(X), (None, None)),
    "half a state": lambda: (torch.randn(X), (torch.randn(HX), None)),
}


class Watched(Tensor):
    pass


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_is_not_taken(name: str) -> None:
    x, hx = NOT_TAKEN[name]()
    assert taken(made(), x, hx) is None


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("what", ["dtype", "strides", "sizes", "none", "class"])
def test_weights_that_are_not_taken(name: str, what: str) -> None:
    weights = made()._current_weights()
    position = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"].index(name)
    old: Any = weights[position]
    wide = torch.randn(*old.shape, 2)[..., 0]
    other = {
        "dtype": old.double(),
        "strides": wide,
        "sizes": torch.randn(*old.shape[:-1], old.shape[-1] + 4),
        "none": None,
        "class": old.as_subclass(Watched),
    }[what]
    weights[position] = other
    assert direct.stack(torch.randn(X), None, weights, 1, True, False, False, 0) is None


def test_a_number_of_weights_that_does_not_fit() -> None:
    lstm, x = made(), torch.randn(X)
    weights = lstm._current_weights()
    for own, layers, bias, reverse, P in (
        (weights, 1, False, False, 0),
        (weights, 1, True, True, 0),
        (weights, 1, True, False, 2),
        (weights, 2, True, False, 0),
        (weights, 0, True, False, 0),
        (weights, -1, True, False, 0),
        (weights, 1 << 62, True, True, 0),
        ([], 0, True, False, 0),
        (weights[:3], 1, True, False, 0),
    ):
        assert direct.stack(x, None, own, layers, bias, False, reverse, P) is None


class Sees(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        seen.append(str(function))
        return function(*args, **(kwargs or {}))


class SeesFunctions(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        seen.append(str(function))
        return function(*args, **(kwargs or {}))


seen: list[str] = []
WATCHING: dict[str, Callable[[], Any]] = {
    "autograd": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "forward mode": forward_ad.dual_level,
    "a dispatch mode": Sees,
    "a function mode": SeesFunctions,
    "a default device": lambda: torch.device("cpu"),
    "the profiler": lambda: torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU]
    ),
}


@pytest.mark.parametrize("name", WATCHING)
def test_who_watches(name: str) -> None:
    lstm, x = made(), torch.randn(X)
    cell = fused_lstm.LSTMCell(I, H)
    assert taken(lstm, x) is not None
    with WATCHING[name]():
        assert taken(lstm, x) is None
        assert direct.cell(x[0], None, list(cell.parameters())) is None
    assert taken(lstm, x) is not None


def test_modes_and_profilers_see_the_operator() -> None:
    lstm, x = made(), torch.randn(X)
    seen.clear()
    with Sees():
        lstm(x)
    assert any("fused_lstm.forward" in name for name in seen)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        lstm(x)
    assert any("fused_lstm::forward" in event.key for event in profile.key_averages())


def test_transforms_and_traces_are_not_taken() -> None:
    lstm, x, plain, found = made(), torch.randn(X), torch.randn(X), []

    def call(x: Tensor) -> Tensor:
        found.append(taken(lstm, x))
        found.append(taken(lstm, plain))  # not what is transformed
        return x * 1

    torch.func.vmap(call)(x.unsqueeze(0))
    torch.func.jvp(call, (x,), (x,))
    torch.jit.trace(call, x, check_trace=False)
    torch.fx.experimental.proxy_tensor.make_fx(call)(x)
    torch.compile(call, backend="eager")(x)
    assert found
    assert all(results is None for results in found)


def test_another_default_dtype() -> None:
    lstm, x = made(dtype=torch.float32), torch.randn(X, dtype=torch.float32)
    wanted = lstm(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert taken(lstm, x) is None  # torch.empty would be float64
        assert_same(lstm(x), wanted)
        doubles = made(dtype=torch.float64)
        assert taken(doubles, x.double()) is not None
    finally:
        torch.set_default_dtype(torch.float32)


def test_inference_mode() -> None:
    lstm, x = made(), torch.randn(X)
    wanted = lstm(x)
    with torch.inference_mode():
        y, (h_n, c_n) = taken(lstm, x)
    assert y.is_inference()
    assert h_n.is_inference()
    assert_same((y, (h_n, c_n)), wanted)
    assert_same(lstm(y[..., :I].contiguous()), lstm(y[..., :I].clone()))  # and outside of it


def test_dropout_between_layers() -> None:
    lstm, x = made(num_layers=2, dropout=0.5), torch.randn(X)
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.train()
    torch.manual_seed(1)
    first = lstm(x)[0]
    assert not torch.equal(first, lstm(x)[0])
    torch.manual_seed(1)
    assert torch.equal(first, lstm(x)[0])


def test_weights_are_read_where_they_are() -> None:
    lstm, x = made(), torch.randn(X)
    before = lstm(x)[0]
    lstm.weight_hh_l0.mul_(2)
    changed = lstm(x)[0]
    assert not torch.equal(before, changed)
    lstm.weight_hh_l0.div_(2)
    assert torch.equal(lstm(x)[0], before)
    lstm.weight_hh_l0 = nn.Parameter(torch.zeros_like(lstm.weight_hh_l0))
    assert not torch.equal(lstm(x)[0], before)


def test_results_are_tensors_of_their_own() -> None:
    lstm, x = made(), torch.randn(1, 1, I)
    y, (h_n, c_n) = lstm(x)
    again = lstm(x)
    y.zero_(), h_n.fill_(7), c_n.resize_(9, 9)
    assert_same(lstm(x), again)
    assert torch.equal(y, torch.zeros_like(y))
    assert len({t.untyped_storage().data_ptr() for t in (y, h_n, c_n)}) == 3


def test_python_threads() -> None:
    """The interpreter's lock is free while kernels compute."""
    lstm, x = made(32, 64), torch.randn(50, 8, 32)
    wanted, wrong = lstm(x), []

    def work() -> None:
        with torch.no_grad():
            for _ in range(50):
                y, (_, c_n) = lstm(x)
                if not (torch.equal(y, wanted[0]) and torch.equal(c_n, wanted[1][1])):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_reference_is_lost_or_kept() -> None:
    lstm, x, hx = made(), torch.randn(X), (torch.randn(HX), torch.randn(HX))
    bad = (torch.randn(HX), torch.randn(1, B, H + 1))
    everything = [x, hx, *hx, bad, *bad, *lstm._current_weights(), torch.float32, torch.empty]
    before = [sys.getrefcount(t) for t in everything]
    for _ in range(200):
        taken(lstm, x, hx)
        taken(lstm, x, bad)
        taken(lstm, None)
    after = [sys.getrefcount(t) for t in everything]
    assert all(abs(a - b) <= 2 for a, b in zip(before, after, strict=True)), (before, after)


def test_memory_that_does_not_suffice() -> None:
    """An expanded x is larger than memory: the long way says so."""
    lstm, x = made(), torch.randn(1, 1, I).expand(1 << 40, 1, I)
    assert taken(lstm, x) is None
    with pytest.raises(RuntimeError, match="memory"):
        lstm(x)


def test_arguments_of_the_function_itself() -> None:
    with pytest.raises(TypeError, match="expected 5 arguments, got 1"):
        direct._direct(1)
    with pytest.raises(TypeError):
        direct._direct(torch.randn(X), None, [], "one", 0)
    with pytest.raises(OverflowError):
        direct._direct(torch.randn(X), None, [], 1 << 70, 0)
    assert direct._direct(torch.randn(X), None, (1, 2), 1, 0) is None


def test_it_is_there() -> None:
    assert direct._direct is not None


OTHERS = {"gone": "del {}", "a number": "{} = 5", "another capsule": "{} = datetime.datetime_CAPI"}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_torch_without_its_parts(change: str) -> None:
    """Nothing breaks where torch has another exchange API, or none any more."""
    code = (
        "import datetime, torch; "
        + change.format("torch.Tensor.__dlpack_c_exchange_api__")
        + "; import fused_lstm; from fused_lstm import direct; assert direct._direct is None; "
        "m = fused_lstm.LSTM(3, 4); torch.set_grad_enabled(False); "
        "print(m(torch.zeros(2, 1, 3))[0].shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "torch.Size([2, 1, 4])" in run.stdout


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"num_layers": 3, "bidirectional": True, "batch_first": True}],
    ids=str,
)
def test_frozen_is_the_same_as_the_long_way(
    stored: str, given: bool, options: dict[str, Any], the_long_way: Any
) -> None:
    lstm = made(13, 22, **options).freeze(stored)
    for sizes in ((T, B, 13), (1, 1, 13), (T, 13)):
        swapped = len(sizes) == 3 and lstm.batch_first
        x = torch.randn((sizes[1], sizes[0], 13) if swapped else sizes)
        hx = states(lstm, *sizes[1:-1]) if given else None
        own = lstm.batch_first, lstm.bidirectional
        results = direct.frozen(x, hx, lstm._frozen.packed, *own)
        assert results is not None
        assert_same(results, the_long_way(lstm, x, hx))
        assert_same(lstm(x, hx), results)


def test_frozen_weights_that_are_not_taken() -> None:
    lstm, x = made(13, 22).freeze("int8"), torch.randn(T, B, 13)
    packed = lstm._frozen.packed
    hidden, (panels, scales, bias, *none) = packed
    assert direct.frozen(x, None, packed, False, False) is not None
    for wrong in (
        (),
        (hidden,),
        (0, packed[1]),
        (-5, packed[1]),
        (1 << 80, packed[1]),
        (True, packed[1]),
        (hidden + 16, packed[1]),
        (hidden, packed[1][:3]),
        (hidden, [*packed[1]]),
        (hidden, (panels, None, bias, *none)),
        (hidden, (panels.float(), scales, bias, *none)),
        (hidden, (panels.short(), scales, bias, *none)),
        (hidden, (panels.new_zeros(*panels.shape, 2)[..., 0], scales, bias, *none)),
        (hidden, (panels.transpose(0, 1), scales, bias, *none)),
        (hidden, (panels, scales[:1], bias, *none)),
        (hidden, (panels, scales.double(), bias, *none)),
        (hidden, (panels, scales, None, *none)),
        (hidden, (panels, scales, bias[:1], *none)),
        (hidden, (None, scales, bias, *none)),
        list(packed),
        (hidden, packed[1], packed[1]),  # a second layer has other features
    ):
        assert direct.frozen(x, None, wrong, False, False) is None
    assert direct.frozen(x, None, packed, False, True) is None  # there is no second direction
    assert direct.frozen(x.double(), None, packed, False, False) is None
    assert direct.frozen(torch.randn(T, B, 17), None, packed, False, False) is None
    for name, watching in WATCHING.items():
        with watching():
            assert direct.frozen(x, None, packed, False, False) is None, name
    with Sees():
        seen.clear()
        lstm(x)
    assert any("fused_lstm.frozen_forward" in name for name in seen)
