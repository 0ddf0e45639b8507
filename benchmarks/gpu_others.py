"""haste and FlashRNN as modules like nn.LSTM, where they are installed.

Written without a GPU: what could be run of them there, haste's Python for the CPU (0.5.0rc0) and
FlashRNN's `vanilla` (1.0.8), agreed with nn.LSTM within float32's rounding. What they compute is
checked against nn.LSTM before they are timed, like everyone: a wrong order of gates here shows as a
disagreement in the report, not as a figure. FlashRNN compiles its kernels at the first call of
every batch size, which takes minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from benchmarks.gpu_peers import GpuWork

__all__ = ["flashrnn", "haste"]


def haste(work: GpuWork) -> nn.Module:
    """haste_pytorch.LSTM: gates i, g, f, o, one bias, kernels [features, 4H], float32."""
    import haste_pytorch  # type: ignore[import-not-found]

    def reordered(name: str) -> Tensor:
        i, f, g, o = work.weights[name].chunk(4)
        return torch.cat([i, g, f, o])

    module: nn.Module = haste_pytorch.LSTM(work.case.I, work.case.H).to(work.device, work.dtype)
    with torch.no_grad():
        module.kernel.copy_(reordered("weight_ih_l0").t())  # type: ignore[operator, union-attr]
        module.recurrent_kernel.copy_(reordered("weight_hh_l0").t())  # type: ignore[operator, union-attr]
        module.bias.copy_(reordered("bias_ih_l0") + reordered("bias_hh_l0"))  # type: ignore[operator, union-attr]
    return module


def flashrnn(work: GpuWork) -> nn.Module:
    """FlashRNN's fused LSTM with one head, behind the projection of the input that it lacks."""
    from flashrnn import flashrnn as compute  # type: ignore[import-not-found]

    hidden = work.case.H
    weights = {k: v.to(work.device, work.dtype) for k, v in work.weights.items()}
    recurrent = weights["weight_hh_l0"].view(4, 1, hidden, hidden)
    bias = (weights["bias_ih_l0"] + weights["bias_hh_l0"]).view(4, 1, hidden)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Any]:  # x [T, B, I]
            steps, batch, _ = x.shape
            projected = nn.functional.linear(x, weights["weight_ih_l0"]).transpose(0, 1)
            gates = projected.reshape(batch, steps, 4, 1, hidden)
            dtype = str(work.dtype).removeprefix("torch.")
            states, last = compute(gates, recurrent, bias, function="lstm", dtype=dtype)
            h, (h_n, c_n) = states[0], last[:2]  # [B, T, 1, H], states in the order h, c
            return h.squeeze(2).transpose(0, 1), (
                h_n.reshape(1, batch, hidden),
                c_n.reshape(1, batch, hidden),
            )

    return Layer()
