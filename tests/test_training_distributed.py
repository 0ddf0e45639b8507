"""Two processes of torchrun compute what one does at the same global batch."""

import subprocess
import sys

import pytest
import torch
from training_cases import IMPLS, PACKAGE_PARENT, train, weights

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# 1437 images: four steps of 359 and one of a single image, of which the second process has none.
WORDS = (
    "--dataset", "digits", "--threads", "1", "--epochs", "2", "--batch-size", "359",
)  # fmt: skip
# Adam divides a gradient by its own size, so that rounding in a gradient near zero can move a
# weight by a share of the learning rate (2e-3 at most). Seen: 1.2e-7 with torch's LSTM; gradients
# weighed wrongly in the uneven last batch move weights by 1.5e-3.
TOLERANCE = 1e-5


def torchrun(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*TORCHRUN, "-m", "fused_lstm.training", *map(str, words)],
        cwd=PACKAGE_PARENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
def test_two_processes_equal_one(impl, tmp_path):
    result = torchrun(*WORDS, "--impl", impl, "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith("data set:") for line in lines) == 1  # one process speaks
    assert any("2 process(es)" in line for line in lines)
    assert train(*WORDS, "--impl", impl, "--out", tmp_path / "one") == 0

    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    worst = max((one[name] - two[name]).abs().max().item() for name in one)
    assert worst < TOLERANCE
    histories = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["progress"]["history"]
        for name in ("one", "two")
    ]
    for a, b in zip(*histories, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["train_accuracy"] == pytest.approx(b["train_accuracy"], abs=2 / 1437)


def test_what_the_user_can_mend_is_said_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = torchrun(*WORDS, "--impl", "torch", "--out", tmp_path / "file")
    assert result.returncode != 0
    assert result.stderr.count("fused_lstm.training: error: --out: expected a folder") == 1
