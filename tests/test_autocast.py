"""Autocast on the CPU: the types that come out, whatever processor this is.

Where torch.nn.LSTM fails on processors without native bfloat16 (float32 input, padded, no
proj_size), output and h_n have the autocast type and c_n is float32, as with proj_size in nn.LSTM.
Everywhere else the types are those of nn.LSTM there.
"""

import pytest
import torch
from cases import OUTPUT_TOLERANCE, error
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


class First(nn.Module):
    """The output of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]
