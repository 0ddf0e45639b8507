"""What the variants of the cell cost beside the plain kernel, and beside the loop one writes today.

`python benchmarks/variants.py` compares, forward and with backward: `fused_lstm.LSTM` (the bound),
`fused_lstm.VariantLSTM` with one variant each and with all, and loops over the steps in PyTorch, as
they are and through torch.jit.script. The loops project the input for all steps at once, too. It
prints a table and writes results/<machine>/variants.json. Ways take turns in one process; a figure
is a median, a ratio the median of the ratios within a round (timing.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # see fresh.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import benchmarks  # noqa: F401

    sys.path.append(sys.path.pop(0))

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

import fused_lstm
from benchmarks import timing
from benchmarks.ways import WRAPPERS, compare, write

SHAPES = (
    (64, 128, 256, 256),
    (64, 32, 256, 256),
    (32, 64, 512, 512),
    (64, 64, 128, 128),
    (100, 8, 64, 128),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "layer_norm": {"layer_norm": True},
    "peepholes": {"peepholes": True},
    "coupled": {"coupled": True},
    "cell_clip": {"cell_clip": 3.0},
    "all four": {"layer_norm": True, "peepholes": True, "coupled": True, "cell_clip": 3.0},
}


def layer_norm_loop(
    zx: Tensor, w_hh: Tensor, ln_hh: Tensor, b_hh: Tensor, ln_c: Tensor, b_c: Tensor
) -> Tensor:
    """From zx [T, B, 4H] to y [T, B, H]."""
    hidden = w_hh.shape[1]
    h = torch.zeros(zx.shape[1], hidden)
    c = h
    ys: list[Tensor] = []
    for z in zx.unbind(0):
        z = z + layer_norm(linear(h, w_hh), [4 * hidden], ln_hh, b_hh)
        i, f, g, o = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * layer_norm(c, [hidden], ln_c, b_c).tanh()
        ys.append(h)
    return torch.stack(ys)


def peephole_loop(zx: Tensor, w_hh: Tensor, p_i: Tensor, p_f: Tensor, p_o: Tensor) -> Tensor:
    """The same with peepholes [H]."""
    h = torch.zeros(zx.shape[1], w_hh.shape[1])
    c = h
    ys: list[Tensor] = []
    for z in zx.unbind(0):
        i, f, g, o = (z + linear(h, w_hh)).chunk(4, 1)
        c = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
        h = (o + p_o * c).sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys)


class Ways:
    """The ways to compute one batch, each a function without arguments."""

    def __init__(self, T: int, B: int, features: int, H: int) -> None:
        self.x = torch.randn(T, B, features)
        self.plain = fused_lstm.LSTM(features, H)
        self.ours = {n: fused_lstm.VariantLSTM(features, H, **v) for n, v in VARIANTS.items()}
        self.loops = {"eager": (layer_norm_loop, peephole_loop)}
        scripted: Any = torch.jit.script
        self.loops["scripted"] = (scripted(layer_norm_loop), scripted(peephole_loop))

    def layer_norm(self, loop: Callable[..., Tensor], x: Tensor) -> Tensor:
        m = self.ours["layer_norm"]
        z = linear(x, m.weight_ih_l0)
        zx = layer_norm(z, z.shape[-1:], m.weight_ln_ih_l0, m.bias_ih_l0)
        rest = (m.weight_ln_hh_l0, m.bias_hh_l0, m.weight_ln_c_l0, m.bias_ln_c_l0)
        return loop(zx, m.weight_hh_l0, *rest)

    def peepholes(self, loop: Callable[..., Tensor], x: Tensor) -> Tensor:
        m = self.ours["peepholes"]
        zx = linear(x, m.weight_ih_l0, m.bias_ih_l0 + m.bias_hh_l0)
        return loop(zx, m.weight_hh_l0, m.peephole_i_l0, m.peephole_f_l0, m.peephole_o_l0)

    def check(self) -> None:
        """The loops compute the same: over a few steps, for LayerNorm magnifies rounding."""
        x = self.x[:8]
        for by_layer_norm, by_peepholes in self.loops.values():
            ours, theirs = self.ours["layer_norm"](x)[0], self.layer_norm(by_layer_norm, x)
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
            ours, theirs = self.ours["peepholes"](x)[0], self.peepholes(by_peepholes, x)
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)

    def named(self) -> dict[str, Callable[[], Tensor]]:
        named: dict[str, Callable[[], Tensor]] = {"plain kernel": lambda: self.plain(self.x)[0]}
        for name, m in self.ours.items():
            named[name] = lambda m=m: m(self.x)[0]
        for name, (by_layer_norm, by_peepholes) in self.loops.items():
            named[f"layer_norm, {name} loop"] = lambda f=by_layer_norm: self.layer_norm(f, self.x)
            named[f"peepholes, {name} loop"] = lambda f=by_peepholes: self.peepholes(f, self.x)
        return named


def processor_turn(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """A turn by the processor's own time: for one thread on a machine that others use too."""
    _, seconds = timing.wall_turn(call, calls)
    return seconds, seconds


def measure(
    ways: Ways, modes: list[str], budget: float, threads: int, turn: timing.Turn
) -> list[dict[str, Any]]:
    ways.check()
    named = ways.named()
    ours = list(named)[: 1 + len(VARIANTS)]
    return [row for mode in modes for row in compare(named, mode, budget, ours, threads, turn)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", nargs="+", choices=list(WRAPPERS), default=list(WRAPPERS))
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds for each mode and shape"
    )
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar="N", help="T B I H")
    parser.add_argument(
        "--processor", action="store_true", help="count processor seconds, not the wall's"
    )
    parser.add_argument("--out", type=Path, help="default: results/<machine>/variants.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turn = processor_turn if options.processor else timing.wall_turn
    measured = []
    for shape in options.shape or SHAPES:
        print("x".join(map(str, shape)))
        torch.manual_seed(0)
        rows = measure(Ways(*shape), options.modes, options.budget, options.threads, turn)
        measured.append({"shape": dict(zip("TBIH", shape, strict=True)), "rows": rows})
    result = {
        "threads": options.threads,
        "seconds": "processor" if options.processor else "wall",
        "shapes": measured,
    }
    write("variants", result, options.out)


if __name__ == "__main__":
    main()
