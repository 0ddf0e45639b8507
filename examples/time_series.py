"""Forecasting: 48 values of a noisy signal in, the next 12 out, all at once from the last state.

The signal is two waves of different length and a trend that comes and goes; every window is scaled
by its own mean and deviation, so that the model sees shapes and not levels.
"""

import torch
from torch import Tensor, nn

from fused_lstm import LSTM

SEEN, AHEAD = 48, 12


class Forecaster(nn.Module):
    """Windows [B, SEEN] -> the next values [B, AHEAD]."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.lstm = LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, AHEAD)

    def forward(self, window: Tensor) -> Tensor:
        mean = window.mean(1, keepdim=True)
        deviation = window.std(1, keepdim=True) + 1e-6
        scaled = (window - mean) / deviation
        _, (h_n, _) = self.lstm(scaled.unsqueeze(-1))  # one feature per step
        return self.head(h_n[-1]) * deviation + mean


def signal(length: int) -> Tensor:
    """The series [length], with noise of deviation 0.1."""
    t = torch.arange(length, dtype=torch.float32)
    waves = torch.sin(t / 4) + 0.5 * torch.sin(t / 11)
    return waves + torch.sin(t / 300) + 0.1 * torch.randn(length)


def main() -> None:
    torch.manual_seed(0)
    series = signal(3000)
    windows = series.unfold(0, SEEN + AHEAD, 1)  # [N, SEEN + AHEAD], a view
    learn, test = windows[:2300], windows[2400:]  # the test comes later in time, with a gap

    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(1, 9):
        for batch in torch.randperm(len(learn)).split(64):
            window, future = learn[batch].split([SEEN, AHEAD], dim=1)
            loss = nn.functional.mse_loss(model(window), future)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}")

    window, future = test.split([SEEN, AHEAD], dim=1)
    with torch.no_grad():
        error = (model(window) - future).square().mean().sqrt().item()
    naive = (window[:, -1:] - future).square().mean().sqrt().item()
    print(f"root mean square error of repeating the last value {naive:.3f}")
    print(f"root mean square error of the forecast {error:.3f}")


if __name__ == "__main__":
    main()
