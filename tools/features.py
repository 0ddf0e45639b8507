"""Tries every feature of the README's table on nn.LSTM, on ours and on the peers that are there.

    python tools/features.py --haste haste_pytorch-0.5.0rc0.tar.gz   # all of it, some minutes
    python tools/features.py --table                                 # README and page from the JSON

A cell says "yes" only where `feature_probes.py` ran that row's test and it passed. What was seen
where it did not stands in docs/features.json and on the page docs/features.md, which are written
together with the README's table. `tests/test_features.py` tries the quick rows again.
"""

import argparse
import io
import json
import platform
import re
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import feature_layers  # noqa: E402
from feature_layers import Implementation  # noqa: E402
from feature_probes import PROBES  # noqa: E402

RECORD = ROOT / "docs" / "features.json"
PAGE = ROOT / "docs" / "features.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- features: python tools/features.py -->", "<!-- /features -->"


def processor() -> str:
    """The processor's name as Linux has it, or what Python knows."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def attempt(implementation: Implementation, name: str) -> dict[str, str]:
    """Runs one probe: {"verdict": "yes" or "no", "seen": what was raised}."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small shapes; a probe that needs more says so
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            PROBES[name].run(implementation.make)
    except Exception as error:
        return {"verdict": "no", "seen": told(error)}
    finally:
        torch.set_num_threads(threads)
    return {"verdict": "yes", "seen": ""}


def told(error: Exception) -> str:
    """The first line of an error, without what differs from run to run."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"0x[0-9a-f]+", "0x...", text.removeprefix("AssertionError: "))
    text = re.sub(r"(/[\w.-]+){2,}/", "", text)
    return text if len(text) <= 150 else text[:147] + "..."


def implementations(haste: Path | None, folder: Path) -> list[Implementation]:
    """nn.LSTM, ours, and the peers that can be had; says which cannot."""
    found = [feature_layers.torchs(), feature_layers.ours()]
    if haste:
        found.append(feature_layers.haste(haste, folder))
    else:
        print("haste: not tried, no --haste")
    try:
        found.append(feature_layers.flashrnn())
    except ImportError as error:
        print(f"FlashRNN: not tried, {error}")
    return found


def record(columns: list[Implementation], names: list[str]) -> dict:
    """Tries the named probes on every implementation."""
    rows = []
    for name in names:
        begun = time.monotonic()
        results = {own.name: attempt(own, name) for own in columns}
        verdicts = " ".join(f"{n}={r['verdict']}" for n, r in results.items())
        print(f"{name}: {verdicts} ({time.monotonic() - begun:.1f} s)", flush=True)
        rows.append({"name": name, "title": PROBES[name].title, "results": results})
    return {
        "torch": torch.__version__,
        "processor": processor(),
        "date": time.strftime("%Y-%m-%d"),
        "columns": [{"name": c.name, "version": c.version, "ran": c.ran} for c in columns],
        "rows": rows,
    }


def short_table(found: dict) -> str:
    """The README's table: verdicts alone."""
    columns = found["columns"]
    lines = [
        "| | " + " | ".join(f"{c['name']}" for c in columns) + " |",
        "|---|" + ":-:|" * len(columns),
    ]
    for row in found["rows"]:
        cells = [row["results"][c["name"]]["verdict"] for c in columns]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(found: dict) -> str:
    """docs/features.md: what was run, the table, and what was seen where the answer is no."""
    lines = [
        "# Features, tried",
        "",
        "Every cell was run, by one small test for each row, which also looks at the values:",
        "`yes` means that it passed. `python tools/features.py` makes this page and the README's",
        "table, and the tests try the quick rows of `nn.LSTM` and `fused_lstm.LSTM` again.",
        "",
        *(f"- **{c['name']}**, {c['version']}: {c['ran']}." for c in found["columns"]),
        "",
        "No GPU was there. haste and FlashRNN are made for GPUs: their CUDA and Triton kernels",
        "were not tried, and no cell speaks of them. Read in their sources, and not run: haste's",
        "CUDA layer computes float32 and float64, and its backward raises outside of training",
        "mode; FlashRNN compiles its kernels at the first call, and its `cuda` function is",
        "`once_differentiable`.",
        "",
        short_table(found),
        "## Where the answer is no",
        "",
    ]
    for c in found["columns"]:
        seen = [(r["title"], r["results"][c["name"]]["seen"]) for r in found["rows"]]
        seen = [(title, text) for title, text in seen if text]
        if seen:
            lines += [f"### {c['name']}", "", "| | what was seen |", "|---|---|"]
            lines += [f"| {title} | `{cell(text)}` |" for title, text in seen]
            lines.append("")
    where = f"{found['processor']}, torch {found['torch']}, {found['date']}"
    return "\n".join([*lines, f"{where}. [features.json](features.json)", ""])


def cell(text: str) -> str:
    """Text that stands in a table's code span."""
    return text.replace("|", "/").replace("`", "'")


def write_tables(found: dict) -> None:
    """The page, and the README between its two marks."""
    PAGE.write_text(page(found), encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n\n{short_table(found)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--haste", type=Path, help="its sdist, as pip downloads it")
    parser.add_argument("--only", nargs="*", help="try these rows again, and keep the others")
    parser.add_argument("--table", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    if options.table:
        write_tables(json.loads(RECORD.read_text(encoding="utf-8")))
        return
    with tempfile.TemporaryDirectory() as folder:
        columns = implementations(options.haste, Path(folder))
        with redirect_stderr(io.StringIO()):
            found = record(columns, options.only or list(PROBES))
    if options.only:
        known = json.loads(RECORD.read_text(encoding="utf-8"))
        if found["columns"] != known["columns"] or found["processor"] != known["processor"]:
            parser.error("the other rows are of other versions or of another processor")
        rows = {row["name"]: row for row in [*known["rows"], *found["rows"]]}
        found["rows"] = [rows[name] for name in PROBES]
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_tables(found)


if __name__ == "__main__":
    main()
