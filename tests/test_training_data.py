"""The images: files judged by header and size, a download that ends, a torchvision that misfits."""

import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from training_cases import PACKAGE_PARENT, write_mnist

from fused_lstm.training import TrainingError, data, vision
from fused_lstm.training.data import load_digit_set, sequences
from fused_lstm.training.download import download_mnist
from fused_lstm.training.idx import MNIST_FILES, check_files, missing_files


def test_mnist_files_arrive_unchanged(tmp_path):
    folder = write_mnist(tmp_path)
    found = load_digit_set("auto", tmp_path, "default")
    assert found.name == "MNIST"
    assert found.train_images.shape == (60, 28, 28)
    assert found.train_images.numpy().tobytes() == (folder / MNIST_FILES[0]).read_bytes()[16:]
    assert found.test_labels.tolist() == [index % 10 for index in range(20)]


def test_digits_are_the_same_ones_every_time():
    one, two = (load_digit_set("digits", None, "default") for _ in range(2))
    assert one.train_images.shape == (1437, 28, 28)
    assert one.test_images.shape == (360, 28, 28)
    assert one.train_images.dtype == torch.uint8
    assert one.train_images.amax() > 250
    assert one.fingerprint() == two.fingerprint()
    assert one.test_labels.bincount().min() > 20


def test_fingerprint_tells_data_sets_apart(tmp_path):
    write_mnist(tmp_path)
    found = load_digit_set("mnist", tmp_path, "default")
    before = found.fingerprint()
    found.train_images[7, 3, 3] ^= 1
    assert found.fingerprint() != before


def test_orders_hold_the_same_pixels():
    images = torch.arange(3 * 784, dtype=torch.int64).remainder(251).to(torch.uint8)
    images = images.view(3, 28, 28)
    rows, pixels, permuted = (
        sequences(images, order, 0.0, 1.0) for order in ("row", "pixel", "permuted")
    )
    assert torch.equal(rows, images.float() / 255)
    assert torch.equal(pixels, rows.reshape(3, 784, 1))
    assert not torch.equal(permuted, pixels)
    order = torch.randperm(784, generator=torch.Generator().manual_seed(0))
    assert torch.equal(permuted[:, :, 0], pixels[:, order, 0])


def test_scale_normalises():
    found = load_digit_set("digits", None, "default")
    x = sequences(found.train_images, "row", *found.scale(normalise=True))
    assert x.double().mean().abs() < 1e-5
    assert x.double().std().item() == pytest.approx(1, abs=1e-5)
    assert found.scale(normalise=False) == (0.0, 1.0)


