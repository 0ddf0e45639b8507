"""The specification: what an LSTM computes, in plain PyTorch, with nothing hidden.

Read this page first. Every kernel of the package computes what `lstm_cell` says, and the tests hold
them to it; the page itself is held to `torch.nn.LSTM` in float64. It is slow, and differentiable to
any order in reverse and forward mode because it only uses PyTorch's own operators, none in place.
That is why second derivatives and forward mode run through it.

Letters: T steps, B rows (batch), I input features, H hidden units, P size of h (proj_size, or H),
D directions, N = sum(batch_sizes) rows of a packed input. Gates stand in torch's order: i, f, g, o.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

__all__ = [
    "LAYER_NORM_EPSILON",
    "lstm",
    "lstm_cell",
    "lstm_direction",
    "lstm_layer",
    "marked_direction",
    "marked_layer",
    "variant_cell",
    "variant_direction",
    "variant_input",
]

LAYER_NORM_EPSILON = 1e-5  # as torch.nn.LayerNorm has it


def lstm_cell(
    x: Tensor,  # [B, I]
    h: Tensor,  # [B, P]
    c: Tensor,  # [B, H]
    w_ih: Tensor,  # [4H, I]
    w_hh: Tensor,  # [4H, P]
    b_ih: Tensor | None = None,  # [4H]
    b_hh: Tensor | None = None,  # [4H]
    w_hr: Tensor | None = None,  # [P, H], projects h: https://arxiv.org/abs/1402.1128
) -> tuple[Tensor, Tensor]:
    """One step for a batch: returns the new h [B, P] and c [B, H]."""
    gates = linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else linear(h, w_hr)), c


def lstm_direction(
    steps: Sequence[Tensor],  # T tensors [b_t, I], b_t never growing: the rows still running at t
    h: Tensor,  # [B, P], B = b_0
    c: Tensor,  # [B, H]
    weights: Sequence[Tensor | None],  # w_ih, w_hh, b_ih, b_hh, w_hr
    reverse: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One direction over a whole sequence: returns T outputs [b_t, P], h_n [B, P] and c_n [B, H].

    Rows past b_t keep their state. Going forward such a row has ended and holds its final state;
    going in reverse it has not begun and still holds the initial one. So h and c are h_n and c_n in
    the end, whichever the direction.
    """
    outputs: list[Tensor] = [h] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        running = steps[t].shape[0]
        h_t, c_t = lstm_cell(steps[t], h[:running], c[:running], *weights)  # type: ignore[arg-type]
        outputs[t] = h_t
        h = torch.cat([h_t, h[running:]]) if running < h.shape[0] else h_t
        c = torch.cat([c_t, c[running:]]) if running < c.shape[0] else c_t
    return outputs, h, c


