"""Streaming: a sequence that arrives in pieces gives the same result as the whole at once.

What an LSTM knows of the past is its state (h, c). Carry it from piece to piece, and a call costs
what its new steps cost, however long the stream has been.
"""

import torch
from torch import Tensor, nn

from fused_lstm import LSTM

State = tuple[Tensor, Tensor]


class Stream:
    """Feeds pieces [T, B, features] of one stream to an LSTM and remembers its state."""

    def __init__(self, lstm: nn.Module) -> None:
        self.lstm = lstm
        self.state: State | None = None  # None: zeros

    @torch.no_grad()
    def feed(self, piece: Tensor) -> Tensor:
        """Outputs [T, B, H] of the new steps."""
        y, self.state = self.lstm(piece, self.state)
        return y

    def restart(self, rows: Tensor) -> None:
        """Forgets the past of some rows [B] (bool): other streams begin there."""
        if self.state is not None:
            keep = (~rows).float().unsqueeze(-1)  # [B, 1], for states [L, B, H]
            self.state = (self.state[0] * keep, self.state[1] * keep)


def main() -> None:
    torch.manual_seed(0)
    lstm = LSTM(input_size=16, hidden_size=64, num_layers=2).eval()
    x = torch.randn(100, 4, 16)  # four streams of 100 steps

    with torch.no_grad():
        whole, _ = lstm(x)
    stream = Stream(lstm)
    pieces = [stream.feed(piece) for piece in x.split([1, 7, 30, 2, 60])]
    difference = (torch.cat(pieces) - whole).abs().max().item()
    print(f"100 steps in pieces of 1, 7, 30, 2 and 60: largest difference {difference:.1e}")

    stream.restart(torch.tensor([False, True, False, False]))
    y = stream.feed(x[:5])
    with torch.no_grad():
        fresh, _ = lstm(x[:5])
    new = (y[:, 1] - fresh[:, 1]).abs().max().item()
    old = (y[:, 0] - fresh[:, 0]).abs().max().item()
    print(f"row 0 goes on from its past: it differs from a fresh start by {old:.2f}")
    assert new < 1e-5 < old
    print(f"row 1 was restarted: it differs by {new:.1e}")


if __name__ == "__main__":
    main()
