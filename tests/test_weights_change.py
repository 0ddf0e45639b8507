"""Weights may be changed in any way at any time, and the next call sees it.

No cache of packed weights could do this: fused optimizers, `.data` and numpy views change values
without raising `Tensor._version`. Every way is tried in training, without grad and in inference
mode, against torch.nn.LSTM with the weights as they are then.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OUTPUT_TOLERANCE, error
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fused_lstm

HIDDEN = 9
CONTEXTS = {"train": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def step(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[fused_lstm.LSTM], None]:
    def change(m: fused_lstm.LSTM) -> None:
        optimizer = make(m.parameters())
        with torch.enable_grad():
            m(torch.randn(3, 2, 4))[0].square().sum().backward()
        optimizer.step()

    return change


def new() -> Tensor:
    return torch.randn(4 * HIDDEN, HIDDEN)


def numpy_view(m: fused_lstm.LSTM) -> None:
    m.weight_hh_l0.detach().numpy()[...] = new().numpy()


def set_storage(m: fused_lstm.LSTM) -> None:
    with torch.no_grad():
        m.weight_hh_l0.set_(new())  # type: ignore[call-overload]


def delete_and_assign(m: fused_lstm.LSTM) -> None:
    del m.weight_hh_l0
    m.weight_hh_l0 = new()


def in_place(action: Callable[[Tensor], Any]) -> Callable[[fused_lstm.LSTM], None]:
    def change(m: fused_lstm.LSTM) -> None:
        with torch.no_grad():
            action(m.weight_hh_l0)

    return change


def other_state(m: fused_lstm.LSTM) -> dict[str, Tensor]:
    return fused_lstm.LSTM(m.input_size, m.hidden_size).state_dict()


WAYS: dict[str, Callable[[fused_lstm.LSTM], Any]] = {
    "SGD": step(lambda p: torch.optim.SGD(p, 0.5, foreach=False)),
    "SGD foreach": step(lambda p: torch.optim.SGD(p, 0.5, foreach=True)),
    "SGD fused": step(lambda p: torch.optim.SGD(p, 0.5, fused=True)),
    "Adam": step(lambda p: torch.optim.Adam(p, 0.5)),
    "Adam fused": step(lambda p: torch.optim.Adam(p, 0.5, fused=True)),
    "AdamW fused": step(lambda p: torch.optim.AdamW(p, 0.5, fused=True)),
    "Adagrad fused": step(lambda p: torch.optim.Adagrad(p, 0.5, fused=True)),
    "RMSprop": step(lambda p: torch.optim.RMSprop(p, 0.5)),
    "copy_": in_place(lambda w: w.copy_(new())),
    "mul_": in_place(lambda w: w.mul_(-1)),
    "one element": in_place(lambda w: w[3].fill_(5.0)),
    "normal_": in_place(nn.init.normal_),
    "orthogonal_": in_place(nn.init.orthogonal_),
    ".data in place": lambda m: m.weight_hh_l0.data.mul_(-1),
    ".data =": lambda m: setattr(m.weight_hh_l0, "data", new()),
    "numpy view": numpy_view,
    "set_": set_storage,
    "load_state_dict": lambda m: m.load_state_dict(other_state(m)),
    "load_state_dict assign": lambda m: m.load_state_dict(other_state(m), assign=True),
    "new Parameter": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(new())),
    "_parameters": lambda m: m._parameters.update(weight_hh_l0=nn.Parameter(new())),
    "register_parameter": lambda m: m.register_parameter("weight_hh_l0", nn.Parameter(new())),
    "reset_parameters": lambda m: m.reset_parameters(),
    "plain tensor": delete_and_assign,
    "to double and back": lambda m: (m.double(), m.weight_hh_l0.data.mul_(2), m.float()),
    "swap_tensors": lambda m: torch.utils.swap_tensors(m.weight_hh_l0, nn.Parameter(new())),
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        torch.randn(sum(p.numel() for p in m.parameters())), m.parameters()
    ),
    "clip": in_place(lambda w: w.clamp_(-0.01, 0.01)),
    "non-contiguous": lambda m: setattr(
        m, "weight_hh_l0", nn.Parameter(torch.randn(HIDDEN, 36).t())
    ),
    "tied": lambda m: setattr(m, "bias_hh_l0", m.bias_ih_l0),
    "prune": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    "old weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0").weight_hh_l0_g.data.mul_(
        3
    ),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0").eval(),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
}


def expected(m: fused_lstm.LSTM, x: Tensor) -> Tensor:
    """nn.LSTM with the values that m's weights have now."""
    theirs = nn.LSTM(m.input_size, m.hidden_size)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(getattr(m, name))
        return theirs(x)[0]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("way", WAYS)
