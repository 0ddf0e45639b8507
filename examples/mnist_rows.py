"""A digit read row by row: an image is a sequence of rows, and the last state names the digit.

    python examples/mnist_rows.py                     # scikit-learn's digits, part of the package
    python examples/mnist_rows.py --mnist data        # MNIST, if data/MNIST/raw holds it

The loop is the whole of training; `python -m fused_lstm.training` is the same with checkpoints,
several processes and a report.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from fused_lstm import LSTM
from fused_lstm.training.data import load_digit_set


class RowReader(nn.Module):
    """Images [B, 28, 28] -> scores of ten digits [B, 10]."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.lstm = LSTM(28, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        _, (h_n, _) = self.lstm(images)  # each row is one step
        return self.head(h_n[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="the folder that holds MNIST/raw")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    torch.manual_seed(0)

    name = "mnist" if options.mnist else "digits"
    digits = load_digit_set(name, options.mnist or Path("data"), "default")
    images, labels = digits.train_images.float() / 255, digits.train_labels
    test_images, test_labels = digits.test_images.float() / 255, digits.test_labels
    print(f"{digits.name}: {len(images)} images to learn from, {len(test_images)} to test with")

    model = RowReader()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(1, options.epochs + 1):
        for batch in torch.randperm(len(images)).split(50):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
        print(f"epoch {epoch:2d}: loss {loss.item():.3f}, test accuracy {accuracy.item():.3f}")


if __name__ == "__main__":
    main()
