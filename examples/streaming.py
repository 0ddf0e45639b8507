"""Streaming: a sequence that arrives in pieces gives the same result as the whole at once.

What an LSTM knows of the past is its state (h, c). `Streaming` carries it from piece to piece, and
a call costs what its new steps cost, however long the stream has been.
"""

import torch

from fused_lstm import LSTM, Streaming


def main() -> None:
    torch.manual_seed(0)
    lstm = LSTM(input_size=16, hidden_size=64, num_layers=2).eval()
    x = torch.randn(100, 4, 16)  # four streams of 100 steps

    with torch.no_grad():
        whole, _ = lstm(x)
    stream = Streaming(lstm, batch_size=4)
    pieces = [stream(piece) for piece in x.split([1, 7, 30, 2, 60])]
    difference = (torch.cat(pieces) - whole).abs().max().item()
    print(f"100 steps in pieces of 1, 7, 30, 2 and 60: largest difference {difference:.1e}")

    stream.reset([1])  # another stream begins in row 1
    y = stream(x[:5])
    with torch.no_grad():
        fresh, _ = lstm(x[:5])
    new = (y[:, 1] - fresh[:, 1]).abs().max().item()
    old = (y[:, 0] - fresh[:, 0]).abs().max().item()
    print(f"row 0 goes on from its past: it differs from a fresh start by {old:.2f}")
    assert new < 1e-5 < old
    print(f"row 1 was restarted: it differs by {new:.1e}")


if __name__ == "__main__":
    main()
