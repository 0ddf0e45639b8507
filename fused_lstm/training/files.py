"""Writing so that a reader never meets half a file: write beside it, flush to disk, rename.

A kill at any moment leaves the old file or the new one. The temporary name is fixed, so that a run
which was killed while writing leaves at most one such file and the next run replaces it.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fused_lstm.training import TrainingError

__all__ = ["open_output_folder", "write_atomically"]


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write to; it takes the place of ``path`` only when the block ends well.

    Raises TrainingError where the disk refuses (full, read-only, gone); ``path`` is then untouched.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def open_output_folder(folder: Path) -> None:
    """Creates ``folder`` and proves, before any training, that files can be written into it.

    Raises TrainingError where that is not so.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainingError(
            f"--out: expected a folder that can be written to, got {folder} "
            f"({error.strerror or error})"
        ) from error
