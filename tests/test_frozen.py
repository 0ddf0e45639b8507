"""Frozen weights: what they compute, and that no change of a weight goes unseen.

Two comparisons for each way to store them: with nn.LSTM in float64 that is given the stored values,
within float32's rounding, which judges the kernel; and with the module's own weights, which tells
what storing them costs.
"""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    OPTIONS,
    OUTPUT_TOLERANCE,
    PACKED,
    REFUSAL,
    SHAPES,
    Case,
    arguments,
    call,
    error,
    modules,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils import swap_tensors

import fused_lstm
from fused_lstm import LSTM, Streaming, _extension

# Largest error of y, h_n and c_n against the unfrozen module, relative to the largest entry.
STORED_TOLERANCE = {
    "float32": OUTPUT_TOLERANCE[torch.float32],  # the same values: only the order of sums differs
    "bfloat16": 1.5e-2,  # each weight is off by up to 2^-9 of itself, 4H sums of both signs
    "int8": 4e-2,  # by up to 1/254 of its row's largest, and small weights by more of themselves
}
# Of the largest x or h of a row, where int8 goes by fixed point: csrc/kernels/cpu/bytes.h.
BYTE_UNIT = 1 / (127 * 256)
WAYS = tuple(STORED_TOLERANCE)
CASES = (
    *(c for c in SHAPES + OPTIONS + PACKED if c.proj_size == 0),
    *(Case(3, B, 20, 40) for B in range(1, 10)),
    Case(300, 1, 3, 33),  # more rows than a chunk of the input
    Case(90, 4, 6, 20, bidirectional=True, num_layers=2),
    Case(2, 1, 300, 280),  # threads share the units
    Case(2, 3, 10, 300, bidirectional=True),
)
X = torch.zeros(5, 3, 4)


def frozen(way: str = "float32", **options: Any) -> LSTM:
    return LSTM(4, 7, **options).eval().freeze(way)


def stored(w: Tensor, way: str) -> Tensor:
    """The values that a matrix has after it was stored."""
    if way == "float32":
        return w
    if way == "bfloat16":
        return w.bfloat16().float()
    scale = w.abs().amax(1, keepdim=True) / 127
    return torch.round(w / scale) * scale


