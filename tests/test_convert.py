"""`convert` and `revert`: what changes is the class, what stays is everything else.

Every promise is tried on a model that holds an LSTM in each way that PyTorch knows; what cannot be
swapped has to be named together with the reason, and to go on as it was.
"""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, error
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
from fused_lstm import convert, revert
from fused_lstm.convert import Outcome

F32 = torch.float32


class Holder(nn.Module):
    """LSTMs as attribute, under two names, in two parents and in each container; a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(5, 6, num_layers=2, bidirectional=True, dropout=0.3)
        self.stack = nn.ModuleList([nn.LSTM(12, 6, proj_size=3), nn.LSTM(3, 6, bias=False)])
        self.choice = nn.ModuleDict({"cell": nn.LSTMCell(6, 6), "norm": nn.LayerNorm(6)})
        self.tail = nn.Sequential(nn.Linear(6, 5), nn.LSTM(5, 6))
        self.alias = self.tail[1]
        self.choice["shared"] = self.alias
        self.stack[1].weight_hh_l0 = self.alias.weight_hh_l0  # tied
        self.unregistered = [self.alias]

    def forward(self, x: Tensor) -> Tensor:  # [T, B, 5] -> [T, B, 6]
        y, _ = self.first(x)
        for lstm in self.stack:
            y, _ = lstm(y)
        h, c = self.choice["cell"](self.choice["norm"](y[-1]))
        z, _ = self.tail(y)
        w, _ = self.alias(x, (h.unsqueeze(0), c.unsqueeze(0)))
        return z + w


class Scaled(nn.LSTM):
    """A subclass whose forward has another argument and leads to nn.LSTM's."""

    def __init__(self, *sizes: int, scale: float = 1.0) -> None:
        super().__init__(*sizes)
        self.scale = scale

    def forward(self, x: Any, hx: Any = None, *, times: int = 1) -> Any:
        y, state = super().forward(x * self.scale, hx)
        return y * times, state


class Inherits(Scaled):
    """A subclass of that one, with nothing of its own."""


class OwnCell(nn.LSTMCell):
    """A subclass of nn.LSTMCell."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        h, c = super().forward(x, hx)
        return h.relu(), c


def parametrized() -> nn.LSTM:
    module: nn.LSTM = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    return module


def pruned() -> nn.LSTM:
    return prune.random_unstructured(nn.LSTM(3, 4), "weight_hh_l0", 0.5)


def old_weight_norm() -> nn.LSTM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module: nn.LSTM = nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    return module


def everything(module: nn.Module) -> dict[str, Any]:
    """What a module and those in it hold, by identity; without nn.LSTM's list of its weights."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        for key, value in part.__dict__.items():
            if key not in ("_flat_weights", "_flat_weight_refs"):
                found[f"{name}/{key}"] = id(value)
        for key, parameter in part._parameters.items():
            found[f"{name}/parameter {key}"] = id(parameter)
    found["keys"] = list(module.state_dict())
    found["modes"] = [part.training for part in module.modules()]
    found["frozen"] = [p.requires_grad for p in module.parameters()]
    return found


def classes(module: nn.Module) -> list[type]:
    return [type(part) for part in module.modules()]


