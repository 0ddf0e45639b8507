"""A few short calls for compute-sanitizer: every family and dtype, forward and backward, T <= 8.

    compute-sanitizer --tool memcheck python tests/gpu/sanitized.py

Odd sizes, so that tails are masked in every direction; what is computed is not looked at, only what
is touched. Not a test file: under the sanitizer each kernel takes a thousand times as long.
"""

import sys

import torch
from families import FAMILIES, forced
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_lstm

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def step(module: torch.nn.Module, x: Tensor | PackedSequence) -> None:
    """Inference, then forward and backward."""
    with torch.no_grad():
        module(x)
    y, (h_n, c_n) = module(x)
    y = y.data if isinstance(y, PackedSequence) else y
    (y.sum() + h_n.sum() + c_n.sum()).backward()


def main() -> int:
    """Runs the calls, says what was refused, and ends with a line that proves the end was seen."""
    for family in FAMILIES:
        for dtype in DTYPES:
            tf32 = (False, True) if dtype == torch.float32 else (False,)
            for allowed in tf32:
                torch.backends.cudnn.allow_tf32 = allowed
                for I, H in ((28, 64), (3, 37)):  # noqa: E741
                    module = fused_lstm.LSTM(I, H, bidirectional=True, device="cuda", dtype=dtype)
                    rows = [torch.randn(n, I, device="cuda", dtype=dtype) for n in (8, 5, 5, 1)]
                    padded = torch.randn(7, 3, I, device="cuda", dtype=dtype)
                    try:
                        with forced(family):
                            step(module, padded)
                            step(module, pack_sequence(rows))
                    except RuntimeError as refusal:
                        if family not in str(refusal):
                            raise
                        print(f"{family}, {dtype}, H = {H}: refused ({refusal})")
    for dtype in (torch.float32, torch.float64):
        for layer_norm in (False, True):
            variant = fused_lstm.VariantLSTM(
                3, 37, layer_norm=layer_norm, peepholes=True, device="cuda", dtype=dtype
            )
            step(variant, torch.randn(7, 3, 3, device="cuda", dtype=dtype))
    torch.cuda.synchronize()
    print("sanitized.py: done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
