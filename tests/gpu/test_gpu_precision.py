"""Which precision a call computes in: cuDNN's TF32 switch for RNNs, and autocast."""

import pytest
import torch
from cases import Case, error
from pairs import errors, run_case
from precisions import PRECISIONS, tf32
from torch.nn.utils.rnn import pack_sequence

import fused_lstm

LOW = {"bf16": torch.bfloat16, "f16": torch.float16}


@pytest.mark.cuda_only("TF32")
def test_tf32_follows_cudnns_switch_alone(family: str, device: torch.device) -> None:
    """Off: exact. On: TF32's error (from sm_80). The switch of matrix products changes nothing."""
    case = Case(20, 16, 64, 96)
    seeds = []
    for allowed in (False, True):
        torch.manual_seed(1)
        with tf32(allowed):
            ours, _, exact = run_case(case, PRECISIONS["tf32" if allowed else "f32"], device)
        seeds.append((ours, errors(ours, exact)[0]))
    (strict, strict_error), (_, loose_error) = seeds
    assert strict_error <= PRECISIONS["f32"].output
    if torch.cuda.get_device_capability() >= (8, 0):
        assert PRECISIONS["f32"].output < loose_error <= PRECISIONS["tf32"].output
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.manual_seed(1)
        with tf32(False):
            again, _, _ = run_case(case, PRECISIONS["f32"], device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for a, b in zip(
        strict.outputs + strict.gradients, again.outputs + again.gradients, strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.cuda_only("TF32")
def test_backward_uses_the_precision_of_its_forward(device: torch.device) -> None:
    module = fused_lstm.LSTM(64, 96, device=device)
    x = torch.randn(20, 16, 64, device=device)
    found = []
    for outside in (False, True):
        with tf32(False):
            y, _ = module(x)
        with tf32(outside):
            found.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_autocast_values(low: str, packed: bool, device: torch.device) -> None:
    module = fused_lstm.LSTM(12, 48, bidirectional=True, device=device)
    plain = torch.nn.LSTM(12, 48, bidirectional=True).double()
    plain.load_state_dict(module.state_dict())
    rows = [torch.randn(n, 12) for n in (7, 5, 2)]
    x = pack_sequence(rows) if packed else torch.stack([rows[0]] * 3, dim=1)
    with torch.autocast(device.type, LOW[low]):
        y, _ = module(x.to(device))
        loss = (y.data if packed else y).float().sum()
    loss.backward()
    wanted, _ = plain(x.to(torch.float64))
    (wanted.data if packed else wanted).sum().backward()
    bound = PRECISIONS[low]
    assert error((y.data if packed else y).cpu(), wanted.data if packed else wanted) <= bound.output
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert error(ours.grad.cpu(), theirs.grad) <= bound.gradient


@pytest.mark.cuda_only("nn.LSTM's autocast differs between devices")
@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", ["f32", "low", "state", "packed", "proj", "f64", "cell"])
def test_autocast_dtypes_are_those_of_nn_lstm(low: str, kind: str, device: torch.device) -> None:
    """The dtypes of all results, whatever the input's, as nn.LSTM has them on this device."""
    found = []
    for library in (fused_lstm, torch.nn):
        torch.manual_seed(0)
        dtype = torch.float64 if kind == "f64" else torch.float32
        if kind == "cell":
            cell = library.LSTMCell(8, 24, device=device)
            with torch.autocast(device.type, LOW[low]):
                found.append([t.dtype for t in cell(torch.randn(3, 8, device=device))])
            continue
        proj = 8 if kind == "proj" else 0
        module = library.LSTM(8, 24, proj_size=proj, device=device, dtype=dtype)
        x = torch.randn(5, 3, 8, device=device, dtype=LOW[low] if kind == "low" else dtype)
        hx = None
        if kind == "state":
            hx = (torch.zeros(1, 3, 24, device=device), torch.zeros(1, 3, 24, device=device))
        inputs = pack_sequence([x[:, 0], x[:2, 1]]) if kind == "packed" else x
        with torch.autocast(device.type, LOW[low]):
            y, (h_n, c_n) = module(inputs, hx)
        found.append([(y.data if kind == "packed" else y).dtype, h_n.dtype, c_n.dtype])
    assert found[0] == found[1]


@pytest.mark.cuda_only("GradScaler")
def test_grad_scaler_skips_a_step_that_overflows(device: torch.device) -> None:
    module = fused_lstm.LSTM(8, 24, device=device)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    before = [p.detach().clone() for p in module.parameters()]
    scaler = torch.amp.GradScaler(init_scale=1e38)
    with torch.autocast(device.type, torch.float16):
        loss = 1e4 * module(torch.randn(5, 3, 8, device=device))[0].float().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, p) for a, p in zip(before, module.parameters(), strict=True))
    assert scaler.get_scale() < 1e38
