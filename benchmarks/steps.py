"""A whole training step of sequential MNIST, `--impl fused` beside `--impl torch`.

The same models, initial values, loss and optimizer as `python -m fused_lstm.training` uses; the
images are random numbers of MNIST's shape, for speed does not depend on what they show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.noise import Watch
from benchmarks.timing import interleave, ratio_of_rounds, spread

__all__ = ["CONFIGURATIONS", "training_step"]

CONFIGURATIONS = (  # recipe, order
    ("tutorial", "row"),
    ("default", "row"),
    ("default", "pixel"),
)


def _step(recipe: Any, impl: str, steps: int, features: int) -> Callable[[], None]:
    """One step of the optimizer on one batch, as a call."""
    from fused_lstm.training.model import CLASSES, build_model
    from fused_lstm.training.recipes import sum_loss

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(recipe.batch_size, steps, features, generator=generator)
    labels = torch.randint(CLASSES, (recipe.batch_size,), generator=generator)
    torch.manual_seed(1)
    model = build_model(recipe, impl, steps, features)
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate, fused=True)

    def step() -> None:
        loss = sum_loss(recipe, model(x), labels) / len(labels)
        loss.backward()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training_step(recipe_name: str, order: str, threads: int, budget: float) -> dict[str, Any]:
    """Milliseconds per step of both, steps per second, and the ratio of torch's time to ours."""
    from fused_lstm.training.recipes import recipe_for

    recipe = recipe_for(recipe_name, order)
    steps, features = (28, 28) if order == "row" else (784, 1)
    torch.set_num_threads(threads)
    calls = {impl: _step(recipe, impl, steps, features) for impl in ("fused", "torch")}
    watch = Watch(threads)
    series = interleave(calls, budget, ("fused", "torch"), threads)
    noise = watch.stop()
    ratio = ratio_of_rounds(series["torch"], series["fused"])
    assert ratio is not None
    row: dict[str, Any] = {
        "recipe": recipe_name,
        "order": order,
        "shape": f"{steps}x{recipe.batch_size}x{features}x{recipe.hidden_size}",
        "threads": threads,
        "ratio": {k: round(v, 4) for k, v in dataclasses.asdict(ratio).items()},
        "noise": dataclasses.asdict(noise),
    }
    for impl, one in series.items():
        milliseconds = 1e3 * spread(one.measured).median
        row[impl] = {
            "ms": round(milliseconds, 4),
            "steps_per_second": round(1e3 / milliseconds, 1),
        }
    return row
