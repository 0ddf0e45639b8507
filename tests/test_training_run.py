"""`python -m fused_lstm.training` ends with a trained model, and says on what it was trained."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import COMMAND, IMPLS, PACKAGE_PARENT, QUICK, train, weights, write_mnist

from fused_lstm.training import TrainingError, data
from fused_lstm.training.model import build_model
from fused_lstm.training.recipes import recipe_for, sum_loss

DATA_ROOT = Path(os.environ.get("DATA_ROOT", PACKAGE_PARENT / "../shared/data"))


@pytest.mark.parametrize("impl", IMPLS)
def test_leaves_model_plot_and_figures_and_names_the_data_set(impl, tmp_path, capsys):
    assert train(*QUICK, "--impl", impl, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data set: scikit-learn digits, 1437 training and 360 test images")
    assert lines[1].startswith(f"kernel: {'fused_lstm' if impl == 'fused' else 'torch.nn'}.LSTM")
    assert lines[-1].startswith("scikit-learn digits: test accuracy 0.")

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt", "metrics.json", "model.pt", "training.png",
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dataset"]["name"] == "scikit-learn digits"
    assert metrics["kernel"] in lines[1]
    assert [entry["epoch"] for entry in metrics["epochs"]] == [1, 2]
    right = sum(metrics["confusion"][digit][digit] for digit in range(10))
    assert right / 360 == pytest.approx(metrics["test_accuracy"])
    assert metrics["test_accuracy"] > 0.6
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")

    model = nn.Module()
    model.lstm, model.head = nn.LSTM(28, 128, batch_first=True), nn.Linear(128, 10)
    model.load_state_dict(weights(tmp_path))


def test_plot_title_names_the_data_set(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "fused_lstm.training.report.write_plot", lambda path, title, *_: titles.append(title)
    )
    write_mnist(tmp_path / "data")
    out = ("--impl", "torch", "--out", tmp_path / "out")
    assert train(*QUICK, *out) == 0
    assert train("--data-root", tmp_path / "data", "--epochs", 1, *out) == 0
    assert titles[0].startswith("scikit-learn digits, row by row")
    assert titles[1].startswith("MNIST, row by row")


@pytest.mark.parametrize("impl", IMPLS)
def test_without_mnist_the_digits_of_scikit_learn_reach_97_percent(
    impl, tmp_path, capsys, monkeypatch
):
    def no_network(root):
        raise TrainingError("the download failed: no route to host")

    monkeypatch.setattr(data, "download_mnist", no_network)
    words = ("--impl", impl, "--threads", 1, "--data-root", tmp_path / "none", "--out", tmp_path)
    assert train(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scikit-learn digits" in lines[0]
    assert "because MNIST is not in" in lines[0]
    assert "no route to host" in lines[0]
    assert float(re.search(r"test accuracy (\S+)", lines[-1])[1]) >= 0.97


def test_tutorial_prints_its_own_line_after_each_epoch(tmp_path, capsys):
    assert train(*QUICK, "--recipe", "tutorial", "--impl", "torch", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^Iter \d+, Testing Accuracy= 0\.\d{1,4}$", out, re.M) == [
        line for line in out.splitlines() if line.startswith("Iter")
    ]
    assert re.findall(r"^Iter (\d+)", out, re.M) == ["0", "1"]


def test_tutorial_starts_as_basic_lstm_cell_does():
    recipe = recipe_for("tutorial", "row")
    model = build_model(recipe, "torch", 28, 28)
    hidden = 100
    assert (recipe.hidden_size, recipe.batch_size, recipe.learning_rate, recipe.epochs) == (
        hidden, 50, 1e-4, 6,
    )  # fmt: skip
    kernel = torch.cat([model.lstm.weight_ih_l0, model.lstm.weight_hh_l0], dim=1)  # [4H, I+H]
    limit = (6 / (28 + hidden + 4 * hidden)) ** 0.5
    assert 0.99 * limit < kernel.abs().max() <= limit
    assert kernel.std().item() == pytest.approx(limit / 3**0.5, rel=0.01)
    bias = model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0
    assert bias.unflatten(0, (4, hidden)).mean(1).tolist() == [0, 1, 0, 0]  # i f g o
    assert model.head.weight.abs().max() <= 0.2
    assert model.head.bias.unique().tolist() == [pytest.approx(0.1)]


def test_tutorial_applies_softmax_before_the_softmax_cross_entropy():
    logits, labels = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
    twice = -logits.softmax(1).softmax(1)[0, 0].log().item()
    once = -logits.softmax(1)[0, 0].log().item()
    assert sum_loss(recipe_for("tutorial", "row"), logits, labels).item() == pytest.approx(twice)
    assert sum_loss(recipe_for("default", "row"), logits, labels).item() == pytest.approx(once)


@pytest.mark.parametrize("order", ["pixel", "permuted"])
@pytest.mark.parametrize("impl", IMPLS)
def test_pixel_orders_train(impl, order, tmp_path):
    write_mnist(tmp_path / "data")
    words = ("--order", order, "--impl", impl, "--threads", 1, "--epochs", 1, "--batch-size", 20)
    assert train(*words, "--data-root", tmp_path / "data", "--out", tmp_path / "out") == 0
    assert weights(tmp_path / "out")["lstm.weight_ih_l0"].shape == (4 * 128, 1)


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    write_mnist(tmp_path / "data")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        words = (
            "--data-root",
            tmp_path / "data",
            "--epochs",
            1,
            "--impl",
            "torch",
            "--seed",
            seed,
            "--out",
            tmp_path / name,
        )
        assert train(*words) == 0
    a, b, c = (weights(tmp_path / name)["head.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_progress_bar_shows_loss_accuracy_and_speed(tmp_path):
    """On a terminal only, such as this pseudo-terminal."""
    words = [*COMMAND, *QUICK, "--impl", "torch", "--out", str(tmp_path)]
    leader, follower = pty.openpty()
    size = struct.pack("4H", 24, 120, 0, 0)  # a new one has no columns: there tqdm draws nothing
    fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=follower, cwd=PACKAGE_PARENT, close_fds=True
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # how Linux tells that the other end was closed
        pass
    finally:
        os.close(leader)
    assert process.wait() == 0
    text = shown.decode()
    assert re.search(r"epoch 1/2 .* \d+/23, .* steps/s, loss \d\.\d{4}, accuracy \d\.\d{4}", text)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use here")
def test_cuda_device_trains(tmp_path):
    assert train(*QUICK, "--device", "cuda", "--out", tmp_path) == 0


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    assert train(*QUICK, "--impl", "torch", "--tensorboard", "--out", tmp_path) == 0
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.skipif(
    not (DATA_ROOT / "MNIST" / "raw").is_dir(),
    reason="MNIST lies neither at ../shared/data nor where DATA_ROOT says",
)
def test_real_mnist(tmp_path, capsys):
    """Six epochs at the recipe's batch reach 98.8 %; 240 steps, which a test can afford, 93 %."""
    words = ("--epochs", 1, "--batch-size", 250, "--threads", 1, "--data-root", DATA_ROOT)
    assert train(*words, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data set: MNIST, 60000 training and 10000 test images")
    assert lines[-1].startswith("MNIST: test accuracy")
    assert json.loads((tmp_path / "metrics.json").read_text())["test_accuracy"] > 0.93