def results(case: Case, module: nn.Module, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return call(module, case, leaves)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_computes_what_is_stored(case: Case, way: str) -> None:
    ours, theirs = modules(case, torch.float32, torch.float64)
    leaves = arguments(case, torch.float32)
    own = results(case, ours.eval(), leaves)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.startswith("weight"):
                p.copy_(stored(getattr(ours, name), way))
    ours.freeze(way)
    got = results(case, ours, leaves)
    expected = results(case, theirs, [t.double() for t in leaves])
    fixed_point = "with products of" in fused_lstm.explain_plan(ours)
    tolerance = OUTPUT_TOLERANCE[torch.float32]
    if fixed_point:  # errors of many features add up like a random walk
        tolerance = (4 + ours.input_size**0.5) * BYTE_UNIT
    for g, e, o in zip(got, expected, own, strict=True):
        assert error(g, e) <= tolerance
        assert error(g, o) <= STORED_TOLERANCE[way]
    assert not any(g.requires_grad for g in got)


def test_stored_weights_are_not_the_others() -> None:
    """Each way is another way: rounding is seen, and int8 rounds more than bfloat16."""
    lstm, x = LSTM(64, 64).eval(), torch.randn(20, 2, 64)
    with torch.no_grad():
        own = lstm(x)[0]
        errors = [error(lstm.freeze(way)(x)[0], own) for way in WAYS]
    assert errors[0] < 1e-5 < errors[1] < errors[2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_give_the_same(threads: int, way: str) -> None:
    before = torch.get_num_threads()
    for case in (Case(40, 1, 130, 200), Case(7, 3, 40, 260, bidirectional=True)):
        lstm = LSTM(case.I, case.H, bidirectional=case.bidirectional).eval().freeze(way)
        x = torch.randn(case.T, case.B, case.I)
        with torch.inference_mode():
            try:
                torch.set_num_threads(1)
                expected = lstm(x)[0]
                torch.set_num_threads(threads)
                got = lstm(x)[0]
            finally:
                torch.set_num_threads(before)
        assert torch.equal(got, expected)  # a unit's sums are formed by one thread, in one order


@pytest.mark.parametrize("isa", _extension.require().isas())
def test_packed_weights_are_the_same_for_every_processor(isa: str) -> None:
    lstm, x = LSTM(30, 41, bidirectional=True).eval(), torch.randn(9, 3, 30)
    extension = _extension.require()
    with torch.no_grad():
        own = lstm(x)[0]
    lstm.freeze()
    before = extension.isa()
    try:
        extension.set_isa(isa)
        with torch.no_grad():
            got = lstm(x)[0]
    finally:
        extension.set_isa(before)
    assert error(got, own) <= OUTPUT_TOLERANCE[torch.float32]


def test_unbatched_strided_and_empty() -> None:
    lstm = frozen()
    x = torch.randn(4, 5, 3, 2).permute(1, 2, 0, 3)[..., 0]  # features do not lie side by side
    with torch.no_grad():
        y, (h, _c) = lstm(x)
        one, (h_one, _) = lstm(x[:, 1].contiguous())
        none, (h_none, _) = lstm(torch.empty(5, 0, 4))
    torch.testing.assert_close(one, y[:, 1])
    torch.testing.assert_close(h_one, h[:, 1])
    assert none.shape == (5, 0, 7)
    assert h_none.shape == (1, 0, 7)
    with pytest.raises(RuntimeError, match="larger than 0"), torch.no_grad():
        lstm(torch.empty(0, 3, 4))


def test_nan_goes_its_way() -> None:
    lstm, x = LSTM(4, 7).eval(), X.clone()
    x[2, 1] = torch.nan
    with torch.no_grad():
        expected = lstm(x)[0].isnan()
        for way in WAYS:
            assert torch.equal(lstm.freeze(way)(x)[0].isnan(), expected)


# Every way in which a weight changes


def in_place(lstm: LSTM) -> None:
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(1.5)


def in_place_in_inference_mode(lstm: LSTM) -> None:
    with torch.inference_mode():
        lstm.weight_hh_l0.mul_(1.5)


def through_data(lstm: LSTM) -> None:
    lstm.bias_ih_l0.data[0] = 1.0


def data_replaced(lstm: LSTM) -> None:
    lstm.weight_ih_l0.data = torch.randn(28, 4)


def data_of_the_same_memory(lstm: LSTM) -> None:
    lstm.weight_hh_l0.data = lstm.weight_hh_l0.data.as_strided((28, 7), (1, 28))


def to_another_dtype_and_back(lstm: LSTM) -> None:
    lstm.bfloat16().float()


def loaded(lstm: LSTM) -> None:
    lstm.load_state_dict(LSTM(4, 7).state_dict())


def loaded_by_assignment(lstm: LSTM) -> None:
    lstm.load_state_dict(LSTM(4, 7).state_dict(), assign=True)


def through_its_state_dict(lstm: LSTM) -> None:
    lstm.state_dict()["weight_hh_l0"].zero_()


def replaced(lstm: LSTM) -> None:
    lstm.weight_hh_l0 = nn.Parameter(torch.randn(28, 7))


def swapped(lstm: LSTM) -> None:
    swap_tensors(lstm.weight_hh_l0, nn.Parameter(torch.randn(28, 7)))


def initialised(lstm: LSTM) -> None:
    lstm.reset_parameters()


def pruned(lstm: LSTM) -> None:
    prune.random_unstructured(lstm, "weight_hh_l0", amount=0.5)


def optimized(lstm: LSTM) -> None:
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    for p in lstm.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def optimized_in_one_kernel(lstm: LSTM) -> None:
    """Torch's fused steps move no version counter."""
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.1, fused=True)
    for p in lstm.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def from_a_vector(lstm: LSTM) -> None:
    vector = nn.utils.parameters_to_vector(lstm.parameters())
    nn.utils.vector_to_parameters(vector.detach() + 1, lstm.parameters())


def memory_set(lstm: LSTM) -> None:
    with torch.no_grad():
        lstm.weight_hh_l0.set_(torch.randn(28, 7))


def thawed_elsewhere(lstm: LSTM) -> None:
    """A parameter that another frozen module shares is watched no more when that one thaws."""
    other = LSTM(4, 7).eval()
    for name, p in lstm.named_parameters():
        setattr(other, name, p)
    other.freeze().thaw()


CHANGES = (
    in_place,
    in_place_in_inference_mode,
    through_data,
    data_replaced,
    data_of_the_same_memory,
    to_another_dtype_and_back,
    loaded,
    loaded_by_assignment,
    through_its_state_dict,
    replaced,
    swapped,
    initialised,
    pruned,
    optimized,
    optimized_in_one_kernel,
    from_a_vector,
    memory_set,
    thawed_elsewhere,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("streams", [False, True], ids=["call", "stream"])
def test_a_change_is_seen(change: Callable[[LSTM], None], streams: bool) -> None:
    lstm = frozen("int8")
    module: Callable[[Tensor], Any] = Streaming(lstm, 3) if streams else lstm
    with torch.no_grad():
        module(X)
        module(X)
    change(lstm)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"weights changed since freeze\(\)"):
        module(X)
    lstm.thaw()
    expected = LSTM.__new__(LSTM)
    expected.__setstate__(lstm.__dict__.copy())
    with torch.no_grad():
        assert torch.equal(lstm(X)[0], expected(X)[0])


def test_a_parametrization_is_refused_until_thawed() -> None:
    """PyTorch itself makes a new Parameter of the old one there, and will not of a watched one."""
    lstm = frozen()
    with torch.no_grad():
        before = lstm(X)[0]
        with pytest.raises(RuntimeError, match="WatchedParameter"):
            parametrizations.weight_norm(lstm, "weight_hh_l0")
        assert torch.equal(lstm(X)[0], before)
        parametrizations.weight_norm(lstm.thaw(), "weight_hh_l0")
        torch.testing.assert_close(lstm(X)[0], before)


def test_what_changes_nothing_is_allowed() -> None:
    lstm = frozen()
    with torch.no_grad():
        before = lstm(X)[0]
        lstm.to("cpu").float().requires_grad_(False).train().eval()
        assert torch.equal(lstm(X)[0], before)
    assert torch.equal(lstm.weight_hh_l0.data, lstm.weight_hh_l0)
    lstm.zero_grad()
    lstm(X)  # no parameter asks for a gradient any more


def test_freezing_again_takes_the_new_weights() -> None:
    lstm = frozen()
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
        got = lstm.freeze()(X)[0]
        assert error(got, lstm.thaw()(X)[0]) <= OUTPUT_TOLERANCE[torch.float32]


def test_thaw_gives_everything_back() -> None:
    lstm = LSTM(4, 7)
    kinds = {name: type(p) for name, p in lstm.named_parameters()}
    assert lstm.thaw() is lstm  # nothing to do
    assert lstm.eval().freeze("int8").thaw() is lstm
    assert {name: type(p) for name, p in lstm.named_parameters()} == kinds
    lstm.train()(X)[0].sum().backward()
    assert lstm.weight_hh_l0.grad is not None


# What is refused, in the words argument, expected, got


@pytest.mark.parametrize("way", ["int4", "float16", torch.int8, None])
def test_another_way_to_store(way: Any) -> None:
    with pytest.raises(ValueError, match=r"weights: expected one of float32, bfloat16, int8, got"):
        LSTM(4, 7).eval().freeze(way)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: LSTM(4, 7), RuntimeError, "lstm: expected eval mode to freeze it, got training"),
        (lambda: LSTM(4, 7, proj_size=3), NotImplementedError, "proj_size: expected 0 .* got 3"),
        (lambda: LSTM(4, 7, zoneout=0.1), NotImplementedError, "zoneout: expected 0 .* got"),
        (
            lambda: LSTM(4, 7).double(),
            ValueError,
            "weight_ih_l0: expected torch.float32 .* got torch.float64",
        ),
        (lambda: LSTM(4, 7).to("meta"), ValueError, "weight_ih_l0: expected .* device 'meta'"),
        (
            lambda: prune.identity(LSTM(4, 7), "weight_hh_l0"),
            TypeError,
            "weight_hh_l0: expected an nn.Parameter to freeze, got Tensor",
        ),
        (
            lambda: parametrizations.weight_norm(LSTM(4, 7), "weight_hh_l0"),
            TypeError,
            "weight_hh_l0: expected an nn.Parameter to freeze, got Tensor",
        ),
    ],
)
def test_what_cannot_be_frozen(make: Callable[[], Any], kind: type, text: str) -> None:
    lstm = make()
    with pytest.raises(kind, match=text):
        (lstm if "eval mode" in text else lstm.eval()).freeze()
    assert lstm._frozen is None


