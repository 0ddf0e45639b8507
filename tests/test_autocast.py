"""Autocast on the CPU: the types that come out, whatever processor this is.

Where torch.nn.LSTM fails on processors without native bfloat16 (float32 input, padded, no
proj_size), output and h_n have the autocast type and c_n is float32, as with proj_size in nn.LSTM.
Everywhere else the types are those of nn.LSTM there.
"""

import copy

import pytest
import torch
from cases import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, error
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# module, autocast, x, hx (None: not given) -> output, h_n, c_n
PADDED = (
    (F32, BF16, F32, None, (BF16, BF16, F32)),
    (F32, F16, F32, None, (F16, F16, F32)),
    (F32, BF16, F32, F32, (BF16, BF16, F32)),
    (F32, BF16, F32, BF16, (BF16, BF16, F32)),
    (F32, BF16, BF16, None, (BF16, BF16, BF16)),
    (F32, BF16, BF16, BF16, (BF16, BF16, BF16)),
    (F32, BF16, BF16, F32, (F32, F32, F32)),
    (F32, F16, F16, F32, (F32, F32, F32)),
    (BF16, BF16, BF16, None, (BF16, BF16, BF16)),
    (F16, F16, F16, F16, (F16, F16, F16)),
    (BF16, BF16, F32, None, (BF16, BF16, F32)),
    (F64, BF16, F64, None, (F64, F64, F64)),
    (F64, F16, F64, F64, (F64, F64, F64)),
)


@pytest.mark.parametrize(("module", "cast", "x", "hx", "expected"), PADDED, ids=str)
def test_padded(
    module: torch.dtype,
    cast: torch.dtype,
    x: torch.dtype,
    hx: torch.dtype | None,
    expected: tuple[torch.dtype, ...],
) -> None:
    lstm = fused_lstm.LSTM(5, 7, 2, bidirectional=True, dtype=module)
    exact = nn.LSTM(5, 7, 2, bidirectional=True, dtype=F64)
    exact.load_state_dict(lstm.state_dict())
    data = torch.randn(4, 3, 5, dtype=x)
    state = None if hx is None else (torch.randn(4, 3, 7, dtype=hx), torch.randn(4, 3, 7, dtype=hx))
    precise = None if state is None else tuple(t.double() for t in state)
    output, (h, c) = exact(data.double(), precise)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=cast):
            own, (own_h, own_c) = lstm(data, state)
        assert (own.dtype, own_h.dtype, own_c.dtype) == expected
        for a, b in ((own, output), (own_h, h), (own_c, c)):
            assert error(a, b) <= max(OUTPUT_TOLERANCE[a.dtype], OUTPUT_TOLERANCE[own.dtype])
    own.float().sum().backward()
    for p in lstm.parameters():
        assert p.grad is not None
        assert p.grad.dtype is module


@pytest.mark.parametrize("cast", [BF16, F16], ids=str)
def test_packed_and_cell_stay_float32(cast: torch.dtype) -> None:
    lstm, cell = fused_lstm.LSTM(5, 7), fused_lstm.LSTMCell(5, 7)
    packed = pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    with torch.autocast("cpu", dtype=cast):
        output, (h, c) = lstm(packed)
        h1, c1 = cell(torch.randn(3, 5))
        h2, c2 = cell(torch.randn(3, 5), (h1, c1))
    for t in (output.data, h, c, h1, c1, h2, c2):
        assert t.dtype is F32


@pytest.mark.parametrize("cast", [BF16, F16], ids=str)
def test_projected_has_the_types_of_nn_lstm(cast: torch.dtype) -> None:
    lstm, theirs = fused_lstm.LSTM(5, 7, proj_size=3), nn.LSTM(5, 7, proj_size=3)
    theirs.load_state_dict(lstm.state_dict())
    x = torch.randn(4, 3, 5)
    exact, (exact_h, exact_c) = theirs(x)
    with torch.autocast("cpu", dtype=cast):
        output, (h, c) = lstm(x)
        their_output, (their_h, their_c) = theirs(x)
    types = (their_output.dtype, their_h.dtype, their_c.dtype)
    assert (output.dtype, h.dtype, c.dtype) == types == (cast, cast, F32)
    for a, b in ((output, exact), (h, exact_h), (c, exact_c)):
        assert error(a, b) <= OUTPUT_TOLERANCE[cast]


def test_gradients_are_float32_and_close() -> None:
    lstm = fused_lstm.LSTM(5, 7)
    x = torch.randn(4, 3, 5, requires_grad=True)
    expected = torch.autograd.grad(lstm(x)[0].sum(), [x, *lstm.parameters()])
    with torch.autocast("cpu", dtype=BF16):
        output, _ = lstm(x)
    grads = torch.autograd.grad(output.float().sum(), [x, *lstm.parameters()], create_graph=True)
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype is F32
        assert error(a, b) <= OUTPUT_TOLERANCE[BF16]


