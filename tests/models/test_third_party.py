"""Models of other packages compute the same before and after `convert`, forward and backward.

`make test-models` installs the packages and runs this; `make test` does not collect it. A package
that is missing, or that cannot be imported, skips its model with the reason; with
FUSED_LSTM_ALL_MODELS=1, as the target has it, that fails. Outputs and gradients are held to the
tolerances of `tests/cases.py`.
"""

import copy
import os
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, error
from torch import Tensor, nn

import fused_lstm
from benchmarks.third_party_models import MODELS, Subject
from fused_lstm import function
from fused_lstm.convert import Outcome

F32 = torch.float32
# A gradient that is zero but for rounding (of a bias in front of a softmax, say) has no digits of
# its own: it is a sum of terms of the size of the others.
NOISE = 16 * torch.finfo(F32).eps

LSTMS = {
    "sb3-contrib RecurrentPPO": 2,
    "pytorch-forecasting TemporalFusionTransformer": 2,
    "pytorch-forecasting RecurrentNetwork": 1,
    "easyocr recogniser": 2,
    "gluonts DeepAR": 1,
    "stanza lemmatiser": 2,
}


@pytest.fixture(params=MODELS)
def subject(request: pytest.FixtureRequest) -> tuple[str, Subject]:
    torch.manual_seed(0)
    try:
        made = MODELS[request.param]()
    except (ImportError, OSError) as error:
        if os.environ.get("FUSED_LSTM_ALL_MODELS") == "1":
            raise
        pytest.skip(f"{request.param}: {error}")
    return request.param, made


def results(subject: Subject, training: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs of the training call, and the gradients of their mean squares."""
    subject.model.train(training)
    torch.manual_seed(1)
    outputs = list(subject.train())
    wanted = {n: p for n, p in subject.model.named_parameters() if p.requires_grad}
    loss = torch.stack([y.square().mean() for y in outputs]).sum()
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(wanted, found, strict=True) if g is not None}
    return [y.detach() for y in outputs], gradients


def compare(
    actual: tuple[list[Tensor], dict[str, Tensor]],
    expected: tuple[list[Tensor], dict[str, Tensor]],
) -> None:
    for mine, theirs in zip(actual[0], expected[0], strict=True):
        assert error(mine, theirs) < OUTPUT_TOLERANCE[F32]
    assert actual[1].keys() == expected[1].keys()
    largest = max(float(g.abs().max()) for g in expected[1].values())
    for name, theirs in expected[1].items():
        mine = actual[1][name]
        allowed = GRADIENT_TOLERANCE[F32] * float(theirs.abs().max()) + NOISE * largest
        assert float((mine - theirs).abs().max()) < allowed, name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the layers that our operator computes ("ours"), and the calls of PyTorch's LSTM."""
    counted: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(function, "lstm_layer", counting("ours", function.lstm_layer))
    for name in ("lstm", "lstm_cell"):  # nn.LSTM's and nn.LSTMCell's, and the way out of ours
        monkeypatch.setattr(torch._VF, name, counting("theirs", getattr(torch._VF, name)))
    return counted


def test_same_before_and_after(subject: tuple[str, Subject], calls: Counter[str]) -> None:
    name, made = subject
    model, parameters = made.model, list(made.model.parameters())
    kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
    statistics = copy.deepcopy(model.state_dict())  # training moves those of batch norms
    before = {}
    for training in (False, True):
        before[training] = results(made, training)
        model.load_state_dict(statistics)
    assert calls["ours"] == 0
    assert calls["theirs"] > 0

    calls.clear()
    found: list[Outcome] = []
    assert fused_lstm.convert(model, report=found.append) is model
    assert len(found) == LSTMS[name]
    assert not any(outcome.reason for outcome in found)
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    for training in (False, True):
        compare(results(made, training), before[training])
        model.load_state_dict(statistics)
    model.eval()
    with torch.no_grad():
        made.infer()
    assert calls["ours"] > 0
    assert calls["theirs"] == 0

    fused_lstm.revert(model)
    assert [type(m) for m in model.modules()] == kinds
    for y, expected in zip(results(made, False)[0], before[False][0], strict=True):
        assert torch.equal(y, expected)


def test_a_converted_model_is_copied_and_pickled(subject: tuple[str, Subject]) -> None:
    _, made = subject
    fused_lstm.convert(made.model)
    kinds = [type(m) for m in made.model.modules()]
    assert [type(m) for m in copy.deepcopy(made.model).modules()] == kinds
    lstms = [m for m in made.model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
    for lstm in lstms:
        again = pickle.loads(pickle.dumps(lstm))
        assert type(again) is type(lstm)
        assert all(
            torch.equal(p, q) for p, q in zip(again.parameters(), lstm.parameters(), strict=True)
        )


def test_an_agent_learns_with_converted_lstms() -> None:
    """A rollout and an update of RecurrentPPO: the same weights after it as without `convert`."""
    contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")
    torch.manual_seed(0)
    weights = []
    for converted in (False, True):
        agent = contrib.RecurrentPPO(
            "MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=3
        )
        if converted:
            fused_lstm.convert(agent.policy)
        agent.learn(64)
        weights.append({n: p.detach().clone() for n, p in agent.policy.named_parameters()})
    untrained = contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=3).policy
    for name, start in untrained.named_parameters():
        assert not torch.equal(weights[0][name], start)
        # Adam's first step has the length of the learning rate, 3e-4, whatever the gradient's size.
        assert float((weights[1][name] - weights[0][name]).abs().max()) < 1e-5, name
