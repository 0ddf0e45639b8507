"""The LSTMs that tools/features.py tries, each behind nn.LSTM's constructor and call.

haste and FlashRNN have no kernels for the CPU. What can be run without a GPU is the code that each
has for it: haste's loop in Python, and FlashRNN's `vanilla` function. An option that they do not
have is a TypeError of theirs, not something that is made up for here.
"""

import importlib.metadata
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fused_lstm


class Implementation(NamedTuple):
    """One column of the table."""

    name: str
    version: str
    ran: str  # what was run of it
    make: Callable[..., nn.Module]  # as nn.LSTM's constructor


class FlashLayer(nn.Module):
    """FlashRNN's function behind the product of the input, which it leaves to its caller."""

    def __init__(
        self, input_size: int, hidden_size: int, heads: int = 1, dtype: Any = torch.float32
    ) -> None:
        from flashrnn import flashrnn as compute  # type: ignore[import-not-found]

        super().__init__()
        self.hidden_size, self.heads, self.compute = hidden_size, heads, compute
        own = hidden_size // heads
        shapes = {
            "weight_ih_l0": (4 * hidden_size, input_size),
            "recurrent": (4, heads, own, own),
            "bias": (4, heads, own),
        }
        for name, shape in shapes.items():
            weight = torch.empty(*shape, dtype=dtype).uniform_(-0.3, 0.3)
            self.register_parameter(name, nn.Parameter(weight))

    def forward(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # x [T, B, I], h and c [1, B, H]
        steps, batch, _ = x.shape
        own = self.hidden_size // self.heads
        product = nn.functional.linear(x, self.weight_ih_l0).transpose(0, 1)
        gates = product.reshape(batch, steps, 4, self.heads, own)
        states: Tensor | None = None  # [S, B, 1, heads, D], h before c
        if hx is not None:
            states = torch.stack(hx).reshape(2, batch, 1, self.heads, own)
        every, last = self.compute(
            *(gates, self.recurrent, self.bias, states),
            function="lstm",
            backend="vanilla",
            dtype=str(x.dtype).removeprefix("torch."),
        )
        h, c = last.reshape(2, 1, batch, self.hidden_size)
        return every[0].flatten(2).transpose(0, 1), (h, c)  # every [S, B, T, heads, D]


def torchs() -> Implementation:
    return Implementation("nn.LSTM", f"torch {torch.__version__}", "on the CPU", nn.LSTM)


def ours() -> Implementation:
    return Implementation("fused_lstm", fused_lstm.__version__, "on the CPU", fused_lstm.LSTM)


def flashrnn() -> Implementation:
    """FlashRNN, where it is installed.

    Raises:
        ImportError: it is not.
    """
    import flashrnn as _  # type: ignore[import-not-found] # noqa: F401

    version = importlib.metadata.version("flashrnn")
    ran = "its function `vanilla`, the one for the CPU, behind a product of the input"
    return Implementation("FlashRNN, vanilla", version, ran, FlashLayer)


def haste(sdist: Path, folder: Path) -> Implementation:
    """Haste's own Python from its sdist, with an empty module in place of its CUDA library.

    The library is imported, but not called for tensors on the CPU. It cannot be built with the
    CUDA of today: "nvcc fatal: Unsupported gpu architecture 'compute_37'".

    Args:
        sdist: what `pip download --no-deps --no-build-isolation haste_pytorch` leaves.
        folder: receives its Python.
    """
    with tarfile.open(sdist) as tar:
        for member in tar.getmembers():
            found = re.fullmatch(r"[^/]+/frameworks/pytorch/([^/]+\.py)", member.name)
            if found:
                target = folder / "haste_pytorch" / found[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
    match = re.search(r"haste_pytorch-(.+)\.tar\.gz$", sdist.name)
    version = match[1] if match else "unknown"
    (folder / "haste_pytorch" / "_version.py").write_text(f"__version__ = {version!r}\n")
    (folder / "haste_pytorch_lib.py").touch()
    sys.path.insert(0, str(folder))
    ran = (
        "its Python for the CPU, without its CUDA library; it could not be built, for it compiles "
        "for capability 3.7 first, which nvcc 13.0 refuses"
    )
    return Implementation("haste, CPU code", version, ran, make_haste)


def make_haste(*args: Any, dtype: torch.dtype | None = None, **options: Any) -> nn.Module:
    import haste_pytorch  # type: ignore[import-not-found]

    module: nn.Module = haste_pytorch.LSTM(*args, **options)
    return module if dtype is None else module.to(dtype)
