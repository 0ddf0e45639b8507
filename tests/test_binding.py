"""The operators refuse whatever could make a kernel leave its memory, naming argument and sizes.

These calls go past the Python layers, straight to `torch.ops.fused_lstm`; a refusal is a
ValueError, and from torch 2.15 on, which makes one type of whatever an operator throws, a
RuntimeError with the same words.
"""

import pytest
import torch
from cases import REFUSAL
from torch import Tensor

pytest.importorskip("fused_lstm._C", reason="the extension has not been built")

T, B, I, H = 4, 3, 5, 6  # noqa: E741


def arguments(directions: int = 1, **changes: object) -> list[object]:
    """Arguments of `forward` for x [T, B, I], with some of them replaced."""
    weights = {"w_ih": (4 * H, I), "w_hh": (4 * H, H), "b_ih": (4 * H,), "b_hh": (4 * H,)}
    named: dict[str, object] = {"x": torch.randn(T, B, I), "batch_sizes": None}
    named |= {"h0": None, "c0": None}
    for suffix in ("", "_reverse"):
        there = suffix == "" or directions == 2
        named |= {name + suffix: torch.randn(s) if there else None for name, s in weights.items()}
        named["w_hr" + suffix] = None
    assert set(changes) <= set(named), changes
    return list((named | changes).values())


def forward(*, save: bool = True, directions: int = 1, **changes: object) -> tuple[Tensor, ...]:
    return torch.ops.fused_lstm.forward(*arguments(directions, **changes), save)


def run_backward(
    inputs: list[object], y: Tensor, reserve: Tensor, needs: int = 2047, **gradients: Tensor
) -> tuple[Tensor, ...]:
    grads = [gradients.get(name) for name in ("grad_y", "grad_h_n", "grad_c_n")]
    return torch.ops.fused_lstm.backward(*grads, *inputs, y, reserve, needs)


