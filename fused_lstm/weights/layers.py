"""What the formats have in common: arrays in, checked; an LSTM of them; an LSTM's own, taken apart.

Between a format and an LSTM stand `Side`s, one per layer and direction, in torch's layout. Formats
with one bias put it into b_ih; what they add to it at run time goes into b_hh, so that neither is
rounded and both come back to the bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modules import LSTM

__all__ = ["Side", "build", "common_sizes", "expect", "numpy_of", "reorder", "sides_of", "tensor"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Side(NamedTuple):
    """One direction of one layer as torch has it, gates in the order i, f, g, o."""

    w_ih: Tensor  # [4H, features]
    w_hh: Tensor  # [4H, H]
    b_ih: Tensor | None = None  # [4H]
    b_hh: Tensor | None = None  # [4H]; None beside a b_ih is zero

    def bias(self, added: float = 0.0) -> Tensor:
        """The one bias [4H] that both make; `added` is what a format adds to f's by itself."""
        total = self.w_hh.new_zeros(len(self.w_hh), dtype=torch.float64)
        if self.b_hh is not None:
            total += self.b_hh
        # Before b_ih joins: what a format added, and `build` put into b_hh, goes without rounding.
        forget_gate(total).sub_(added)
        if self.b_ih is not None:
            total += self.b_ih
        return total.to(self.w_hh.dtype)


def forget_gate(bias: Tensor) -> Tensor:
    """The view of f's part of a bias [4H] in torch's order."""
    hidden = len(bias) // 4
    return bias[hidden : 2 * hidden]


def reorder(t: Tensor, order: Sequence[int]) -> Tensor:
    """The four gates of t [4H, ...], in that order: entry k of `order` is the k-th gate's place."""
    gates = t.chunk(4)
    return torch.cat([gates[k] for k in order])


def tensor(name: str, value: Any, dims: int) -> Tensor:
    """An array of any kind as a Tensor of so many dimensions, without history.

    Raises:
        TypeError: it is no array, or not of float16, bfloat16, float32 or float64.
        ValueError: it has another number of dimensions.
    """
    if not isinstance(value, Tensor):
        value = value.numpy() if hasattr(value, "numpy") else value
        try:
            value = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name}: expected an array, got {type(value).__name__} ({error})"
            ) from error
    if value.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected floating point numbers, got {value.dtype}")
    if value.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, got shape {[*value.shape]}")
    return value.detach()


def expect(name: str, t: Tensor, *shape: int | str) -> None:
    """Raises ValueError if t has another shape; a size given by a letter may be any."""
    fits = t.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, t.shape, strict=True)
    )
    if not fits:
        words = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{words}], got {[*t.shape]}")


def common_sizes(name: str, recurrent: Tensor, gate_dim: int) -> int:
    """H of recurrent weights whose dimension gate_dim has 4H, the other H."""
    hidden = recurrent.shape[1 - gate_dim]
    sizes = (4 * hidden, hidden) if gate_dim == 0 else (hidden, 4 * hidden)
    if hidden == 0 or tuple(recurrent.shape) != sizes:
        form = "[4H, H]" if gate_dim == 0 else "[H, 4H]"
        raise ValueError(f"{name}: expected shape {form}, got {[*recurrent.shape]}")
    return hidden


def build(layers: Sequence[Sequence[Side]], *, batch_first: bool) -> LSTM:
    """An LSTM with these weights: `layers[k]` has one Side, or two for two directions.

    Raises ValueError where no one LSTM can hold them.
    """
    if not layers:
        raise ValueError("expected at least one layer, got none")
    first = layers[0][0]
    hidden, directions, biased = len(first.w_hh) // 4, len(layers[0]), first.b_ih is not None
    features = first.w_ih.shape[1]
    for k, sides in enumerate(layers):
        if len(sides) != directions:
            raise ValueError(
                f"layer {k}: expected {directions} direction(s) as layer 0, got {len(sides)}"
            )
        for side in sides:
            expect(f"layer {k}, recurrent weights", side.w_hh, 4 * hidden, hidden)
            expect(f"layer {k}, input weights", side.w_ih, 4 * hidden, features)
            if (side.b_ih is not None) is not biased:
                raise ValueError(f"layer {k}: expected biases in all layers or in none")
            for t in side:
                if t is not None and t.dtype is not first.w_ih.dtype:
                    raise TypeError(
                        f"layer {k}: expected {first.w_ih.dtype} as in layer 0, got {t.dtype}"
                    )
        features = directions * hidden
    lstm: LSTM = nn.utils.skip_init(  # draws no random numbers
        LSTM,
        first.w_ih.shape[1],
        hidden,
        len(layers),
        bias=biased,
        batch_first=batch_first,
        bidirectional=directions == 2,
        dtype=first.w_ih.dtype,
        device=first.w_ih.device,
    )
    values: list[Tensor] = []
    for side in (side for sides in layers for side in sides):
        values += [side.w_ih, side.w_hh]
        if side.b_ih is not None:
            values += [side.b_ih, torch.zeros_like(side.b_ih) if side.b_hh is None else side.b_hh]
    with torch.no_grad():
        for own, value in zip(lstm.parameters(), values, strict=True):
            own.copy_(value)
    return lstm


def sides_of(lstm: nn.Module, target: str) -> list[list[Side]]:
    """The weights of an LSTM, ours or torch.nn's, by layer and direction.

    Raises:
        TypeError: it is no LSTM.
        ValueError: it has proj_size or zoneout, which `target` does not know.
    """
    if not isinstance(lstm, nn.RNNBase) or lstm.mode != "LSTM":
        raise TypeError(f"lstm: expected an LSTM, got {type(lstm).__qualname__}")
    if lstm.proj_size:
        raise ValueError(
            f"lstm: expected no projection, for {target} has none, got proj_size={lstm.proj_size}"
        )
    extras: Any = getattr(lstm, "extras", None)
    if extras is not None and any(extras.zoneout):
        raise ValueError(
            f"lstm: expected no zoneout, which acts in evaluation too and would be lost on the way "
            f"to {target}, got zoneout={extras.zoneout}"
        )
    layers = []
    for k in range(lstm.num_layers):
        sides = []
        for suffix in ("", "_reverse")[: 2 if lstm.bidirectional else 1]:
            names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if lstm.bias else [])]
            sides.append(Side(*(getattr(lstm, f"{n}_l{k}{suffix}").detach() for n in names)))
        layers.append(sides)
    return layers


def numpy_of(t: Tensor) -> Any:
    """A NumPy array of its own.

    Raises TypeError for bfloat16, which NumPy does not have.
    """
    if t.dtype is torch.bfloat16:
        raise TypeError("lstm: NumPy has no bfloat16; convert lstm.float()")
    return t.detach().cpu().contiguous().numpy().copy()