def computed_by_ours(y: Tensor) -> bool:
    """Whether our operator, and nothing of PyTorch's LSTM, stands in the graph of y."""
    seen, waiting, names = set(), [y.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            waiting += [following for following, _ in node.next_functions]
    theirs = {name for name in names if "Rnn" in name or "ThnnFused" in name}
    return any(name.startswith("LstmLayer") for name in names) and not theirs


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and the gradients of x and of every parameter, with the dropout of one seed."""
    torch.manual_seed(3)
    x = x.detach().clone().requires_grad_()
    y = module(x)
    y = y if isinstance(y, Tensor) else y[0]
    grads = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
    return [y.detach(), *grads]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert error(actual[0], expected[0]) < OUTPUT_TOLERANCE[F32]
    for a, b in zip(actual[1:], expected[1:], strict=True):
        assert error(a, b) < GRADIENT_TOLERANCE[F32]


def outcomes(function: Callable[..., nn.Module], module: nn.Module) -> list[Outcome]:
    found: list[Outcome] = []
    assert function(module, report=found.append) is module
    return found


def test_a_model_computes_the_same_and_comes_back() -> None:
    model = Holder().eval()
    x = torch.randn(7, 3, 5)
    with torch.no_grad():
        expected_output = model(x)
    before, held, kinds = results(model, x), everything(model), classes(model)
    assert convert(model) is model
    assert everything(model) == held
    assert model.unregistered[0] is model.alias is model.tail[1] is model.choice["shared"]
    assert classes(model).count(fused_lstm.LSTM) == 4
    assert classes(model).count(fused_lstm.LSTMCell) == 1
    assert not any(isinstance(m, nn.LSTM | nn.LSTMCell) for m in model.modules())
    assert computed_by_ours(model(x))
    assert_close(results(model, x), before)
    revert(model)
    assert everything(model) == held
    assert classes(model) == kinds
    assert not computed_by_ours(model(x))
    with torch.no_grad():  # as before: on AVX2 nn.LSTM computes other last bits where it saves
        assert torch.equal(model(x), expected_output)


def test_dropout_draws_the_same_while_training() -> None:
    """nn.LSTM's float32 path draws within oneDNN's code; its plain path as ours does."""
    model = nn.LSTM(5, 6, num_layers=3, dropout=0.5, dtype=torch.float64)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    torch.manual_seed(1)
    expected, _ = model(x)
    torch.manual_seed(1)
    assert error(convert(model)(x)[0], expected) < OUTPUT_TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    ("theirs", "ours"), [(nn.LSTM, fused_lstm.LSTM), (nn.LSTMCell, fused_lstm.LSTMCell)]
)
def test_the_model_may_be_an_lstm_itself(theirs: type, ours: type) -> None:
    module = theirs(3, 4, dtype=torch.float64).eval()
    weight = module.weight_hh if theirs is nn.LSTMCell else module.weight_hh_l0
    assert convert(module) is module
    assert type(module) is ours
    assert any(weight is p for p in module.parameters())
    assert not module.training
    assert weight.dtype is torch.float64
    assert type(revert(module)) is theirs


def test_twice_is_once() -> None:
    model = Holder()
    assert len(outcomes(convert, model)) == 5
    held, kinds = everything(model), classes(model)
    assert outcomes(convert, model) == []
    assert (everything(model), classes(model)) == (held, kinds)
    assert len(outcomes(revert, model)) == 5
    assert outcomes(revert, model) == []


def test_an_optimizer_goes_on() -> None:
    """Three steps with a conversion after each equal three without, momentum included."""
    models, x = [Holder(), Holder()], torch.randn(7, 3, 5)
    models[1].load_state_dict(models[0].state_dict())
    for model, function in zip(models, (lambda m: m, convert), strict=True):
        model.eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            function(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert error(b, a) < GRADIENT_TOLERANCE[F32]


def test_hooks_stay_and_their_handles_remove_them() -> None:
    module = nn.LSTM(3, 4)
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_, **__: calls.append(name)

    def broken(*_: Any) -> None:
        raise KeyError("stop")

    handles = [
        module.register_forward_pre_hook(note("pre")),
        module.register_forward_pre_hook(note("pre, kwargs"), with_kwargs=True),
        module.register_forward_hook(note("forward")),
        module.register_forward_hook(note("forward, kwargs"), with_kwargs=True),
        module.register_forward_hook(note("always"), always_call=True),
        module.register_full_backward_pre_hook(note("backward pre")),
        module.register_full_backward_hook(note("backward")),
        module.register_state_dict_pre_hook(note("state_dict pre")),
        module.register_state_dict_post_hook(note("state_dict")),
        module.register_load_state_dict_pre_hook(note("load pre")),
        module.register_load_state_dict_post_hook(note("load")),
    ]
    x = torch.randn(5, 2, 3, requires_grad=True)

    def use() -> list[str]:
        calls.clear()
        module(input=x)[0].sum().backward()
        module.load_state_dict(module.state_dict())
        return list(calls)

    expected = use()
    assert len(set(expected)) == len(handles)
    convert(module)
    assert use() == expected
    stop = module.register_forward_pre_hook(broken)
    calls.clear()
    with pytest.raises(KeyError):
        module(x)
    assert calls == ["pre", "pre, kwargs", "always"]
    stop.remove()
    late = module.register_forward_hook(note("late"))
    for handle in handles:
        handle.remove()
    assert use() == ["late"]
    revert(module)
    assert use() == ["late"]
    late.remove()
    assert use() == []


def test_attributes_buffers_and_frozen_parameters_stay() -> None:
    module = nn.LSTM(3, 4)
    module.register_buffer("scale", torch.ones(2))
    module.register_buffer("passing", torch.ones(2), persistent=False)
    module.inner = nn.LSTM(2, 2)
    module.note = {"who": "user"}
    module.weight_hh_l0.requires_grad_(False)
    held = everything(module)
    convert(module)
    assert everything(module) == held
    assert type(module.inner) is fused_lstm.LSTM
    assert list(module.state_dict())[4] == "scale"
    assert not module.weight_hh_l0.requires_grad


def test_state_dicts_go_both_ways() -> None:
    a, b = Holder().eval(), convert(Holder().eval())
    x = torch.randn(7, 3, 5)
    b.load_state_dict(a.state_dict())
    assert error(b(x), a(x)) < OUTPUT_TOLERANCE[F32]
    other = Holder().eval()
    other.load_state_dict(b.state_dict())
    assert torch.equal(other(x), a(x))


@pytest.mark.parametrize("make", [Holder, lambda: nn.Sequential(Inherits(5, 6, scale=2.0))])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_converted_model_is_copied_and_pickled(make: Any, copied: Any) -> None:
    model = convert(make().eval())
    again, x = copied(model), torch.randn(7, 3, 5)
    assert classes(again) == classes(model)
    assert_close(results(again, x), results(model, x))
    assert not {id(p) for p in again.parameters()} & {id(p) for p in model.parameters()}
    assert not any("fused_lstm" in k.__module__ for k in classes(revert(again)))


@pytest.mark.parametrize("kind", [Scaled, Inherits])
def test_a_subclass_keeps_its_own_forward(kind: type[Scaled]) -> None:
    module = kind(5, 6, scale=0.5)
    x = torch.randn(7, 3, 5)
    expected, held = results(module, x), everything(module)
    convert(module)
    assert isinstance(module, kind)
    assert everything(module) == held
    assert module._flat_weight_refs == []  # what nn.LSTM has there forbids swap_tensors
    assert computed_by_ours(module(x)[0])
    assert_close(results(module, x), expected)
    assert torch.equal(module(x, times=2)[0], module(x)[0] * 2)
    packed = pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    assert nn.LSTM.forward(module, packed)[0].data.shape == (6, 6)
    assert type(convert(kind(5, 6))) is type(module)
    assert type(revert(module)) is kind


def test_a_subclass_of_the_cell() -> None:
    module, x = OwnCell(5, 6), torch.randn(3, 5)
    expected = results(module, x)
    convert(module)
    assert computed_by_ours(module(x)[0])
    assert_close(results(module, x), expected)
    again = pickle.loads(pickle.dumps(module))
    assert type(again) is type(module)
    assert type(revert(module)) is OwnCell


@pytest.mark.parametrize("make", [parametrized, pruned, old_weight_norm])
def test_reparametrised_weights_go_on(make: Callable[[], nn.LSTM]) -> None:
    module, x = make(), torch.randn(5, 2, 3)
    expected, held, kind = results(module, x), everything(module), type(module)
    convert(module)
    assert everything(module) == held
    assert computed_by_ours(module(x)[0])
    assert_close(results(module, x), expected)
    if parametrize.is_parametrized(module):  # the others hold a graph, which none can copy
        assert_close(results(copy.deepcopy(module), x), expected)
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if "hh_l0" in n).mul_(2)
    changed = results(module, x)
    assert error(changed[0], expected[0]) > 1e-3
    revert(module)
    assert_close(results(module, x), changed)
    assert type(module).__name__ == kind.__name__
    assert type(module).__mro__[1:] == kind.__mro__[1:]


def test_parametrizations_are_added_and_removed_after_conversion() -> None:
    module, x = convert(parametrized()), torch.randn(5, 2, 3)
    parametrizations.orthogonal(module, "weight_ih_l0")
    w = module.weight_ih_l0
    assert torch.allclose(w.T @ w, torch.eye(3), atol=1e-5)
    assert computed_by_ours(module(x)[0])
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    parametrize.remove_parametrizations(module, "weight_ih_l0")
    assert type(module) is fused_lstm.LSTM
    late = convert(parametrizations.weight_norm(Inherits(3, 4), "weight_hh_l0"))
    parametrize.remove_parametrizations(late, "weight_hh_l0")
    assert type(late) is type(convert(Inherits(3, 4)))
    assert type(revert(parametrizations.weight_norm(late, "weight_hh_l0"))).__mro__[1] is Inherits


class OwnMathematics(nn.LSTM):
    """Computes by itself."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        return x @ self.weight_ih_l0.T, None


class OwnChecks(nn.LSTM):
    """Relies on nn.LSTM.forward to call it."""

    def check_forward_args(self, *arguments: Any) -> None:
        raise RuntimeError("not so")


class SameName(nn.LSTMCell):
    """Has by chance a method that our cell has too."""

    def _scripted(self) -> None:
        raise AssertionError


class Refuses(nn.LSTM):
    """May not be extended."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


def replaced_forward() -> nn.LSTM:
    module = nn.LSTM(3, 4)
    module.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return module


def uninitialised() -> nn.LSTM:
    module = nn.LSTM(3, 4)
    module.weight_ih_l0 = nn.UninitializedParameter()
    return module


def quantised() -> nn.Module:
    from torch.ao.nn.quantized import dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = dynamic.LSTM(3, 4)
    return module


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.trace(nn.LSTM(3, 4), torch.randn(5, 2, 3))
    return module


STAY = (
    (lambda: OwnMathematics(3, 4), "OwnMathematics.forward does not call super().forward"),
    (lambda: OwnChecks(3, 4), "forward relies on check_forward_args, which OwnChecks overrides"),
    (lambda: SameName(3, 4), "forward relies on _scripted, which SameName overrides"),
    (lambda: Refuses(3, 4), "its class cannot be extended: final"),
    (replaced_forward, "its forward was replaced on the instance"),
    (uninitialised, "it is not initialised yet: run a batch through the model first"),
    (quantised, "it is prepared or quantised by torch.ao"),
    (scripted, "TorchScript has compiled it: convert the model before it is scripted"),
)


@pytest.mark.parametrize(("make", "reason"), STAY, ids=[reason for _, reason in STAY])
def test_what_stays_is_named_with_the_reason(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": make()})
    kind = type(model["b"])
    with pytest.warns(UserWarning, match="not swapped") as caught:
        convert(model)
    message = str(caught[0].message)
    assert f"b: {kind.__module__}.{kind.__qualname__} stays, {reason}" in message
    assert caught[0].filename == __file__
    assert type(model["a"]) is fused_lstm.LSTM
    assert type(model["b"]) is kind


def test_report_takes_the_place_of_the_warning() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": OwnMathematics(3, 4), "c": parametrized()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b, c = outcomes(convert, model)
    assert a == Outcome("a", nn.LSTM, fused_lstm.LSTM, "")
    assert str(a) == "a: torch.nn.modules.rnn.LSTM is now fused_lstm.modules.LSTM"
    assert (b.before, b.after) == (OwnMathematics, OwnMathematics)
    assert str(c).endswith("LSTM is now parametrized fused_lstm.modules.LSTM")


def test_revert_leaves_what_was_written_on_ours() -> None:
    class Own(fused_lstm.LSTM):
        pass

    model = nn.Sequential(Own(3, 4), fused_lstm.LSTM(4, 4), replaced_forward())
    model[2].__class__ = fused_lstm.LSTM
    first, second, third = outcomes(revert, model)
    assert "was written as a subclass of fused_lstm's" in first.reason
    assert second.after is type(model[1]) is nn.LSTM
    assert "replaced on the instance" in third.reason


def test_compiled_and_wrapped_models() -> None:
    """torch.compile notices the new class; DataParallel and the like only hold the model."""
    inner = nn.ModuleDict({"lstm": nn.LSTM(5, 6)})
    compiled = torch.compile(Inner(inner["lstm"]), backend="eager")
    x = torch.randn(7, 3, 5)
    expected = compiled(x).detach()
    (outcome,) = outcomes(convert, compiled)
    assert outcome.name == "_orig_mod.lstm"
    assert error(compiled(x), expected) < OUTPUT_TOLERANCE[F32]
    assert "MkldnnRnn" not in compiled(x).grad_fn.name()
    revert(compiled)
    assert torch.equal(compiled(x), expected)


class Inner(nn.Module):
    """An LSTM's output alone."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def test_an_error_midway_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["fused_lstm.convert"]
    model, calls, become = Holder(), [], module._become
    held, kinds = everything(model), classes(model)
    lists = [m._flat_weight_refs for m in model.modules() if isinstance(m, nn.LSTM)]

    def breaks(*arguments: Any) -> None:
        become(*arguments)
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError

    monkeypatch.setattr(module, "_become", breaks)
    with pytest.raises(MemoryError):
        convert(model)
    assert (everything(model), classes(model)) == (held, kinds)
    assert [m._flat_weight_refs for m in model.modules() if isinstance(m, nn.LSTM)] == lists
    model(torch.randn(7, 3, 5))


@pytest.mark.parametrize("kind", [nn.LSTM, fused_lstm.LSTM])
def test_reverted_lists_are_nn_lstms(kind: type[nn.RNNBase]) -> None:
    """nn.LSTM notices a changed weight by its references; they have to be there again.

    Ours keeps none, for torch.utils.swap_tensors' sake.
    """
    module = convert(kind(3, 4))
    assert module._flat_weight_refs == []
    revert(module)
    assert all(r() is p for r, p in zip(module._flat_weight_refs, module.parameters(), strict=True))
    module._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros(16, 4))
    x, other = torch.randn(5, 2, 3), nn.LSTM(3, 4)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], other(x)[0])


