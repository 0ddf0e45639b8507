"""Draws the pictures of "How it works": `python tools/draw_pictures.py` writes docs/pictures/*.svg.

A test compares what it draws with what is committed.
"""

from collections.abc import Sequence
from pathlib import Path

from svg import FAINT, GROUND, SOFT, Picture

__all__ = ["pictures"]

BLUE, ORANGE, GREEN, PURPLE = "#2f6fde", "#d9650f", "#2f8f50", "#7a3fb0"
GATES = {"i": BLUE, "f": ORANGE, "g": GREEN, "o": PURPLE}
# The first 2 of MNIST's test set, its grey levels in sixteen steps (LeCun, Cortes, Burges).
DIGIT = """
0000000000000000000000000000 0000000000000000000000000000 0000000000000000000000000000
000000000000007fbf9200000000 0000000000004ffffff700000000 000000000000bffffffc00000000
000000000001aa625aef40000000 000000000000000001df50000000 000000000000000005ff30000000
00000000000000000bfc00000000 00000000000000006ffb00000000 0000000000000004ffc100000000
000000000000000fff3000000000 00000000000004bffd1000000000 0000000000004fffd10000000000
000000000001ffff200000000000 00000000003afff3000000000000 0000000003cfff54444300000000
000000003effffdffffe50000000 00000003cffffffffffd40000000 0000000afffffffa555400000000
0000000dfffe6630000000000000 0000000df9200000000000000000 0000000000000000000000000000
0000000000000000000000000000 0000000000000000000000000000 0000000000000000000000000000
0000000000000000000000000000
"""


def cell() -> Picture:
    """One step: what comes in, four gates, what goes on."""
    p = Picture(780, 440, "One LSTM cell and its four gates")
    p.text(60, 46, "memory c_{t-1}", 15)
    p.text(722, 46, "memory c_{t}", 15)
    p.arrow((20, 80), (176, 80))
    p.arrow((204, 80), (366, 80))
    p.arrow((394, 80), (765, 80))
    for x, y, sign in ((190, 80, "×"), (380, 80, "+"), (380, 165, "×"), (640, 165, "×")):
        p.operation(x, y, sign)
    about = {
        "f": (190, "σ", "forget:\nhow much stays"),
        "i": (320, "σ", "input:\nhow much enters"),
        "g": (440, "tanh", "candidate:\nwhat enters"),
        "o": (570, "σ", "output:\nhow much shows"),
    }
    for gate, (x, function, words) in about.items():
        p.box(x - 46, 222, 92, 40, f"{gate} = {function}", GATES[gate], "#ffffff", 16)
        p.text(x, 278, words, 12)
        p.arrow((x, 340), (x, 308))
    p.arrow((190, 222), (190, 96))
    p.arrow((320, 222), (320, 165), (364, 165))
    p.arrow((440, 222), (440, 165), (396, 165))
    p.arrow((380, 151), (380, 96))
    p.arrow((570, 222), (570, 165), (624, 165))
    p.arrow((640, 80), (640, 102))
    p.box(610, 104, 60, 30, "tanh")
    p.arrow((640, 134), (640, 150))
    p.arrow((654, 165), (765, 165))
    p.text(718, 190, "output h_{t}", 15)
    p.box(
        130, 342, 510, 36, "W_{ih} x_{t} + W_{hh} h_{t-1} + b   for each gate, with rows of its own"
    )
    p.arrow((20, 360), (128, 360))
    p.text(66, 334, "output h_{t-1}", 15)
    p.arrow((385, 425), (385, 380))
    p.text(400, 412, "input x_{t}", 15, anchor="start")
    return p


