"""Draws the picture that the README shows, from a committed result: nn.LSTM's time over ours.

    python benchmarks/plot.py benchmarks/results/MACHINE/NAME.json --out picture.png

One panel per thread count (of a GPU's result, per precision), one pair of bars per shape. The axis
is logarithmic and its zero line is parity, so twice as fast and half as fast are equally long and a
shape where nn.LSTM wins hangs below the line. Diamonds show ONNX Runtime against nn.LSTM in
inference, where it took part. The ground is opaque, so the picture reads the same on a light page
and on a dark one.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our own `benchmarks` before any other of that name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.report import caption, geomeans, load, on_gpu

__all__ = ["draw", "main", "picture"]

_GROUND, _INK, _FAINT = "#fbfbfa", "#1f2328", "#d5d8dc"
_COLOURS = {
    "inference": "#2f6fde",
    "training": "#e0701a",
    "training_dx": "#3a9a5b",
    "forward": "#8a6d3b",
}
_PEER_COLOUR = "#6b2fa0"
_NAMES = {
    "inference": "inference",
    "training": "training",
    "training_dx": "training with dx",
    "forward": "training's forward",
}
_TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def draw(
    result: dict[str, Any],
    path: Path,
    group: str | None = None,
    dtype: str | None = None,
    modes: Sequence[str] = ("inference", "training"),
) -> None:
    """Writes the picture as PNG; raises what `picture` does."""
    drawn = picture(result, group, dtype, modes)
    drawn.savefig(path, dpi=160, facecolor=_GROUND)


def picture(
    result: dict[str, Any],
    group: str | None = None,
    dtype: str | None = None,
    modes: Sequence[str] = ("inference", "training"),
) -> Any:
    """The picture as a matplotlib Figure.

    Without group and dtype: `core` in float32 for the CPU, everything for a GPU. Raises
    ValueError if the result has no such rows, and ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    if not on_gpu(result):
        group, dtype = group or "core", dtype or "float32"
    rows = [
        row
        for row in result["rows"]
        if group in (None, row["group"])
        and dtype in (None, row["dtype"])
        and row["mode"] in modes
        and row["fused_versus"].get("torch")
    ]
    if not rows:
        wanted = f"{group or 'any group'} in {dtype or 'any precision'}"
        raise ValueError(f"result: expected rows of {wanted}, got none")
    by = "dtype" if on_gpu(result) else "threads"
    kinds: list[Any] = list(dict.fromkeys(row[by] for row in rows))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = Figure(figsize=(max(11, len(shapes)), 1.1 + 3.1 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, squeeze=False, sharex=True, sharey=True)
    for panel, kind in zip(panels[:, 0], kinds, strict=True):
        title = kind if on_gpu(result) else f"{kind} thread{'s' if kind > 1 else ''}"
        _panel(panel, [row for row in rows if row[by] == kind], shapes, modes, title)
    lowest, highest = _extent(rows)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    panels[0, 0].minorticks_off()
    panels[0, 0].set_ylim(min(0.85, lowest / 1.15), highest * 1.6)  # room for the legend
    panels[-1, 0].set_xticks(
        range(len(shapes)), [_shape_label(shape) for shape in shapes], fontsize=8, color=_INK
    )
    panels[0, 0].legend(
        loc="upper left", ncols=4, fontsize=9, labelcolor=_INK, facecolor=_GROUND,
        edgecolor=_GROUND, framealpha=1,
    )  # fmt: skip
    figure.suptitle(_title(rows, modes, by, kinds), color=_INK, fontsize=13, weight="bold")
    figure.supylabel("nn.LSTM's time / its time", color=_INK, fontsize=10)
    disturbed = sum(bool(row["noise"]["noisy"]) for row in rows)
    note = caption(result) + (f"; * disturbed by other processes: {disturbed}" if disturbed else "")
    figure.supxlabel("\n".join(textwrap.wrap(note, 150)), color="#5a6068", fontsize=7.5)
    return figure


def _extent(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Least and greatest ratio that is drawn."""
    drawn = [row["fused_versus"]["torch"][end] for row in rows for end in ("low", "high")]
    drawn += [peer for peer in map(_peer_ratio, rows) if peer is not None]
    return min(drawn), max(drawn)


def _peer_ratio(row: dict[str, Any]) -> float | None:
    """nn.LSTM's time over ONNX Runtime's, where it was measured (in inference)."""
    peer = row["implementations"].get("onnxruntime")
    return None if peer is None or peer["ratio"] is None else float(peer["ratio"]["median"])


def _shape_label(shape: str) -> str:
    sizes, *options = shape.split("-")
    T, B, I, H = sizes.split("x")  # noqa: E741  the project's letters
    return f"T{T} B{B}\nI{I} H{H}" + (f"\n{' '.join(options)}" if options else "")


def _title(rows: list[dict[str, Any]], modes: Sequence[str], by: str, kinds: list[Any]) -> str:
    """The geometric means: what the picture says in one line."""
    drawn = geomeans([{**row, "group": "drawn"} for row in rows])
    means = {(m[by], m["mode"]): m["ratio"] for m in drawn if m["peer"] == "torch"}
    parts = [
        f"{_NAMES[mode]} "
        + " / ".join(f"{means[kind, mode]:.2f}x" for kind in kinds if (kind, mode) in means)
        for mode in modes
        if any((kind, mode) in means for kind in kinds)
    ]
    names = " / ".join(str(kind) for kind in kinds)
    where = f"in {names}"
    if by == "threads":
        where = f"on {names} CPU thread{'s' if kinds != [1] else ''}"
    return (
        f"fused_lstm: how many times as fast as nn.LSTM\ngeometric mean {where}: {', '.join(parts)}"
    )


def _panel(
    panel: Any, rows: list[dict[str, Any]], shapes: list[str], modes: Sequence[str], title: str
) -> None:
    """Bars of one thread count or precision."""
    width = 0.8 / len(modes)
    peer_label: str | None = "ONNX Runtime, inference"  # once in the legend
    for index, mode in enumerate(modes):
        mine = {row["shape"]: row for row in rows if row["mode"] == mode}
        offset = (index - (len(modes) - 1) / 2) * width
        places = [shapes.index(shape) + offset for shape in mine]
        spreads = [row["fused_versus"]["torch"] for row in mine.values()]
        medians = [spread["median"] for spread in spreads]
        panel.bar(
            places,
            [median - 1 for median in medians],
            width * 0.92,
            bottom=1,
            color=_COLOURS[mode],
            label=_NAMES[mode],
            zorder=2,
            yerr=(
                [max(0.0, s["median"] - s["low"]) for s in spreads],
                [max(0.0, s["high"] - s["median"]) for s in spreads],
            ),
            error_kw={"ecolor": _INK, "elinewidth": 0.8, "alpha": 0.6},
        )
        for place, spread, row in zip(places, spreads, mine.values(), strict=True):
            top, bottom = spread["high"], spread["low"]
            peer = _peer_ratio(row)
            if peer is not None:
                panel.plot(
                    place, peer, "D", markersize=5, markerfacecolor="white",
                    markeredgecolor=_INK, markeredgewidth=1, zorder=4,
                    label=peer_label,
                )  # fmt: skip
                peer_label = None
                if top / 1.05 < peer < top * 1.25:
                    top = peer * 1.05
                if bottom / 1.25 < peer < bottom * 1.05:
                    bottom = peer / 1.05
            above = spread["median"] >= 1
            panel.annotate(
                f"{spread['median']:.2f}" + ("*" if row["noise"]["noisy"] else ""),
                (place, top if above else bottom),
                (0, 3 if above else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=7.5,
                color=_INK,
            )
    panel.axhline(1, color=_INK, linewidth=1.4, zorder=3)
    panel.annotate(
        "parity", (1, 1), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center", fontsize=8, color=_INK,
    )  # fmt: skip
    panel.set_title(title, loc="right", fontsize=10, color=_INK)
    panel.set_xlim(-0.6, len(shapes) - 0.4)
    panel.set_facecolor(_GROUND)
    panel.grid(axis="y", color=_FAINT, linewidth=0.8, zorder=0)
    panel.tick_params(colors=_INK, labelsize=8, length=0)
    panel.spines[:].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw a benchmark result as PNG.")
    parser.add_argument("result", type=Path, help="a JSON file written by run.py")
    parser.add_argument("--out", type=Path, help="the picture (default: beside the JSON)")
    parser.add_argument("--group", help="which shapes (default: core; on a GPU all)")
    parser.add_argument("--dtype", help="default: float32; on a GPU every precision")
    parser.add_argument(
        "--modes",
        default="inference,training",
        help="comma-separated (default: inference,training)",
    )
    given = parser.parse_args(arguments)
    out = given.out or given.result.with_suffix(".png")
    modes = given.modes.split(",")
    if not set(modes) <= set(_NAMES):
        parser.error(f"--modes: expected some of {', '.join(_NAMES)}, got {given.modes!r}")
    try:
        draw(load(given.result), out, given.group, given.dtype, modes)
    except (ValueError, OSError) as error:
        print(f"benchmarks/plot.py: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"benchmarks/plot.py: needs matplotlib ({error})", file=sys.stderr)
        return 1
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
