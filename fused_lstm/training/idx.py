"""The files of MNIST as they lie on disk, judged by header and size.

Not by MD5: a copy whose images were put into another order is as good a data set, and a file that
was cut off or overwritten is found just as well. Layout: big-endian int32 words 0x0801 (labels) or
0x0803 (images), then one word per dimension, then one unsigned byte per element.
"""

import math
import struct
from pathlib import Path

from fused_lstm.training import TrainingError

__all__ = ["MNIST_FILES", "check_files", "missing_files", "raw_folder"]

SIDE = 28
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def raw_folder(root: Path) -> Path:
    """Where torchvision's data set looks for its files."""
    return root / "MNIST" / "raw"


def missing_files(root: Path) -> list[str]:
    """Names of those of the four files that are not there."""
    return [name for name in MNIST_FILES if not (raw_folder(root) / name).is_file()]


def check_files(root: Path) -> None:
    """Raises TrainingError, naming file, expected and got, unless all four files are sound."""
    absent = missing_files(root)
    if absent:
        raise TrainingError(f"{raw_folder(root)}: expected {absent[0]}, found no such file")
    for images, labels in (MNIST_FILES[:2], MNIST_FILES[2:]):
        count = _count(raw_folder(root) / images, (SIDE, SIDE))
        named = _count(raw_folder(root) / labels, ())
        if count != named:
            raise _damaged(raw_folder(root) / labels, f"{count} labels", f"{named}")


def _count(path: Path, item: tuple[int, ...]) -> int:
    """Number of elements of shape `item` in the file at `path`."""
    words = 2 + len(item)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(4 * words)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(header) < 4 * words:
        raise _damaged(path, f"a header of {4 * words} bytes", f"a file of {size} bytes")
    magic, count, *shape = struct.unpack(f">{words}i", header)
    if magic != 0x0801 + len(item):
        raise _damaged(path, f"0x{0x0801 + len(item):08x} as its first word", f"0x{magic:08x}")
    if tuple(shape) != item:
        raise _damaged(path, f"images of {SIDE} x {SIDE} pixels", " x ".join(map(str, shape)))
    if count < 1:
        raise _damaged(path, "at least one element", f"{count}")
    expected = 4 * words + count * math.prod(item)
    if size != expected:
        raise _damaged(path, f"{expected} bytes for its {count} elements", f"{size} bytes")
    return count


def _damaged(path: Path, expected: str, got: str) -> TrainingError:
    return TrainingError(
        f"{path}: expected {expected}, got {got}; the file is damaged: remove it, so that it is"
        " downloaded again, or choose --dataset digits"
    )