@pytest.mark.parametrize("function", [convert, revert])
def test_another_object_is_refused(function: Callable[[Any], Any]) -> None:
    class Agent:
        policy = nn.LSTM(3, 4)

    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got .*Agent"):
        function(Agent())


def test_models_wrapped_by_distributed(tmp_path: Path) -> None:
    """DistributedDataParallel and fully_shard hold the module or its parameters; both go on."""
    from torch.distributed.fsdp import fully_shard

    x = torch.randn(7, 3, 5)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        inner = Inner(nn.LSTM(5, 6))
        expected = results(inner, x)
        parallel = nn.parallel.DistributedDataParallel(inner)
        assert outcomes(convert, parallel)[0].name == "module.lstm"
        parallel(x).square().sum().backward()
        assert computed_by_ours(parallel(x))
        gradients = [p.grad for p in inner.parameters() if p.grad is not None]
        assert_close([parallel(x), *gradients], [expected[0], *expected[2:]])

        sharded = fully_shard(revert(copy.deepcopy(inner)))
        convert(sharded)
        assert computed_by_ours(sharded(x))
        assert error(sharded(x), expected[0]) < OUTPUT_TOLERANCE[F32]
        alone = fully_shard(nn.LSTM(5, 6))
        (outcome,) = outcomes(convert, alone)
        assert outcome.reason == "fully_shard has wrapped it: convert the model before"
        alone(x)
    finally:
        torch.distributed.destroy_process_group()
