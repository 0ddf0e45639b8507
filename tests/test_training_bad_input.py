"""What the user got wrong: one line on standard error, exit code not 0, nothing half-written."""

import re
from importlib import util
from pathlib import Path

import pytest
import torch
from training_cases import QUICK, train, write_mnist

from fused_lstm import _extension
from fused_lstm.training import TrainingError, data

CASES = {
    "tutorial reads rows": (("--recipe", "tutorial", "--order", "pixel"), "--order: expected row"),
    "device of another kind": (("--device", "meta"), "--device: expected cpu, cuda or cuda:N"),
    "device that is no word": (("--device", "gpu0"), "--device: expected cpu.* got gpu0"),
    "device that is not there": (("--device", "cuda:99"), r"--device: expected one of \d+ CUDA"),
    "resume of nothing": (("--resume",), "--resume: expected a checkpoint at"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(case, tmp_path, capsys):
    words, message = CASES[case]
    assert train(*QUICK, "--impl", "torch", *words, "--out", tmp_path / "out") == 1
    check_one_line(capsys, message)
    assert list(tmp_path.iterdir()) == []


def check_one_line(capsys, message):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("python -m fused_lstm.training: error: ")
    assert re.search(message, captured.err), captured.err


@pytest.mark.parametrize(
    "words",
    [("--epochs", 0), ("--epochs", "two"), ("--batch-size", -1), ("--seed", -1), ("--order", "x")],
    ids=str,
)
def test_words_that_mean_nothing(words, capsys):
    with pytest.raises(SystemExit) as caught:
        train(*words)
    assert caught.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    outs = [tmp_path / "file", tmp_path / "file" / "below"]
    if Path("/proc/self").is_dir():  # there, but closed to everyone
        outs.append(Path("/proc"))
    for out in outs:
        assert train(*QUICK, "--impl", "torch", "--out", out) == 1
        check_one_line(capsys, "--out: expected a folder that can be written to, got")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_disk_that_fills_up_while_training(tmp_path, capsys, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    assert train(*QUICK, "--impl", "torch", "--out", tmp_path) == 1
    err = capsys.readouterr().err
    assert re.search(r"error: cannot write .*checkpoint.pt: No space left on device\n$", err)
    assert list(tmp_path.iterdir()) == []


def test_damaged_mnist(tmp_path, capsys):
    path = write_mnist(tmp_path / "data") / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    words = ("--impl", "torch", "--data-root", tmp_path / "data", "--out", tmp_path / "out")
    assert train(*words) == 1
    check_one_line(capsys, r"t10k-images-idx3-ubyte: expected 15696 bytes .*, got 15596 bytes")
    assert not (tmp_path / "out").exists()


def test_tutorial_without_mnist(tmp_path, capsys, monkeypatch):
    def fail(root):
        raise TrainingError("the download failed: offline")

    monkeypatch.setattr(data, "download_mnist", fail)
    words = ("--recipe", "tutorial", "--impl", "torch", "--data-root", tmp_path / "none")
    assert train(*words, "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("MNIST is not in")  # the attempt is announced
    assert re.search("--recipe tutorial needs MNIST: .*--dataset digits", err[1])
    assert len(err) == 2
    assert list(tmp_path.iterdir()) == []


def test_missing_extension(tmp_path, capsys, monkeypatch):
    def missing():
        raise ImportError("fused_lstm: the compiled extension has not been built; pip install .")

    monkeypatch.setattr(_extension, "require", missing)
    assert train(*QUICK, "--impl", "fused", "--out", tmp_path / "out") == 1
    check_one_line(capsys, "--impl fused: .*has not been built; pip install .*--impl torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["matplotlib", "tqdm", "tensorboard"])
def test_missing_package(package, tmp_path, capsys, monkeypatch):
    known = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == package else known(name))
    words = ("--tensorboard",) if package == "tensorboard" else ()
    assert train(*QUICK, *words, "--out", tmp_path / "out") == 1
    check_one_line(capsys, f"{package}: not installed; python -m pip install {package}")


def test_loss_that_is_no_number(tmp_path, capsys, monkeypatch):
    loss = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *a, **k: loss(*a, **k) * float("nan")
    )
    assert train(*QUICK, "--impl", "torch", "--out", tmp_path) == 1
    assert "error: the loss became nan in epoch 1" in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()