def rows() -> Picture:
    """An image read row by row by the same cell."""
    p = Picture(960, 300, "A digit read row by row: one step for each row")
    size = 8
    sharp = 'shape-rendering="crispEdges"'  # or seams show between pixels

    def pixels(x: float, y: float, lines: Sequence[str], scale: float) -> None:
        width = 28 * scale
        p.rectangle(x, y, width, len(lines) * scale, "#101418", "#101418")
        for r, line in enumerate(lines):
            for k, level in enumerate(line):
                if level != "0":
                    p.parts.append(
                        f'<rect x="{x + k * scale:g}" y="{y + r * scale:g}" width="{scale:g}" '
                        f'height="{scale:g}" {sharp} fill="#fff" '
                        f'fill-opacity="{int(level, 16) / 15:.2f}"/>'
                    )

    digit = DIGIT.split()
    pixels(20, 30, digit, size)
    p.text(132, 275, "28 rows of 28 pixels", 14)
    middle = 110
    p.text(287, middle - 30, "h_{0} = c_{0} = 0", 13)
    steps = ((330, 4), (455, 5), (640, 18), (765, 28))
    p.arrow((262, middle - 12), (328, middle - 12))
    p.arrow((262, middle + 12), (328, middle + 12))
    for x, row in steps:
        p.box(x, middle - 35, 84, 70, "LSTM\ncell", "#dde7fa", size=15)
        pixels(x, 197, [digit[row - 1]] * 6, 3)  # drawn six times, or it could not be seen
        p.arrow((x + 42, 195), (x + 42, middle + 37))
        p.text(x + 42, 234, f"row {row}", 13)
        if row != 28:
            p.arrow((x + 84, middle - 12), (x + 125 if row == 4 else x + 112, middle - 12))
            p.arrow((x + 84, middle + 12), (x + 125 if row == 4 else x + 112, middle + 12))
    for x in (597, 611, 625):
        p.text(x, middle, "·", 26)
    p.text(432, middle - 26, "c", 13)
    p.text(432, middle + 27, "h", 13)
    p.text(390, 275, "the same cell, the same weights, at every step", 14, anchor="start")
    p.arrow((849, middle), (872, middle))
    p.box(872, middle - 35, 70, 70, "linear\nlayer", "#e4f2e8", size=15)
    p.arrow((907, middle + 37), (907, 193))
    p.text(907, 212, "“2”", 22, bold=True)
    p.text(907, 236, "largest score", 12)
    return p


def tile() -> Picture:
    """Weights to a panel, and the tile that finishes all four gates of 16 units."""
    p = Picture(960, 430, "Four gates of sixteen units in one pass")
    p.text(85, 28, "W as torch keeps it\n[4H, K]", 13)
    for k, (gate, colour) in enumerate(GATES.items()):
        p.rectangle(30, 66 + 46 * k, 110, 46, SOFT)
        p.rectangle(30, 78 + 46 * k, 110, 12, colour, colour)
        p.text(18, 89 + 46 * k, gate, 15, colour, bold=True)
    p.text(85, 270, "16 units of each gate", 13)
    p.arrow((150, 158), (400, 158))
    p.text(275, 138, "packed, once per call", 13)
    p.text(540, 28, "panel: [K][4 gates][16 units]", 13)
    for k, (gate, colour) in enumerate(GATES.items()):
        p.rectangle(410 + 65 * k, 50, 65, 200, colour, GROUND)
        p.text(442 + 65 * k, 150, gate, 20, "#ffffff", bold=True)
        for r in range(6):
            p.rectangle(410 + 65 * k, 300 + 14 * r, 65, 14, colour, GROUND)
    for r in range(6):
        p.rectangle(150, 300 + 14 * r, 230, 14, SOFT, FAINT)
    p.text(265, 284, "6 rows of [x_{t}, h_{t-1}], K long", 13)
    p.text(395, 342, "×", 20)
    p.text(540, 276, "each row times the panel:", 13)
    p.text(540, 408, "the tile: 6 rows × 4 gates × 16 units, in registers", 13)
    p.arrow((674, 342), (718, 342))
    p.box(720, 272, 220, 140, "", "#ffffff")
    p.text(
        830, 294,
        "still in registers\ni, f, o = σ(·),  g = tanh(·)\nc_{t} = f · c_{t-1} + i · g\n"
        "h_{t} = o · tanh(c_{t})\n\nout: c_{t}, h_{t}; training: gates",
        13,
    )  # fmt: skip
    p.text(
        700, 80,
        "With the gates side by side, no unit\nwaits for another pass: its four sums\n"
        "meet in one tile, are activated there,\nand inference writes no gate\nto memory.",
        13, anchor="start",
    )  # fmt: skip
    return p


