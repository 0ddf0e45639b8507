"""The command's words, and what they come to together with recipe, data set and checkpoint."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from fused_lstm.training import TrainingError
from fused_lstm.training.checkpoint import require_same
from fused_lstm.training.data import DATASETS
from fused_lstm.training.recipes import ORDERS, RECIPES

__all__ = ["PROGRAM", "Settings", "choose_device", "parser", "settle", "usable_cpus"]

PROGRAM = "python -m fused_lstm.training"
_MAY_CHANGE = ("impl", "threads")  # on a resume, at the price of other rounding


@dataclasses.dataclass
class Settings:
    """What makes one run differ from another; kept in the checkpoint. None: not decided yet."""

    order: str = "row"
    recipe: str = "default"
    dataset: str = "auto"
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    impl: str = "fused"
    threads: int | None = None


def parser() -> argparse.ArgumentParser:
    """The command line; a setting that is not given stays None."""
    words = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Trains an LSTM on sequential MNIST; leaves model, plot and figures.",
    )
    usual = Settings()
    words.add_argument(
        "--order", choices=ORDERS,
        help=f"28 rows, 784 pixels, or 784 pixels in one fixed random order ({usual.order})",
    )  # fmt: skip
    words.add_argument(
        "--recipe", choices=RECIPES,
        help="how to train: well, or as a well-known TensorFlow tutorial did"
        f" ({usual.recipe})",
    )  # fmt: skip
    words.add_argument(
        "--dataset", choices=DATASETS,
        help="auto: MNIST from the data root, else downloaded, else scikit-learn's digits"
        f" ({usual.dataset})",
    )  # fmt: skip
    words.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR",
        help="folder that holds MNIST/raw (%(default)s)",
    )  # fmt: skip
    words.add_argument("--epochs", type=_positive, help="passes over the data (the recipe's)")
    words.add_argument(
        "--batch-size", type=_positive, help="images per step, over all processes (the recipe's)"
    )
    words.add_argument(
        "--impl", choices=("fused", "torch"),
        help=f"fused_lstm.LSTM or torch.nn.LSTM ({usual.impl})",
    )  # fmt: skip
    words.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    words.add_argument("--seed", type=_seed, help=f"of weights and data order ({usual.seed})")
    words.add_argument("--threads", type=_positive, help="of the CPU (all that are available)")
    words.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where everything is written (runs/ORDER-RECIPE)",
    )  # fmt: skip
    words.add_argument(
        "--resume", action="store_true",
        help="go on from the checkpoint in DIR, with its settings",
    )  # fmt: skip
    words.add_argument(
        "--checkpoint-steps", type=_positive,
        help="steps between checkpoints within an epoch (the recipe's)",
    )  # fmt: skip
    words.add_argument(
        "--tensorboard", action="store_true", help="also write TensorBoard's events into DIR"
    )
    return words


def settle(words: argparse.Namespace, saved: dict[str, Any] | None, path: Path) -> Settings:
    """What was typed, then what the checkpoint at `path` says, then the defaults.

    Raises:
        TrainingError: something was typed that the checkpoint contradicts.
    """
    settings = Settings()
    for field in dataclasses.fields(Settings):
        typed = getattr(words, field.name)
        if saved is not None and field.name in saved:
            kept = saved[field.name]
            if typed is not None and field.name not in _MAY_CHANGE and typed != "auto":
                require_same(path, f"--{field.name.replace('_', '-')}", typed, kept)
            if typed is None or field.name not in _MAY_CHANGE:
                typed = kept
        if typed is not None:
            setattr(settings, field.name, typed)
    return settings


def choose_device(name: str, local_rank: int, processes: int) -> torch.device:
    """The device of that name; of several processes each takes its own GPU.

    Raises:
        TrainingError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"--device: expected cpu, cuda or cuda:N, got {name}")
    if device.type == "cpu":
        return device
    index = local_rank if processes > 1 and device.index is None else device.index or 0
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= found:
        built = torch.version.cuda or "no CUDA"
        raise TrainingError(
            f"--device: expected one of {found} CUDA devices that torch {torch.__version__}"
            f" (built for {built}) finds here, got {name}"
        )
    return torch.device("cuda", index)


def usable_cpus() -> int:
    """CPUs that this process may use, a container's quota included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, min(count or 1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return count or 1


def _positive(word: str) -> int:
    try:
        value = int(word)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {word}")
    return value


def _seed(word: str) -> int:
    try:
        value = int(word)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**32 - 1, got {word}")
    return value
