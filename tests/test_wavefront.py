"""Layers side by side: the same results as one after the other, every read after its write, and a
plan that wants them only where there is room.

There are no streams here: the CPU kernels compute in the very order in which a GPU would be given
its work, and a stand-in for streams watches who reads what (`Watched`).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE
from test_cuda import FACTS, FORWARD, StandIn, fake_gpu, on_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fused_lstm
from fused_lstm import _extension, dispatch, ops, wavefront
from fused_lstm.wavefront import CALLER, Lanes, Plan

T, B, I, H = 23, 3, 5, 6  # noqa: E741


class Stack:
    """The inputs and weights of L layers, with gradients, in float64."""

    def __init__(
        self, L: int, bias: bool = True, P: int = 0, hx: bool = True, dtype: Any = torch.float64
    ) -> None:
        torch.manual_seed(L)
        self.options = {"num_layers": L, "bias": bias, "proj_size": P}
        self.x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
        self.hx = None
        if hx:
            sizes = (L, B, P or H), (L, B, H)
            self.hx = [torch.randn(s, dtype=dtype, requires_grad=True) for s in sizes]
        module = torch.nn.LSTM(I, H, **self.options).to(dtype)
        self.weights = list(module.parameters())
        self.inputs = [self.x, *(self.hx or ()), *self.weights]

    def in_order(self) -> tuple[Tensor, ...]:
        y, state = fused_lstm.lstm(self.x, self.hx, self.weights, **self.options)
        return y, *state

    def side_by_side(self, steps: int, lanes: int = 2) -> tuple[Tensor, ...]:
        each = len(self.weights) // self.options["num_layers"]
        groups = [self.weights[k : k + each] for k in range(0, len(self.weights), each)]
        bias, P = self.options["bias"], self.options["proj_size"]
        tens = [t for own in groups for t in dispatch.ten_weights(own, bias, False, P)]
        h0, c0 = self.hx or (None, None)
        return wavefront.stack(self.x, h0, c0, tens, Plan(steps, lanes))

    def cotangents(self, results: tuple[Tensor, ...]) -> list[Tensor]:
        torch.manual_seed(99)
        return [torch.randn_like(t) for t in results]


def close(found: Tensor, wanted: Tensor, tolerance: dict[torch.dtype, float]) -> None:
    scale = max(float(wanted.detach().abs().max()), 1e-30)
    error = float((found - wanted).detach().abs().max())
    assert error <= tolerance[wanted.dtype] * scale, (error, scale)


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 12, 23])
@pytest.mark.parametrize("L", [2, 3, 4])
@pytest.mark.parametrize(
    "options", [{}, {"hx": False}, {"bias": False}, {"P": 4}], ids=["all", "zeros", "nobias", "P"]
)
def test_same_as_one_after_the_other(L: int, steps: int, options: dict[str, Any]) -> None:
    layers = Stack(L, **options)
    wanted, found = layers.in_order(), layers.side_by_side(steps)
    for a, b in zip(found, wanted, strict=True):
        close(a, b, OUTPUT_TOLERANCE)
    cotangents = layers.cotangents(wanted)
    grads = [torch.autograd.grad(r, layers.inputs, cotangents) for r in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        close(a, b, GRADIENT_TOLERANCE)
    with torch.no_grad():
        for a, b in zip(layers.side_by_side(steps), wanted, strict=True):
            close(a, b, OUTPUT_TOLERANCE)


@pytest.mark.parametrize("used", ["y", "h_n", "c_n"])
def test_gradient_of_a_part_of_the_output(used: str) -> None:
    layers = Stack(3)
    k = ("y", "h_n", "c_n").index(used)
    wanted, found = layers.in_order()[k], layers.side_by_side(4)[k]
    cotangent = torch.randn_like(wanted)
    grads = [torch.autograd.grad(r, layers.inputs, cotangent) for r in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        close(a, b, GRADIENT_TOLERANCE)


class Calls(TorchDispatchMode):
    """The gradients that every call of the backward operator was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "fused_lstm.backward.default":
            self.masks.append(args[19])
        return func(*args, **(kwargs or {}))


