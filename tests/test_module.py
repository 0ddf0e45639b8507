"""The modules as objects: constructor, parameters, copies, pickles, hooks, as torch.nn has them."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_lstm

PAIRS = ((fused_lstm.LSTM, nn.LSTM), (fused_lstm.LSTMCell, nn.LSTMCell))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.5, "batch_first": True},
    {"proj_size": 2, "num_layers": 2},
    {"bidirectional": 1, "dropout": 0, "num_layers": True},
    {"dtype": torch.float64},
    {"device": "meta"},
)


def state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_parameters_from_the_same_seed(options: dict[str, Any]) -> None:
    made = []
    for make in (fused_lstm.LSTM, nn.LSTM):
        torch.manual_seed(5)
        module = make(3, 4, **options)
        made.append((module, torch.get_rng_state()))
    (ours, our_rng), (theirs, their_rng) = made
    assert torch.equal(our_rng, their_rng)
    assert list(state(ours)) == list(state(theirs))
    for (name, a), (other, b) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.is_meta or torch.equal(a, b)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.dropout == theirs.dropout
    assert type(ours.dropout) is float
    assert repr(ours) == repr(theirs)
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    assert not list(ours.buffers())
    assert not list(ours.children())


@pytest.mark.parametrize("bias", [True, False, 1, 0])
def test_cell_parameters_from_the_same_seed(bias: Any) -> None:
    made = []
    for make in (fused_lstm.LSTMCell, nn.LSTMCell):
        torch.manual_seed(5)
        made.append((make(3, 4, bias), torch.get_rng_state()))
    (ours, our_rng), (theirs, their_rng) = made
    assert torch.equal(our_rng, their_rng)
    assert list(state(ours)) == list(state(theirs))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    assert repr(ours) == repr(theirs)


BAD_CONSTRUCTIONS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    *(((3, 4), {"dropout": p}) for p in (-0.1, 1.1, float("nan"), True, "much", None, [0.1])),
    *((sizes, {}) for sizes in ((0, 4), (-1, 4), (3, 0), (3, -2), (3.0, 4), (3, 4.0), ("3", 4))),
    *(((3, 4), {"num_layers": n}) for n in (0, -1, 1.5, "2", None)),
    *(((3, 4), {"proj_size": n}) for n in (-1, 4, 5, 1.5)),
    *(((3, 4), {"bias": b}) for b in (1, None, "yes")),
    *(((3, 4), {"batch_first": b}) for b in (1, None)),
    ((3, 4), {"dtype": torch.int64}),
    ((3, 4), {"device": "nowhere"}),
    ((3, 4), {"surprise": 1}),
    ((3,), {}),
    ((), {}),
    ((3, 4, 1, True, False, 0.0, False, 0, None, None, 9), {}),
)


@pytest.mark.parametrize(("args", "options"), BAD_CONSTRUCTIONS, ids=str)
def test_bad_constructions_raise_what_nn_lstm_raises(args: Any, options: Any) -> None:
    with pytest.raises(Exception) as theirs:
        nn.LSTM(*args, **options)
    assert theirs.type in (TypeError, ValueError, RuntimeError)
    with pytest.raises(theirs.type) as ours:
        fused_lstm.LSTM(*args, **options)
    if "__init__()" not in str(theirs.value):  # Python's own words about a signature
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("args", [(-1, 4), (3, -4), (3.0, 4), (3, 4.0), (3,), (3, 4, 1, 2, 3, 4)])
def test_bad_cells_raise_what_nn_lstmcell_raises(args: Any) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        nn.LSTMCell(*args)
    with pytest.raises(theirs.type):
        fused_lstm.LSTMCell(*args)


def test_dropout_with_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        fused_lstm.LSTM(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused_lstm.LSTM(3, 4, 2, dropout=0.5)


@pytest.mark.parametrize("bad", [(0, 4), (3, 4, 0)])
def test_a_failed_construction_leaves_the_generator_alone(bad: tuple[int, ...]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="greater than zero"):
        fused_lstm.LSTM(*bad)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_it_is_an_instance_of() -> None:
    assert isinstance(fused_lstm.LSTM(3, 4), nn.RNNBase)
    assert not isinstance(fused_lstm.LSTM(3, 4), nn.LSTM)  # the documented departure
    assert isinstance(fused_lstm.LSTMCell(3, 4), nn.RNNCellBase)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p[0].__name__)
def test_state_dicts_go_both_ways(pair: Any) -> None:
    ours, theirs = pair[0](3, 4), pair[1](3, 4)
    theirs.load_state_dict(ours.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    other = pair[0](3, 4)
    other.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3)
    for a, b in zip(
        torch.utils._pytree.tree_leaves(ours(x)),
        torch.utils._pytree.tree_leaves(other(x)),
        strict=True,
    ):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(pair[1](3, 5).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        pair[0](3, 4, bias=False).load_state_dict(theirs.state_dict())


def round_trips(module: nn.Module) -> list[nn.Module]:
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    return [
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        copy.copy(module),
        torch.load(saved, weights_only=False),
    ]


@pytest.mark.parametrize("make", [p[0] for p in PAIRS], ids=lambda m: m.__name__)
def test_copies_and_pickles(make: Any) -> None:
    module = make(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = module(x)[0]
    for other in round_trips(module):
        assert type(other) is make
        assert torch.equal(other(x)[0], expected)
        assert list(state(other)) == list(state(module))
    deep = copy.deepcopy(module)
    with torch.no_grad():
        for p in deep.parameters():
            p.zero_()
    assert torch.equal(module(x)[0], expected)
    assert not deep(x)[0].any()


def test_a_pickle_after_weights_were_replaced() -> None:
    lstm = fused_lstm.LSTM(3, 4)
    lstm._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros(16, 4))
    x = torch.randn(5, 2, 3)
    for other in round_trips(lstm):
        assert torch.equal(other(x)[0], lstm(x)[0])


def test_to_other_dtypes_and_shared_memory() -> None:
    lstm = fused_lstm.LSTM(3, 4)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        lstm.to(dtype)
        assert lstm(torch.randn(5, 2, 3, dtype=dtype))[0].dtype is dtype
    lstm.share_memory()
    assert all(p.is_shared() for p in lstm.parameters())
    lstm(torch.randn(5, 2, 3))


def test_meta() -> None:
    for make, theirs in PAIRS:
        module, other = make(3, 4, device="meta"), theirs(3, 4, device="meta")
        x = (
            torch.randn(5, 2, 3, device="meta")
            if make is fused_lstm.LSTM
            else torch.randn(2, 3, device="meta")
        )
        for a, b in zip(
            torch.utils._pytree.tree_leaves(module(x)),
            torch.utils._pytree.tree_leaves(other(x)),
            strict=True,
        ):
            assert (a.shape, a.stride(), a.device) == (b.shape, b.stride(), b.device)
        module.to_empty(device="cpu")
        module.reset_parameters()
        module.load_state_dict(theirs(3, 4).state_dict(), assign=True)
        module(torch.randn(2, 3))
    with torch.device("meta"):
        assert all(p.is_meta for p in fused_lstm.LSTM(3, 4).parameters())


def test_skip_init_and_swap_tensors() -> None:
    lstm = torch.nn.utils.skip_init(fused_lstm.LSTM, 3, 4, num_layers=2)
    assert not lstm.weight_ih_l0.is_meta
    lstm.reset_parameters()
    x = torch.randn(5, 2, 3)
    before = lstm(x)[0].detach()
    with torch.no_grad():
        torch.utils.swap_tensors(lstm.weight_hh_l0, nn.Parameter(torch.zeros(16, 4)))
    assert not lstm.weight_hh_l0.any()
    assert not torch.equal(lstm(x)[0], before)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert lstm.double()(x.double())[0].dtype is torch.float64
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_hooks() -> None:
    lstm = fused_lstm.LSTM(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    seen: list[str] = []
    lstm.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    lstm.register_forward_hook(lambda m, args, out: (seen.append("post"), (out[0] * 0, out[1]))[1])
    lstm.register_full_backward_hook(lambda m, gi, go: seen.append(f"backward {len(gi)}"))
    lstm.weight_hh_l0.register_hook(lambda g: torch.zeros_like(g))
    output, (h_n, _) = lstm(x)
    assert not output.any()
    assert torch.equal(h_n, copy_without_hooks(lstm)(x * 2)[1][0])
    (output.sum() + h_n.sum()).backward()
    assert seen == ["post", "backward 1"]
    assert lstm.weight_hh_l0.grad is not None
    assert not lstm.weight_hh_l0.grad.any()


def copy_without_hooks(lstm: fused_lstm.LSTM) -> fused_lstm.LSTM:
    other = fused_lstm.LSTM(lstm.input_size, lstm.hidden_size)
    other.load_state_dict(lstm.state_dict())
    return other


def test_subclassing() -> None:
    class Own(fused_lstm.LSTM):
        def __init__(self, size: int) -> None:
            super().__init__(size, size, batch_first=True)

        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(input, hx)[0]

    own = Own(4)
    assert own(torch.randn(2, 5, 4)).shape == (2, 5, 4)
    assert copy.deepcopy(own)(torch.randn(2, 5, 4)).shape == (2, 5, 4)


def test_methods_of_nn_lstm_are_there() -> None:
    lstm = fused_lstm.LSTM(3, 4, 2, proj_size=2)
    x = torch.randn(5, 2, 3)
    lstm.flatten_parameters()
    assert lstm.get_expected_hidden_size(x, None) == (2, 2, 2)
    assert lstm.get_expected_cell_size(x, None) == (2, 2, 4)
    lstm.check_forward_args(x, (torch.zeros(2, 2, 2), torch.zeros(2, 2, 4)), None)
    assert lstm.permute_hidden((x, x), None) == (x, x)


def test_explain_plan_says_which_way_is_taken() -> None:
    explain = fused_lstm.explain_plan
    lstm = fused_lstm.LSTM(3, 4, 2)
    lines = explain(lstm, 28, 50).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["layer 0", "layer 1"]
    assert "torch" not in explain(lstm, 28, 50)
    assert "torch" not in explain(fused_lstm.LSTMCell(3, 4), B=5)
    assert "torch" not in explain((28, 50, 28, 100), training=False)
    assert "h projected" in explain(fused_lstm.LSTM(3, 4, proj_size=2), 5, 2)
    assert "h projected" not in explain(lstm, 28, 50)
    assert explain(fused_lstm.LSTM(3, 4, device="meta"), 5, 2).startswith("torch's own LSTM")
    assert "no kernel for device 'mps'" in explain((5, 2, 3, 4), device="mps")
    with pytest.raises(TypeError, match=r"target: expected .* got Linear"):
        explain(nn.Linear(3, 4))
    with pytest.raises(TypeError, match="got GRUCell"):
        explain(nn.GRUCell(3, 4))


def test_empty_cache_gives_memory_back() -> None:
    lstm = fused_lstm.LSTM(64, 256)
    output, _ = lstm(torch.randn(200, 64, 64))
    output.sum().backward()
    del output
    assert fused_lstm.empty_cache() > 0
    assert fused_lstm.empty_cache() == 0
