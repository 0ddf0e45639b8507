"""torch.func's transforms, alone and in each other: values, gradients, and that kernels made them.

The oracle is the same transform of `reference.lstm`, which consists of PyTorch's own operators only
and is itself held to nn.LSTM. Everything but forward mode goes through the rules of `batching.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, Case, arguments, error, modules
from torch import Tensor
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

import fused_lstm
from fused_lstm import dispatch, reference

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
N = 3  # mapped calls
DERIVED = 10 * GRADIENT_TOLERANCE[F64]  # several derivatives, one after the other

PLAIN = Case(3, 2, 2, 3)
BOTH = Case(3, 2, 4, 3, batch_first=True, bidirectional=True, hx=False)
PROJECTED = Case(3, 2, 2, 3, proj_size=2)
PACKED = Case(4, 3, 2, 3, bidirectional=True, lengths=(4, 2, 1))
CASES = [
    PLAIN,
    Case(3, 2, 2, 3, bias=False, hx=False),
    BOTH,
    Case(3, 2, 2, 3, num_layers=2, bidirectional=True),
    PROJECTED,
    PACKED,
]


class Network:
    """One LSTM as two functions of (weights, x, h0, c0): ours, and the specification."""

    def __init__(self, case: Case, dtype: torch.dtype = F64) -> None:
        self.case, self.dtype = case, dtype
        self.module, _ = modules(case, dtype)
        self.weights = {n: p.detach() for n, p in self.module.named_parameters()}
        self.x, *self.state = self.inputs()
        self.lengths = None
        if case.lengths:
            self.lengths = torch.tensor([sum(n > t for n in case.lengths) for t in range(case.T)])

    def inputs(self) -> list[Tensor]:
        """Random x (the data of a packed one), and h0 and c0 where the case has them."""
        leaves = [t.detach() for t in arguments(self.case, self.dtype)]
        count = len(self.case.lengths)
        return [torch.cat(leaves[:count]), *leaves[count:]] if count else leaves

    def mapped_inputs(self) -> list[Tensor]:
        """Those of N calls, [N, ...]."""
        return [torch.stack(each) for each in zip(*(self.inputs() for _ in range(N)), strict=True)]

    def mapped_weights(self) -> dict[str, Tensor]:
        """N networks' weights, [N, ...]."""
        return {n: w + torch.randn(N, *w.shape, dtype=w.dtype) for n, w in self.weights.items()}

    def ours(self, weights: dict[str, Tensor], x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = x if self.lengths is None else PackedSequence(x, self.lengths)
        y, (h, c) = functional_call(self.module, weights, (given, state or None))
        return (y if self.lengths is None else y.data), h, c

    def exact(self, weights: dict[str, Tensor], x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        each = [w.double() for w in weights.values()]
        hx: Any = tuple(t.double() for t in state) or None
        options = self.case.options
        y, (h, c) = reference.lstm(x.double(), hx, each, batch_sizes=self.lengths, **options)
        return y, h, c

    def __iter__(self) -> Any:
        return iter((self.ours, self.exact))


def scalar(f: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """A sum over all outputs in which each has a part of its own."""
    return lambda *inputs: sum(((k + 1 + t) * t.sin()).sum() for k, t in enumerate(f(*inputs)))


def total(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs: sum(t.sin().sum() for t in tree_leaves(f(*inputs)))


def cosines(inputs: Any) -> Any:
    """Some cotangents or tangents."""
    return tree_map(torch.cos, inputs)


def assert_close(actual: Any, expected: Any, tolerance: float = DERIVED) -> None:
    for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        assert error(a, b) <= tolerance


class Calls(TorchDispatchMode):
    """Counts calls of both operators, and of sigmoid, of which the specification consists."""

    def __enter__(self) -> "Calls":
        self.forward = self.backward = self.sigmoid = 0
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1]
        if name in ("forward", "backward", "sigmoid"):
            setattr(self, name, getattr(self, name) + 1)
        return func(*args, **(kwargs or {}))


# Of f(weights, x, *state) -> (y, h_n, c_n); what they give is a function of the same arguments.
Transform = Callable[[Callable[..., Any]], Callable[..., Any]]
REVERSE: dict[str, Transform] = {
    "grad": lambda f: grad(scalar(f), (0, 1)),
    "vjp": lambda f: lambda *a: vjp(f, *a)[1](cosines(f(*a))),
    "vjp of h_n": lambda f: lambda *a: vjp(lambda *b: f(*b)[1], *a)[1](cosines(f(*a)[1])),
    "jacrev": lambda f: jacrev(f, (0, 1)),
    "jacrev of x": lambda f: jacrev(lambda *a: f(*a)[0], 1),
    "grad of grad": lambda f: grad(total(grad(scalar(f), (0, 1))), (0, 1)),
    "jacrev of grad": lambda f: jacrev(grad(scalar(f), 1), (0, 1)),
    "three times": lambda f: grad(total(grad(total(grad(scalar(f), 1)), 1)), (0, 1)),
}
FORWARD: dict[str, Transform] = {
    "jvp": lambda f: lambda *a: jvp(f, a, cosines(a)),
    "jacfwd": lambda f: jacfwd(f, (0, 1)),
    "hessian": lambda f: hessian(scalar(f), 1),
    "jvp of grad": lambda f: lambda *a: jvp(grad(scalar(f), (0, 1)), a, cosines(a)),
    "jvp of jvp": lambda f: lambda *a: jvp(lambda *b: jvp(f, b, cosines(b)), a, cosines(a)),
    "grad of jvp": lambda f: grad(total(lambda *a: jvp(f, a, cosines(a))), (0, 1)),
}
MAPPED: dict[str, Transform] = {
    "values": lambda f: f,
    "grad": REVERSE["grad"],
    "jacrev": lambda f: jacrev(lambda *a: f(*a)[1], (0, 1)),
    "grad of grad": REVERSE["grad of grad"],
    "jvp": FORWARD["jvp"],
}
OVER: dict[str, tuple[Any, ...]] = {  # which of weights, x, h0, c0 has a mapped dimension
    "inputs": (None, 0, 0, 0),
    "x": (None, 0, None, None),
    "state": (None, None, 0, 0),
    "weights": (0, None, None, None),
    "all": (0, 0, 0, 0),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", REVERSE)
def test_one_call(name: str, case: Case) -> None:
    network = Network(case)
    ours, exact = (REVERSE[name](f)(network.weights, network.x, *network.state) for f in network)
    assert_close(ours, exact)


@pytest.mark.parametrize("case", [PLAIN, BOTH, PROJECTED, PACKED], ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_of_one_call(name: str, case: Case) -> None:
    network = Network(case)
    ours, exact = (FORWARD[name](f)(network.weights, network.x, *network.state) for f in network)
    assert_close(ours, exact)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")
def test_linearize() -> None:
    network = Network(PLAIN)
    given = (network.weights, network.x, *network.state)
    y, tangent_of = linearize(network.ours, *given)
    assert_close((y, tangent_of(*cosines(given))), jvp(network.exact, given, cosines(given)))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_lower_types(dtype: torch.dtype) -> None:
    network = Network(BOTH, dtype)
    many = (network.weights, *network.mapped_inputs())
    ours, exact = (vmap(grad(scalar(f), (0, 1)), (None, 0))(*many) for f in network)
    assert_close(ours, exact, GRADIENT_TOLERANCE[dtype])
    if dtype is F32:
        one = (network.weights, network.x)
        ours, exact = (jvp(f, one, cosines(one)) for f in network)
        assert_close(ours, exact, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("over", "case"),
    [(over, case) for over in OVER for case in CASES if case.hx or over != "state"],
    ids=str,
)
def test_vmap(over: str, case: Case) -> None:
    network = Network(case)
    dims = OVER[over][: 2 + len(network.state)]
    one = (network.weights, network.x, *network.state)
    many = (network.mapped_weights(), *network.mapped_inputs())
    given = [m if d == 0 else o for d, m, o in zip(dims, many, one, strict=True)]
    for name, transform in MAPPED.items():
        ours, exact = (vmap(transform(f), dims)(*given) for f in network)
        try:
            assert_close(ours, exact)
        except AssertionError as broken:
            raise AssertionError(f"vmap of {name} over {over}") from broken


def test_vmap_along_other_dimensions_and_in_chunks() -> None:
    network = Network(PLAIN)
    x = torch.randn(3, 2, 2, 5, dtype=F64)  # T, B, I and the mapped one
    ours, exact = (
        vmap(f, (None, -1), (1, 2, 0), chunk_size=2)(network.weights, x) for f in network
    )
    assert_close(ours, exact)


@pytest.mark.parametrize("case", [PLAIN, BOTH, PROJECTED, PACKED], ids=str)
def test_maps_in_maps(case: Case) -> None:
    network = Network(case)
    weights = network.mapped_weights()
    x = torch.stack([network.mapped_inputs()[0] for _ in range(2)])  # [2, N, ...]
    nests: dict[str, Transform] = {
        "inputs twice": lambda f: (
            lambda w, x: vmap(vmap(f, (None, 0)), (None, 0))({n: t[0] for n, t in w.items()}, x)
        ),
        "members, inputs": lambda f: lambda w, x: vmap(vmap(f, (None, 0)), (0, 1))(w, x),
        "inputs, members": lambda f: lambda w, x: vmap(vmap(f, (0, None)), (None, 0))(w, x[0]),
        "members and inputs": lambda f: lambda w, x: vmap(vmap(f), (None, 0))(w, x),
    }
    for nest in nests.values():
        for inner in (lambda f: f, lambda f: grad(scalar(f), (0, 1))):
            ours, exact = (nest(inner(f))(weights, x) for f in network)
            assert_close(ours, exact)
    # Reverse mode over maps: through the rule of the backward operator once more.
    outer = [grad(total(vmap(grad(scalar(f), (0, 1)), (None, 0))), (0, 1)) for f in network]
    assert_close(*(g(network.weights, x[0]) for g in outer))


def test_modules_in_train_mode_keep_their_own_gradients() -> None:
    network = Network(PLAIN)
    x = network.mapped_inputs()[0]
    vmap(lambda t: network.module(t)[0])(x).sin().sum().backward()
    named = grad(lambda w: vmap(lambda t: network.exact(w, t)[0])(x).sin().sum())(network.weights)
    assert_close([p.grad for p in network.module.parameters()], list(named.values()))


def test_ensemble_in_training() -> None:
    members = [fused_lstm.LSTM(4, 7, 2, dtype=F64) for _ in range(N)]
    weights, _ = stack_module_state(members)  # type: ignore[arg-type]
    x = torch.randn(N, 5, 2, 4, dtype=F64)
    losses = vmap(lambda w, t: functional_call(members[0], w, (t,))[0].square().sum())(weights, x)
    losses.sum().backward()
    for n, member in enumerate(members):
        member(x[n])[0].square().sum().backward()
        assert_close([w.grad[n] for w in weights.values()], [p.grad for p in member.parameters()])


def test_cell() -> None:
    cell = fused_lstm.LSTMCell(4, 7, dtype=F64)
    weights = {n: p.detach() for n, p in cell.named_parameters()}
    x, h, c = (torch.randn(N, 2, n, dtype=F64) for n in (4, 7, 7))

    def ours(w: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return functional_call(cell, w, (x, (h, c)))

    def exact(w: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return reference.lstm_cell(x, h, c, *w.values())

    many = {n: torch.stack([w, 2 * w, w.sin()]) for n, w in weights.items()}
    for name in ("grad", "jacrev", "grad of grad"):
        transform = REVERSE[name]
        given = (weights, x[0], h[0], c[0])
        assert_close(transform(ours)(*given), transform(exact)(*given))
        for w, dim in ((weights, None), (many, 0)):
            a, b = (vmap(transform(f), (dim, 0, 0, 0))(w, x, h, c) for f in (ours, exact))
            assert_close(a, b)
    given = (weights, x[0], h[0], c[0])
    assert_close(hessian(scalar(ours), 1)(*given), hessian(scalar(exact), 1)(*given))


# What computes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [PLAIN, BOTH], ids=str)
def test_one_operator_call_for_all_samples(case: Case) -> None:
    network = Network(case)
    given = (network.weights, *network.mapped_inputs())
    dims = (None, 0, 0, 0)[: len(given)]
    with Calls() as calls:
        vmap(network.ours, dims)(*given)
    assert (calls.forward, calls.backward, calls.sigmoid) == (1, 0, 0)
    with Calls() as calls:
        vmap(grad(scalar(network.ours), (0, 1)), dims)(*given)
    assert (calls.forward, calls.backward, calls.sigmoid) == (1, 1, 0)
    with Calls() as calls:  # forward once more, for the reserve of all rows
        jacrev(network.ours, (0, 1))(network.weights, network.x, *network.state)
    assert (calls.forward, calls.backward, calls.sigmoid) == (2, 1, 0)


def test_one_operator_call_for_each_member() -> None:
    for case in (PLAIN, PROJECTED, PACKED):
        network = Network(case)
        with Calls() as calls:
            vmap(grad(scalar(network.ours)), (0, None))(network.mapped_weights(), network.x)
        assert (calls.forward, calls.backward, calls.sigmoid) == (N, N, 0)


def test_create_graph_computes_by_the_kernel_until_it_is_used() -> None:
    network = Network(PLAIN)
    x = network.x.requires_grad_()
    with Calls() as calls:
        y, _ = network.module(x)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert (calls.forward, calls.backward, calls.sigmoid) == (1, 1, 0)
    with Calls() as calls:
        first.sum().backward()
    assert calls.sigmoid > 0


def test_double_backward_of_tensors_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # A device with kernels of ours that is not the CPU: meta, whose "kernels" know shapes only.
    monkeypatch.setattr(dispatch, "_no_kernel", lambda device, dtype: None)
    lstm = fused_lstm.LSTM(4, 7, bidirectional=True, device="meta")
    x = torch.randn(5, 3, 4, device="meta", requires_grad=True)
    y, _ = lstm(x)
    assert y.grad_fn.name() == "LstmLayerBackward"  # type: ignore[union-attr]
    first = torch.autograd.grad(y.sum(), [x, *lstm.parameters()], create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), [x, *lstm.parameters()])
    for t, a, b in zip([x, *lstm.parameters()], first, second, strict=True):
        assert t.shape == a.shape == b.shape
        assert a.device == b.device == t.device
    per_sample = vmap(grad(lambda w, t: functional_call(lstm, w, (t,))[0].sum()), (None, 1))
    shapes = {n: g.shape for n, g in per_sample(dict(lstm.named_parameters()), x.detach()).items()}
    assert shapes == {n: (3, *p.shape) for n, p in lstm.named_parameters()}


# Beside other machinery ---------------------------------------------------------------------------


def test_jacobians_of_autograd_itself() -> None:
    network = Network(BOTH)
    x, f = network.x, lambda f: lambda t: f(network.weights, t)[0]
    exact = jacrev(f(network.exact))(x)
    for strategy in ("reverse-mode", "forward-mode"):  # by a vmap of its own, older than torch.func
        ours = torch.autograd.functional.jacobian(
            f(network.ours), x, vectorize=True, strategy=strategy
        )
        assert_close(ours, exact)
    x.requires_grad_()
    y = f(network.ours)(x)
    basis = torch.eye(y.numel(), dtype=F64).view(-1, *y.shape)
    with Calls() as calls:
        rows = vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0])(basis)
    assert_close(rows.view(exact.shape), exact)
    assert (calls.forward, calls.backward) == (1, 1)


@pytest.mark.parametrize("randomness", ["same", "different", "error"])
def test_dropout_between_layers(randomness: str) -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, dropout=0.5)
    x = torch.randn(5, 2, 4).expand(N, 5, 2, 4)
    run = vmap(lambda t: lstm(t)[0], randomness=randomness)
    if randomness == "error":
        with pytest.raises(RuntimeError, match="randomness error mode"):
            run(x)
        return
    y = run(x)
    assert torch.equal(y[0], y[1]) == (randomness == "same")
    weights, _ = stack_module_state([lstm] * N)
    of_members = vmap(lambda w: functional_call(lstm, w, (x[0],))[0], randomness=randomness)
    y = of_members(weights)
    assert torch.equal(y[0], y[1]) == (randomness == "same")


def test_gradients_taken_under_autocast_are_exact() -> None:
    network = Network(BOTH, F32)
    given = (network.weights, *network.mapped_inputs())
    x = network.x.requires_grad_()
    with torch.autocast("cpu", BF16):
        y, h, c = vmap(network.ours, (None, 0))(*given)
        assert (y.dtype, h.dtype, c.dtype) == (BF16, BF16, F32)
        per_sample = vmap(grad(lambda *a: network.ours(*a)[2].sum(), (0, 1)), (None, 0))(*given)
        c = network.ours(network.weights, x)[2]
        (first,) = torch.autograd.grad(c.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), x)
    f = lambda *a: network.exact(*a)[2].sum()  # noqa: E731
    assert_close(per_sample, vmap(grad(f, (0, 1)), (None, 0))(*given), GRADIENT_TOLERANCE[F32])
    expected = grad(total(grad(f, 1)), 1)(network.weights, x.detach())
    assert_close(second, expected, 2 * GRADIENT_TOLERANCE[F32])  # two passes


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_maps_inside_a_checkpoint(use_reentrant: bool) -> None:
    network = Network(PLAIN)
    x, exact = (network.mapped_inputs()[0].requires_grad_() for _ in range(2))
    exact.data.copy_(x.data)
    mapped = vmap(lambda t: network.ours(network.weights, t)[0])
    checkpoint(mapped, x, use_reentrant=use_reentrant).sin().sum().backward()
    vmap(lambda t: network.exact(network.weights, t)[0])(exact).sin().sum().backward()
    assert_close(x.grad, exact.grad)


def test_saved_tensor_hooks_during_double_backward() -> None:
    network = Network(PLAIN)
    x = network.x.requires_grad_()
    with torch.autograd.graph.save_on_cpu():
        y, _ = network.module(x)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), x)
    f = total(lambda t: network.exact(network.weights, t)[0])
    assert_close(second, grad(total(grad(f)))(x.detach()))