def test_values_that_int8_cannot_hold() -> None:
    lstm = LSTM(4, 7).eval()
    with torch.no_grad():
        lstm.weight_hh_l0[3, 2] = torch.inf
    with pytest.raises(ValueError, match=r"weight_hh_l0: expected finite values .* got inf or nan"):
        lstm.freeze("int8")
    lstm.freeze("bfloat16")
    with torch.inference_mode():
        made_inside = LSTM(4, 7).eval()
    with pytest.raises(ValueError, match=r"made outside torch.inference_mode"):
        made_inside.freeze()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e35, 1e-36, 1e-42, 0.0])
def test_states_that_bytes_hardly_hold(value: float) -> None:
    torch.manual_seed(2)
    lstm, x = LSTM(4, 37).eval(), torch.randn(3, 3, 4)
    h0, c0 = torch.randn(1, 3, 37), torch.randn(1, 3, 37)
    h0[0, 1] = value
    with torch.no_grad():
        own = lstm(x, (h0, c0))
        got = lstm.freeze("int8")(x, (h0, c0))
    for g, o in zip((got[0], *got[1]), (own[0], *own[1]), strict=True):
        assert torch.equal(g.isnan(), o.isnan())
        assert error(g.nan_to_num(), o.nan_to_num()) <= STORED_TOLERANCE["int8"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e35, 1e-36, 1e-42, 0.0])
