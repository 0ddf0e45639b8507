"""What the tests of the training command share: tiny MNIST files, and the command itself."""

import struct
import sys
from pathlib import Path

import torch

from fused_lstm.training.cli import main
from fused_lstm.training.idx import MNIST_FILES

PACKAGE_PARENT = Path(__file__).resolve().parents[1]
IMPLS = ("fused", "torch")
COMMAND = (sys.executable, "-m", "fused_lstm.training")

# One thread, so that rounding is the same in every process; two epochs of 23 steps.
QUICK = ("--dataset", "digits", "--threads", "1", "--epochs", "2")


def write_mnist(root: Path, train: int = 60, test: int = 20) -> Path:
    """Writes the four files with images that are easy to tell apart; returns their folder."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for names, count in ((MNIST_FILES[:2], train), (MNIST_FILES[2:], test)):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = torch.randint(0, 50, (count, 28, 28), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 * label : 2 * label + 6] += 200
        header = struct.pack(">4i", 0x0803, count, 28, 28)
        (folder / names[0]).write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">2i", 0x0801, count)
        (folder / names[1]).write_bytes(header + labels.numpy().tobytes())
    return folder


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The final weights that a run left."""
    return torch.load(out / "model.pt", weights_only=True)["model"]


def train(*words: object) -> int:
    """Runs the command in this process and returns its exit code."""
    threads = torch.get_num_threads()
    try:
        return main([str(word) for word in words])
    finally:
        torch.set_num_threads(threads)
