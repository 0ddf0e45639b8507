"""Gradients: their values, and everything autograd lets a user do between forward and backward."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    GRADIENT_TOLERANCE,
    OPTIONS,
    PACKED,
    PROJECTED,
    SHAPES,
    VALUES,
    Case,
    arguments,
    call,
    copies,
    error,
    gradients,
    modules,
    small,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fused_lstm


@pytest.mark.parametrize(("case", "dtype"), VALUES, ids=str)
def test_values(case: Case, dtype: torch.dtype) -> None:
    ours, exact = modules(case, dtype, torch.float64)
    leaves = arguments(case, dtype)
    precise = copies(leaves, torch.float64)
    outputs, right = call(ours, case, leaves), call(exact, case, precise)
    weights = [torch.randn_like(t) for t in outputs]
    names = [f"leaf {k}" for k in range(len(leaves))] + [n for n, _ in ours.named_parameters()]
    actual = gradients(ours, outputs, leaves, weights)
    expected = gradients(exact, right, precise, weights)
    for name, a, b in zip(names, actual, expected, strict=True):
        assert a.dtype is dtype
        assert error(a, b) <= GRADIENT_TOLERANCE[dtype], name


CHECKED = [small(c) for c in OPTIONS + PROJECTED] + [c for c in PACKED if c.T * c.H < 60]


@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_gradcheck(case: Case) -> None:
    ours, _ = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    named = dict(ours.named_parameters())

    def f(*tensors: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(named, tensors[len(leaves) :], strict=True))
        return torch.func.functional_call(Outputs(ours, case), parameters, tensors[: len(leaves)])

    assert torch.autograd.gradcheck(f, [*leaves, *copies(named.values())])


class Outputs(torch.nn.Module):
    """A module whose forward is `call`, without a prefix in its parameters' names."""

    def __init__(self, module: torch.nn.Module, case: Case) -> None:
        super().__init__()
        self._parameters = module._parameters
        self.run = [lambda leaves: call(module, case, leaves)]

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        return self.run[0](leaves)


@pytest.mark.parametrize("seed", range(3))
def test_dropout_is_differentiated(seed: int) -> None:
    case = Case(5, 3, 4, 7, num_layers=3, bidirectional=True)
    ours, theirs = modules(case, torch.float64)
    ours.dropout = theirs.dropout = 0.3
    results = []
    leaves = arguments(case, torch.float64)
    for module in (ours, theirs):
        torch.manual_seed(seed)
        own = copies(leaves)
        outputs = call(module, case, own)
        results.append(gradients(module, outputs, own, [torch.ones_like(t) for t in outputs]))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


# What is not needed is not computed ---------------------------------------------------------------


