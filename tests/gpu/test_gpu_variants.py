"""`VariantLSTM` on the device under test: LayerNorm, peepholes, coupled gates, clipping.

Against our own module in float64 on the CPU, which tests/test_variants.py holds to the papers.
"""

import copy
from typing import Any

import pytest
import torch
from cases import Case, error
from precisions import PRECISIONS, tf32
from test_variants import OPTIONS, call, inputs, make, said
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from fused_lstm import VariantLSTM, ops

CASES = (
    Case(1, 1, 2, 9),
    Case(6, 4, 3, 7),
    Case(9, 13, 5, 33, bidirectional=True),
    Case(5, 6, 4, 8, num_layers=3, bidirectional=True, batch_first=True),
    Case(4, 3, 6, 16, num_layers=2, bias=False),
    Case(12, 70, 9, 40, hx=False),  # rows are summed in several slices
    Case(3, 5, 4, 600),  # with LayerNorm: more units than a block has threads
)


def results(m: VariantLSTM, leaves: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of their sum weighted."""
    device, dtype = m.weight_ih_l0.device, m.weight_ih_l0.dtype
    own = [t.detach().to(device, dtype).requires_grad_() for t in leaves]
    outputs = call(m, own)
    cotangents = [w.to(device, dtype) for w in weights]
    gradients = torch.autograd.grad(outputs, [*own, *m.parameters()], cotangents)
    return [t.detach() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("options", OPTIONS, ids=said)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["f64", "f32"])
def test_values_and_gradients(
    case: Case, name: str, options: dict[str, Any], device: torch.device
) -> None:
    precision = PRECISIONS[name]
    if name == "f32":  # which side of a bound a value is on, float32 cannot always say
        options = {k: 50.0 * v if "clip" in k else v for k, v in options.items()}
        options.pop("hidden_clip", None)
    torch.manual_seed(1)  # as in test_variants.py: 0 draws a dx that cancels to 0.003
    exact = make(case, precision.dtype, **options)
    leaves = inputs(case, precision.dtype)
    ours = copy.deepcopy(exact).to(device)
    exact = exact.double()
    weights = [torch.randn_like(t) for t in call(exact, [t.double() for t in leaves])]
    with tf32(True):  # the recurrence's products are strict all the same
        found = results(ours, leaves, weights)
    for k, (a, b) in enumerate(zip(found, results(exact, leaves, weights), strict=True)):
        assert error(a.cpu(), b) <= (precision.output if k < 3 else precision.gradient)
    with tf32(True):
        again = results(ours, leaves, weights)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("options", OPTIONS[1:4] + OPTIONS[6:], ids=said)
def test_gradcheck(options: dict[str, Any], device: torch.device) -> None:
    case = Case(3, 2, 2, 3, bidirectional=True)
    m = make(case, **options).to(device)
    leaves = [t.detach().to(device).requires_grad_() for t in inputs(case, torch.float64)]
    inputs_ = (*leaves, *m.parameters())
    assert torch.autograd.gradcheck(lambda *ts: call(m, list(ts[: len(leaves)])), inputs_)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    m = make(Case(7, 5, 4, 17, num_layers=2), dtype, layer_norm=True).to(device)
    x = torch.randn(7, 5, 4, dtype=dtype, device=device)
    y, _ = m(x)
    assert torch.equal(y, copy.deepcopy(m).float()(x.float())[0].to(dtype))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_strides_and_no_rows(layer_norm: bool, device: torch.device) -> None:
    m = make(Case(5, 3, 4, 9), torch.float64, layer_norm=layer_norm, peepholes=True).to(device)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device).transpose(1, 2)
    y, _ = m(x)
    (summed,) = torch.autograd.grad(y.sum(), m.weight_hh_l0)  # dy: one number, expanded
    dense, _ = m(x.contiguous())
    torch.testing.assert_close(y, dense, rtol=0, atol=1e-14)
    (same,) = torch.autograd.grad(dense, m.weight_hh_l0, torch.ones_like(y))
    torch.testing.assert_close(summed, same, rtol=0, atol=1e-12)
    y, (h_n, _) = m(x[:, :0])
    assert (y.shape, h_n.shape) == ((5, 0, 9), (1, 0, 9))
    y.sum().backward()
    assert not any(bool(p.grad.any()) for p in m.parameters())


def test_packed(device: torch.device) -> None:
    m = make(Case(7, 5, 4, 17, bidirectional=True), torch.float64, layer_norm=True)
    ours = copy.deepcopy(m).to(device)
    rows = [torch.randn(n, 4, dtype=torch.float64) for n in (2, 7, 3, 3, 1)]
    y, (h_n, c_n) = m(pack_sequence(rows, enforce_sorted=False))
    found, states = ours(pack_sequence([r.to(device) for r in rows], enforce_sorted=False))
    for a, b in zip((found.data, *states), (y.data, h_n, c_n), strict=True):
        assert error(a.cpu(), b) <= PRECISIONS["f64"].output


@pytest.mark.cuda_only("a graph is captured")
def test_captured_in_a_graph(device: torch.device) -> None:
    m = make(Case(6, 4, 3, 33), torch.float32, layer_norm=True).to(device)
    x = torch.randn(6, 4, 3, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        m(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y, _ = m(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    with torch.no_grad():
        assert torch.equal(y, m(x)[0])


def test_the_operator_guards_memory_itself(device: torch.device) -> None:
    zx, w_hh = torch.randn(3, 2, 20, device=device), torch.randn(20, 5, device=device)
    none = (None, None), (None,) * 4, (False, float("inf"), float("inf"), False)
    with pytest.raises((RuntimeError, ValueError), match=r"zx: expected \[T, B, G\*H\]"):
        ops.recurrence_forward(zx[..., :-1], *none[0], w_hh, *none[1], *none[2])
    y, *_ = ops.recurrence_forward(zx, *none[0], w_hh, *none[1], *none[2])
    assert bool(y.isfinite().all())


@pytest.mark.no_kernel
def test_explain_plan(device: torch.device) -> None:
    plan = VariantLSTM(3, 5, device=device).explain_plan(4, 2)
    assert plan.startswith(f"{device.type} ")
