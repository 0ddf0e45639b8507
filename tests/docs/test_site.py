"""The built site: without a warning, complete, its figures those of the JSON, nothing fetched.

It needs what `make docs` installs; `make test-docs` sees to that.
"""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

import fused_lstm

pytest.importorskip("mkdocs", reason="mkdocs is not installed; make test-docs installs it")
ROOT = pages.ROOT
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def words(page: Path) -> str:
    """What a page shows, without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", " ", page.read_text("utf-8")))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_benchmark_page_has_the_figures_of_its_json(site: Path, path: Path) -> None:
    result = json.loads(path.read_text("utf-8"))
    page = site / "benchmarks" / f"{path.parent.name}-{path.stem}.html"
    if "rows" not in result or "geomeans" not in result:  # not run.py's: linked as it is
        copied = site / "repository" / path.relative_to(ROOT)
        assert copied.read_bytes() == path.read_bytes()
        assert f"repository/{path.relative_to(ROOT)}" in (page.parent / "index.html").read_text()
        return
    shown = words(page)
    summary = words(site / "benchmarks" / "index.html")
    for row in result["rows"]:
        for figure in row["implementations"].values():
            assert f"{figure['ms']:.4g}" in shown
    for mean in result["geomeans"]:
        assert f"{mean['ratio']:.2f}" in shown
        assert f"{mean['ratio']:.2f}" in summary
    assert result["environment"]["git"]["commit"][:10] in shown
    has_picture = path.with_suffix(".png").exists()
    assert page.with_suffix(".png").exists() == has_picture
    assert (f'src="{page.stem}.png"' in page.read_text("utf-8")) == has_picture


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=.?(?:https?:)?//[^ >]+|"
                         r"<link\b[^>]*\bhref=.?(?:https?:)?//[^ >]+")  # fmt: skip
    for page in site.rglob("*.html"):
        assert not fetched.findall(page.read_text("utf-8")), page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(.?(?:https?:)?//", style.read_text("utf-8")), style.name


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    reference = (site / "reference.html").read_text("utf-8")
    modules = {
        "functional": fused_lstm.functional,
        "init": fused_lstm.init,
        "weights": fused_lstm.weights,
    }
    for name in set(fused_lstm.__all__) - {"__version__", *modules}:
        assert re.search(rf'<h2 id="fused_lstm\.(?:{name}\.)?{name}"', reference), name
    for module in ("init", "weights"):
        for name in modules[module].__all__:
            assert re.search(rf'id="fused_lstm\.{module}\.(?:\w+\.)?{name}"', reference), name
    assert 'id="fused_lstm.functional.lstm_cell"' in reference


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    home = (site / "index.html").read_text("utf-8")
    for page in pages.DOCS.rglob("*.md"):
        address = page.relative_to(pages.DOCS).with_suffix(".html").as_posix()
        assert (site / address).exists()
        assert f'href="{address}"' in home, f"{address}: not in the navigation"


def test_a_link_out_of_docs_leads_to_the_file(site: Path) -> None:
    page = (site / "how" / "kernels.html").read_text("utf-8")
    assert 'href="../repository/csrc/kernels/cpu/plan.cpp"' in page
    copied = site / "repository" / "csrc" / "kernels" / "cpu" / "plan.cpp"
    assert copied.read_bytes() == (ROOT / "csrc" / "kernels" / "cpu" / "plan.cpp").read_bytes()


def test_every_example_is_shown(site: Path) -> None:
    shown = " ".join(words(page) for page in (site / "recipes").glob("*.html"))
    shown = re.sub(r"\s+", "", shown)
    for example in (ROOT / "examples").glob("*.py"):
        assert re.sub(r"\s+", "", example.read_text("utf-8")) in shown, example.name