X, H0, C0, W_IH, W_HH, BIAS = 1, 2, 4, 8, 16, 32  # bits, see ops.backward
WEIGHTS = W_IH | W_HH | BIAS
NARROWED: dict[str, tuple[Callable[[Stack], list[Tensor]], list[int]]] = {
    # what is asked for; the masks of 3 layers of 2 chunks each, in the order of the calls
    "the top layer": (lambda s: s.weights[8:], [WEIGHTS | H0 | C0, WEIGHTS]),
    "w_hh of the middle layer": (
        lambda s: [s.weights[5]],
        [X | H0 | C0, X, W_HH | H0 | C0, W_HH],  # sorted below: layers overlap
    ),
    "x": (lambda s: [s.x], [X | H0 | C0, X] * 3),
    "c0": (lambda s: [s.hx[1]], [X | H0 | C0, X | C0] * 2 + [H0 | C0, C0]),  # type: ignore[index]
}


@pytest.mark.parametrize("what", NARROWED)
def test_no_gradient_is_computed_that_nobody_wants(what: str) -> None:
    choose, masks = NARROWED[what]
    layers = Stack(3)
    wanted = torch.autograd.grad(layers.in_order()[0].sum(), choose(layers))
    for t in layers.inputs:
        t.requires_grad_(False)
    for t in choose(layers):
        t.requires_grad_()
    y, _, _ = layers.side_by_side(12)
    with Calls() as calls:
        y.sum().backward()
    assert sorted(calls.masks) == sorted(masks)
    for t, gradient in zip(choose(layers), wanted, strict=True):
        assert t.grad is not None
        close(t.grad, gradient, GRADIENT_TOLERANCE)
    assert all(t.grad is None for t in layers.inputs if not t.requires_grad)


def test_biases_share_no_memory() -> None:
    layers = Stack(2)
    layers.side_by_side(12)[0].sum().backward()
    b_ih, b_hh = (layers.weights[k].grad for k in (2, 3))
    assert b_ih is not None
    assert b_hh is not None
    assert torch.equal(b_ih, b_hh)
    assert b_ih.data_ptr() != b_hh.data_ptr()


def test_parts_of_a_weights_gradient_are_added_in_float32() -> None:
    """1 and 600 times 1/512: in bfloat16 nothing would ever be added to the 1."""
    sums = wavefront._added([], [torch.ones(1, dtype=torch.bfloat16)])
    for _ in range(600):
        sums = wavefront._added(sums, [torch.full((1,), 1 / 512, dtype=torch.bfloat16)])
    assert sums[0] == 1 + 600 / 512
    double = [torch.ones(1, dtype=torch.float64)]
    assert wavefront._added([], double)[0].dtype is torch.float64


def test_half_gradients_have_the_weights_dtype() -> None:
    layers = Stack(2, dtype=torch.bfloat16)
    wanted, found = layers.in_order(), layers.side_by_side(8)
    for a, b in zip(found, wanted, strict=True):
        close(a, b, OUTPUT_TOLERANCE)
    found[0].sum().backward()
    assert all(t.grad is not None and t.grad.dtype is torch.bfloat16 for t in layers.inputs)


def test_second_derivative() -> None:
    layers = Stack(2)
    second = []
    for results in (layers.side_by_side(5), layers.in_order()):
        loss = sum((r * g).sum() for r, g in zip(results, layers.cotangents(results), strict=True))
        first = torch.autograd.grad(loss, layers.inputs, create_graph=True)
        penalty = sum(g.pow(2).sum() for g in first)
        second.append(torch.autograd.grad(penalty, layers.inputs))
    for a, b in zip(*second, strict=True):
        close(a, b, GRADIENT_TOLERANCE)


