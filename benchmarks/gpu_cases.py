"""What the GPU scorecard measures: shapes with their options, precisions, modes, operation counts.

Letters as everywhere: T steps, B rows, I input features, H hidden units. The shapes are sequential
MNIST, FlashRNN's and DeepBench's, language models, speech, single-row latency, and sizes that are
no multiple of 128, where cuDNN has no persistent kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LABELS", "MODES", "PRECISIONS", "QUICK", "SCORECARD", "GpuCase", "flops", "select"]

MODES = (
    "inference",  # forward under no_grad
    "forward",  # forward that keeps what backward needs
    "training",  # forward and backward, gradients of all weights and biases
    "training_dx",  # the same, and the gradient of x
)
PRECISIONS = {  # name: dtype, whether TF32 is allowed (cuDNN's switch for RNNs)
    "bfloat16": ("bfloat16", False),
    "tf32": ("float32", True),
    "float32": ("float32", False),
    "float16": ("float16", False),
}
LABELS = {
    "stepwise": "fused_lstm, stepwise forced",
    "single_block": "fused_lstm, single_block forced",
    "cluster": "fused_lstm, cluster forced",
    "grid": "fused_lstm, grid forced",
    "haste": "haste",
    "flashrnn": "FlashRNN",
}


@dataclass(frozen=True)
class GpuCase:
    """One LSTM and one input. Packed lengths fall from T to T/2 over the rows."""

    T: int
    B: int
    I: int  # noqa: E741  the project's letter for input features
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    packed: bool = False

    @property
    def name(self) -> str:
        """`TxBxIxH` and the options, as `--shapes` reads it."""
        words = [f"{self.T}x{self.B}x{self.I}x{self.H}"]
        words += [f"{self.num_layers}l"] if self.num_layers > 1 else []
        words += ["bi"] if self.bidirectional else []
        words += ["bf"] if self.batch_first else []
        words += ["packed"] if self.packed else []
        return "-".join(words)

    @property
    def group(self) -> str:
        """`resident`: W_hh fits one block of an H100; `large`: it does not."""
        return "resident" if self.H <= 192 else "large"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def lengths(self) -> list[int]:
        """Of every row, longest first."""
        if not self.packed:
            return [self.T] * self.B
        return [self.T - k * (self.T // 2) // self.B for k in range(self.B)]


def flops(case: GpuCase, mode: str) -> float:
    """Operations of the matrix products that the mode cannot do without; see cases.flops."""
    columns = 0.0
    for layer in range(case.num_layers):
        features = case.I if layer == 0 else case.directions * case.H
        forward = features + case.H
        dx = features if layer > 0 or mode == "training_dx" else 0
        columns += forward if mode in ("inference", "forward") else 2 * forward + case.H + dx
    return 2.0 * sum(case.lengths) * 4 * case.H * case.directions * columns


# In the order in which they are measured: what matters most comes first.
SCORECARD = [
    GpuCase(28, 128, 28, 128),  # MNIST by rows
    GpuCase(784, 128, 1, 128),  # MNIST by pixels
    GpuCase(28, 128, 28, 128, batch_first=True),
    GpuCase(100, 64, 128, 128, packed=True),
    GpuCase(28, 50, 28, 100),
    GpuCase(100, 64, 64, 64),
    GpuCase(100, 32, 192, 192),
    GpuCase(200, 1, 128, 128),
    GpuCase(100, 64, 128, 128, bidirectional=True),
    GpuCase(784, 128, 1, 256),
    GpuCase(150, 64, 256, 256),  # DeepBench
    GpuCase(25, 16, 512, 512),
    GpuCase(1024, 16, 768, 768),  # FlashRNN's figure
    GpuCase(1024, 64, 512, 512),
    GpuCase(25, 64, 1024, 1024),
    GpuCase(25, 64, 1024, 1024, batch_first=True),
    GpuCase(50, 16, 1536, 1536),
    GpuCase(35, 20, 650, 650),  # language models
    GpuCase(70, 80, 400, 1150),
    GpuCase(25, 1, 1024, 1024),  # latency
    GpuCase(1000, 32, 1024, 1024),  # speech
    GpuCase(1000, 32, 1024, 1024, num_layers=2, bidirectional=True),
]
QUICK = [SCORECARD[k] for k in (0, 1, 2, 3, 6, 9, 11, 12, 17)]


def select(text: str) -> list[GpuCase]:
    """Reads `--shapes`: `scorecard`, `quick`, or names as GpuCase.name writes them, with commas.

    Raises ValueError with what was expected and what was given.
    """
    found: list[GpuCase] = []
    for part in text.replace(" ", "").split(","):
        named = {"scorecard": SCORECARD, "quick": QUICK}.get(part)
        found += named if named is not None else [_read(part)]
    return list(dict.fromkeys(found))


def _read(text: str) -> GpuCase:
    sizes, *words = text.split("-")
    numbers = sizes.split("x")
    options: dict[str, int | bool] = {}
    for word in words:
        if word.endswith("l") and word[:-1].isdigit():
            options["num_layers"] = int(word[:-1])
        elif word in ("bi", "bf", "packed"):
            key = {"bi": "bidirectional", "bf": "batch_first", "packed": "packed"}[word]
            options[key] = True
        else:
            numbers = []
    if len(numbers) != 4 or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers):
        raise ValueError(
            f"--shapes: expected scorecard, quick or TxBxIxH[-2l][-bi][-bf][-packed], got {text!r}"
        )
    T, B, I, H = (int(n) for n in numbers)  # noqa: E741
    return GpuCase(T, B, I, H, **options)  # type: ignore[arg-type]
