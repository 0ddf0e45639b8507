"""A layer whose forward keeps the states of every so many steps only, and whose backward runs each
such piece again.

The pieces are calls of the layer itself, kept by `torch.utils.checkpoint`; between two of them go h
and c. What is alive at once is input, output, their gradients, the states between pieces, and what
one piece keeps. Chen et al. (2016), https://arxiv.org/abs/1604.06174; for recurrent networks
Gruslys et al. (2016), https://arxiv.org/abs/1606.03401.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .ops import WEIGHT_SLOTS

__all__ = ["in_pieces"]

_HALF = WEIGHT_SLOTS // 2
_HALVES = (torch.bfloat16, torch.float16)


def in_pieces(
    layer: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],  # see marked.marked_layer
    steps: int,
    x: Tensor,  # [T, B, I]
    marks: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights_options: Any,  # ten weights, keep, h_factors, zoneout_h, zoneout_c, recompute, cells
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `layer` gives, piece by piece. Both directions run apart, the second from the end."""
    ten, (keep, h_factors, *scalars) = (
        weights_options[:WEIGHT_SLOTS],
        weights_options[WEIGHT_SLOTS:],
    )
    directions = 1 if ten[_HALF] is None else 2
    results = []
    for d in range(directions):
        h, c, factors = (t if t is None else t[d : d + 1] for t in (h0, c0, h_factors))
        kept = None if keep is None else keep.chunk(directions, dim=2)[d]
        weights = ten[d * _HALF : (d + 1) * _HALF]
        results.append(
            _direction(layer, steps, x, marks, kept, h, c, factors, weights, scalars, d == 1)
        )
    y, h_n, c_n, cells = zip(*results, strict=True)
    wanted = scalars[-1]
    return (
        torch.cat(y, dim=2),
        torch.cat(h_n),
        torch.cat(c_n),
        torch.cat(cells, dim=2) if wanted else cells[0],
    )


def _direction(
    layer: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    steps: int,
    x: Tensor,
    marks: Tensor | None,
    keep: Tensor | None,  # [T, B, H]
    h: Tensor | None,  # [1, B, P]
    c: Tensor | None,
    h_factors: Tensor | None,
    weights: Sequence[Tensor | None],
    scalars: Sequence[Any],
    reverse: bool,
) -> tuple[Tensor, Any, Any, Tensor]:
    # Gradients of weights are summed over pieces: in float32, also where the weights are halves.
    dtype = x.dtype
    wide = [t.float() if t is not None and dtype in _HALVES else t for t in weights]

    def piece(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own_x, own_marks, own_keep, h, c, h_factors, *own = tensors
        own = [None if t is None else t.to(dtype) for t in own]
        none = (None,) * _HALF
        return layer(own_x, own_marks, h, c, *own, *none, own_keep, h_factors, *scalars)

    def part(t: Tensor | None, k: slice) -> Any:
        return t if t is None else t[k].flip(0) if reverse else t[k]

    begins = range(0, x.shape[0], steps)
    results = []
    for begin in reversed(begins) if reverse else begins:
        own = [part(t, slice(begin, begin + steps)) for t in (x, marks, keep)]
        y, h, c, cells = checkpoint(
            piece, *own, h, c, h_factors, *wide, use_reentrant=False, preserve_rng_state=False
        )
        wanted = scalars[-1]
        results.append((y.flip(0), cells.flip(0) if wanted else cells) if reverse else (y, cells))
    ys, cells_of = zip(*(reversed(results) if reverse else results), strict=True)
    return torch.cat(ys), h, c, torch.cat(cells_of)
