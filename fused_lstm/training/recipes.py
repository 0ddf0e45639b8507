"""The two ways to train, as data: a good practitioner's, and that of a well-known tutorial.

`tutorial` repeats the TensorFlow 1.x lesson on MNIST rows: 100 units, batches of 50, Adam at 1e-4,
BasicLSTMCell with its initialisation, and a softmax applied *before* the softmax cross-entropy. The
doubled softmax is a mistake (it flattens the gradient), kept because the lesson's accuracies come
from it. `default` reaches a higher one in the same six epochs.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from fused_lstm.init import chrono_, forget_bias_
from fused_lstm.training import TrainingError

__all__ = ["ORDERS", "RECIPES", "Recipe", "initialise", "recipe_for", "sum_loss"]

ORDERS = ("row", "pixel", "permuted")
RECIPES = ("default", "tutorial")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learnt; `epochs` counts passes over MNIST."""

    name: str
    order: str
    hidden_size: int
    batch_size: int  # over all processes
    learning_rate: float  # the peak, where one_cycle
    epochs: int
    digits_epochs: int  # the same for scikit-learn's 1437 training images: about as many steps
    one_cycle: bool
    normalise: bool  # to mean 0 and deviation 1 over the training images; else to [0, 1]
    tensorflow: bool  # TensorFlow's initialisation and doubled softmax
    clip: float | None  # largest norm of the gradient
    checkpoint_steps: int  # steps between checkpoints within an epoch


def recipe_for(name: str, order: str) -> Recipe:
    """The recipe of that name for that order of reading.

    Raises TrainingError for `tutorial` with another order than rows, which it never had.
    """
    if name == "tutorial":
        if order != "row":
            raise TrainingError(f"--order: expected row with --recipe tutorial, got {order}")
        return Recipe(
            name, order, hidden_size=100, batch_size=50, learning_rate=1e-4, epochs=6,
            digits_epochs=240, one_cycle=False, normalise=False, tensorflow=True, clip=None,
            checkpoint_steps=500,
        )  # fmt: skip
    if order == "row":
        return Recipe(
            name, order, hidden_size=128, batch_size=64, learning_rate=2e-3, epochs=6,
            digits_epochs=40, one_cycle=True, normalise=True, tensorflow=False, clip=None,
            checkpoint_steps=500,
        )  # fmt: skip
    return Recipe(
        name, order, hidden_size=128, batch_size=128, learning_rate=2e-3, epochs=20,
        digits_epochs=150, one_cycle=True, normalise=True, tensorflow=False, clip=1.0,
            checkpoint_steps=100,
    )  # fmt: skip


@torch.no_grad()
def initialise(recipe: Recipe, lstm: nn.Module, head: nn.Linear, steps: int) -> None:
    """Sets the first values of an LSTM layer (gates i f g o) and its output layer in place.

    Both recipes raise the forget gate's bias, so that a new cell remembers. For 784-step sequences
    a bias of 1 forgets within a few steps; there units get memories of all lengths.

    Args:
        recipe: which values to set.
        lstm: has `weight_ih_l0` [4H, I], `weight_hh_l0` [4H, H], `bias_ih_l0` [4H], `bias_hh_l0`.
        head: [H] to [classes].
        steps: T, the length of the sequences.
    """
    hidden = recipe.hidden_size
    if recipe.tensorflow:
        # One kernel [I + H, 4H] with Glorot's uniform limit; torch holds its two parts, transposed.
        w_ih, w_hh = lstm.get_parameter("weight_ih_l0"), lstm.get_parameter("weight_hh_l0")
        limit = math.sqrt(6.0 / (w_ih.shape[1] + hidden + 4 * hidden))
        w_ih.uniform_(-limit, limit)
        w_hh.uniform_(-limit, limit)
        lstm.get_parameter("bias_ih_l0").zero_()
        lstm.get_parameter("bias_hh_l0").zero_()
        nn.init.trunc_normal_(head.weight, std=0.1, a=-0.2, b=0.2)
        head.bias.fill_(0.1)
    if recipe.order == "row":
        forget_bias_(lstm, 1.0)
    else:
        chrono_(lstm, steps)


def sum_loss(recipe: Recipe, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch.

    Args:
        recipe: whether the scores pass through a softmax before.
        logits: [B, classes].
        labels: [B], int64.
    """
    scores = logits.softmax(dim=1) if recipe.tensorflow else logits
    return nn.functional.cross_entropy(scores, labels, reduction="sum")
