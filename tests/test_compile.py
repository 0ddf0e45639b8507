"""torch.compile: whole graphs, one graph for every length and batch size, the values of eager code.

`once` proves both: a graph break raises (fullgraph=True), and so does a second compilation. What
takes inductor long is marked `compile` and runs by `make test-compile`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE
from model_cases import CellModel, Model, PackedModel, assert_close
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fused_lstm

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
# T, B: unlike each other and every size of the module, which torch.compile would take for the same.
LENGTHS = ((5, 6), (8, 10), (11, 9), (2, 13))


class StateModel(nn.Module):
    """A recurrent layer with an initial state that is learned, and fits its input."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        dtype = layer.weight_hh_l0.dtype
        self.h = nn.Parameter(
            torch.randn(rows, 1, layer.proj_size or layer.hidden_size, dtype=dtype)
        )
        self.c = nn.Parameter(torch.randn(rows, 1, layer.hidden_size, dtype=dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.dim() == 2:
            state = self.h.squeeze(1), self.c.squeeze(1)
        else:
            batch = x.shape[0 if self.layer.batch_first else 1]
            state = self.h.expand(-1, batch, -1), self.c.expand(-1, batch, -1)
        output, (h_n, c_n) = self.layer(x, state)
        return output, h_n, c_n


@contextmanager
def one_compilation() -> Iterator[None]:
    """Inside, the first call may compile a graph; a second graph or a break fails."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def check(
    model: nn.Module,
    inputs: Sequence[Any],
    dtype: torch.dtype = F32,
    training: bool = True,
    fullgraph: bool = True,
    **options: Any,
) -> None:
    """Compiles the model once for all inputs, and compares outputs and gradients with eager's."""
    compiled = torch.compile(model, fullgraph=fullgraph, dynamic=True, **options)
    with one_compilation(), torch.set_grad_enabled(training):
        for x in inputs:
            own, expected = compiled(x), model(x)
            assert_close(own, expected, OUTPUT_TOLERANCE[dtype])
            if training:
                compare_gradients(model, own, expected, dtype)


def compare_gradients(model: nn.Module, own: Any, expected: Any, dtype: torch.dtype = F32) -> None:
    wanted = list(model.parameters())
    grads = [
        torch.autograd.grad(sum(t.float().square().sum() for t in outputs), wanted)  # type: ignore[arg-type]
        for outputs in (own, expected)
    ]
    assert_close(*grads, GRADIENT_TOLERANCE[dtype])


def padded(dtype: torch.dtype = F32, batch_first: bool = False) -> list[Tensor]:
    shapes = [(B, T) if batch_first else (T, B) for T, B in LENGTHS]
    return [torch.randn(*shape, 4, dtype=dtype) for shape in shapes]


ALL = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}
OPTIONS: tuple[tuple[Callable[[Any], nn.Module], dict[str, Any], torch.dtype], ...] = (
    (Model, {}, F32),
    (Model, {"batch_first": True, "bias": False}, F64),
    (StateModel, {"bidirectional": True}, BF16),
    (StateModel, ALL, F32),
)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("model", "options", "dtype"), OPTIONS)
def test_one_graph_for_every_length(
    model: Any, options: dict[str, Any], dtype: torch.dtype, training: bool
) -> None:
    lstm = fused_lstm.LSTM(4, 7, dtype=dtype, **options)
    inputs = padded(dtype, options.get("batch_first", False))
    check(model(lstm), inputs, dtype, training, backend="aot_eager")


@pytest.mark.parametrize("model", [Model, StateModel])
def test_unbatched(model: Any) -> None:
    inputs = [torch.randn(T, 4) for T, _ in LENGTHS]
    check(model(fused_lstm.LSTM(4, 7)), inputs, backend="aot_eager")


def test_cell() -> None:
    inputs = [torch.randn(B, 4) for _, B in LENGTHS]
    check(CellModel(fused_lstm.LSTMCell(4, 7)), inputs, backend="aot_eager")


def packed(sorted_already: bool = False) -> list[PackedSequence]:
    lengths = ([5, 2, 8, 1, 1], [9, 4, 4, 6, 2, 2], [3, 7, 6, 2, 2, 2, 1])
    return [
        pack_sequence(
            [torch.randn(n, 4) for n in (sorted(own)[::-1] if sorted_already else own)],
            enforce_sorted=sorted_already,
        )
        for own in lengths
    ]


@pytest.mark.parametrize("fullgraph", [True, False])
def test_packed_input_is_one_graph(fullgraph: bool) -> None:
    model = PackedModel(fused_lstm.LSTM(4, 7, bidirectional=True))
    check(model, packed(), fullgraph=fullgraph, backend="aot_eager")
    check(model, packed(), training=False, fullgraph=fullgraph, backend="aot_eager")
    if fullgraph:  # where a graph may read B from batch_sizes, for nothing else tells it
        check(model, packed(sorted_already=True), backend="aot_eager")


def test_packed_input_with_a_state_is_one_graph() -> None:
    class WithState(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, given: tuple[PackedSequence, Tensor, Tensor]) -> Any:
            x, *state = given
            y, (h, c) = self.layer(x, state)
            return y.data, h, c

    inputs = [
        (x, torch.randn(2, B, 7), torch.randn(2, B, 7))
        for x in packed(sorted_already=True)
        for B in (int(x.batch_sizes[0]),)
    ]
    check(WithState(fused_lstm.LSTM(4, 7, 2)), inputs, backend="aot_eager")