def test_a_batch_of_gradients() -> None:
    layers = Stack(2)
    found, wanted = (
        torch.autograd.grad(y, layers.weights, y.new_ones(2, *y.shape), is_grads_batched=True)
        for y in (layers.side_by_side(5)[0], layers.in_order()[0])
    )
    for a, b in zip(found, wanted, strict=True):
        close(a, b, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("edited", ["y", "x", "weight"])
def test_an_edit_before_backward_is_noticed(edited: str) -> None:
    layers = Stack(2)
    y, h_n, _ = layers.side_by_side(5)
    with torch.no_grad():
        {"y": y, "x": layers.x, "weight": layers.weights[0]}[edited].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h_n.sum().backward()


def test_a_kept_graph_gives_the_same_again() -> None:
    layers = Stack(3)
    y, _, _ = layers.side_by_side(5)
    first = torch.autograd.grad(y.sum(), layers.inputs, retain_graph=True)
    again = torch.autograd.grad(y.sum(), layers.inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ---- order ---------------------------------------------------------------------------------------


class Watched(Lanes, TorchDispatchMode):
    """Lanes that compute at once, and know what real ones would be free to do.

    Every lane has a clock, and knows of the others' as much as its waits have told it. A tensor is
    read in order if its writer's clock was known by then; it is safe from the allocator if it was
    made on the reader's lane or lent to it.
    """

    def __init__(
        self, count: int, without_wait: int = -1, never_lent_to: int | None = None
    ) -> None:
        Lanes.__init__(self, count)
        TorchDispatchMode.__init__(self)
        self.lane = CALLER
        self.known = {lane: dict.fromkeys(range(CALLER, count), 0) for lane in range(CALLER, count)}
        self.known[CALLER][CALLER] = 1  # when everything was made that is there before
        self.waits, self.without_wait, self.never_lent_to = 0, without_wait, never_lent_to
        self.written: dict[int, tuple[int, int]] = {}
        self.read: dict[int, list[tuple[int, int]]] = {}
        self.lent: set[tuple[int, int]] = set()
        self.alive: list[Any] = []  # so that no address is used twice
        self.problems: list[str] = []

    def _learn(self, pairs: list[tuple[int, dict[int, int]]]) -> None:
        """One wait, of lanes that learn clocks; or none, if it is the one that is left out."""
        self.waits += 1
        if self.waits - 1 == self.without_wait:
            return
        for lane, clocks in pairs:
            self.known[lane] = {k: max(v, clocks[k]) for k, v in self.known[lane].items()}

    def fork(self) -> None:
        self._learn([(lane, self.known[CALLER]) for lane in range(self.count)])

    def join(self) -> None:
        self._learn([(CALLER, self.known[lane]) for lane in range(self.count)])

    @contextlib.contextmanager
    def on(self, lane: int) -> Iterator[None]:
        before, self.lane = self.lane, lane
        try:
            yield
        finally:
            self.lane = before

    def mark(self, lane: int) -> Any:
        return dict(self.known[lane])

    def wait(self, lane: int, mark: Any) -> None:
        self._learn([(lane, mark)])

    def lend(self, lane: int, *tensors: Tensor | None) -> None:
        for t in tensors:
            if t is not None and lane != self.never_lent_to:
                self.lent.add((lane, t.untyped_storage().data_ptr()))

    def _check(self, at: tuple[int, int], what: str) -> None:
        if self.known[self.lane][at[0]] < at[1]:
            self.problems.append(what)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        places = [
            [t.untyped_storage().data_ptr() for t in tree_leaves(part) if is_data(t)]
            for part in (args, results)
        ]
        self.alive.append((args, results))
        aliases = [a.alias_info for a in func._schema.arguments]
        writes = any(alias is not None and alias.is_write for alias in aliases)
        if not writes and set(places[0]) & set(places[1]):
            return results  # a view: nothing is read yet
        lane, clock = self.lane, self.known[self.lane][self.lane] + 1
        self.known[lane][lane] = clock
        for place in places[0]:
            home = self.written.get(place, (CALLER, 1))
            self._check(home, f"{func} on lane {lane} reads too early")
            if home[0] != lane and (lane, place) not in self.lent:
                self.problems.append(f"{func} reads on lane {lane} what was not lent to it")
            self.read.setdefault(place, []).append((lane, clock))
        for place in places[1]:
            for reader in self.read.get(place, []):
                self._check(reader, f"{func} on lane {lane} overwrites what is still read")
            self.written[place] = (lane, clock)
        return results


def is_data(t: Any) -> bool:
    return isinstance(t, Tensor) and t.numel() > 0


def watch(monkeypatch: pytest.MonkeyPatch, L: int, count: int, **planted: Any) -> Watched:
    """Forward, backward, and all results read by the caller."""
    layers = Stack(L)
    watched = Watched(count, **planted)
    monkeypatch.setattr(wavefront, "_lanes", lambda *_: watched)
    cotangents = [torch.randn_like(t) for t in layers.in_order()]
    with watched:
        results = layers.side_by_side(9, count)
        grads = torch.autograd.grad(results, layers.inputs, cotangents)
        for t in (*results, *grads):
            t.clone()
    return watched


SHAPES = [(2, 2), (3, 3), (3, 2), (4, 2)]  # layers, lanes


@pytest.mark.parametrize(("L", "count"), SHAPES)
def test_every_read_comes_after_its_write(
    L: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(monkeypatch, L, count)
    assert watched.problems == []
    # 3 chunks: each layer but the first waits for its chunks, both ways; lanes wait for the caller,
    # and the caller for them.
    assert watched.waits == 2 * (3 * (L - 1) + 2)


@pytest.mark.parametrize(("L", "count"), SHAPES)
def test_no_wait_can_be_left_out(L: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for wait in range(watch(monkeypatch, L, count).waits):
        problems = watch(monkeypatch, L, count, without_wait=wait).problems
        assert any("too early" in problem for problem in problems), f"wait {wait} is not missed"


def test_no_lane_can_go_without_what_is_lent_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for lane in (CALLER, 0, 1, 2):
        problems = watch(monkeypatch, 3, 3, never_lent_to=lane).problems
        assert any("not lent" in problem for problem in problems), f"lane {lane}"


def test_the_caller_waits_even_for_a_call_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, watched = Stack(2), Watched(2)
    monkeypatch.setattr(wavefront, "_lanes", lambda *_: watched)
    calls = iter([ops.forward, ops.forward])

    def fail(*arguments: Any) -> Any:
        call = next(calls, None)
        if call is None:
            raise torch.OutOfMemoryError("no memory")
        return call(*arguments)

    monkeypatch.setattr(ops, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        layers.side_by_side(5)
    assert watched.lane == CALLER
    assert watched.waits == 3  # to begin, between the layers, to end


def test_lanes_are_streams_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of torch's calls stand for what, with streams that only write down what they do."""
    log: list[str] = []

    class Stream:
        def __init__(self, device: Any) -> None:
            self.name = f"{device}-{len(made)}"
            made.append(self)

        def wait_stream(self, other: "Stream") -> None:
            log.append(f"{self.name} after {other.name}")

        def wait_event(self, event: str) -> None:
            log.append(f"{self.name} after {event}")

        def record_event(self) -> str:
            return f"event of {self.name}"

    class Block:
        def record_stream(self, stream: Stream) -> None:
            log.append(f"lent to {stream.name}")

    made: list[Stream] = []
    caller = Stream("caller")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
    wavefront._stream.cache_clear()
    device = torch.device("cuda", 0)
    lanes = wavefront.CudaLanes(2, device)
    lanes.fork()
    lanes.wait(1, lanes.mark(0))
    lanes.lend(1, Block(), None)  # type: ignore[arg-type]
    lanes.lend(CALLER, Block())  # type: ignore[arg-type]
    lanes.join()
    one, two, first = "cuda:0-1", "cuda:0-2", "caller-0"
    assert log == [
        f"{one} after {first}",
        f"{two} after {first}",
        f"{two} after event of {one}",
        f"lent to {two}",
        f"lent to {first}",
        f"{first} after {one}",
        f"{first} after {two}",
    ]
    assert wavefront.CudaLanes(2, device)._streams == lanes._streams, "new streams for each call"
    wavefront._stream.cache_clear()


# ---- the plan ------------------------------------------------------------------------------------


class Planned(StandIn):
    """A GPU with room for `room` blocks, of which a layer takes `blocks`."""

    blocks, room, us, forced = 16, 132, 2.0, None
    family = "grid"

    def forced_family(self) -> str | None:
        return self.forced

    def families(self, *call: Any) -> list[dict[str, Any]]:
        resident = self.family != "stepwise"
        blocks, room = (self.blocks, self.room) if resident else (0, 0)
        return [{"family": self.family, "us": self.us, "blocks": blocks, "room": room}]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Planned]:
    """CUDA kernels of all families, turned on."""
    module = Planned()
    for name, value in (
        ("_cuda_module", module),
        ("_cuda_switched_on", True),
        ("_cuda_obstacles", {}),
        ("why_no_cuda", ""),
        ("across_blocks", True),
    ):
        monkeypatch.setattr(_extension, name, value)
    wavefront._plan.cache_clear()
    yield module
    wavefront._plan.cache_clear()


def planned(
    T: int = 1024, L: int = 2, training: bool = True, dtype: torch.dtype = torch.float32
) -> Plan | None:
    wavefront._plan.cache_clear()
    return wavefront.plan(T, 16, 64, 512, L, dtype, training, True, 0)


def test_where_a_wavefront_pays(kernels: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    two, four = planned(), planned(L=4)
    assert two is not None
    assert four is not None
    assert (two.lanes, four.lanes) == (2, 4)
    for chosen in (two, four):
        assert chosen.us < wavefront.GAIN * chosen.us_in_order
        assert wavefront.LEAST_STEPS <= chosen.steps <= 512
    assert four.us / four.us_in_order < two.us / two.us_in_order, "more layers gain more"
    assert two.us_in_order == pytest.approx(2 * (1024 * 2.0 + 70))
    assert planned(L=1) is None
    assert planned(T=40) is None, "calls would cost more than steps"
    assert planned(dtype=torch.bfloat16) is None, "c would be rounded between chunks"
    for name, value in (("family", "stepwise"), ("blocks", 67), ("forced", "grid")):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, value)
            assert planned() is None, name
    monkeypatch.setattr(_extension, "across_blocks", False)
    assert planned() is None


def test_no_more_layers_than_there_is_room_for(kernels: Planned) -> None:
    kernels.blocks = 44
    chosen = planned(L=6)
    assert chosen is not None
    assert chosen.lanes == 3
    kernels.blocks = 45
    chosen = planned(L=6)
    assert chosen is not None
    assert chosen.lanes == 2


def test_the_host_is_no_faster_than_it_is(kernels: Planned) -> None:
    """Steps so short that calls could not be queued as fast as they would be computed."""
    kernels.us = 0.1
    assert planned(T=512) is None


def on_gpu_module(L: int, index: int = 0, grad: bool = True, **options: Any) -> fused_lstm.LSTM:
    """Without first values, which fake tensors cannot be given."""
    module = fused_lstm.LSTM(I, H, L, device="meta", **options)
    for name, w in list(module.named_parameters()):
        module._parameters[name] = torch.nn.Parameter(on_gpu(*w.shape, index=index), grad)
    return module


def called(seen: Any) -> list[tuple[int, int]]:
    """Steps and features of every call of the forward operator."""
    assert all(name == FORWARD for name, _ in seen.calls)
    return [(arguments[0].shape[0], arguments[0].shape[2]) for _, arguments in seen.calls]


@pytest.mark.parametrize("how", ["plain", "dropout", "both ways", "projected", "traced"])
def test_which_calls_go_side_by_side(
    how: str, kernels: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "computes_now", lambda x: how != "traced")
    monkeypatch.setattr(wavefront, "_lanes", lambda count, x: Lanes(count))
    options = {
        "dropout": {"dropout": 0.5},
        "both ways": {"bidirectional": True},
        "projected": {"proj_size": 4},
    }.get(how, {})
    with fake_gpu() as seen:
        module = on_gpu_module(2, **options)
        y, (h_n, c_n) = module(on_gpu(1000, B, I))
    wide = 2 if how == "both ways" else 1
    P = 4 if how == "projected" else H
    assert (y.shape, h_n.shape) == ((1000, B, wide * P), (2 * wide, B, P))
    assert c_n.shape == (2 * wide, B, H)
    calls = called(seen)
    if how != "plain":
        assert calls == [(1000, I), (1000, wide * P)]
        return
    chosen = wavefront.plan(1000, B, I, H, 2, torch.float32, False, True, 0)
    assert chosen is not None
    for features in (I, H):
        chunks = [steps for steps, own in calls if own == features]
        assert sum(chunks) == 1000
        assert set(chunks[:-1]) == {chosen.steps}
    steps = chosen.steps
    assert calls[:4] == [(steps, I), (steps, I), (steps, H), (steps, I)], "both at once"


@pytest.mark.parametrize("grad", [True, False])
def test_the_plan_is_asked_about_the_call(
    grad: bool, kernels: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    chosen = Plan(64, 2)

    def plan(*call: Any) -> Plan:
        asked.append(call)
        return chosen

    def stack(x: Tensor, h0: Any, c0: Any, weights: Any, own: Plan) -> Any:
        assert own is chosen
        assert (h0, c0, len(weights)) == (None, None, 20)
        return x, "h", "c"

    monkeypatch.setattr(ops, "computes_now", lambda x: True)
    monkeypatch.setattr(wavefront, "plan", plan)
    monkeypatch.setattr(wavefront, "stack", stack)
    with fake_gpu(), torch.set_grad_enabled(grad):
        on_gpu_module(2, index=1, grad=grad)(on_gpu(T, B, I, index=1))
    assert asked == [(T, B, I, H, 2, torch.float32, grad, True, 1)]


def test_a_switch_that_is_off(kernels: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "across_blocks", False)
    monkeypatch.setattr(ops, "computes_now", lambda x: pytest.fail("asked"))
    with fake_gpu() as seen:
        on_gpu_module(2)(on_gpu(1000, B, I))
    assert called(seen) == [(1000, I), (1000, H)]


def test_explain_plan_says_so(kernels: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "choice", lambda *_: None, raising=False)
    monkeypatch.setattr(kernels, "explain_plan", lambda *_: "stand-in")
    with fake_gpu():
        module = on_gpu_module(3, dropout=0.5)
    training = fused_lstm.explain_plan(module, 1000, B)
    assert "wavefront" not in training, "dropout between layers"
    *layers, last = fused_lstm.explain_plan(module.eval(), 1000, B).splitlines()
    assert len(layers) == 3
    assert last.startswith("as a wavefront: 3 of 3 layers at once on a stream each, ")
    assert "one layer after the other" in last
    assert "wavefront" not in fused_lstm.explain_plan(module, 20, B)


def test_facts_are_asked_of_the_calls_own_gpu(
    kernels: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(kernels, "device_facts", lambda index: asked.append(index) or FACTS)
    wavefront.plan(1024, 16, 64, 512, 2, torch.float32, False, True, 1)
    assert asked == [1]