def test_compiled_transforms() -> None:
    # They once gave zeros, for the operator alone has no derivative. AOT and inductor take the
    # graph that Dynamo makes here.
    torch._dynamo.reset()
    network = Network(Case(2, 2, 2, 3, hx=False), F32)
    given = (network.weights, network.mapped_inputs()[0])
    transforms: list[Transform] = [
        lambda f: vmap(grad(scalar(f), (0, 1)), (None, 0)),
        lambda f: lambda w, x: jvp(lambda t: vmap(f, (None, 0))(w, t), (x,), (x.cos(),)),
    ]
    for transform in transforms:
        ours, exact = (transform(f) for f in network)
        compiled = torch.compile(lambda *a: ours(*a), backend="eager")  # noqa: B023
        assert_close(compiled(*given), exact(*given), GRADIENT_TOLERANCE[F32])


def test_mapped_lengths_are_refused() -> None:
    lstm = fused_lstm.LSTM(4, 7)
    lengths = torch.tensor([[3, 2, 1]] * N)

    def f(data: Tensor, batch_sizes: Tensor) -> Tensor:
        return lstm(PackedSequence(data, batch_sizes))[0].data.sum()

    for run in (vmap(f), vmap(grad(f)), vmap(lambda d, b: jvp(lambda t: f(t, b), (d,), (d,)))):
        with pytest.raises(RuntimeError, match=r"^batch_sizes: expected the same lengths"):
            run(torch.randn(N, 6, 4), lengths)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}], ids=str)
def test_jacobians_of_no_results(options: dict[str, Any], rows: int) -> None:
    """There are as many calls as results: none."""
    ours, theirs = fused_lstm.LSTM(3, 4, **options), torch.nn.LSTM(3, 4, **options)
    theirs.load_state_dict(ours.state_dict())
    x, weights = torch.randn(5, rows, 3), dict(ours.named_parameters())

    def none_of(module: torch.nn.Module) -> Callable[..., Tensor]:
        return lambda weights, x: functional_call(module, weights, (x,))[0][:, :0]

    for argnum in (0, 1):
        found, wanted = (jacrev(none_of(m), argnum)(weights, x) for m in (ours, theirs))
        for a, b in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
            assert a.shape == b.shape
    mapped = vmap(lambda x: ours(x)[0])(torch.randn(0, 5, rows, 3))
    assert mapped.shape == (0, *ours(x)[0].shape)