def test_packing_inside_breaks_the_graph_as_with_nn_lstm() -> None:
    """torch.compile never looks into pack_padded_sequence; by default it goes on around it."""

    class Packs(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            lengths = torch.tensor([x.shape[0], 2, 1, 2, 1, 2])
            rows = pack_padded_sequence(x[:, :6], lengths, enforce_sorted=False)
            y, (h, c) = self.layer(rows)
            return y.data, h, c

    torch._dynamo.reset()
    model = Packs(fused_lstm.LSTM(4, 7))
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    for x in padded():
        own, expected = compiled(x), model(x)
        assert_close(own, expected)
        compare_gradients(model, own, expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="pack_padded_sequence"):
        torch.compile(model, backend="eager", fullgraph=True)(padded()[0])


def test_mark_dynamic() -> None:
    model = Model(fused_lstm.LSTM(4, 7))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with one_compilation():
        for x in padded():
            torch._dynamo.mark_dynamic(x, 0)  # raises where a size is fixed by tracing
            torch._dynamo.mark_dynamic(x, 1)
            own, expected = compiled(x), model(x)
            assert_close(own, expected)
            compare_gradients(model, own, expected)


def test_automatic_dynamic_compiles_twice() -> None:
    torch._dynamo.reset()
    counters.clear()
    model = Model(fused_lstm.LSTM(4, 7))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for x in padded():
        assert_close(compiled(x), model(x))
    assert counters["stats"]["unique_graphs"] == 2


def test_weights_changed_between_calls_take_effect() -> None:
    model = Model(fused_lstm.LSTM(4, 7))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    (x, *_), seen = padded(), []
    other = Model(fused_lstm.LSTM(4, 7)).state_dict()
    with one_compilation():
        for k in range(5):
            own, expected = compiled(x), model(x)
            assert_close(own, expected)
            seen.append(own[0].sum().item())
            if k == 0:
                own[0].sum().backward()
                optimizer.step()
            elif k == 1:
                model.layer.weight_hh_l0.data.mul_(0.5)
            elif k == 2:
                model.layer.bias_ih_l0.detach().numpy()[:] += 1
            elif k == 3:
                model.load_state_dict(other)
    assert len(set(seen)) == 5


def test_dropout_has_eager_statistics() -> None:
    """Its random numbers are others, but the outputs of many equal rows spread in the same way."""
    rows = 8192
    model = Model(fused_lstm.LSTM(4, 7, 2, dropout=0.4))
    x = torch.randn(3, 1, 4).expand(3, rows, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        own, expected = compiled(x)[0][-1], model(x)[0][-1]
        spread = expected.std(0)
        assert spread.min() > 1e-3
        assert not torch.equal(own, compiled(x)[0][-1])
        # Six standard errors of a difference of two means, and of a standard deviation's ratio.
        assert ((own.mean(0) - expected.mean(0)).abs() < 6 * spread * (2 / rows) ** 0.5).all()
        assert ((own.std(0) / spread - 1).abs() < 0.1).all()
        model.eval()
        assert_close(compiled(x), model(x))


def test_compiled_autograd() -> None:
    model = Model(fused_lstm.LSTM(4, 7, bidirectional=True))
    x = padded()[0]
    model(x)[0].square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        compiled(x)[0].square().sum().backward()
    assert counters["compiled_autograd"]["captures"] == 1
    assert_close([p.grad for p in model.parameters()], expected, GRADIENT_TOLERANCE[F32])


def test_double_backward_is_refused_by_torch() -> None:
    torch._dynamo.reset()
    x = padded()[0].requires_grad_()
    compiled = torch.compile(fused_lstm.LSTM(4, 7), fullgraph=True, backend="aot_eager")
    (dx,) = torch.autograd.grad(compiled(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        dx.sum().backward()


# Inductor -----------------------------------------------------------------------------------------


def test_inductor_trains() -> None:
    check(StateModel(fused_lstm.LSTM(4, 7, **ALL)), padded(batch_first=True))


@pytest.mark.compile
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_inductor_every_dtype(dtype: torch.dtype, training: bool) -> None:
    lstm = fused_lstm.LSTM(4, 7, 2, bidirectional=True, dtype=dtype)
    check(Model(lstm), padded(dtype), dtype, training)


@pytest.mark.compile
def test_inductor_of_the_other_kinds() -> None:
    check(PackedModel(fused_lstm.LSTM(4, 7, bidirectional=True)), packed())
    check(CellModel(fused_lstm.LSTMCell(4, 7)), [torch.randn(B, 4) for _, B in LENGTHS])
    check(Model(fused_lstm.LSTM(4, 7)), [torch.randn(T, 4) for T, _ in LENGTHS])


@pytest.mark.compile
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes(mode: str) -> None:
    check(Model(fused_lstm.LSTM(4, 7)), padded(), mode=mode)


@pytest.mark.compile
def test_inductor_with_dropout_learns() -> None:
    """A whole step, optimizer and all: dropout between layers, the loss of a known target falls."""
    torch._dynamo.reset()
    lstm, head = fused_lstm.LSTM(4, 16, 2, dropout=0.1), nn.Linear(16, 1)

    @torch.compile(fullgraph=True, dynamic=True)
    def loss_of(x: Tensor) -> Tensor:
        return (head(lstm(x)[0]) - x.cumsum(0)[..., :1].tanh()).square().mean()

    optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for k in range(60):
        optimizer.zero_grad()
        loss = loss_of(torch.randn(5 + k % 3, 32, 4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
