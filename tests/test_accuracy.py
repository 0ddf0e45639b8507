"""No less accurate than torch.nn.LSTM: float32 errors against float64, compared with its own.

Outputs and all gradients, over shapes from one step to 5000. The largest error of one draw is a
matter of luck, above all in small tensors: compared are the largest of several draws, and an error
below one rounding of the largest entry is no error. One thread, because torch.nn.LSTM's own sums
depend on the number.
"""

from collections.abc import Iterator

import pytest
import torch
from cases import Case, arguments, call, copies, error, gradients, modules

MOST = 1.5  # times nn.LSTM's own largest error
SEEDS = 6
FLOOR = 1.2e-7  # one float32 rounding of the largest entry

SHAPES = (
    Case(1, 1, 128, 128, hx=False),
    Case(28, 50, 28, 100, hx=False),
    Case(28, 13, 28, 128),
    Case(50, 1, 256, 256, hx=False),
    Case(100, 8, 64, 64, bidirectional=True),
    Case(25, 16, 40, 320, hx=False),
    Case(28, 13, 28, 128, proj_size=64),
    Case(100, 8, 80, 320, proj_size=160, hx=False),
    Case(50, 1, 64, 256, proj_size=48),
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
    worst: dict[str, tuple[float, float]] = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
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
        names = ["output, h_n or c_n"] * 3
        names += [f"gradient of {n}" for n in ("x", "h0", "c0")[: len(leaves)]]
        names += [f"gradient of {n}" for n, _ in ours.named_parameters()]
        for name, a, b, right in zip(names, *results, strict=True):
            mine, their = worst.get(name, (0.0, 0.0))
            worst[name] = max(mine, error(a, right)), max(their, error(b, right))
    worse = [
        f"{name}: {mine:.2e}, nn.LSTM {their:.2e}"
        for name, (mine, their) in worst.items()
        if mine > max(MOST * their, FLOOR)
    ]
    assert not worse
