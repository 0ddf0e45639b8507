"""Finds and runs the Python in the documentation, so that no page shows code that does not work.

All blocks of a page run in their order and in one namespace, like the cells of a notebook. A block
may carry a mark, a comment in the line before it:

    <!-- slow -->             it takes seconds: left to `make test-docs`, which runs the whole page
    <!-- not run: reason -->  it needs what a test cannot have; the reason is printed

What stands in a fence ```text title="prints" right after a block is exactly what the block prints.
"""

import contextlib
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>slow|not run: [^\n]+?) -->\n\s*)?"
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^ *```[ ]*$"
    r"(?:\s*^ *```text title=\"prints\"\n(?P<prints>.*?)^ *```)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fence of Python: its text, where it stands and what it should print (None: anything)."""

    path: Path
    line: int  # of its first line of code, from 1
    code: str
    mark: str  # "", "slow" or "not run: reason"
    prints: str | None


def in_navigation() -> list[str]:
    """The pages that mkdocs.yml names, relative to docs/."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(r"^ +- .*?([\w/.-]+\.md)$", text, re.MULTILINE)


def pages() -> list[Path]:
    """The README and the pages in the navigation that show Python.

    A page that mkdocs.yml does not name belongs to one part of the package, as does its test.
    """
    found = [ROOT / "README.md", *(DOCS / page for page in in_navigation())]
    return [path for path in found if path.exists() and blocks(path)]


def blocks(path: Path) -> list[Block]:
    """The Python of one page, in order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        prints = match["prints"]
        found.append(
            Block(
                path=path,
                line=text.count("\n", 0, match.start("code")) + 1,
                code=textwrap.dedent(match["code"]),
                mark=match["mark"] or "",
                prints=None if prints is None else textwrap.dedent(prints),
            )
        )
    return found


def run(wanted: Sequence[Block]) -> None:
    """Runs blocks one after the other in one namespace; raises what they raise.

    Raises AssertionError where a block does not print what its page says. A traceback names the
    page and the line in it.
    """
    namespace: dict[str, Any] = {"__name__": "mine"}  # the module whose code a reader may see named
    for block in wanted:
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, str(block.path), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.prints is not None:
            where = f"{block.path.relative_to(ROOT)}, line {block.line}"
            assert printed.getvalue().rstrip() == block.prints.rstrip(), f"{where}: prints that"