class Needs(TorchDispatchMode):
    """Records the `needs` mask of every call of the backward operator."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.fused_lstm.backward.default:
            self.masks.append(args[-1])
            results = func(*args)
            for k, t in enumerate(results):
                assert (t.numel() > 0) == bool(args[-1] >> k & 1)
            return results
        return func(*args, **(kwargs or {}))


def test_only_what_is_needed_is_computed() -> None:
    lstm = fused_lstm.LSTM(4, 7, bidirectional=True)
    leaves = arguments(Case(5, 3, 4, 7, bidirectional=True), torch.float32)
    names = ["x", "h0", "c0", *dict(lstm.named_parameters())]
    bits = dict(zip(names, (1, 2, 4, 8, 16, 32, 32, 128, 256, 512, 512), strict=True))
    tensors = dict(zip(names, [*leaves, *lstm.parameters()], strict=True))
    everything = torch.autograd.grad(lstm(leaves[0], leaves[1:])[0].sum(), list(tensors.values()))
    for wanted in [[n] for n in names] + [["x", "bias_hh_l0"], ["bias_ih_l0", "bias_hh_l0"]]:
        for name, t in tensors.items():
            t.requires_grad_(name in wanted)
        output, _ = lstm(leaves[0], leaves[1:])
        with Needs() as needs:
            grads = torch.autograd.grad(output.sum(), [tensors[n] for n in wanted])
        assert len(needs.masks) == 1
        mask = 0
        for name, grad in zip(wanted, grads, strict=True):
            mask |= bits[name]
            expected = everything[names.index(name)]
            assert error(grad, expected) <= GRADIENT_TOLERANCE[torch.float32], name
        assert needs.masks == [mask]


def test_nothing_is_saved_without_a_gradient() -> None:
    class Saves(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.fused_lstm.forward.default:
                saves.append(args[-1])
            return func(*args, **(kwargs or {}))

    saves: list[bool] = []
    lstm = fused_lstm.LSTM(4, 7)
    x = torch.randn(5, 3, 4)
    with Saves():
        with torch.no_grad():
            lstm(x)
        with torch.inference_mode():
            lstm(x)
        lstm.requires_grad_(False)(x)
        assert saves == [False] * 3
        lstm(x.requires_grad_())
        assert saves.pop() is True


PARTS: dict[str, Callable[..., Tensor]] = {
    "output": lambda output, h_n, c_n: output.sum(),
    "h_n": lambda output, h_n, c_n: h_n.sum(),
    "c_n": lambda output, h_n, c_n: c_n.sum(),
    "one step": lambda output, h_n, c_n: output[1].sum(),
    "one element": lambda output, h_n, c_n: output[1, 2, 3],
    "h_n and c_n": lambda output, h_n, c_n: (h_n * c_n).sum(),
    "one direction": lambda output, h_n, c_n: h_n[1].sum(),
    "expanded": lambda output, h_n, c_n: output.mean(),
    "transposed": lambda output, h_n, c_n: (output.transpose(0, 2).contiguous().sin()).sum(),
}


@pytest.mark.parametrize("part", PARTS)
def test_partial_use_of_the_outputs(part: str) -> None:
    case = Case(5, 3, 4, 7, bidirectional=True, num_layers=2)
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    results = []
    for module in (ours, theirs):
        wanted = [*leaves, *module.parameters()]
        loss = PARTS[part](*call(module, case, leaves))
        results.append(torch.autograd.grad(loss, wanted, materialize_grads=True))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


def test_gradients_arriving_in_any_layout() -> None:
    lstm = fused_lstm.LSTM(4, 7)
    x, h0, c0 = arguments(Case(5, 3, 4, 7), torch.float64)
    lstm.double()
    outputs = lstm(x, (h0, c0))
    flat = (outputs[0], *outputs[1])
    wanted = [x, h0, c0, *lstm.parameters()]
    for make in (
        lambda t: torch.ones(1, 1, 1, dtype=t.dtype).expand_as(t),
        lambda t: torch.randn(t.shape[::-1], dtype=t.dtype).permute(2, 1, 0),
        lambda t: torch.randn(*t.shape[:2], 2 * t.shape[2], dtype=t.dtype)[..., ::2],
        lambda t: torch.randn(1, 1, t.shape[2], dtype=t.dtype).expand_as(t),
    ):
        grads = [make(t) for t in flat]
        odd = torch.autograd.grad(flat, wanted, grads, retain_graph=True)
        plain = [g.contiguous() for g in grads]
        for a, b in zip(
            odd, torch.autograd.grad(flat, wanted, plain, retain_graph=True), strict=True
        ):
            assert torch.equal(a, b)


def test_the_gradients_of_the_two_biases_share_no_memory() -> None:
    lstm = fused_lstm.LSTM(4, 7, bidirectional=True)
    biases = [p for n, p in lstm.named_parameters() if "bias" in n]
    grads = torch.autograd.grad(lstm(torch.randn(5, 3, 4))[0].sum(), biases)
    assert len({g.data_ptr() for g in grads}) == 4
    lstm(torch.randn(5, 3, 4))[0].sum().backward()
    assert len({p.grad.data_ptr() for p in biases if p.grad is not None}) == 4


# Graphs -------------------------------------------------------------------------------------------


def layer_and_leaves(**options: Any) -> tuple[fused_lstm.LSTM, list[Tensor]]:
    lstm = fused_lstm.LSTM(4, 7, **options)
    return lstm, arguments(Case(5, 3, 4, 7, **options), torch.float32)


def test_a_second_backward_has_the_same_bits_and_a_freed_graph_raises() -> None:
    lstm, (x, *hx) = layer_and_leaves(bidirectional=True, num_layers=2)
    wanted = [x, *hx, *lstm.parameters()]
    loss = lstm(x, hx)[0].square().sum()
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, wanted)


def test_two_graphs_live_beside_each_other() -> None:
    lstm, (x, *hx) = layer_and_leaves()
    z = torch.randn_like(x)
    wanted = list(lstm.parameters())
    alone = [torch.autograd.grad(lstm(t, hx)[0].sum(), wanted) for t in (x, z)]
    losses = [lstm(t, hx)[0].sum() for t in (x, z)]
    together = [torch.autograd.grad(loss, wanted) for loss in losses]
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_gradients_accumulate() -> None:
    lstm, (x, *hx) = layer_and_leaves()
    lstm(x, hx)[0].sum().backward()
    once = [p.grad.clone() for p in lstm.parameters() if p.grad is not None]
    lstm(x, hx)[0].sum().backward()
    for p, g in zip(lstm.parameters(), once, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, 2 * g)


def test_chunks_with_carried_state_are_the_whole() -> None:
    lstm, (x, *_) = layer_and_leaves()
    lstm.double()
    x = x.detach().double().requires_grad_()
    whole = torch.autograd.grad(lstm(x)[0].square().sum(), [x, *lstm.parameters()])
    state, loss = None, torch.zeros((), dtype=torch.float64)
    for chunk in x.split([2, 1, 2]):
        output, state = lstm(chunk, state)
        loss = loss + output.square().sum()
    for a, b in zip(torch.autograd.grad(loss, [x, *lstm.parameters()]), whole, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


EDITS: dict[str, Callable[..., Any]] = {
    "x": lambda m, x, h0, c0, output: x,
    "h0": lambda m, x, h0, c0, output: h0,
    "c0": lambda m, x, h0, c0, output: c0,
    "output": lambda m, x, h0, c0, output: output,
    "weight_ih_l0": lambda m, x, h0, c0, output: m.weight_ih_l0,
    "weight_hh_l0": lambda m, x, h0, c0, output: m.weight_hh_l0,
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("edited", EDITS)
def test_editing_what_backward_needs_raises(edited: str, batch_first: bool) -> None:
    lstm, leaves = layer_and_leaves(batch_first=batch_first)
    x, h0, c0 = (t * 1 for t in leaves)
    output, (h_n, _) = lstm(x, (h0, c0))
    loss = h_n.sum() + output.sum()
    with torch.no_grad():
        EDITS[edited](lstm, x, h0, c0, output).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("T", [1, 5])
def test_h_n_and_c_n_may_be_edited(T: int, layers: int) -> None:
    case = Case(T, 3, 4, 7, num_layers=layers)
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    results = []
    for module in (ours, theirs):
        output, h_n, c_n = call(module, case, leaves)
        h_n.mul_(3)
        c_n.add_(h_n)
        loss = output.sum() + h_n.square().sum() + c_n.sin().sum()
        results.append(torch.autograd.grad(loss, [*leaves, *module.parameters()]))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


def test_expanded_inputs_get_their_gradient() -> None:
    case = Case(5, 3, 4, 7)
    ours, theirs = modules(case, torch.float64)
    small_leaves = [torch.randn(s, dtype=torch.float64) for s in ((1, 1, 4), (1, 1, 7), (1, 1, 7))]
    results = []
    for module in (ours, theirs):
        leaves = copies(small_leaves)
        x, h0, c0 = leaves[0].expand(5, 3, 4), *(t.expand(1, 3, 7) for t in leaves[1:])
        output, _ = module(x, (h0, c0))
        results.append(torch.autograd.grad(output.square().sum(), leaves))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float64]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    lstm, (x, *_) = layer_and_leaves(num_layers=2)
    lstm.dropout = 0.3
    state = torch.get_rng_state()
    plain = torch.autograd.grad(lstm(x)[0].sum(), list(lstm.parameters()))
    torch.set_rng_state(state)
    checkpoint(lambda t: lstm(t)[0], x, use_reentrant=reentrant).sum().backward()
    for p, g in zip(lstm.parameters(), plain, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, g)


def test_saved_tensors_may_be_moved_by_hooks() -> None:
    lstm, (x, *hx) = layer_and_leaves(bidirectional=True)
    wanted = [x, *hx, *lstm.parameters()]
    expected = torch.autograd.grad(lstm(x, hx)[0].sum(), wanted)

    def unaligned(t: Tensor) -> Tensor:
        raw = torch.empty(t.numel() * t.element_size() + 8, dtype=torch.uint8)
        kept = raw[8:].view(t.dtype).view(t.shape)
        return kept.copy_(t)

    for pack, unpack in (
        (lambda t: t.clone(), lambda t: t),
        (lambda t: t.numpy().copy(), torch.from_numpy),
        (unaligned, lambda t: t),
    ):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            output, _ = lstm(x, hx)
        for a, b in zip(torch.autograd.grad(output.sum(), wanted), expected, strict=True):
            assert torch.equal(a, b)
    with torch.autograd.graph.save_on_cpu():
        output, _ = lstm(x, hx)
    for a, b in zip(torch.autograd.grad(output.sum(), wanted), expected, strict=True):
        assert torch.equal(a, b)


def test_anomaly_mode_names_a_nan_gradient() -> None:
    lstm, (x, *_) = layer_and_leaves()
    with torch.autograd.set_detect_anomaly(True):
        lstm(x)[0].sum().backward()
        x = x.detach().index_fill(0, torch.tensor([1]), float("nan")).requires_grad_()
        with (
            pytest.warns(UserWarning, match="Error detected"),
            pytest.raises(RuntimeError, match=r"LstmLayerBackward.*nan"),
        ):
            lstm(x)[0].sum().backward()


def test_backward_in_another_thread() -> None:
    lstm, (x, *hx) = layer_and_leaves()
    wanted = [x, *hx, *lstm.parameters()]
    expected = torch.autograd.grad(lstm(x, hx)[0].sum(), wanted)
    loss = lstm(x, hx)[0].sum()
    results: list[tuple[Tensor, ...]] = []
    thread = threading.Thread(target=lambda: results.append(torch.autograd.grad(loss, wanted)))
    thread.start()
    thread.join(60)
    for a, b in zip(results[0], expected, strict=True):
        assert error(a, b) <= GRADIENT_TOLERANCE[torch.float32]


def test_frozen_parts_get_no_gradient() -> None:
    lstm, (x, *_) = layer_and_leaves(num_layers=2)
    lstm.weight_hh_l0.requires_grad_(False)
    lstm.bias_ih_l1.requires_grad_(False)
    lstm(x.detach())[0].sum().backward()
    without = [name for name, p in lstm.named_parameters() if p.grad is None]
    assert without == ["weight_hh_l0", "bias_ih_l1"]


@pytest.mark.parametrize("where", ["x", "h0", "weight_hh_l0"])
def test_non_finite_gradients_appear_where_nn_lstm_has_them(where: str) -> None:
    case = Case(5, 4, 3, 9)
    ours, theirs = modules(case, torch.float64)
    leaves = arguments(case, torch.float64)
    with torch.no_grad():
        for module in (ours, theirs):
            if where == "weight_hh_l0":
                module.get_parameter(where)[3, 2] = float("nan")
        if where != "weight_hh_l0":
            leaves[("x", "h0").index(where)][0, 1, 2] = float("nan")
    results = []
    for module in (ours, theirs):
        outputs = call(module, case, leaves)
        results.append(gradients(module, outputs, leaves, [torch.ones_like(t) for t in outputs]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cell(dtype: torch.dtype) -> None:
    for bias in (True, False):
        ours = fused_lstm.LSTMCell(5, 9, bias, dtype=dtype)
        exact = torch.nn.LSTMCell(5, 9, bias, dtype=torch.float64)
        exact.load_state_dict(ours.state_dict())
        leaves = [torch.randn(3, n, dtype=dtype, requires_grad=True) for n in (5, 9, 9)]
        precise = copies(leaves, torch.float64)
        results = []
        for cell, (x, h, c) in ((ours, leaves), (exact, precise)):
            first = cell(x, (h, c))
            h1, c1 = cell(x, first)
            loss = (h1 + 2 * c1 + 3 * first[0]).sum()
            results.append(torch.autograd.grad(loss, [x, h, c, *cell.parameters()]))
        for a, b in zip(*results, strict=True):
            assert error(a, b) <= GRADIENT_TOLERANCE[dtype]


def test_shapes_are_covered() -> None:
    assert {c.H % 16 for c in SHAPES} >= {0, 1, 4, 5, 7, 8, 15}