def test_the_next_call_sees_it(way: str, context: str) -> None:
    m = fused_lstm.LSTM(4, HIDDEN)
    x = torch.randn(5, 3, 4)
    with CONTEXTS[context]():
        before = m(x)[0].detach().clone()
    WAYS[way](m)
    for _ in range(2):
        with CONTEXTS[context]():
            after = m(x)[0].clone()
        if way not in ("weight_norm", "tied"):
            assert not torch.equal(before, after)
        assert error(after, expected(m, x)) <= OUTPUT_TOLERANCE[torch.float32]
        m(x)  # old weight_norm computes its weight in a hook before each call
        if context == "train" and after.requires_grad:
            with torch.no_grad():
                m.bias_ih_l0.add_(0.1)


@pytest.mark.parametrize(
    "norm",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
def test_parametrized_weights_are_trained(norm: Any) -> None:
    x = torch.randn(5, 3, 4)
    ours, theirs = fused_lstm.LSTM(4, HIDDEN), nn.LSTM(4, HIDDEN)
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    norm(ours, "weight_hh_l0")
    torch.manual_seed(1)
    norm(theirs, "weight_hh_l0")
    assert parametrize.is_parametrized(ours, "weight_hh_l0")
    grads = []
    for module in (ours.eval(), theirs.eval()):
        loss = module(x)[0].square().sum()
        grads.append(torch.autograd.grad(loss, list(module.parameters())))
    for a, b in zip(*grads, strict=True):
        assert error(a, b) <= 1e-4  # through the norm's own float32 arithmetic
    assert torch.equal(copy.deepcopy(ours)(x)[0], ours(x)[0])
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    assert "weight_hh_l0" in dict(ours.named_parameters())
    assert error(ours(x)[0], expected(ours, x)) <= OUTPUT_TOLERANCE[torch.float32]


def test_weights_made_by_a_graph_get_their_gradient_through_it() -> None:
    source = torch.randn(4 * HIDDEN, HIDDEN, requires_grad=True)
    x = torch.randn(5, 3, 4)
    grads = []
    torch.manual_seed(2)
    ours, theirs = fused_lstm.LSTM(4, HIDDEN), nn.LSTM(4, HIDDEN)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        del module.weight_hh_l0
        module.weight_hh_l0 = source.tanh()
        if module is theirs:
            module._init_flat_weights()
        grads.append(torch.autograd.grad(module(x)[0].sum(), source)[0])
    assert error(*grads) <= 2e-5


def test_tied_layers_accumulate_both_gradients() -> None:
    grads = []
    shared = torch.randn(4 * HIDDEN, HIDDEN, dtype=torch.float64)
    for make in (fused_lstm.LSTM, nn.LSTM):
        torch.manual_seed(3)
        module = make(HIDDEN, HIDDEN, 2, dtype=torch.float64)
        module.weight_hh_l0 = module.weight_hh_l1 = nn.Parameter(shared.clone())
        loss = module(torch.ones(5, 3, HIDDEN, dtype=torch.float64))[0].sum()
        grads.append(torch.autograd.grad(loss, list(module.parameters())))
    for a, b in zip(*grads, strict=True):
        assert error(a, b) <= 1e-12