def test_inputs_that_bytes_hardly_hold(value: float) -> None:
    torch.manual_seed(2)
    lstm, x = LSTM(21, 7).eval(), torch.randn(4, 3, 21)
    x[2, 1] = value
    with torch.no_grad():
        own = lstm(x)[0]
        got = lstm.freeze("int8")(x)[0]
    assert torch.equal(got.isnan(), own.isnan())
    assert error(got.nan_to_num(), own.nan_to_num()) <= STORED_TOLERANCE["int8"]


@pytest.mark.parametrize("large", [1.0, 1e3, 1e6, 1e29, 2e30])
def test_a_feature_that_dwarfs_the_others_as_int8(large: float) -> None:
    torch.manual_seed(0)
    lstm, x = LSTM(8, 32).eval(), torch.randn(5, 2, 8)
    with torch.no_grad():
        lstm.weight_ih_l0[:, 0] = 0  # exact in 8 bits
        x[..., 0] = large
        own = lstm(x)[0]
        assert error(lstm.freeze("int8")(x)[0], own) <= STORED_TOLERANCE["int8"] / 4


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    lstm, x = LSTM(16, 40).eval().freeze("int8"), torch.randn(6, 7, 16)
    with torch.no_grad():
        before = lstm(x)[0]
        x[2, 3], x[4, 5] = float("nan"), 1e35
        after = lstm(x)[0]
    others = [0, 1, 2, 4, 6]
    assert torch.equal(before[:, others], after[:, others])
    assert after[2:, 3].isnan().all()


def test_a_row_of_zeros_as_int8() -> None:
    lstm = LSTM(4, 7).eval()
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
        own = lstm(X)[0]
        assert error(lstm.freeze("int8")(X)[0], own) <= STORED_TOLERANCE["int8"]


def test_training_and_gradients_are_refused() -> None:
    lstm = frozen()
    with pytest.raises(RuntimeError, match=r"weights: expected no gradient .* lstm\.thaw\(\)"):
        lstm(X)
    lstm.requires_grad_(False)
    lstm(X)
    with pytest.raises(RuntimeError, match=r"input or hx: expected no gradient .* requires_grad"):
        lstm(X.clone().requires_grad_())
    hx = (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7, requires_grad=True))
    with pytest.raises(RuntimeError, match="input or hx: expected no gradient"):
        lstm(X, hx)
    lstm.train()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"got training mode: .*lstm\.thaw\(\)"):
        lstm(X)


