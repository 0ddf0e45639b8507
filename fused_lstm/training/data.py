"""The images: MNIST through torchvision, or the handwritten digits inside scikit-learn.

A data set is small enough to live in memory as one tensor; a batch is one gather of its rows, so
there are no loader processes, no files and no decoding while training.
"""

import dataclasses
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from fused_lstm.training import TrainingError
from fused_lstm.training.download import STALL_SECONDS, download_mnist
from fused_lstm.training.idx import SIDE, check_files, missing_files, raw_folder
from fused_lstm.training.vision import import_mnist

__all__ = ["DATASETS", "DigitSet", "load_digit_set", "sequence_shape", "sequences"]

DATASETS = ("auto", "mnist", "digits")
_ASKED_FOR = "as asked for"
_TEST_DIGITS = 360  # of scikit-learn's 1797
_PIXEL_ORDER_SEED = 0  # `permuted` is the same task for everyone, whatever --seed says


@dataclasses.dataclass(frozen=True)
class DigitSet:
    """Images [N, 28, 28] uint8 with labels [N] int64, and where they come from."""

    name: str
    origin: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def fingerprint(self) -> int:
        """CRC-32 over everything that is trained on; tells one data set from another."""
        crc = zlib.crc32(self.train_images.contiguous().numpy().data)
        return zlib.crc32(self.train_labels.contiguous().numpy().data, crc)

    def scale(self, normalise: bool) -> tuple[float, float]:
        """Mean and deviation of the training images in [0, 1]; (0, 1) without `normalise`."""
        if not normalise:
            return 0.0, 1.0
        count = self.train_images.numel()
        total = int(self.train_images.sum(dtype=torch.int64))
        squares = int(self.train_images.int().square_().sum(dtype=torch.int64))
        mean = total / count
        variance = squares / count - mean**2
        return mean / 255, max(variance, 1.0) ** 0.5 / 255


def load_digit_set(dataset: str, root: Path, recipe: str) -> DigitSet:
    """The data set of that name; "auto" prefers MNIST and falls back to scikit-learn's digits.

    Raises:
        TrainingError: a file is damaged; or MNIST was asked for (by name, or by the tutorial
            recipe, whose accuracies belong to it) and cannot be had.
    """
    if dataset == "digits":
        return _digits(_ASKED_FOR)
    absent = missing_files(root)
    if not absent:
        check_files(root)
    try:
        if absent:
            import_mnist()  # before the download: without it there is no use in one
            print(
                f"MNIST is not in {raw_folder(root)}; downloading it"
                f" (given up after {STALL_SECONDS:g} s without progress)",
                file=sys.stderr,
                flush=True,
            )
            download_mnist(root)
        return _mnist(root, "downloaded to" if absent else "from")
    except TrainingError as error:
        reason = f"MNIST is not in {raw_folder(root)}, and {error}" if absent else str(error)
        if isinstance(error, _DamagedError):
            raise
        if dataset == "mnist" or recipe == "tutorial":
            wanted = "--dataset mnist" if dataset == "mnist" else "--recipe tutorial"
            raise TrainingError(
                f"{wanted} needs MNIST: {reason}; remedy: put its four files into"
                f" {raw_folder(root)}, give their place with --data-root, or choose"
                " --dataset digits"
            ) from error
        return _digits(f"because {reason}")


class _DamagedError(TrainingError):
    """Files that are there but wrong: never a reason to train on something else."""


def _mnist(root: Path, origin: str) -> DigitSet:
    mnist = import_mnist()
    try:
        train, test = mnist(root, train=True), mnist(root, train=False)
    except Exception as error:
        raise _DamagedError(f"{raw_folder(root)}: cannot be read ({error})") from error
    for part in (train, test):
        if part.targets.amax() > 9:
            raise _DamagedError(
                f"{raw_folder(root)}: expected labels 0 to 9, got {int(part.targets.amax())}"
            )
    return DigitSet("MNIST", f"{origin} {root}", train.data, train.targets, test.data, test.targets)


def _digits(reason: str) -> DigitSet:
    """scikit-learn's 1797 digits of 8 x 8 pixels in 17 shades, made as large as MNIST's."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TrainingError(
            f"scikit-learn cannot be imported ({error}); python -m pip install scikit-learn"
            + ("" if reason == _ASKED_FOR else f" (tried {reason})")
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255.0 / 16.0)
    images = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear")
    images = images.squeeze(1).round().clamp(0, 255).to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:_TEST_DIGITS], order[_TEST_DIGITS:]
    return DigitSet(
        "scikit-learn digits", reason, images[train], labels[train], images[test], labels[test]
    )


def sequence_shape(order: str) -> tuple[int, int]:
    """Steps T and features I of one image in that order."""
    return (SIDE, SIDE) if order == "row" else (SIDE * SIDE, 1)


def sequences(images: Tensor, order: str, mean: float, deviation: float) -> Tensor:
    """Images [N, 28, 28] uint8 as what the model reads, [N, T, I] float32."""
    flat = images.reshape(len(images), SIDE * SIDE)
    if order == "permuted":
        generator = torch.Generator().manual_seed(_PIXEL_ORDER_SEED)
        flat = flat[:, torch.randperm(SIDE * SIDE, generator=generator)]
    return flat.float().div_(255).sub_(mean).div_(deviation).view(-1, *sequence_shape(order))