def lstm_layer(
    x: Tensor,  # [T, B, I], or packed [N, I]
    batch_sizes: Tensor | None,  # [T] on the CPU when x is packed
    h0: Tensor | None,  # [D, B, P], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights: Tensor | None,  # w_ih, w_hh, b_ih, b_hh, w_hr, then the same for reverse or None
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, one direction or both: the same arguments and results as the fused operator.

    Returns y `[T, B, D*P]` (packed: `[N, D*P]`), h_n [D, B, P] and c_n [D, B, H].
    """
    steps = x.unbind(0) if batch_sizes is None else x.split(batch_sizes.tolist())
    ys, hs, cs = [], [], []
    for d, own in enumerate((weights[:5], weights[5:])):
        if not own or own[0] is None or own[1] is None:
            continue
        gates, p = own[1].shape  # w_hh [4H, P]
        h = x.new_zeros(len(steps[0]), p) if h0 is None else h0[d]
        c = x.new_zeros(len(steps[0]), gates // 4) if c0 is None else c0[d]
        outputs, h, c = lstm_direction(steps, h, c, own, reverse=d == 1)
        ys.append(torch.stack(outputs) if batch_sizes is None else torch.cat(outputs))
        hs.append(h)
        cs.append(c)
    return torch.cat(ys, dim=-1), torch.stack(hs), torch.stack(cs)


# Of h and of c: which units keep their value, bool [T, B, units], or what share of it stays.
Zoneout = tuple[Tensor, Tensor] | tuple[float, float]


def _kept(zoneout: Tensor | float, t: int, before: Tensor, now: Tensor) -> Tensor:
    if isinstance(zoneout, Tensor):
        return torch.where(zoneout[t], before, now)
    return zoneout * before + (1 - zoneout) * now


def marked_direction(
    x: Tensor,  # [T, B, I]
    reset: Tensor | None,  # [T, B] bool: h and c of the row are cleared before this step
    ended: Tensor | None,  # [T, B] bool: the row has no such step
    h: Tensor,  # [B, P]
    c: Tensor,  # [B, H]
    weights: Sequence[Tensor | None],  # w_ih, w_hh, b_ih, b_hh, w_hr
    reverse: bool = False,
    zoneout: Zoneout | None = None,  # https://arxiv.org/abs/1606.01305
    h_factors: Tensor | None = None,  # [B, P], of h as the gates read it: arxiv.org/abs/1512.05287
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One direction with rows that are reset or end: y [T, B, P], h_n, c_n and cells [T, B, H].

    "Before" a step is meant in the order of the direction: in reverse the state that is cleared
    comes from step t + 1. A row that has ended keeps its state, its output and cells are zero, and
    neither its x nor its reset is looked at.
    """
    T = x.shape[0]
    if ended is not None:
        x = x.masked_fill(ended.unsqueeze(2), 0.0)  # whatever it holds, a NaN too
        reset = None if reset is None else reset & ~ended
    ys, cells = [h] * T, [c] * T
    for t in reversed(range(T)) if reverse else range(T):
        if reset is not None:
            clear = reset[t].unsqueeze(1)
            h, c = h.masked_fill(clear, 0.0), c.masked_fill(clear, 0.0)
        read = h if h_factors is None else h * h_factors
        h_t, c_t = lstm_cell(x[t], read, c, *weights)  # type: ignore[arg-type]
        if zoneout is not None:
            h_t, c_t = _kept(zoneout[0], t, h, h_t), _kept(zoneout[1], t, c, c_t)
        if ended is None:
            ys[t], cells[t] = h, c = h_t, c_t
            continue
        over = ended[t].unsqueeze(1)
        ys[t], cells[t] = h_t.masked_fill(over, 0.0), c_t.masked_fill(over, 0.0)
        h, c = torch.where(over, h, h_t), torch.where(over, c, c_t)
    return torch.stack(ys), h, c, torch.stack(cells)


def marked_layer(
    x: Tensor,  # [T, B, I]
    reset: Tensor | None,  # [T, B] bool
    ended: Tensor | None,  # [T, B] bool
    h0: Tensor | None,  # [D, B, P], None for zeros
    c0: Tensor | None,  # [D, B, H], None for zeros
    *weights: Tensor | None,  # w_ih, w_hh, b_ih, b_hh, w_hr, then the same for reverse or None
    zoneout: Zoneout | None = None,  # bool [T, B, D*H] each, or two shares
    h_factors: Tensor | None = None,  # [D, B, P]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`lstm_layer` with rows that are reset or end, zoneout, and factors of h before the gates.

    Returns y `[T, B, D*P]`, h_n [D, B, P], c_n [D, B, H] and c after every step, `[T, B, D*H]`.
    """
    results = []
    for d, own in enumerate((weights[:5], weights[5:])):
        if not own or own[0] is None or own[1] is None:
            continue
        gates, p = own[1].shape  # w_hh [4H, P]
        h = x.new_zeros(x.shape[1], p) if h0 is None else h0[d]
        c = x.new_zeros(x.shape[1], gates // 4) if c0 is None else c0[d]
        kept = None if zoneout is None else tuple(_of_direction(z, d, gates // 4) for z in zoneout)
        factors = None if h_factors is None else h_factors[d]
        results.append(marked_direction(x, reset, ended, h, c, own, d == 1, kept, factors))
    ys, hs, cs, cells = zip(*results, strict=True)
    return torch.cat(ys, dim=-1), torch.stack(hs), torch.stack(cs), torch.cat(cells, dim=-1)


def _of_direction(zoneout: Tensor | float, d: int, H: int) -> Any:
    return zoneout[:, :, d * H : (d + 1) * H] if isinstance(zoneout, Tensor) else zoneout


def variant_input(
    x: Tensor,  # [T, B, I]
    w_ih: Tensor,  # [G*H, I]
    bias: Tensor | None = None,  # [G*H]
    ln_ih: Tensor | None = None,  # [G*H]: gain; x W_ih^T is normalised where it is given
) -> Tensor:
    """What the cells of a variant take from the input, for all steps at once: zx [T, B, G*H].

    G is 4, or 3 where input and forget gate are coupled. LayerNorm is over all gates of a row.
    """
    if ln_ih is None:
        return linear(x, w_ih, bias)
    return layer_norm(linear(x, w_ih), w_ih.shape[:1], ln_ih, bias, LAYER_NORM_EPSILON)


def variant_cell(
    zx: Tensor,  # [B, G*H], see variant_input
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    w_hh: Tensor,  # [G*H, H]; G = 3: gates i, g, o, and f = 1 - i
    peepholes: Tensor | None = None,  # [G-1, H]: how i, f (if there is one) and o see c
    ln_hh: Tensor | None = None,  # [G*H]: gain; h W_hh^T is normalised where it is given
    ln_c: Tensor | None = None,  # [H]: gain; c is normalised on its way to h, not in the state
    ln_c_bias: Tensor | None = None,  # [H], with ln_c
    cell_clip: float = float("inf"),  # bound of |c|
    hidden_clip: float = float("inf"),  # bound of |h|
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM with what nn.LSTM lacks: returns the new h and c [B, H].

    Sources: LayerNorm, Ba et al. (2016), arXiv:1607.06450, equations 20-22 of its supplement, whose
    additive terms are the bias in zx. Peepholes, Gers & Schmidhuber (2000), as in Graves (2013),
    arXiv:1308.0850. f = 1 - i, Greff et al. (2017), arXiv:1503.04069. c is clipped before o and h
    see it, as in TensorFlow's LSTMCell.
    """
    coupled = w_hh.shape[0] == 3 * w_hh.shape[1]
    z = linear(h, w_hh)
    if ln_hh is not None:
        z = layer_norm(z, w_hh.shape[:1], ln_hh, None, LAYER_NORM_EPSILON)
    z_i, *z_f, z_g, z_o = (zx + z).chunk(3 if coupled else 4, dim=1)
    if peepholes is not None:
        z_i = z_i + peepholes[0] * c
        z_f = [z + peepholes[1] * c for z in z_f]
    i = torch.sigmoid(z_i)
    f = 1 - i if coupled else torch.sigmoid(z_f[0])
    c = f * c + i * torch.tanh(z_g)
    if cell_clip != float("inf"):
        c = c.clamp(-cell_clip, cell_clip)
    if peepholes is not None:
        z_o = z_o + peepholes[-1] * c
    s = c if ln_c is None else layer_norm(c, ln_c.shape, ln_c, ln_c_bias, LAYER_NORM_EPSILON)
    h = torch.sigmoid(z_o) * torch.tanh(s)
    if hidden_clip != float("inf"):
        h = h.clamp(-hidden_clip, hidden_clip)
    return h, c


def variant_direction(
    zx: Tensor,  # [T, B, G*H]
    h0: Tensor | None,  # [B, H], None for zeros
    c0: Tensor | None,  # [B, H], None for zeros
    w_hh: Tensor,  # [G*H, H]
    peepholes: Tensor | None = None,
    ln_hh: Tensor | None = None,
    ln_c: Tensor | None = None,
    ln_c_bias: Tensor | None = None,
    reverse: bool = False,
    cell_clip: float = float("inf"),
    hidden_clip: float = float("inf"),
) -> tuple[Tensor, Tensor, Tensor]:
    """`variant_cell` over a whole sequence: y [T, B, H], h_n and c_n [B, H]."""
    (T, B), H = zx.shape[:2], w_hh.shape[1]
    h = zx.new_zeros(B, H) if h0 is None else h0
    c = zx.new_zeros(B, H) if c0 is None else c0
    cell = (w_hh, peepholes, ln_hh, ln_c, ln_c_bias, cell_clip, hidden_clip)
    ys = [h] * T
    for t in reversed(range(T)) if reverse else range(T):
        h, c = variant_cell(zx[t], h, c, *cell)
        ys[t] = h
    return torch.stack(ys), h, c


def lstm(
    x: Tensor,  # [T, B, I], [B, T, I] when batch_first, or packed [N, I]
    hx: tuple[Tensor, Tensor] | None,  # h0 [L*D, B, P] and c0 [L*D, B, H], None for zeros
    weights: Sequence[Tensor],  # per layer and direction: w_ih, w_hh[, b_ih, b_hh][, w_hr]
    *,
    num_layers: int = 1,  # L
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    proj_size: int = 0,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,  # [T, B] bool, [B, T] when batch_first
    lengths: Tensor | None = None,  # [B] int64
    return_cells: bool = False,
) -> Any:
    """The whole network of `torch.nn.LSTM`: layers, and dropout between them.

    Returns `(y, (h_n, c_n))`, with return_cells `(y, (h_n, c_n), cells)`. What reset and lengths
    mean, `marked_direction` says; they hold in every layer.
    """
    ended = None
    if lengths is not None:
        steps = torch.arange(x.shape[1 if batch_first else 0], device=x.device)
        ended = steps.unsqueeze(1) >= lengths.to(x.device)
    if reset is not None and batch_first:
        reset = reset.transpose(0, 1)
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    y = x.transpose(0, 1) if batch_first and batch_sizes is None else x
    h_n, c_n, cells = [], [], y
    for layer in range(num_layers):
        if layer > 0:
            y = torch.dropout(y, dropout, training)
        own: list[Tensor | None] = []
        for d in range(directions):
            k = (layer * directions + d) * each
            group: list[Tensor | None] = list(weights[k : k + each])
            w_hr = group.pop() if proj_size > 0 else None
            own += (group if bias else [*group, None, None]) + [w_hr]
        rows = slice(layer * directions, (layer + 1) * directions)
        h0, c0 = (None, None) if hx is None else (hx[0][rows], hx[1][rows])
        if return_cells or reset is not None or ended is not None:
            y, h, c, cells = marked_layer(y, reset, ended, h0, c0, *own)
        else:
            y, h, c = lstm_layer(y, batch_sizes, h0, c0, *own)
        h_n.append(h)
        c_n.append(c)
    if batch_first and batch_sizes is None:
        y, cells = y.transpose(0, 1), cells.transpose(0, 1)
    state = (torch.cat(h_n), torch.cat(c_n))
    return (y, state, cells) if return_cells else (y, state)
