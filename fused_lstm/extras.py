"""What an LSTM may do that nn.LSTM cannot, beside the options of a call: how it is regularised
while it trains, and what it keeps for backward.

Here is what may be asked for, and which of it together. `options.py` carries it out.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

__all__ = ["Extras"]

_DROPOUTS = ("input_dropout", "recurrent_dropout", "output_dropout", "weight_dropout")


@dataclass(frozen=True)
class Extras:
    """Regularisers and memory modes of an LSTM; the defaults are none of them.

    Args:
        zoneout: probabilities (for h, for c) that a unit keeps its value from the step before; one
            number for both. In evaluation each is the mean of the two instead.
            Krueger et al. (2016), https://arxiv.org/abs/1606.01305.
        input_dropout: probability of zeroing a feature of every layer's input, the same ones at
            every step of a sequence. Gal & Ghahramani (2016), https://arxiv.org/abs/1512.05287.
        recurrent_dropout: the same for h of the step before, as the gates read it.
        output_dropout: the same for the last layer's output.
        weight_dropout: probability of zeroing an element of W_hh (DropConnect), the same ones at
            every step. Merity et al. (2018), https://arxiv.org/abs/1708.02182.
        recompute: backward computes the gates again by one product instead of reading what forward
            kept: a fifth of the memory between the two passes.
        checkpoint_steps: forward keeps the states of every so many steps only, and backward runs
            each such piece again: memory for one piece beside input and output; 0: no.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value out of range, or two that do not go together; the message says why.
    """

    zoneout: Any = (0.0, 0.0)
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    output_dropout: float = 0.0
    weight_dropout: float = 0.0
    recompute: bool = False
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        pair = self.zoneout if isinstance(self.zoneout, (tuple, list)) else (self.zoneout,) * 2
        if len(pair) != 2:
            raise ValueError(
                f"zoneout: expected one number or two, for h and for c, got {self.zoneout}"
            )
        zoneout = tuple(_probability("zoneout", p) for p in pair)
        object.__setattr__(self, "zoneout", zoneout)
        for name in _DROPOUTS:
            object.__setattr__(self, name, _probability(name, getattr(self, name)))
        steps = self.checkpoint_steps
        if not isinstance(self.recompute, bool):
            raise TypeError(f"recompute: expected a bool, got {type(self.recompute).__name__}")
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise TypeError(f"checkpoint_steps: expected an int, got {type(steps).__name__}")
        if steps < 0:
            raise ValueError(f"checkpoint_steps: expected a number of steps, or 0, got {steps}")
        if any(zoneout):
            for name in _DROPOUTS:
                if getattr(self, name):
                    self._refuse(name, "zoneout", "no publication says how the two act together")
        if self.recurrent_dropout and self.weight_dropout:
            self._refuse("weight_dropout", "recurrent_dropout", "both thin out one product, W_hh h")

    def check(self, num_layers: int, dropout: float, proj_size: int) -> None:
        """Refuses, with a ValueError, an LSTM with whose own options these do not go."""
        if any(self.zoneout) and proj_size:
            self._refuse("zoneout", "proj_size", "h and c have different units then")
        if self.input_dropout and dropout and num_layers > 1:
            self._refuse("input_dropout", "dropout", "both act between layers")

    def _refuse(self, name: str, other: str, why: str) -> None:
        raise ValueError(f"{name}: expected 0 with {other}, got {getattr(self, name)}: {why}")

    @property
    def draws(self) -> bool:
        """Whether training needs random numbers."""
        return any(self.zoneout) or any(getattr(self, name) for name in _DROPOUTS)

    def act(self, training: bool) -> bool:
        """Whether a call is another than without them."""
        keeps_less = self.recompute or self.checkpoint_steps > 0
        return (
            (training and self.draws)
            or any(self.zoneout)
            or (keeps_less and torch.is_grad_enabled())
        )

    def __str__(self) -> str:
        shown = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return ", ".join(f"{name}={value}" for name, value, usual in shown if value != usual)


def _probability(name: str, p: Any) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(p).__name__}")
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {p}")
    return float(p)
