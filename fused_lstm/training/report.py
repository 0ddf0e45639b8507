"""What a run leaves to look at: a picture, the figures as JSON, TensorBoard's events on wish."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_lstm.training.files import write_atomically
from fused_lstm.training.model import CLASSES

__all__ = ["EventLog", "environment", "write_metrics", "write_plot"]

_RIGHT, _WRONG, _TRAIN, _TEST = "#2a7f4f", "#c0392b", "#8da0b3", "#1f4e79"
_SAMPLES = 16


def environment() -> dict[str, Any]:
    """Machine and versions that the figures belong to."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes the figures of a run as JSON."""
    with write_atomically(path) as file:
        file.write((json.dumps(metrics, indent=2) + "\n").encode())


def write_plot(
    path: Path,
    title: str,
    history: Sequence[dict[str, float]],
    counts: Tensor,
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
) -> None:
    """Draws loss and accuracy over the epochs, the confusion matrix, and sample predictions.

    Args:
        path: of the PNG file.
        title: stands above everything; names the data set.
        history: one entry per epoch.
        counts: [classes, classes]; row is the true digit, column the predicted one.
        images: the test images [N, 28, 28], uint8.
        labels: their digits [N].
        predicted: what the model took them for [N].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(title, fontsize=13)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])  # type: ignore[misc]
    _draw_curves(left, history)
    upper, lower = right.subfigures(2, 1, height_ratios=[1.25, 1])
    _draw_confusion(upper, counts)
    _draw_samples(lower, images, labels, predicted)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_curves(figure: Any, history: Sequence[dict[str, float]]) -> None:
    epochs = [entry["epoch"] for entry in history]
    mark = "o" if len(history) <= 30 else None
    for axes, quantity in zip(
        figure.subplots(2, 1, sharex=True), ("loss", "accuracy"), strict=True
    ):
        for part, colour in (("train", _TRAIN), ("test", _TEST)):
            values = [entry[f"{part}_{quantity}"] for entry in history]
            axes.plot(epochs, values, marker=mark, markersize=4, color=colour, label=part)
        last = history[-1][f"test_{quantity}"]
        axes.set_title(f"{quantity} (test at the end: {last:.4f})", fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")


def _draw_confusion(figure: Any, counts: Tensor) -> None:
    """Coloured by share of the row's digit, so that rare mistakes show; numbers are counts."""
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.sqrt().tolist(), cmap="Blues", vmin=0, vmax=1)
    for row in range(CLASSES):
        for column in range(CLASSES):
            if count := int(counts[row, column]):
                colour = "white" if shares[row, column] > 0.3 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=7, color=colour
                )
    axes.set_xticks(range(CLASSES))
    axes.set_yticks(range(CLASSES))
    axes.set_xlabel("predicted digit")
    axes.set_ylabel("true digit")
    axes.set_title("confusion matrix, test images", fontsize=10, loc="left")


def _draw_samples(figure: Any, images: Tensor, labels: Tensor, predicted: Tensor) -> None:
    """Up to one row of mistakes after the first images that were read rightly."""
    wrong = (predicted != labels).nonzero().flatten()[: _SAMPLES // 2]
    right = (predicted == labels).nonzero().flatten()[: _SAMPLES - len(wrong)]
    chosen = torch.cat([right, wrong]).tolist()
    figure.suptitle(
        "sample predictions (green: right, red: wrong, true digit after it)", fontsize=10
    )
    grid = figure.subplots(2, _SAMPLES // 2, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, chosen, strict=False):  # fewer images in a tiny test set
        told, true = int(predicted[index]), int(labels[index])
        axes.imshow(images[index].tolist(), cmap="gray_r", vmin=0, vmax=255)
        text = f"{told}" if told == true else f"{told} ({true})"
        axes.set_title(text, fontsize=10, color=_RIGHT if told == true else _WRONG)


class EventLog:
    """TensorBoard's scalars per epoch in `folder`; does nothing unless `wanted`."""

    def __init__(self, folder: Path, wanted: bool, epochs_done: int) -> None:
        self._writer = None
        if wanted:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def add(self, entry: dict[str, float]) -> None:
        """Notes one epoch's entry of the history."""
        if self._writer is not None:
            epoch = int(entry["epoch"])
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
                part, quantity = name.split("_")
                self._writer.add_scalar(f"{quantity}/{part}", entry[name], epoch)
            self._writer.add_scalar("steps_per_second", entry["steps_per_second"], epoch)
            self._writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        if self._writer is not None:
            self._writer.close()
