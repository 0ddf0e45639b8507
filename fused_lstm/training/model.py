"""The model: one LSTM layer and one linear layer on its last hidden state.

The only difference between `--impl fused` and `--impl torch` is the class of the LSTM layer; the
state dictionaries are interchangeable.
"""

import torch
from torch import Tensor, nn

from fused_lstm.training import TrainingError
from fused_lstm.training.recipes import Recipe, initialise

__all__ = ["CLASSES", "SequenceClassifier", "build_model", "kernel_in_use"]

CLASSES = 10


class SequenceClassifier(nn.Module):
    """Reads a sequence [B, T, I] and gives one score per class [B, classes]."""

    def __init__(self, lstm: nn.Module, hidden_size: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.lstm = lstm
        self.head = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, I] -> [B, classes]
        _, (h_n, _) = self.lstm(x)
        return self.head(h_n[-1])


def build_model(recipe: Recipe, impl: str, steps: int, features: int) -> SequenceClassifier:
    """A new model on the CPU, its first values drawn from torch's default generator.

    Args:
        recipe: gives the number of units and the first values.
        impl: "fused" for fused_lstm.LSTM, "torch" for torch.nn.LSTM.
        steps: T, the length of the sequences.
        features: I, the values per step.

    Raises:
        TrainingError: impl is "fused" and the compiled extension cannot be loaded.
    """
    layer = _fused_layer() if impl == "fused" else nn.LSTM
    model = SequenceClassifier(
        layer(features, recipe.hidden_size, batch_first=True), recipe.hidden_size
    )
    initialise(recipe, model.lstm, model.head, steps)
    return model


def _fused_layer() -> type[nn.Module]:
    """fused_lstm.LSTM, or a TrainingError that says why its kernels cannot be loaded."""
    try:
        import fused_lstm
        from fused_lstm import _extension

        _extension.require()  # without it LSTM computes with PyTorch's own
    except (ImportError, ValueError) as error:
        raise TrainingError(f"--impl fused: {error}; or choose --impl torch") from error
    return fused_lstm.LSTM


def kernel_in_use(model: SequenceClassifier, impl: str, steps: int, batch_size: int) -> str:
    """One line that names the code which runs a training step on [batch_size, steps, I]."""
    if impl == "torch":
        return f"torch.nn.LSTM of torch {torch.__version__}"
    import fused_lstm

    plan = fused_lstm.explain_plan(model.lstm, steps, batch_size, training=True)
    return f"fused_lstm.LSTM: {plan}"
