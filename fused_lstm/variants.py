"""`VariantLSTM`: LayerNorm, peepholes, coupled gates and clipping, which nn.LSTM does not have.

What the cells take from the input is one product for all steps, left to torch with its LayerNorm.
The recurrence follows: by the operators of `recurrence.py` on the CPU, and on a GPU whose kernels
are turned on (`_extension.py`); elsewhere (torch.func, graphs that must run without this package)
step by step by `reference.py`.
"""

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _extension, dispatch, recurrence, reference
from .function import without_autocast

__all__ = ["VariantLSTM"]


class _Weights(NamedTuple):
    """Those of one layer and direction; G gates."""

    w_ih: Tensor  # [G*H, I]
    w_hh: Tensor  # [G*H, H]
    bias: Tensor | None  # [G*H]: b_ih + b_hh
    peepholes: Tensor | None  # [G-1, H]
    ln_ih: Tensor | None  # [G*H]
    ln_hh: Tensor | None  # [G*H]
    ln_c: Tensor | None  # [H]
    ln_c_bias: Tensor | None  # [H]


def _run(
    by_kernel: bool,
    cell: tuple[Tensor | None, ...],  # w_hh, peepholes, ln_hh, ln_c, ln_c_bias
    options: recurrence.Options,
    zx: Tensor,  # [T, B, G*H]
    h0: Tensor | None,
    c0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of padded input: y, h_n, c_n."""
    if by_kernel:
        return recurrence.recurrence(zx, h0, c0, *cell, options)
    specification: Any = reference.variant_direction
    results: tuple[Tensor, Tensor, Tensor] = specification(zx, h0, c0, *cell, *options)
    return results


def _in_stretches(
    run: Callable[..., tuple[Tensor, Tensor, Tensor]],  # of padded zx, h0, c0: y, h_n, c_n
    zx: Tensor,  # [N, G*H]
    hx: Sequence[Tensor] | None,  # h0 and c0 [B, H]
    stretches: list[tuple[int, int]],  # steps and rows of each, rows falling
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of packed input: a call for each stretch of steps that has as many rows."""
    pieces = zx.split([steps * rows for steps, rows in stretches])
    walk = list(zip(pieces, stretches, strict=True))
    ys: list[Tensor] = []
    ended: list[Sequence[Tensor]] = []  # states of rows whose last step has been
    state: Sequence[Tensor] | None = None
    for piece, (steps, rows) in reversed(walk) if reverse else walk:
        before = 0 if state is None else len(state[0])
        if state is not None and rows < before:
            ended.append([t[rows:] for t in state])
            state = [t[:rows] for t in state]
        elif hx is not None:
            begin = [t[before:rows] for t in hx]
            state = begin if state is None else list(map(torch.cat, zip(state, begin, strict=True)))
        elif state is not None:
            state = [torch.cat((t, t.new_zeros(rows - before, t.shape[1]))) for t in state]
        y, *state = run(piece.unflatten(0, (steps, rows)), *(state or (None, None)))
        ys.append(y.flatten(0, 1))
    assert state is not None
    h_n, c_n = map(torch.cat, zip(state, *reversed(ended), strict=True))
    return torch.cat(ys[::-1] if reverse else ys), h_n, c_n


class VariantLSTM(nn.Module):
    """A multi-layer LSTM with LayerNorm, peepholes, coupled gates or clipping, in any combination.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers: layers L stacked on each other.
        bias: whether there are biases, those of LayerNorm included.
        batch_first: input and output as [B, T, features] instead of [T, B, features].
        dropout: probability of zeroing an element between layers, while training.
        bidirectional: a second direction, D = 2.
        device: where the parameters lie.
        dtype: of the parameters: float32 and float64 have kernels, on the CPU and, where those are
            turned on, on a GPU (they have run on the CPU stand-in only); bfloat16 and float16 are
            computed in float32 and rounded at the end.
        layer_norm: normalises x W_ih^T and h W_hh^T, each over all gates of a row, and c on its way
            to h. Biases are added after it, as its own.
        peepholes: lets the gates i and f see c of the step before, and o that of its own, each unit
            its own cell.
        coupled: f = 1 - i. There are then three gates, i, g, o, and three quarters of the weights.
        cell_clip: |c| is at most this, in the state and before h is made of it; None for no bound.
        hidden_clip: |h| is at most this, below 1; None for no bound.

    Call it as torch.nn.LSTM: `output, (h_n, c_n) = lstm(input, (h_0, c_0))`, with the input
    [T, B, I], [B, T, I] when batch_first, [T, I] without a batch, or a PackedSequence, which is
    computed in one call for each length that occurs; states [L*D, B, H], zeros if not given. Under
    autocast nothing is cast down.

    Parameters are those of nn.LSTM, `weight_ih_l{k}` [G*H, I or `D*H`], `weight_hh_l{k}` [G*H, H],
    `bias_ih_l{k}` and `bias_hh_l{k}` [G*H], with G = 4 gates i, f, g, o, or G = 3 gates i, g, o
    when coupled. Then `peephole_i_l{k}`, `peephole_f_l{k}` (not when coupled) and
    `peephole_o_l{k}` [H]; then LayerNorm's gains `weight_ln_ih_l{k}` and `weight_ln_hh_l{k}` [G*H],
    `weight_ln_c_l{k}` [H], and `bias_ln_c_l{k}` [H]. Each has `_reverse` for the second direction.
    All are drawn as nn.LSTM draws its own, but for gains (1) and `bias_ln_c` (0).

    Raises:
        ValueError: a size, dropout or bound out of its range. In a call: an input with another
            number of dimensions or dtype.
        TypeError: in a call: an argument of the wrong kind.
        RuntimeError: in a call: other sizes than the weights', T = 0, or a state of another dtype.

    Source: LayerNorm, Ba et al. (2016), https://arxiv.org/abs/1607.06450; peepholes, Gers and
    Schmidhuber (2000), as in Graves (2013), https://arxiv.org/abs/1308.0850; coupled gates, Greff
    et al. (2017), https://arxiv.org/abs/1503.04069; clipping in the order of TensorFlow's LSTMCell.
    """

    mode = "LSTM"  # as nn.RNNBase says it

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        layer_norm: bool = False,
        peepholes: bool = False,
        coupled: bool = False,
        cell_clip: float | None = None,
        hidden_clip: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a whole number above 0, got {size!r}")
        given = {"dropout": dropout, "cell_clip": cell_clip, "hidden_clip": hidden_clip}
        for name, value in given.items():
            none = value is None and name != "dropout"
            if not none and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
                raise TypeError(f"{name}: expected a number, got {value!r}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout!r}")
        if cell_clip is not None and not 0 < cell_clip < math.inf:
            raise ValueError(f"cell_clip: expected None or a number above 0, got {cell_clip!r}")
        if hidden_clip is not None and not 0 < hidden_clip < 1:
            raise ValueError(
                "hidden_clip: expected None or a number between 0 and 1, for |h| never exceeds 1, "
                f"got {hidden_clip!r}"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.layer_norm, self.peepholes = bidirectional, layer_norm, peepholes
        self.coupled, self.cell_clip, self.hidden_clip = coupled, cell_clip, hidden_clip
        for suffix, features in self._places():
            for name, shape in self._shapes(features).items():
                p = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(name + suffix, p)
        self.reset_parameters()

    def _places(self) -> list[tuple[str, int]]:
        """The suffix of each layer and direction in turn, and the features of its input."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        features = [self.input_size] + [len(directions) * self.hidden_size] * (self.num_layers - 1)
        return [(f"_l{k}{d}", features[k]) for k in range(self.num_layers) for d in directions]

    def _shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one layer and direction, in their order."""
        H = self.hidden_size
        rows = (3 if self.coupled else 4) * H
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features), "weight_hh": (rows, H)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.peepholes:
            shapes |= {f"peephole_{gate}": (H,) for gate in ("io" if self.coupled else "ifo")}
        if self.layer_norm:
            shapes |= {"weight_ln_ih": (rows,), "weight_ln_hh": (rows,), "weight_ln_c": (H,)}
            shapes |= {"bias_ln_c": (H,)} if self.bias else {}
        return shapes

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, p in self.named_parameters():
            if name.startswith("weight_ln"):
                nn.init.ones_(p)
            elif name.startswith("bias_ln"):
                nn.init.zeros_(p)
            else:
                nn.init.uniform_(p, -bound, bound)

    def extra_repr(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        defaults: dict[str, Any] = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
        }
        defaults |= {"bidirectional": False, "layer_norm": False, "peepholes": False}
        defaults |= {"coupled": False, "cell_clip": None, "hidden_clip": None}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                shown.append(f"{name}={getattr(self, name)}")
        return ", ".join(shown)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read the parameters where they are."""

    @property
    def _first_weight(self) -> Tensor:
        return next(self.parameters())

    def _weights(self, suffix: str, x: Tensor) -> _Weights:
        """Cast to the dtype of x, for LayerNorm's may be another than the matrices'."""

        def get(name: str) -> Tensor | None:
            p: Tensor | None = getattr(self, name + suffix, None)
            if p is not None and p.device != x.device:
                raise RuntimeError(
                    f"{name + suffix}: expected a tensor on device '{x.device}' like the input, "
                    f"got one on '{p.device}'"
                )
            return p if p is None else p.to(x.dtype)

        b_ih, b_hh = get("bias_ih"), get("bias_hh")
        gates = [p for p in map(get, ("peephole_i", "peephole_f", "peephole_o")) if p is not None]
        w_ih, w_hh = get("weight_ih"), get("weight_hh")
        assert w_ih is not None
        assert w_hh is not None
        return _Weights(
            w_ih,
            w_hh,
            b_ih if b_hh is None else b_hh if b_ih is None else b_ih + b_hh,
            torch.stack(gates) if gates else None,
            get("weight_ln_ih"),
            get("weight_ln_hh"),
            get("weight_ln_c"),
            get("bias_ln_c"),
        )

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        self._check(input, hx)
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        unbatched = input.dim() == 2
        x = input.unsqueeze(1) if unbatched else input
        if unbatched and hx is not None:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if self.batch_first and not unbatched:
            x = x.transpose(0, 1)
        y, h_n, c_n = self._computed(x, hx, None)
        if unbatched:
            return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return (y.transpose(0, 1) if self.batch_first else y), (h_n, c_n)

    def _packed(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        """States are in the caller's order of rows, packed ones by falling length."""
        x, sizes, order, back = input
        runs = itertools.groupby(sizes.tolist())
        stretches = [(len(list(steps)), rows) for rows, steps in runs]
        falls = all(a[1] > b[1] for a, b in itertools.pairwise(stretches))
        if not falls or sum(steps * rows for steps, rows in stretches) != len(x):
            raise ValueError(
                f"input: expected batch_sizes that never rise and sum up to {len(x)} rows, got "
                f"{sizes.tolist()}"
            )
        if hx is not None and order is not None:
            hx = (hx[0].index_select(1, order), hx[1].index_select(1, order))
        y, h_n, c_n = self._computed(x, hx, stretches)
        if back is not None:
            h_n, c_n = h_n.index_select(1, back), c_n.index_select(1, back)
        return PackedSequence(y, sizes, order, back), (h_n, c_n)

    def _computed(
        self,
        x: Tensor,  # [T, B, I], or [N, I] with stretches
        hx: tuple[Tensor, Tensor] | None,
        stretches: list[tuple[int, int]] | None,
    ) -> tuple[Tensor, ...]:
        stored = self._first_weight.dtype
        computed = torch.float32 if stored in (torch.bfloat16, torch.float16) else stored
        weights = list(self.parameters())
        by_kernel = not (dispatch._transforms() or dispatch._must_use_torch(x, hx, weights))
        with without_autocast(x):
            x = x.to(computed)
            hx = None if hx is None else (hx[0].to(computed), hx[1].to(computed))
            return tuple(t.to(stored) for t in self._layers(x, hx, by_kernel, stretches))

    def _layers(
        self,
        y: Tensor,  # [T, B, I], or [N, I] with stretches
        hx: tuple[Tensor, Tensor] | None,
        by_kernel: bool,
        stretches: list[tuple[int, int]] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        directions = 2 if self.bidirectional else 1
        ys: list[Tensor] = []
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for k, (suffix, _) in enumerate(self._places()):
            layer, reverse = k // directions, k % directions == 1
            if layer > 0 and not reverse and self.training and self.dropout > 0:
                y = torch.dropout(y, self.dropout, True)
            own = self._weights(suffix, y)
            zx = reference.variant_input(y, own.w_ih, own.bias, own.ln_ih)
            state = None if hx is None else (hx[0][k], hx[1][k])
            cell = (own.w_hh, own.peepholes, own.ln_hh, own.ln_c, own.ln_c_bias)
            options = (reverse, self.cell_clip or math.inf, self.hidden_clip or math.inf)
            run = functools.partial(_run, by_kernel, cell, options)
            if stretches is None:
                out, h, c = run(zx, *(state or (None, None)))
            else:
                out, h, c = _in_stretches(run, zx, state, stretches, reverse)
            ys, h_n, c_n = [*ys, out], [*h_n, h], [*c_n, c]
            if len(ys) == directions:
                y, ys = (ys[0] if directions == 1 else torch.cat(ys, dim=-1)), []
        return y, torch.stack(h_n), torch.stack(c_n)

    def _check(self, input: Any, hx: Any) -> None:
        packed = isinstance(input, PackedSequence)
        batch = [int(input.batch_sizes[0])] if packed else []
        input = input.data if packed else input
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
        if input.dim() not in ((2,) if packed else (2, 3)):
            expected = "packed rows of features, [N, I]" if packed else "2 or 3 dimensions"
            raise ValueError(f"input: expected {expected}, got {input.dim()}")
        w = self._first_weight
        if input.dtype is not w.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(f"input: expected {w.dtype} like the weights, got {input.dtype}")
        if input.device != w.device:
            raise RuntimeError(
                f"input: expected a tensor on device '{w.device}' like the weights, got one on "
                f"'{input.device}'"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input: expected {self.input_size} features in its last dimension, "
                f"got {input.shape[-1]}"
            )
        padded = input.dim() == 3
        if input.shape[1 if self.batch_first and padded else 0] == 0:
            raise RuntimeError(f"input: expected at least one step, got {list(input.shape)}")
        if hx is None:
            return
        if not isinstance(hx, Sequence) or len(hx) != 2:
            raise TypeError(f"hx: expected a pair of Tensors (h_0, c_0), got {type(hx).__name__}")
        rows = self.num_layers * (2 if self.bidirectional else 1)
        if padded:
            batch = [input.shape[0 if self.batch_first else 1]]
        sizes = [rows, *batch, self.hidden_size]
        for k, t in enumerate(hx):
            if not isinstance(t, Tensor):
                raise TypeError(f"hx[{k}]: expected a Tensor, got {type(t).__name__}")
            if list(t.shape) != sizes:
                raise RuntimeError(f"hx[{k}]: expected sizes {sizes}, got {list(t.shape)}")
            wrong = t.dtype is not w.dtype and not torch._C._is_any_autocast_enabled()
            if wrong or t.device != w.device:
                raise RuntimeError(
                    f"hx[{k}]: expected {w.dtype} on device '{w.device}' like the weights, "
                    f"got {t.dtype} on device '{t.device}'"
                )

    def explain_plan(self, T: int = 1, B: int = 1) -> str:
        """Says in words what would compute an input of T steps and B rows, and why.

        Args:
            T: steps.
            B: rows.

        Returns:
            One line, the same for every layer.

        Raises:
            ImportError: the kernel would compute but the extension is missing.
        """
        w = self._first_weight
        obstacle = dispatch._no_kernel(w.device, w.dtype)
        if obstacle is not None:
            return f"the specification in plain PyTorch ({obstacle})"
        rounded = ", in float32" if w.dtype in (torch.bfloat16, torch.float16) else ""
        projected = f"input projected by torch for all {T} steps"
        if w.is_cuda:
            return (
                f"cuda stepwise: {projected}, then one product and one kernel per step for {B} "
                f"rows{rounded}; {dispatch._CUDA_CAVEAT}"
            )
        return (
            f"cpu {_extension.require().isa()}: {projected}, recurrence in packed gate panels, "
            f"{B} rows over up to {torch.get_num_threads()} threads{rounded}"
        )