REFUSED = {
    "x of rank 1": ({"x": torch.randn(I)}, r"x: expected sizes \[T, B, I\].*got \[5\]"),
    "x of rank 4": ({"x": torch.randn(1, T, B, I)}, r"x: expected sizes \[T, B, I\].*got \["),
    "features": ({"x": torch.randn(T, B, I + 1)}, "x: expected 5 features.*got 6"),
    "no step": ({"x": torch.randn(0, B, I)}, "x: expected at least one step"),
    "integers": ({"x": torch.ones(T, B, I, dtype=torch.int64)}, "x: expected dtype.*got int64"),
    "w_ih of rank 1": ({"w_ih": torch.randn(4 * H)}, r"w_ih: expected sizes \[4H, I\]"),
    "rows not 4H": ({"w_ih": torch.randn(4 * H + 1, I)}, r"w_ih: expected sizes \[4H, I\]"),
    "no unit": ({"w_ih": torch.randn(0, I)}, r"w_ih: expected sizes \[4H, I\]"),
    "w_hh": (
        {"w_hh": torch.randn(4 * H, H - 1)},
        r"w_hh: expected \[4H, P\] = \[24, 6\], got \[24, 5\]",
    ),
    "b_ih": ({"b_ih": torch.randn(H)}, r"b_ih: expected \[4H\] = \[24\], got \[6\]"),
    "b_hh dtype": ({"b_hh": torch.randn(4 * H).double()}, "b_hh: expected dtype float32.*float64"),
    "w_hh dtype": ({"w_hh": torch.randn(4 * H, H).half()}, "w_hh: expected dtype float32.*float16"),
    "h0": (
        {"h0": torch.randn(2, B, H)},
        r"h0: expected \[D, B, P\] = \[1, 3, 6\], got \[2, 3, 6\]",
    ),
    "c0": ({"c0": torch.randn(1, B + 1, H)}, r"c0: expected \[D, B, H\]"),
    "half a reverse direction": (
        {"w_hh_reverse": torch.randn(4 * H, H)},
        "w_ih_reverse: expected a tensor beside",
    ),
    "other half": (
        {"w_ih_reverse": torch.randn(4 * H, I)},
        "w_hh_reverse: expected a tensor beside w_ih_reverse, got None",
    ),
    "packed x alone": ({"x": torch.randn(7, I)}, "x: .*without batch_sizes"),
    "larger than memory": (
        {"x": torch.zeros(1, 1, I).expand(1 << 30, 1 << 29, I)},
        "x: expected a problem that fits in memory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_forward_refuses(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(REFUSAL, match=message):
        forward(**changes)


@pytest.mark.parametrize(
    ("batch_sizes", "message"),
    [
        ([], r"batch_sizes: expected sizes \[T\] with at least one step"),
        ([[3, 4]], r"batch_sizes: expected sizes \[T\]"),
        ([3, 4], "batch_sizes: expected counts .* got 4 at step 1"),
        ([7, 0], "batch_sizes: expected counts .* got 0 at step 1"),
        ([8], "batch_sizes: expected counts .* got 8 at step 0"),
        ([3, 3, -1, 2], "batch_sizes: expected counts .* got -1 at step 2"),
        ([3, 3], "batch_sizes: expected a sum of 7, got 6"),
    ],
)
def test_packed_refuses(batch_sizes: list[object], message: str) -> None:
    counts = torch.tensor(batch_sizes, dtype=torch.int64)
    with pytest.raises(REFUSAL, match=message):
        forward(x=torch.randn(7, I), batch_sizes=counts)


def test_packed_refuses_other_kinds() -> None:
    with pytest.raises(REFUSAL, match="batch_sizes: expected dtype int64, got float32"):
        forward(x=torch.randn(7, I), batch_sizes=torch.tensor([4.0, 3.0]))
    with pytest.raises(REFUSAL, match="batch_sizes: expected None with x of sizes"):
        forward(batch_sizes=torch.tensor([3, 3, 3, 3]))


def test_a_result_larger_than_memory_says_so() -> None:
    """An expanded x costs nothing, its y would be a hundred petabytes."""
    x, w_ih = torch.zeros(1, 1, 1).expand(1 << 27, 1 << 24, 1), torch.zeros(4, 1)
    with pytest.raises(RuntimeError, match="memory"):
        torch.ops.fused_lstm.forward(x, None, None, None, w_ih, w_ih, *[None] * 8, False)


def test_backward_refuses() -> None:
    inputs = arguments()
    y, h_n, _, reserve = torch.ops.fused_lstm.forward(*inputs, True)
    bad = [
        ({"grad_y": torch.ones(T, B, H + 1)}, r"grad_y: expected \[T, B, D\*P\] = \[4, 3, 6\]"),
        ({"grad_y": torch.ones(T, B, H).double()}, "grad_y: expected dtype float32, got float64"),
        ({"grad_h_n": torch.ones(B, H)}, r"grad_h_n: expected \[D, B, P\]"),
        ({"grad_c_n": torch.ones(2, B, H)}, r"grad_c_n: expected \[D, B, H\]"),
    ]
    for gradients, message in bad:
        with pytest.raises(REFUSAL, match=message):
            run_backward(inputs, y, reserve, **gradients)
    with pytest.raises(REFUSAL, match=r"y: expected \[T, B, D\*P\]"):
        run_backward(inputs, y[1:], reserve)
    with pytest.raises(REFUSAL, match=r"reserve: expected \[bytes\]"):
        run_backward(inputs, y, reserve[64:])
    with pytest.raises(REFUSAL, match="reserve: expected dtype uint8"):
        run_backward(inputs, y, reserve.float())
    with pytest.raises(REFUSAL, match="reserve: expected"):
        run_backward(inputs, y, torch.empty(0, dtype=torch.uint8))
    assert h_n.shape == (1, B, H)


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between them, in every dimension."""
    wide = torch.full([2 * size + 1 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def test_any_strides_give_the_same_bits() -> None:
    inputs = arguments(2, h0=torch.randn(2, B, H), c0=torch.randn(2, B, H))
    spread = [strided(a) if isinstance(a, Tensor) else a for a in inputs]
    wanted = torch.ops.fused_lstm.forward(*inputs, True)
    got = torch.ops.fused_lstm.forward(*spread, True)
    for a, b in zip(wanted[:3], got[:3], strict=True):
        assert torch.equal(a, b)
    y, h_n, c_n, reserve = wanted
    grads = {"grad_y": torch.ones(()).expand_as(y), "grad_h_n": torch.randn_like(h_n)}
    grads["grad_c_n"] = torch.randn_like(c_n)
    plain = run_backward(inputs, y, reserve, **{k: g.contiguous() for k, g in grads.items()})
    moved = torch.empty(reserve.numel() + 1, dtype=torch.uint8)[1:].copy_(reserve)
    grads["grad_h_n"], grads["grad_c_n"] = strided(grads["grad_h_n"]), strided(grads["grad_c_n"])
    again = run_backward(spread, strided(y), moved, **grads)
    assert len(plain) == len(again) == 11
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_batch_first_is_read_in_place() -> None:
    x = torch.randn(B, T, I)
    inputs = arguments(x=x.transpose(0, 1).contiguous())
    wanted = torch.ops.fused_lstm.forward(*inputs, False)
    got = torch.ops.fused_lstm.forward(x.transpose(0, 1), *inputs[1:], False)
    assert torch.equal(wanted[0], got[0])


def test_empty_batch() -> None:
    inputs = arguments(2, x=torch.randn(T, 0, I))
    y, h_n, c_n, reserve = torch.ops.fused_lstm.forward(*inputs, True)
    assert (y.shape, h_n.shape, c_n.shape) == ((T, 0, 2 * H), (2, 0, H), (2, 0, H))
    assert reserve.shape == (0,)
    dx, dh0, dc0, *weights = run_backward(inputs, y, reserve, grad_y=torch.ones_like(y))
    assert (dx.shape, dh0.shape, dc0.shape) == ((T, 0, I), (2, 0, H), (2, 0, H))
    shapes = [(4 * H, I), (4 * H, H), (4 * H,), (0,)] * 2
    assert [tuple(w.shape) for w in weights] == shapes
    assert all(not w.any() for w in weights)


def test_only_what_is_needed_is_given() -> None:
    inputs = arguments(2)
    y, _, _, reserve = torch.ops.fused_lstm.forward(*inputs, True)
    everything = run_backward(inputs, y, reserve, grad_y=torch.ones_like(y))
    for k in range(11):
        given = run_backward(inputs, y, reserve, needs=1 << k, grad_y=torch.ones_like(y))
        for j in range(11):
            assert given[j].shape == (everything[j].shape if j == k else (0,)), (k, j)
        torch.testing.assert_close(given[k], everything[k])


def test_results_share_no_memory() -> None:
    inputs = arguments(h0=torch.randn(1, B, H), c0=torch.randn(1, B, H), x=torch.randn(1, B, I))
    results = torch.ops.fused_lstm.forward(*inputs, True)
    tensors = [t for t in (*results, *inputs) if isinstance(t, Tensor)]
    addresses = [t.untyped_storage().data_ptr() for t in tensors]
    assert len(set(addresses)) == len(addresses)
    assert all(t.device == torch.device("cpu") for t in results)


def test_a_second_backward_is_bitwise_the_same() -> None:
    inputs = arguments(2)
    y, _, _, reserve = torch.ops.fused_lstm.forward(*inputs, True)
    first = run_backward(inputs, y, reserve, grad_y=torch.ones_like(y))
    second = run_backward(inputs, y, reserve, grad_y=torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