def flow() -> Picture:
    """Where data goes, forward and backward."""
    p = Picture(960, 500, "Data flow of forward and backward")
    p.text(20, 24, "Forward: step after step", 15, anchor="start", bold=True)
    p.box(20, 60, 150, 60, "x_{t}: the caller's\ntensor, its strides")
    p.box(20, 140, 150, 50, "h_{t-1}: in y itself")
    p.arrow((170, 90), (238, 110))
    p.arrow((170, 165), (238, 142))
    p.box(240, 90, 190, 76, "tiles: sums of four\ngates, in registers", "#dde7fa")
    p.arrow((430, 128), (488, 128))
    p.box(490, 90, 130, 76, "cell", "#dde7fa")
    p.arrow((620, 110), (708, 90))
    p.box(710, 60, 230, 50, "y_{t} = h_{t}: a result")
    p.arrow((620, 148), (708, 160))
    p.box(710, 136, 230, 50, "c_{t}: scratch, read at t+1")
    p.arrow((555, 166), (555, 212))
    p.text(568, 190, "training only", 12, anchor="start")
    p.box(
        240, 214, 700, 46,
        "reserve: gates i, f, g, o and c of every step and row; only read afterwards", "#fdf1e3",
    )  # fmt: skip
    p.text(20, 300, "Backward: last step first", 15, anchor="start", bold=True)
    p.arrow((770, 260), (770, 328))
    p.box(690, 330, 160, 70, "cell, backward:\ndz of four gates", "#f6e0cc")
    p.arrow((930, 365), (852, 365))
    p.text(905, 340, "dy_{t}", 14)
    p.arrow((690, 365), (612, 365))
    p.box(430, 330, 180, 70, "a chunk of steps:\ndz, still in cache", "#f6e0cc")
    p.arrow((430, 350), (352, 350))
    p.arrow((430, 380), (352, 420))
    p.box(170, 322, 180, 50, "dx = dz · W_{ih}", "#ffffff")
    p.box(170, 394, 180, 60, "dW = dz^T · [x, h]\ndb = sum of dz".replace("^T", "ᵀ"), "#ffffff")
    p.arrow((770, 400), (770, 440), (640, 440))
    p.box(430, 420, 208, 40, "dz · W_{hh}: dh of step t-1", "#ffffff")
    p.text(534, 478, "goes into the cell of the step before, which is next", 12)
    return p


def families() -> Picture:
    """Which kernel computes a call."""
    p = Picture(960, 470, "Which kernel computes a call")
    p.box(20, 30, 130, 60, "a checked call,\none layer")
    p.arrow((150, 60), (208, 60))
    p.text(180, 44, "CPU", 13)
    p.box(210, 30, 150, 60, "how much work,\nhow many rows?", "#ffffff")
    choices = (
        (30, "T·B to 4, or B = 1 and T below 12", "dot products on the weights as they lie"),
        (90, "B below 6 and I above 8; or B below 48,\nI above 64 and weights beyond cache",
         "packed panels, x projected ahead in chunks"),
        (150, "everything else", "packed panels, x and h in one product"),
    )  # fmt: skip
    for y, when, what in choices:
        p.arrow((360, 60), (380, 60), (380, y + 22), (398, y + 22))
        p.text(402, y + 14, when, 12, anchor="start")
        p.box(640, y, 304, 44, what, "#dde7fa", size=13)
    p.text(
        400, 226,
        "Threads: rows of the batch are dealt out where each thread keeps enough of them and the\n"
        "weights fit its cache: no waiting. Otherwise hidden units are, with a barrier per step.",
        13, anchor="start",
    )  # fmt: skip
    p.arrow((85, 90), (85, 330), (208, 330))
    p.text(145, 314, "GPU", 13)
    p.box(210, 300, 150, 60, "kernels\nturned on?", "#ffffff")
    green = "#e4f2e8"
    cuda = (
        (284, "no (the default)", "torch's own LSTM: cuDNN", SOFT),
        (338, "yes, H to 192 (float32: 128),\ncompute capability 8.0 to 9.0",
         "single block: W_{hh} stays in one block,\nthe whole sequence in one launch", green),
        (392, "yes, everything else", "stepwise: a product and one fused\nkernel per step", green),
    )  # fmt: skip
    for y, when, what, colour in cuda:
        p.arrow((360, 330), (380, 330), (380, y + 22), (398, y + 22))
        p.text(402, y + 14, when, 12, anchor="start")
        p.box(640, y, 304, 44, what, colour, size=13)
    p.text(402, 456, "Our GPU kernels have run on the CPU stand-in only.", 12, anchor="start")
    return p


def pictures() -> dict[str, str]:
    """Every picture by the name of its file."""
    drawn = {"cell": cell(), "rows": rows(), "tile": tile(), "flow": flow(), "families": families()}
    return {f"{name}.svg": str(picture) for name, picture in drawn.items()}


if __name__ == "__main__":
    for name, text in pictures().items():
        folder = Path(__file__).resolve().parent.parent / "docs" / "pictures"
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/pictures/{name}")