@pytest.mark.parametrize(
    "options",
    [
        {"reset": torch.zeros(5, 3, dtype=torch.bool)},
        {"lengths": torch.tensor([5, 4, 3])},
        {"return_cells": True},
    ],
    ids=lambda o: next(iter(o)),
)
def test_options_of_a_call_are_refused(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with torch.no_grad(), pytest.raises(NotImplementedError, match=f"{name}: expected .* got"):
        frozen()(X, **options)


def test_wrong_inputs_get_the_errors_of_nn_lstm() -> None:
    lstm = frozen()
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="Expected 4, got 5"):
            lstm(torch.zeros(5, 3, 5))
        with pytest.raises(ValueError, match=r"RNN input dtype"):
            lstm(X.double())
        for state in (torch.zeros(1, 3, 7).double(), torch.zeros(1, 3, 7, device="meta")):
            with pytest.raises(RuntimeError, match=r"hx\[0\]: expected torch.float32 on device"):
                lstm(X, (state, torch.zeros(1, 3, 7)))
        with pytest.raises(RuntimeError, match=r"input: expected a tensor on the CPU"):
            lstm(X.to("meta"))
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
            lstm(X, (torch.zeros(1, 2, 7), torch.zeros(1, 3, 7)))
        with pytest.raises(TypeError, match="hx: expected a pair"):
            lstm(X, torch.zeros(1, 3, 7))


def test_autocast_transforms_and_graphs_are_refused() -> None:
    lstm = frozen()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
            lstm(X)
        with pytest.raises(RuntimeError, match=r"torch.func"):
            torch.vmap(lambda x: lstm(x)[0])(X[None])
        with pytest.raises(RuntimeError, match="tracing or export"):
            torch.jit.trace(lstm, (X,))
        with pytest.raises(torch.jit.Error, match=r"expected no frozen module"):
            torch.jit.script(nn.Sequential(lstm))(X)
        with pytest.raises(RuntimeError, match="tracing or export"):
            torch.export.export(lstm, (X,), strict=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("make", [LSTM, lambda *sizes: fused_lstm.convert(nn.LSTM(*sizes))])
def test_what_is_not_frozen_is_scripted(make: Callable[..., LSTM]) -> None:
    """A converted module knows of freezing, and of extras, through its class alone."""
    lstm = make(4, 7).eval()
    with torch.no_grad():
        y, _ = torch.jit.script(nn.Sequential(lstm))(X)
        torch.testing.assert_close(y, lstm(X)[0])


def test_torch_compile_breaks_its_graph_there() -> None:
    lstm = frozen("int8")

    def model(x: Tensor) -> Tensor:
        return lstm(x * 2)[0] + 1

    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(X), model(X))
        lstm.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match=r"weights changed since freeze\(\)"):
            compiled(X)
        lstm.freeze()
        assert torch.equal(compiled(X), model(X))
        torch._dynamo.reset()
        with pytest.raises(Exception, match="frozen LSTM"):
            torch.compile(model, backend="eager", fullgraph=True)(X)


# Copies, pickles, other modules


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_frozen_too(how: Callable[[LSTM], LSTM]) -> None:
    lstm = frozen("int8", num_layers=2, bidirectional=True)
    other = how(lstm)
    with torch.no_grad():
        assert torch.equal(other(X)[0], lstm(X)[0])
        other.weight_hh_l0.zero_()
        with pytest.raises(RuntimeError, match="weights changed"):
            other(X)


def test_a_copy_packs_what_it_holds() -> None:
    lstm = frozen()
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)  # the packed weights are stale now; the copy's are not
        other = copy.deepcopy(lstm)
        assert error(other(X)[0], lstm.thaw()(X)[0]) <= OUTPUT_TOLERANCE[torch.float32]


def test_the_state_dict_is_that_of_nn_lstm() -> None:
    lstm, theirs = frozen("int8"), nn.LSTM(4, 7)
    theirs.load_state_dict(lstm.state_dict())
    file = io.BytesIO()
    torch.save(lstm.state_dict(), file)
    file.seek(0)
    fresh = LSTM(4, 7).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert not fresh.is_frozen
    with torch.no_grad():
        torch.testing.assert_close(fresh(X)[0], theirs(X)[0])
    file = io.BytesIO()
    torch.save(dict(lstm.named_parameters()), file)
    file.seek(0)
    assert {type(p) for p in torch.load(file, weights_only=True).values()} == {nn.Parameter}