IMAGES, LABELS = MNIST_FILES[:2]
DAMAGE = {
    "truncated images": (IMAGES, lambda raw: raw[:-1], "47056 bytes.*got 47055 bytes"),
    "truncated header": (IMAGES, lambda raw: raw[:9], "header of 16 bytes.*file of 9 bytes"),
    "empty": (LABELS, lambda raw: b"", "header of 8 bytes.*file of 0 bytes"),
    "too long": (LABELS, lambda raw: raw + b"\0", "68 bytes.*got 69 bytes"),
    "a web page": (IMAGES, lambda raw: b"<!DOCTYPE html>" + raw, "0x00000803.*got 0x3c21444f"),
    "images of another size": (
        IMAGES,
        lambda raw: raw[:8] + struct.pack(">2i", 14, 56) + raw[16:],
        "images of 28 x 28 pixels, got 14 x 56",
    ),
    "fewer labels": (LABELS, lambda raw: struct.pack(">2i", 0x0801, 59) + raw[8:-1], "60 labels"),
    "negative count": (LABELS, lambda raw: struct.pack(">2i", 0x0801, -1), "at least one"),
    "label 10": (LABELS, lambda raw: raw[:-1] + b"\x0a", "labels 0 to 9, got 10"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_named_and_never_replaced_by_other_data(case, tmp_path):
    name, damage, message = DAMAGE[case]
    path = write_mnist(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    for dataset in ("auto", "mnist"):
        with pytest.raises(TrainingError, match=message):
            load_digit_set(dataset, tmp_path, "default")


def test_mnist_by_name_or_for_the_tutorial_is_never_replaced(tmp_path, monkeypatch):
    def fail(root):
        raise TrainingError("the download failed: offline")

    monkeypatch.setattr(data, "download_mnist", fail)
    for dataset, recipe in (("mnist", "default"), ("auto", "tutorial")):
        with pytest.raises(TrainingError, match=r"offline; remedy: .*--dataset digits"):
            load_digit_set(dataset, tmp_path, recipe)
    assert load_digit_set("auto", tmp_path, "default").name == "scikit-learn digits"
    assert load_digit_set("digits", tmp_path, "tutorial").name == "scikit-learn digits"


# The download: what the new process does is played by a few lines of Python.

GOOD = f"""
import sys; sys.path[:0] = [{str(PACKAGE_PARENT / "tests")!r}, {str(PACKAGE_PARENT)!r}]
from pathlib import Path; from training_cases import write_mnist
write_mnist(Path(sys.argv[1]))
"""
STALLS = """
import os, sys, time
raw = sys.argv[1] + "/MNIST/raw"; os.makedirs(raw)
open(raw + "/train-images-idx3-ubyte", "wb").write(b"half"); time.sleep(60)
"""
DIES = "import sys; sys.exit('<urlopen error timed out>')"
DAMAGED = GOOD + "next(Path(sys.argv[1]).rglob('t10k-images*')).write_bytes(b'oops')"
SLOW = """
import sys, time
for size in range(8):
    open(sys.argv[1] + "/part", "ab").write(b"x"); time.sleep(0.5)
sys.exit("reached the end")
"""


def play(script: str, root, **keywords) -> None:
    download_mnist(root, command=[sys.executable, "-c", script], **keywords)


def test_download_moves_sound_files_into_place(tmp_path):
    root = tmp_path / "new" / "root"
    play(GOOD, root)
    assert missing_files(root) == []
    check_files(root)
    assert [path.name for path in root.iterdir()] == ["MNIST"]


@pytest.mark.parametrize(
    ("script", "stall_seconds", "message"),
    [
        (STALLS, 1.0, "no progress for 1 s"),
        (DIES, 15.0, r"download failed: <urlopen error timed out>"),
        (DAMAGED, 15.0, "expected a header of 16 bytes"),
    ],
    ids=["stalls", "dies", "damaged"],
)
def test_failed_download_leaves_no_trace(script, stall_seconds, message, tmp_path):
    root = tmp_path / "root"
    began = time.monotonic()
    with pytest.raises(TrainingError, match=message):
        play(script, root, stall_seconds=stall_seconds)
    assert time.monotonic() - began < 20
    assert not root.exists()


def test_failed_download_keeps_what_was_there(tmp_path):
    kept = write_mnist(tmp_path) / MNIST_FILES[0]
    before = kept.read_bytes()
    with pytest.raises(TrainingError):
        play(STALLS, tmp_path, stall_seconds=0.5)
    assert kept.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_slow_download_is_not_stopped_while_it_grows(tmp_path):
    with pytest.raises(TrainingError, match="reached the end"):
        play(SLOW, tmp_path, stall_seconds=3.0)


def test_unwritable_data_root(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot write into .*file/root"):
        play(GOOD, tmp_path / "file" / "root")


def test_torchvision_download_from_a_server_that_stops_talking(tmp_path):
    """The real class against a server that accepts, promises a megabyte and sends 100 bytes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        connections = []  # kept open
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100)

    threading.Thread(target=serve, daemon=True).start()
    mirror = f"http://127.0.0.1:{server.getsockname()[1]}/"
    try:
        with pytest.raises(TrainingError, match="no progress for 2 s"):
            download_mnist(tmp_path / "root", [mirror], stall_seconds=2.0)
    finally:
        server.close()
    assert not (tmp_path / "root").exists()


def test_torchvision_download_from_a_closed_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TrainingError, match=r"download failed: .*Connection refused"):
        download_mnist(tmp_path / "root", [f"http://127.0.0.1:{port}/"])
    assert not (tmp_path / "root").exists()


# A torchvision that does not fit: a package of that name stands in for it, in a new process.


def import_mnist_beside(torchvision: str, tmp_path) -> subprocess.CompletedProcess:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(torchvision))
    (package / "datasets.py").write_text("class MNIST: pass\n")
    script = "from fused_lstm.training.vision import import_mnist; print(import_mnist())"
    path = f"{tmp_path}:{PACKAGE_PARENT}"
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": path, "PATH": ""},
        capture_output=True,
        text=True,
    )


def test_torchvision_for_another_torch_is_helped_to_import(tmp_path):
    """As torchvision 0.28 does it: a fake kernel for an operator that no library declared."""
    misfit = """
        import torch
        for operator in ("torchvision::nms", "torchvision::qnms"):
            torch.library.register_fake(operator)(lambda *arguments: None)
    """
    result = import_mnist_beside(misfit, tmp_path)
    assert result.stdout.strip() == "<class 'torchvision.datasets.MNIST'>", result.stderr


@pytest.mark.parametrize(
    "failure",
    [
        'raise RuntimeError("PyTorch and torchvision were compiled with different CUDA versions")',
        'raise ImportError("libcudart.so.13: cannot open shared object file")',
    ],
)
def test_torchvision_beyond_help_names_the_remedy(failure, monkeypatch):
    def fail():
        exec(failure)

    monkeypatch.setattr(vision, "_import", fail)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(TrainingError, match=r'pip install .*"torchvision==0\.28\.\*"'):
        vision.import_mnist()