def test_float64_does_not_mix() -> None:
    lstm = fused_lstm.LSTM(5, 7, dtype=F64)
    with (
        torch.autocast("cpu", dtype=BF16),
        pytest.raises(RuntimeError, match=r"expected torch\.float32"),
    ):
        lstm(torch.randn(4, 3, 5))
    with (
        torch.autocast("cpu", dtype=BF16),
        pytest.raises(RuntimeError, match=r"got torch\.float32"),
    ):
        lstm(torch.randn(4, 3, 5, dtype=F64), (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7)))


def test_a_model_of_layers() -> None:
    model = nn.Sequential(
        nn.Linear(5, 6), First(fused_lstm.LSTM(6, 7)), First(fused_lstm.LSTM(7, 8))
    )
    with torch.autocast("cpu", dtype=BF16):
        y = model(torch.randn(4, 3, 5))
    assert y.dtype is BF16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is F32 for p in model.parameters())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("cast", [BF16, F16], ids=str)
def test_compiled_has_the_types_of_eager(cast: torch.dtype, compiled: bool) -> None:
    """One graph per kind of call, and gradients of float32; where nn.LSTM fails even uncompiled."""
    x, hx = torch.randn(4, 3, 5), (torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    low = tuple(t.to(cast) for t in hx)
    calls = (
        (fused_lstm.LSTM(5, 7, 2), x, hx, (cast, cast, F32)),
        (fused_lstm.LSTM(5, 7, 2), x.to(cast), hx, (F32, F32, F32)),
        (fused_lstm.LSTM(5, 7, 2, dtype=cast), x.to(cast), low, (cast, cast, cast)),
        (fused_lstm.LSTMCell(5, 7), x[0], (hx[0][0], hx[1][0]), (F32, F32)),
        (fused_lstm.LSTM(5, 7, 2, dtype=F64), x.double(), None, (F64, F64, F64)),
    )
    for module, data, state, expected in calls:
        torch._dynamo.reset()
        run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
        exact = copy.deepcopy(module).double()
        wide = None if state is None else tuple(t.double() for t in state)
        leaves = torch.utils._pytree.tree_leaves(exact(data.double(), wide))
        with torch.autocast("cpu", dtype=cast):
            own = torch.utils._pytree.tree_leaves(run(data, state))
        assert tuple(t.dtype for t in own) == expected
        for a, b in zip(own, leaves, strict=True):
            assert error(a, b) <= OUTPUT_TOLERANCE[F64 if module is calls[-1][0] else cast]
        grads = torch.autograd.grad(sum(t.double().sum() for t in own), list(module.parameters()))
        wanted = torch.autograd.grad(sum(t.sum() for t in leaves), list(exact.parameters()))
        for a, b, p in zip(grads, wanted, module.parameters(), strict=True):
            assert a.dtype is p.dtype
            assert error(a, b) <= GRADIENT_TOLERANCE[cast]


@pytest.mark.parametrize("compiled", [False, True])
def test_grad_scaler(compiled: bool) -> None:
    """float16 with a scaled loss: it learns; and a step with an infinite gradient is left out."""
    torch._dynamo.reset()
    lstm, head = fused_lstm.LSTM(4, 12, bidirectional=True), nn.Linear(24, 1)
    parameters = [*lstm.parameters(), *head.parameters()]

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return (head(lstm(x)[0]).float() - x.cumsum(0)[..., :1].tanh()).square().mean()

    run = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    x = torch.randn(6, 16, 4)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=F16):
            loss = run(x)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    before = [p.detach().clone() for p in parameters]
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=F16):
        loss = run(x)
    scaler.scale(loss * 1e38).backward()  # more than float16, and float32, can hold
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert scaler.get_scale() == 2.0**11


@pytest.mark.parametrize("method", ["half", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_half_modules(method: str, compiled: bool) -> None:
    """`.half()` and `.bfloat16()`: outputs and gradients of every leaf, near float64's."""
    torch._dynamo.reset()
    exact = fused_lstm.LSTM(5, 7, 2, bidirectional=True, proj_size=3, dtype=F64)
    low = getattr(copy.deepcopy(exact), method)()
    dtype = low.weight_ih_l0.dtype
    run = torch.compile(low, fullgraph=True, backend="aot_eager") if compiled else low
    x = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    own = torch.utils._pytree.tree_leaves(run(x))
    expected = torch.utils._pytree.tree_leaves(exact(wide))
    for a, b in zip(own, expected, strict=True):
        assert a.dtype is dtype
        assert error(a, b) <= OUTPUT_TOLERANCE[dtype]
    grads = torch.autograd.grad([t.sum() for t in own], [x, *low.parameters()])
    wanted = torch.autograd.grad([t.sum() for t in expected], [wide, *exact.parameters()])
    for a, b in zip(grads, wanted, strict=True):
        assert a.dtype is dtype
        assert error(a, b) <= GRADIENT_TOLERANCE[dtype]


class First(nn.Module):
    """The output of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]
