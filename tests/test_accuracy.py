"""No less accurate than torch.nn.LSTM: float32 errors against float64, compared with its own.

Outputs and all gradients, over shapes from one step to 5000. A single rounding more or less decides
on small tensors, so that errors below a floor of two roundings count as equal. One thread, because
torch.nn.LSTM's own sums depend on the number.
"""

from collections.abc import Iterator

import pytest
import torch
from cases import Case, arguments, call, copies, error, gradients, modules

MOST = 1.5  # times nn.LSTM's own largest error
FLOOR = 2.4e-7  # two float32 roundings, relative to the largest entry

SHAPES = (
    Case(1, 1, 128, 128, hx=False),
    Case(28, 50, 28, 100, hx=False),
    Case(28, 13, 28, 128),
    Case(50, 1, 256, 256, hx=False),
    Case(100, 8, 64, 64, bidirectional=True),
    Case(25, 16, 40, 320, hx=False),
    Case(784, 5, 1, 128, hx=False),
    Case(1000, 3, 7, 33, hx=False),
    Case(5000, 2, 3, 17),
    Case(5000, 1, 1, 64, hx=False),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_errors_are_at_most_those_of_nn_lstm(case: Case) -> None:
    ours, theirs = modules(case, torch.float32)
    exact = modules(case, torch.float64)[1]
    exact.load_state_dict(ours.state_dict())
    leaves = arguments(case, torch.float32)
    weights = None
    results = []
    for module, dtype in ((ours, None), (theirs, None), (exact, torch.float64)):
        own = copies(leaves, dtype)
        outputs = call(module, case, own)
        weights = weights or [torch.randn_like(t) for t in outputs]
        results.append([*outputs, *gradients(module, outputs, own, weights)])
    names = ["output", "h_n", "c_n"]
    names += [f"gradient of {n}" for n in ("x", "h0", "c0")[: len(leaves)]]
    names += [f"gradient of {n}" for n, _ in ours.named_parameters()]
    worse = []
    for name, a, b, right in zip(names, *results, strict=True):
        mine, their = error(a, right), error(b, right)
        if mine > max(MOST * their, FLOOR):
            worse.append(f"{name}: {mine:.2e}, nn.LSTM {their:.2e}")
    assert not worse
