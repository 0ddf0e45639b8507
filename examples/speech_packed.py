"""Utterances of different lengths, as speech has them: packed, so that no padding is computed.

An "utterance" is a made-up spectrogram, 20 to 60 frames of 24 bands in which a ridge rises, falls,
stays or wavers: four words. Both directions read it; the word is named from their final states.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fused_lstm import LSTM

BANDS = 24


class WordReader(nn.Module):
    """Packed utterances -> scores of four words [B, 4]."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = LSTM(BANDS, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 4)

    def forward(self, utterances: PackedSequence) -> Tensor:
        _, (h_n, _) = self.lstm(utterances)
        # h_n [2, B, H]: forward after its last frame, reverse after the first, each row's own. With
        # padding instead of packing, the padded frames would have been read as well.
        return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1))


def utterance(word: int) -> Tensor:
    """Frames [T, BANDS] of a word, T from 20 to 60."""
    frames = int(torch.randint(20, 61, ()))
    t = torch.linspace(0, 1, frames)
    paths = (t, 1 - t, torch.full_like(t, 0.5), 0.5 + 0.3 * torch.sin(4 * math.pi * t))
    ridge = 4 + 16 * paths[word] + torch.randn(()) * 1.5
    bands = torch.arange(BANDS, dtype=torch.float32)
    spectrum = torch.exp(-0.3 * (bands - ridge.unsqueeze(1)).square())
    return spectrum + 0.3 * torch.randn(frames, BANDS)


def batch(rows: int) -> tuple[PackedSequence, Tensor]:
    """Utterances in no order of length, and their words [B]."""
    words = torch.randint(0, 4, (rows,))
    return pack_sequence([utterance(int(w)) for w in words], enforce_sorted=False), words


def main() -> None:
    torch.manual_seed(0)
    model = WordReader()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1, 61):
        utterances, words = batch(32)
        loss = nn.functional.cross_entropy(model(utterances), words)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    utterances, words = batch(400)
    with torch.no_grad():
        accuracy = (model(utterances).argmax(1) == words).float().mean().item()
    frames = len(utterances.data)
    padded = 400 * len(utterances.batch_sizes)
    print(f"400 utterances: {frames} frames computed, {padded} if they were padded")
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
