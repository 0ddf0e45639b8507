"""torchvision's MNIST download with the time-outs that it lacks.

It runs in a process of its own (`python -m fused_lstm.training.download`), into a folder of its
own. The parent watches that folder grow, ends the process when it does not, and moves the files to
their place only when all four are there and sound.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fused_lstm.training import TrainingError
from fused_lstm.training.idx import MNIST_FILES, check_files, raw_folder

__all__ = ["CONNECT_SECONDS", "STALL_SECONDS", "download_mnist"]

CONNECT_SECONDS = 5.0
STALL_SECONDS = 15.0
START_SECONDS = 60.0  # for Python and torchvision to be loaded in the new process
_STARTED = "started"  # the new process leaves this file when it begins to connect


def download_mnist(
    root: Path,
    mirrors: Sequence[str] = (),
    *,
    command: Sequence[str] | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> None:
    """Downloads the four files into `root`/MNIST/raw, or leaves no trace.

    Args:
        root: the data root; created where it is missing.
        mirrors: addresses to ask instead of torchvision's own.
        command: what to run instead of torchvision's download; gets a folder as its last argument.
        stall_seconds: how long the process may go without writing a byte.

    Raises:
        TrainingError: says what went wrong, in one line.
    """
    new_root = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".mnist-download-", dir=root))
    except OSError as error:
        raise TrainingError(f"cannot write into {root} ({error.strerror or error})") from error
    try:
        if command is None:
            command = [sys.executable, "-m", "fused_lstm.training.download", *mirrors]
        _run_watched([*command, str(folder)], folder, stall_seconds)
        check_files(folder)
        raw_folder(root).mkdir(parents=True, exist_ok=True)
        for name in MNIST_FILES:
            os.replace(raw_folder(folder) / name, raw_folder(root) / name)
    except OSError as error:
        raise TrainingError(f"cannot write into {root} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new_root:
            with contextlib.suppress(OSError):
                root.rmdir()  # only where nothing was put into it


def _run_watched(command: Sequence[str], folder: Path, stall_seconds: float) -> None:
    """Runs `command` to its end, or ends it once `folder` has stopped growing."""
    package_parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            seen, since = _size(folder), time.monotonic()
            while process.poll() is None:
                time.sleep(0.1)
                now = _size(folder)
                if now != seen:
                    seen, since = now, time.monotonic()
                limit = stall_seconds if seen[0] else START_SECONDS
                if time.monotonic() - since > limit:
                    raise TrainingError(f"the download made no progress for {limit:g} s")
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {process.returncode}"
            raise TrainingError(f"the download failed: {reason[:400]}")


def _size(folder: Path) -> tuple[int, int]:
    """Number of files below `folder`, and the sum of their bytes."""
    count = size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed or removed meanwhile
            count, size = count + 1, size + path.stat().st_size
    return count, size


def _download(mirrors: Sequence[str], folder: Path) -> None:
    """The new process's part: torchvision's own download into `folder`."""
    from fused_lstm.training.vision import import_mnist

    mnist = import_mnist()
    if mirrors:
        mnist.mirrors = list(mirrors)  # type: ignore[attr-defined]
    connect = socket.create_connection

    def connect_in_time(address, timeout=None, *args, **kwargs):  # type: ignore[no-untyped-def]
        connection = connect(address, CONNECT_SECONDS, *args, **kwargs)
        connection.settimeout(STALL_SECONDS)
        return connection

    socket.create_connection = connect_in_time  # http.client looks it up for every connection
    (folder / _STARTED).touch()
    mnist(folder, train=True, download=True)


if __name__ == "__main__":
    try:
        _download(sys.argv[1:-1], Path(sys.argv[-1]))
    except Exception as error:
        sys.exit(" ".join(f"{error or type(error).__name__}".split()))
