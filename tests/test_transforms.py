"""Whatever looks into or rewrites a program: torch.func, make_fx, torch.fx, subclasses, modes.

Its neighbours: test_compile.py, test_export.py, test_opcheck.py.
"""

from typing import Any

import pytest
import torch
from cases import (
    GRADIENT_TOLERANCE,
    Case,
    modules,
)
from model_cases import CellModel, Model, assert_close
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

import fused_lstm

F64 = torch.float64


def pair(dtype: torch.dtype = F64, **options: Any) -> tuple[Any, Any, Tensor]:
    ours, theirs = modules(Case(5, 3, 4, 7, **options), dtype)
    return ours, theirs, torch.randn(5, 3, 4, dtype=dtype)


def loss(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    output, (h, c) = functional_call(module, parameters, (x,))
    return output.square().sum() + (h * c).sum()


# torch.func ---------------------------------------------------------------------------------------


def test_functional_call_uses_the_given_weights() -> None:
    ours, theirs, x = pair()
    other = {n: torch.randn_like(p) for n, p in ours.named_parameters()}
    assert_close(functional_call(ours, other, (x,)), functional_call(theirs, other, (x,)), 1e-13)
    one = {"weight_hh_l0": torch.zeros(28, 7, dtype=F64)}
    assert not torch.equal(functional_call(ours, one, (x,))[0], ours(x)[0])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_grad_vjp_jacrev_hessian(options: dict[str, Any]) -> None:
    ours, theirs, x = pair(**options)
    named = {n: p.detach() for n, p in ours.named_parameters()}
    tolerance = GRADIENT_TOLERANCE[F64]
    results = []
    for m in (ours, theirs):
        cotangent = torch.ones_like(m(x)[0])
        results.append(
            (
                grad(lambda p, m=m: loss(m, p, x))(named),
                vjp(lambda t, m=m: m(t)[0], x)[1](cotangent),
                jacrev(lambda t, m=m: m(t)[1][0])(x) if m is ours else None,
                hessian(lambda t, m=m: m(t)[0].square().sum())(x[:2, :1]),
            )
        )
    own, their = results
    assert_close(own[0], their[0], tolerance)
    assert_close(own[1], their[1], tolerance)
    assert_close(own[3], their[3], 10 * tolerance)  # two derivatives
    rows = torch.autograd.functional.jacobian(lambda t: theirs(t)[1][0], x)
    assert_close(own[2], rows, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_per_sample_gradients(dtype: torch.dtype) -> None:
    ours, theirs, x = pair(dtype)
    named = {n: p.detach() for n, p in ours.named_parameters()}

    def of_one(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return loss(ours, parameters, row.unsqueeze(1))

    together = vmap(grad(of_one), (None, 1))(named, x)
    for k in range(3):
        alone = torch.autograd.grad(loss(theirs, {}, x[:, k : k + 1]), list(theirs.parameters()))
        assert_close([g[k] for g in together.values()], alone, GRADIENT_TOLERANCE[dtype])


def test_vmap_and_ensembles() -> None:
    members = [fused_lstm.LSTM(4, 7, dtype=F64) for _ in range(3)]
    x = torch.randn(5, 2, 4, dtype=F64)
    parameters, buffers = stack_module_state(members)  # type: ignore[arg-type]

    def run(p: Any, b: Any) -> Tensor:
        return functional_call(members[0], (p, b), (x,))[0]

    assert_close(vmap(run)(parameters, buffers), torch.stack([m(x)[0] for m in members]), 1e-13)
    many = torch.randn(6, 5, 2, 4, dtype=F64)
    assert_close(
        vmap(lambda t: members[0](t)[0])(many), torch.stack([members[0](t)[0] for t in many]), 1e-13
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_forward_mode(dtype: torch.dtype) -> None:
    ours, _, x = pair(dtype, bidirectional=True)
    tangent = torch.randn_like(x)
    jacobian = torch.autograd.functional.jacobian(lambda t: ours(t)[0], x)
    expected = torch.tensordot(jacobian, tangent, 3)
    _, forward = jvp(lambda t: ours(t)[0], (x,), (tangent,))
    assert_close(forward, expected, GRADIENT_TOLERANCE[dtype])
    assert_close(jacfwd(lambda t: ours(t)[0])(x), jacobian, GRADIENT_TOLERANCE[dtype])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        unpacked = torch.autograd.forward_ad.unpack_dual(ours(dual)[0])
    assert_close(unpacked.tangent, expected, GRADIENT_TOLERANCE[dtype])


def test_forward_mode_of_a_cell() -> None:
    cell = fused_lstm.LSTMCell(4, 7, dtype=F64)
    x = torch.randn(3, 4, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda t: cell(t)[0], x)
    assert_close(jacfwd(lambda t: cell(t)[0])(x), jacobian, GRADIENT_TOLERANCE[F64])


# Recording ----------------------------------------------------------------------------------------


def test_make_fx_records_the_operator() -> None:
    ours, _, x = pair(torch.float32)
    graph = make_fx(Model(ours))(x)
    assert torch.ops.fused_lstm.forward.default in {n.target for n in graph.graph.nodes}
    assert_close(graph(x), Model(ours)(x))
    named = {n: p.detach() for n, p in ours.named_parameters()}
    fake = make_fx(lambda p, t: functional_call(ours, p, (t,))[0], tracing_mode="fake")(named, x)
    assert_close(fake(named, x), ours(x)[0])


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
def test_fake_tensors_have_the_right_shapes(options: dict[str, Any]) -> None:
    with FakeTensorMode() as mode:
        fake = fused_lstm.LSTM(4, 7, 2, **options)
        x = torch.randn(5, 3, 4, requires_grad=True)
        results = Model(fake)(x)
        (dx,) = torch.autograd.grad(results[0].sum(), x)
    assert dx.shape == x.shape
    assert dx.fake_mode is mode  # type: ignore[attr-defined]
    real = Model(fused_lstm.LSTM(4, 7, 2, **options))(torch.randn(5, 3, 4))
    for a, b in zip(results, real, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_symbolic_trace_keeps_the_layer_whole() -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, dropout=0.5)
    model = Model(lstm)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["layer"]
    x = torch.randn(5, 3, 4)
    assert_close(traced.eval()(x), model.eval()(x))
    cell = CellModel(fused_lstm.LSTMCell(4, 7))
    assert_close(torch.fx.symbolic_trace(cell)(x[0]), cell(x[0]))


# Subclasses and modes -----------------------------------------------------------------------------


class Plain(Tensor):
    """A subclass with nothing of its own."""


def test_a_plain_subclass_comes_back() -> None:
    ours, theirs, x = pair(torch.float32)
    for module in (ours, theirs):
        output, (h, _) = module(x.as_subclass(Plain))
        assert type(output) is Plain
        assert type(h) is Plain
    assert_close(ours(x.as_subclass(Plain)), ours(x))
    own = x.as_subclass(Plain).requires_grad_()
    ours(own)[0].sum().backward()
    assert own.grad is not None


class Wrapper(Tensor):
    """A subclass that computes by itself: it runs PyTorch's operators on a tensor inside."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace == "aten", func  # it knows no other operators
        unwrap = lambda t: t.inner if isinstance(t, Wrapper) else t  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        wrap = lambda t: Wrapper(t) if isinstance(t, Tensor) else t  # noqa: E731
        return torch.utils._pytree.tree_map(wrap, func(*args, **kwargs))


def test_a_class_with_its_own_operators_gets_torchs() -> None:
    ours, _, x = pair(torch.float32)
    with torch.no_grad():
        output, _ = ours(Wrapper(x))
        assert isinstance(output, Wrapper)
        assert_close(output.inner, ours(x)[0])


def test_function_modes_see_the_call() -> None:
    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    lstm, x = fused_lstm.LSTM(4, 7), torch.randn(5, 3, 4)
    with torch.no_grad(), Seen():
        lstm(x)
    assert any("fused_lstm" in name for name in names)


def test_tensors_that_escaped_a_transform() -> None:
    ours, _, x = pair()
    kept: list[Tensor] = []

    def f(t: Tensor) -> Tensor:
        kept.append(t * 2)
        return t.sum()

    grad(f)(x)
    assert_close(ours(kept[0]), ours(x * 2), 1e-13)
    ours(kept[0])[0].sum().backward()
