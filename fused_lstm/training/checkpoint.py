"""The state of a run on disk: enough to go on after a kill with the same bits.

That is the model, the optimizer, the schedule, torch's generator, where in which epoch the run is,
what it has measured, and its settings and data, so that nothing else is continued by accident.
The order of images within an epoch is a function of seed and epoch and needs no storage.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fused_lstm.training import TrainingError
from fused_lstm.training.files import write_atomically

__all__ = [
    "CHECKPOINT",
    "read_checkpoint",
    "require_same",
    "require_shapes",
    "write_checkpoint",
]

CHECKPOINT = "checkpoint.pt"
_FORMAT = 1
_KEYS = {"settings", "data", "model", "optimizer", "schedule", "generator", "progress"}


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replaces the checkpoint at `path` in one move; `state` holds the keys listed above."""
    with write_atomically(path) as file:
        torch.save({"format": _FORMAT, **state}, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state written by `write_checkpoint`, on the CPU.

    torch.load reads past flipped bits, so the archive's own checksums are verified first; and it
    loads tensors and plain values only (`weights_only`), so a foreign file can run no code.

    Raises:
        TrainingError: there is no such file, or it is torn, damaged or of another kind.
    """
    if not path.is_file():
        raise TrainingError(f"--resume: expected a checkpoint at {path}, found none")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise TrainingError(f"{path}: the checkpoint is damaged (checksum of {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except TrainingError:
        raise
    except Exception as error:  # torn files make zipfile and torch raise many kinds
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"{path}: the checkpoint is torn or not one ({first_line})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT or _KEYS - state.keys():
        raise TrainingError(f"{path}: expected a checkpoint of this command, got something else")
    return state


def require_same(path: Path, what: str, expected: Any, got: Any) -> None:
    """Raises TrainingError unless a value in the checkpoint at `path` is what this run has."""
    if expected != got:
        raise TrainingError(
            f"{path}: {what}: expected {expected} for this run, got {got} in the checkpoint"
        )


def require_shapes(path: Path, model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Raises TrainingError unless the weights in the checkpoint at `path` fit the model."""
    expected = model.state_dict()
    require_same(path, "names of weights", sorted(expected), sorted(saved))
    for name, weight in expected.items():
        require_same(path, f"shape of {name}", tuple(weight.shape), tuple(saved[name].shape))