def test_converted_modules_freeze_and_do_not_revert_silently() -> None:
    model = nn.Sequential(nn.LSTM(4, 7)).eval()
    lstm: Any = fused_lstm.convert(model)[0]
    lstm.freeze()
    with pytest.warns(UserWarning, match=r"it is frozen: call its thaw\(\) first"):
        fused_lstm.revert(model)
    with torch.no_grad():
        lstm(X)
    lstm.thaw()
    assert type(fused_lstm.revert(model)[0]) is nn.LSTM


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("exact", [False, True])
def test_streams(way: str, exact: bool) -> None:
    lstm = LSTM(4, 23, num_layers=2).eval().freeze(way)
    x = torch.randn(30, 2, 4)
    stream = Streaming(lstm, 2, exact=exact)
    with torch.no_grad():
        y, (h, c) = lstm(x)
    got = torch.cat([stream(piece) for piece in x.split([10, 1, 19])])
    torch.testing.assert_close(got, y)
    torch.testing.assert_close(stream.state, (h, c))
    hooked: list[Any] = []
    handle = lstm.register_forward_hook(lambda *a: hooked.append(a))
    stream(x[0])
    handle.remove()
    assert len(hooked) == 1


def test_explain_plan_says_it() -> None:
    lstm = LSTM(1024, 1024, num_layers=2).eval()
    assert "frozen" not in fused_lstm.explain_plan(lstm)
    lines = fused_lstm.explain_plan(lstm.freeze("int8"), threads=2).splitlines()
    assert len(lines) == 2
    assert all("frozen int8 panels" in line and "2 tasks" in line for line in lines)
    assert "frozen" not in fused_lstm.explain_plan(lstm.thaw())


def test_the_operator_checks_its_memory() -> None:
    forward = torch.ops.fused_lstm.frozen_forward
    lstm = frozen("int8")
    panels, scales, bias, *none = lstm._frozen.layers[0]

    def run(**other: Any) -> Any:
        own = {"panels": panels, "scales": scales, "bias": bias, "hidden_size": 7, "x": X, **other}
        x, hidden_size = own.pop("x"), own.pop("hidden_size")
        return forward(x, None, None, None, hidden_size, *own.values(), *none)

    run()
    wrong = {
        "panels": panels[:, :-1],
        "scales": None,
        "bias": bias[:, :3],
        "hidden_size": 17,
        "x": X.double(),
    }
    for name, value in wrong.items():
        with pytest.raises(REFUSAL, match=r"expected .* got"):
            run(**{name: value})
    with pytest.raises(REFUSAL, match="panels: expected a contiguous tensor"):
        run(panels=panels.transpose(2, 3).contiguous().transpose(2, 3))
    with pytest.raises(REFUSAL, match="panels: expected dtype float32, bfloat16 or int8"):
        run(panels=panels.double())
    with pytest.raises(REFUSAL, match="hidden_size: expected a size of at least 1"):
        run(hidden_size=0)


def test_the_operator_has_a_fake() -> None:
    packed = frozen("int8", bidirectional=True)._frozen.layers[0]
    arguments = (X, None, None, None, 7, *packed)
    torch.library.opcheck(torch.ops.fused_lstm.frozen_forward.default, arguments)


def test_freezing_imports_no_compiler() -> None:
    code = (
        "import sys, torch, fused_lstm\n"
        "assert 'fused_lstm.frozen' not in sys.modules\n"
        "lstm = fused_lstm.LSTM(4, 7).eval().freeze()\n"
        "with torch.no_grad(): lstm(torch.zeros(2, 1, 4))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_optimizer_of_other_parameters_changes_nothing() -> None:
    lstm, other = frozen(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*other.parameters(), *lstm.parameters()], lr=0.1, fused=True)
    other(torch.ones(2)).sum().backward()
    with torch.no_grad():
        before = lstm(X)[0]
        optimizer.step()  # of parameters without a gradient: none
        assert torch.equal(lstm(X)[0], before)
