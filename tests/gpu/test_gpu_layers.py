"""Layers and dropout between them, and modules that move, change and are trained."""

import copy

import torch
from cases import error
from precisions import PRECISIONS, tf32
from torch import nn

import fused_lstm


def test_dropout_is_torchs_own_between_layers(device: torch.device) -> None:
    """The same seed gives the mask of torch.dropout; with that mask, nn.LSTM's layers agree."""
    module = fused_lstm.LSTM(6, 32, num_layers=2, dropout=0.4, device=device)
    x = torch.randn(9, 5, 6)
    torch.manual_seed(3)
    with tf32(False):
        y, _ = module(x.to(device))
    torch.manual_seed(3)
    ones = torch.ones(9, 5, 32, device=device, requires_grad=True)
    mask = torch.dropout(ones, 0.4, True).detach()
    assert 0.2 < float((mask == 0).float().mean()) < 0.6
    first, second = nn.LSTM(6, 32).double(), nn.LSTM(32, 32).double()
    for layer, plain in enumerate((first, second)):
        own = {
            name.replace(f"_l{layer}", "_l0"): value
            for name, value in module.state_dict().items()
            if name.endswith(f"_l{layer}")
        }
        plain.load_state_dict(own)
    hidden, _ = first(x.double())
    wanted, _ = second(hidden * mask.cpu().double())
    assert error(y.cpu(), wanted) <= PRECISIONS["f32"].output


def test_dropout_seeds_and_eval(device: torch.device) -> None:
    module = fused_lstm.LSTM(6, 32, num_layers=3, dropout=0.5, device=device)
    x = torch.randn(9, 5, 6, device=device)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(module(x)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    module.eval()
    state = torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()
    assert torch.equal(module(x)[0], module(x)[0])
    after = torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()
    assert torch.equal(state, after)


def test_moved_and_copied_modules(device: torch.device) -> None:
    built = fused_lstm.LSTM(6, 40, num_layers=2)
    x = torch.randn(5, 3, 6)
    with tf32(False):
        moved = copy.deepcopy(built).to(device)
        y, _ = moved(x.to(device))
        back, _ = moved.cpu()(x)
    assert error(y.cpu(), built.double()(x.double())[0]) <= PRECISIONS["f32"].output
    assert back.device.type == "cpu"


def test_changed_weights_count_at_once(family: str, device: torch.device) -> None:
    """No weight is cached between calls: fused optimizers and .data edits raise no version."""
    module = fused_lstm.LSTM(6, 40, device=device)
    optimizer = torch.optim.AdamW(module.parameters(), 0.1, fused=True)
    x = torch.randn(5, 3, 6, device=device)
    before = module(x)[0]
    before.sum().backward()
    optimizer.step()
    after = module(x)[0].detach()
    assert not torch.equal(before, after)
    fresh = fused_lstm.LSTM(6, 40, device=device)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(after, fresh(x)[0])
    module.weight_hh_l0.data.zero_()
    assert not torch.equal(after, module(x)[0])


def test_it_learns(family: str, device: torch.device) -> None:
    """A step in the past is remembered: the whole of forward, backward and the state in use."""
    torch.manual_seed(1)
    module, head = fused_lstm.LSTM(2, 32, device=device), nn.Linear(32, 1, device=device)
    parameters = [*module.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.03)
    losses = []
    for _ in range(120):
        x = torch.randn(6, 64, 2, device=device)
        target = x[2, :, 0].sign()  # the sign of one number three steps before the last
        loss = (head(module(x)[0][-1]).squeeze(1) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert float(torch.stack(losses[-10:]).mean()) < 0.5 * float(losses[0])
