"""A small SVG drawing: boxes, words and arrows, for the pictures of the documentation.

An opaque ground, so that a picture reads the same on a light page and on a dark one. In a label,
`h_{t-1}` sets what stands in braces below the line. The same calls give the same text.
"""

import re
from html import escape

__all__ = ["FAINT", "GROUND", "INK", "SOFT", "Picture"]

GROUND, INK, FAINT, SOFT = "#fbfbfa", "#1f2328", "#aab0b7", "#eceef0"
Point = tuple[float, float]
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
)


class Picture:
    """Shapes in the order in which they are drawn; `str` gives the file."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" role="img">',
            f"<title>{escape(title)}</title>",
            _TIP,
        ]
        self.rectangle(0, 0, width, height, GROUND, GROUND)

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])

    def rectangle(
        self, x: float, y: float, w: float, h: float, fill: str = SOFT, line: str = INK
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" '
            f'stroke="{line}"/>'
        )

    def text(
        self, x: float, y: float, words: str, size: int = 14, colour: str = INK,
        anchor: str = "middle", bold: bool = False,
    ) -> None:  # fmt: skip
        """Words of one or more lines, the first one's middle at y."""
        weight = ' font-weight="bold"' if bold else ""
        for row, line in enumerate(words.split("\n")):
            shown = re.sub(
                r"_\{([^}]*)\}(.?)",
                r'<tspan dy="4" font-size="75%">\1</tspan><tspan dy="-4">\2</tspan>',
                escape(line, quote=False),
            )
            self.parts.append(
                f'<text x="{x:g}" y="{y + size * (0.35 + 1.3 * row):g}" font-size="{size}" '
                f'fill="{colour}" text-anchor="{anchor}"{weight}>{shown}</text>'
            )

    def box(
        self, x: float, y: float, w: float, h: float, words: str, fill: str = SOFT,
        colour: str = INK, size: int = 14,
    ) -> None:  # fmt: skip
        """A rectangle with its words in the middle."""
        self.rectangle(x, y, w, h, fill)
        lines = words.count("\n")
        self.text(x + w / 2, y + h / 2 - 0.65 * size * lines, words, size, colour)

    def arrow(self, *points: Point, colour: str = INK, tip: bool = True) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#tip)"' if tip else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{end}/>'
        )

    def operation(self, x: float, y: float, sign: str) -> None:
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="14" fill="{GROUND}" stroke="{INK}" '
            'stroke-width="1.6"/>'
        )
        self.text(x, y, sign, 18)
