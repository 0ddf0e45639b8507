"""The pages of the documentation site that are not written by hand; mkdocs calls this as a hook.

- Benchmarks: a page for each committed result, made from its JSON by benchmarks/report.py, and one
  that sums them up. No figure is copied by hand.
- In depth: every page in docs/ that mkdocs.yml does not name, so that a new one is never lost.
- Project: texts that live beside the code they are about (CONTRIBUTING.md, csrc/README.md, ...).
- A link out of docs/ leads to the page of the text that it means, or to a copy of the file.
- In a page, the line `<!-- public names -->` becomes the reference of all that `__all__` names.
"""

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402  needs the line above

RESULTS = ROOT / "benchmarks" / "results"
PUBLIC_NAMES = "<!-- public names -->"
NOT_SHOWN_ALONE = ("__version__", "functional", "init", "weights")
# Where a text lives -> where it stands in the site.
ELSEWHERE = {
    "benchmarks/README.md": "benchmarks/method.md",
    "benchmarks/NOTES.md": "benchmarks/notes.md",
    "csrc/README.md": "project/csrc.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changes.md",
}
WIDE = ("---", "hide: [toc]", "---", "")
FIGURES = ('<div class="figures" markdown>', "")
BENCHMARK_INTRODUCTION = """# Benchmarks

nn.LSTM's time over ours, Python's overhead included: above 1 ours is faster. "training" is forward
and backward with all weight gradients, "with x's gradient" also that one. Every figure on these
pages is made from the committed JSON when the site is built; [how it is measured](method.md) and
[what was tried](notes.md) are pages of their own. `python benchmarks/run.py` measures on your
machine, and `make bench ARGS="--quick"` does so in two minutes from a clone.

Our GPU kernels have run on the CPU stand-in only: no figure of theirs is here until a result from a
GPU is committed.

Geometric means over the shapes of each list; in brackets the shape where ours is least ahead:
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds to the navigation what mkdocs.yml does not name."""
    assert config.nav is not None
    named = set(_named(config.nav))
    docs = Path(config.docs_dir)
    pages = sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
    unnamed = [page for page in pages if page not in named]
    reference = config.nav.pop()
    if unnamed:
        config.nav.append({"In depth": unnamed})
    benchmarks: list[Any] = [{"Summary": "benchmarks/index.md"}]
    benchmarks += [{_title(path): _uri(path)} for path in _results()]
    benchmarks += [{"How it is measured": "benchmarks/method.md"}, {"Notes": "benchmarks/notes.md"}]
    project = [
        {"The compiled half": "project/csrc.md"},
        {"Contributing": "project/contributing.md"},
    ]
    project.append({"Changes": "project/changes.md"})
    config.nav += [reference, {"Benchmarks": benchmarks}, {"Project": project}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that docs/ does not hold."""
    for source, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text("utf-8")))
    files.append(File.generated(config, "benchmarks/index.md", content=_summary()))
    sources = {f"docs/{page.src_uri}" for page in files.documentation_pages()} | set(ELSEWHERE)
    sources = {source for source in sources if (ROOT / source).is_file()}
    linked = {t for s in sources for t in _linked_files(s, (ROOT / s).read_text("utf-8")).values()}
    for path in sorted(linked | {path.relative_to(ROOT).as_posix() for path in _other_results()}):
        if _place(path).startswith("repository/"):
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    for path in _results():
        files.append(File.generated(config, _uri(path), content=_result_page(path)))
        picture = path.with_suffix(".png")
        if picture.exists():
            uri = _uri(path).replace(".md", ".png")
            files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository, and puts in the reference of the public names."""
    uri = page.file.src_uri
    source = next((source for source, place in ELSEWHERE.items() if place == uri), f"docs/{uri}")
    for link, path in _linked_files(source, markdown).items():
        place = posixpath.relpath(_place(path), posixpath.dirname(uri) or ".")
        markdown = re.sub(rf"\]\({re.escape(link)}(?=[)#])", f"]({place}", markdown)
    if PUBLIC_NAMES not in markdown:
        return markdown
    return markdown.replace(PUBLIC_NAMES, "\n\n".join(f"::: {_path(n)}" for n in _public_names()))


def _linked_files(source: str, text: str) -> dict[str, str]:
    """Links as written -> the files they mean, for those that lead out of docs/ or into it."""
    found = {}
    for link in re.findall(r"\]\(([^)#:\s]+)[)#]", text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        inside = source.startswith("docs/") and path.startswith("docs/")
        if not inside and not path.startswith("..") and (ROOT / path).is_file():
            found[link] = path
    return found


def _place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return ELSEWHERE.get(path, f"repository/{path}")


def _public_names() -> list[str]:
    """What `fused_lstm.__all__` names, without the version and modules: those have own sections."""
    tree = ast.parse((ROOT / "fused_lstm" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return [name for name in names if name not in NOT_SHOWN_ALONE]
    raise ValueError("fused_lstm/__init__.py: expected a list __all__, found none")


def _path(name: str) -> str:
    """Where to look a public name up: where it is defined, if a module has the same name."""
    module = ROOT / "fused_lstm" / f"{name}.py"
    return f"fused_lstm.{name}.{name}" if module.exists() else f"fused_lstm.{name}"


def _named(nav: Any) -> Iterator[str]:
    """Every page that a navigation names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _named(value)
    else:
        for value in nav:
            yield from _named(value)


def _results() -> list[Path]:
    """The committed results in the form of benchmarks/report.py."""
    return sorted(set(RESULTS.glob("*/*.json")) - set(_other_results()))


def _other_results() -> list[Path]:
    """Those in another form: they are linked, not shown."""
    found = []
    for path in sorted(RESULTS.glob("*/*.json")):
        try:
            report.load(path)
        except ValueError:
            found.append(path)
    return found


def _title(path: Path) -> str:
    return f"{path.parent.name}, {path.stem}"


def _uri(path: Path) -> str:
    return f"benchmarks/{path.parent.name}-{path.stem}.md"


def _summary() -> str:
    """One line per result, list of shapes, dtype, peer and number of threads."""
    results = {path: report.load(path) for path in _results()}
    measured = {mean["mode"] for result in results.values() for mean in result["geomeans"]}
    modes = {mode: name for mode, name in report.MODES.items() if mode in measured}
    lines = [
        "| result | shapes | dtype | against | threads | " + " | ".join(modes.values()) + " |",
        "|---|---|---|---|---:|" + "---:|" * len(modes),
    ]
    for path, result in results.items():
        link = f"[{_title(path)}]({_uri(path).removeprefix('benchmarks/')})"
        table: dict[tuple[Any, ...], dict[str, str]] = {}
        for mean in result["geomeans"]:
            peer = report.PEER_LABELS.get(mean["peer"], mean["peer"])
            key = (mean["group"], mean["dtype"], peer, mean["threads"] or "")
            cell = f"**{mean['ratio']:.2f}** ({mean['worst']:.2f})"
            table.setdefault(key, {})[mean["mode"]] = cell
        for key, cells in table.items():
            figures = " | ".join(cells.get(mode, "") for mode in modes)
            lines.append(f"| {link} | " + " | ".join(map(str, key)) + f" | {figures} |")
    others = [
        f"- [{_title(path)}](../repository/{path.relative_to(ROOT).as_posix()})"
        for path in _other_results()
    ]
    if others:
        others = ["## Other results", "", *others, ""]
    return "\n".join([*WIDE, BENCHMARK_INTRODUCTION, *FIGURES, *lines, "", "</div>", "", *others])


def _result_page(path: Path) -> str:
    """Picture, tables and every figure of one result."""
    result = report.load(path)
    lines = [*WIDE, f"# {_title(path)}", "", report.caption(result), ""]
    if path.with_suffix(".png").exists():
        picture = _uri(path).removeprefix("benchmarks/").replace(".md", ".png")
        lines += [f"![nn.LSTM's time over ours, per shape]({picture}){{ .wide }}", ""]
    lines += FIGURES
    groups = list(dict.fromkeys((row["group"], row["dtype"]) for row in result["rows"]))
    for group, dtype in groups:
        lines += [f"## Shapes `{group}`, {dtype}", "", report.table(result, group, dtype), ""]
    lines += ["## Every figure", "", report.detail(result), ""]
    source = path.relative_to(ROOT)
    return "\n".join([*lines, "</div>", "", f"Made from `{source}` in the repository.", ""])
