"""The documentation says what is so: its code runs, its pictures are drawn, its names have texts.

Here run the blocks that take no time; `make test-docs` runs the slow ones and the examples.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
import torch

import fused_lstm
from fused_lstm import functional

ROOT = pages.ROOT
DRAWN = pages.DOCS / "pictures"
if not (ROOT / "mkdocs.yml").exists():
    pytest.skip("the source folder with its documentation is not there", allow_module_level=True)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """One thread, as pages show small shapes; what a page sets is gone before the next test."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("page", pages.pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_code_of_a_page_runs(page: Path) -> None:
    found = pages.blocks(page)
    for block in found:
        if block.mark.startswith("not run"):
            print(f"{page.name}, line {block.line}: {block.mark}")
    pages.run([block for block in found if not block.mark])


def test_a_block_is_found_run_and_compared(tmp_path: Path) -> None:
    page = pages.DOCS / "page.md"  # never written: only its name is used
    text = "x\n\n<!-- slow -->\n```python\na = 1\n```\n\n    ```python\n    b = 2\n    ```\n\n"
    text += '```python\nprint(b)\n```\n\n```text title="prints"\n3\n```\n'
    written = tmp_path / "page.md"
    written.write_text(text)
    slow, indented, wrong = pages.blocks(written)
    assert (slow.mark, slow.line, slow.code) == ("slow", 5, "a = 1\n")
    assert indented.code == "b = 2\n"
    moved = pages.Block(page, wrong.line, wrong.code, wrong.mark, wrong.prints)
    with pytest.raises(AssertionError, match=r"page\.md, line 13"):
        pages.run([indented, moved])
    with pytest.raises(NameError):
        pages.run([moved])


def test_every_page_stands_in_the_navigation_once() -> None:
    named = pages.in_navigation()
    assert len(named) > 10
    assert sorted(set(named)) == sorted(named)
    missing = [page for page in named if not (pages.DOCS / page).exists()]
    assert not missing


def test_pictures_are_what_their_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    drawn = importlib.import_module("draw_pictures").pictures()
    committed = {path.name: path.read_text("utf-8") for path in DRAWN.glob("*.svg")}
    assert drawn.keys() == committed.keys()
    for name, text in drawn.items():
        assert text == committed[name], f"{name}: python tools/draw_pictures.py draws it anew"


def public_things() -> dict[str, Any]:
    """What has a text in the reference: functions and classes of the package and two modules."""
    found = {name: getattr(fused_lstm, name) for name in fused_lstm.__all__}
    for module in (fused_lstm.weights, fused_lstm.init):
        found |= {name: getattr(module, name) for name in module.__all__}
    plain = {"__version__", "functional", "init", "weights"}
    return {
        name: thing
        for name, thing in found.items()
        if name not in plain and not hasattr(thing, "_fields")  # named tuples are what they hold
    }


def test_public_names_say_shapes_and_errors() -> None:
    for name, thing in public_things().items():
        text = inspect.getdoc(thing) or ""
        assert "Raises" in text, f"{name}: says nothing of errors"
        assert len(text.splitlines()) > 5, f"{name}: {text!r} is not enough"
    for text in map(inspect.getdoc, (fused_lstm.LSTM, fused_lstm.LSTMCell, functional.lstm)):
        assert "Source:" in (text or "")
        assert "[4H" in (text or "")


def test_arguments_are_all_described() -> None:
    """Every argument of a public function or class stands in its docstring's Args."""
    for name, thing in public_things().items():
        text = inspect.getdoc(thing) or ""
        if "as for `" in text:
            continue  # its twin's text is this one's too
        for argument in inspect.signature(thing).parameters:
            assert re.search(rf"^    {argument}: ", text, re.MULTILINE), f"{name}: {argument}"


def test_examples_are_short_and_say_what_they_are_for() -> None:
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert len(examples) >= 5
    for path in examples:
        text = path.read_text("utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path.name}: no opening text"
        assert len(text.splitlines()) <= 100, f"{path.name}: longer than a page"
