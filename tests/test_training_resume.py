"""A run that was killed goes on to the same bits, and goes on from nothing that does not fit."""

import os
import pickle
import re
import signal
import subprocess
import time

import pytest
import torch
from training_cases import COMMAND, IMPLS, PACKAGE_PARENT, QUICK, train, weights, write_mnist

from fused_lstm.training import cli
from fused_lstm.training.files import write_atomically


def same(one, two) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("impl", IMPLS)
def test_resume_after_kill_9_ends_with_the_same_bits(impl, tmp_path, capsys):
    words = [*QUICK, "--impl", impl, "--checkpoint-steps", "1", "--epochs", "4"]
    assert train(*words, "--out", tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*COMMAND, *words, "--out", str(killed)],
        cwd=PACKAGE_PARENT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("epoch 2/4"):
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (killed / "model.pt").exists()

    capsys.readouterr()
    assert train("--resume", "--impl", impl, "--out", killed) == 0
    out = capsys.readouterr().out
    assert re.search(r"resumed: .* [23] epochs and \d+ steps done", out)
    assert "epoch 1/4" not in out
    assert same(tmp_path / "whole", killed)
    assert not list(killed.glob("*.tmp"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of runs that nothing stopped, by recipe."""
    folders = {}
    for recipe in ("default", "tutorial"):
        folders[recipe] = tmp_path_factory.mktemp(recipe)
        words = (*QUICK, "--impl", "torch", "--recipe", recipe)
        assert train(*words, "--out", folders[recipe]) == 0
    return folders


@pytest.mark.parametrize(
    ("recipe", "writes"),
    [("default", 1), ("default", 3), ("default", 5), ("default", 6), ("tutorial", 7)],
)
def test_resume_from_any_checkpoint(recipe, writes, whole, tmp_path, monkeypatch):
    """Stops after so many checkpoints: one at first, then 4 (default) or 5 in each epoch."""
    words = (*QUICK, "--impl", "torch", "--recipe", recipe, "--checkpoint-steps", 7)
    count = 0

    def write_then_stop(path, state):
        nonlocal count
        write(path, state)
        count += 1
        if count == writes:
            raise KeyboardInterrupt

    write = cli.write_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_checkpoint", write_then_stop)
        assert train(*words, "--out", tmp_path / "stopped") == 130
    torch.manual_seed(12345)  # the generator's state comes from the checkpoint too
    assert train("--resume", "--out", tmp_path / "stopped") == 0
    assert same(whole[recipe], tmp_path / "stopped")

    def history(out):
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        return [entry["train_loss"] for entry in state["progress"]["history"]]

    assert history(whole[recipe]) == history(tmp_path / "stopped")


def test_resume_of_a_finished_run_changes_nothing(tmp_path, capsys):
    assert train(*QUICK, "--impl", "torch", "--out", tmp_path) == 0
    before, last = weights(tmp_path), capsys.readouterr().out.splitlines()[-1]
    assert train("--resume", "--out", tmp_path) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[-1].split(";")[0] == last.split(";")[0]
    assert all(torch.equal(before[name], weight) for name, weight in weights(tmp_path).items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the checkpoint of one epoch, to be copied."""
    out = tmp_path_factory.mktemp("finished")
    assert train("--dataset", "digits", "--impl", "torch", "--epochs", 1, "--out", out) == 0
    return out


class Shell:
    """Runs a command when unpickled without care."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def change(path, **entries):
    state = torch.load(path, weights_only=True)
    state.update(entries)
    torch.save(state, path)


def shrink(path):
    state = torch.load(path, weights_only=True)
    state["model"]["head.weight"] = torch.zeros(10, 64)
    torch.save(state, path)


def flip(path):
    """One bit in the middle, where the weights are: torch.load alone reads past it."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


BAD_CHECKPOINTS = {
    "none": (lambda path: path.unlink(), (), "expected a checkpoint at"),
    "torn": (lambda path: os.truncate(path, path.stat().st_size // 2), (), "torn"),
    "empty": (lambda path: path.write_bytes(b""), (), "torn"),
    "one bit": (flip, (), "damaged"),
    "text": (lambda path: path.write_text("hello"), (), "torn or not one"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Shell())), (), "torn or not one"),
    "code inside": (lambda path: torch.save(Shell(), path), (), "torn or not one"),
    "something else": (lambda path: torch.save({"model": {}}, path), (), "something else"),
    "another shape": (
        shrink, (), r"shape of head.weight: expected \(10, 128\) .* got \(10, 64\)"
    ),
    "other weights": (lambda path: change(path, model={}), (), "names of weights"),
    "another optimizer": (lambda path: change(path, optimizer={}), (), "does not fit"),
    "another recipe": (lambda path: None, ("--recipe", "tutorial"), "expected tutorial"),
    "another order": (lambda path: None, ("--order", "pixel"), "expected pixel .* got row"),
    "another batch": (lambda path: None, ("--batch-size", 50), "--batch-size: expected 50"),
    "more epochs": (lambda path: None, ("--epochs", 9), "--epochs: expected 9 .* got 1"),
    "other data by name": (lambda path: None, ("--dataset", "mnist"), "--dataset: expected mnist"),
    "other data": (lambda path: change(path, data=1), (), "fingerprint of the data set"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoint_is_one_line_and_stays_as_it_was(
    case, finished, tmp_path, capsys, monkeypatch
):
    damage, words, message = BAD_CHECKPOINTS[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((finished / "checkpoint.pt").read_bytes())
    damage(path)
    before = path.read_bytes() if path.exists() else None
    assert train("--resume", *words, "--out", tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err), captured.err
    assert (path.read_bytes() if path.exists() else None) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (
        [path.name] if before is not None else []
    )


def test_resume_on_changed_mnist_is_refused(tmp_path, capsys):
    folder = write_mnist(tmp_path / "data")
    words = ("--data-root", tmp_path / "data", "--out", tmp_path / "out")
    assert train("--impl", "torch", "--epochs", 1, *words) == 0
    with open(folder / "train-images-idx3-ubyte", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xfe\xfd")
    capsys.readouterr()
    assert train("--resume", *words) == 1
    assert "fingerprint of the data set" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with write_atomically(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
