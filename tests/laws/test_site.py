"""The checks that `make docs` ends with see what they are there to see; measurements are shown as they were written."""

import importlib
import inspect
import json
import re
import sys
import zlib
from pathlib import Path

import pytest

import sdegen as sg

SITE = Path(__file__).parents[2] / "docs" / "_site"


@pytest.fixture
def tools(monkeypatch):
    """A module of docs/_site by its name."""
    monkeypatch.syspath_prepend(str(SITE))
    yield importlib.import_module
    for name in ("check", "docstrings", "reference", "results"):
        sys.modules.pop(name, None)


def site(folder: Path, **pages: str) -> Path:
    """A built site of these pages, its inventory with one name."""
    body = zlib.compress(b"sdegen.sample py:function 1 api/sdegen.sample.html#$ -\n")
    (folder / "objects.inv").write_bytes(b"# Sphinx\n# Project\n# Version\n# zlib\n" + body)
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<a href="b.html#there">b</a> <a href="#me" id="me">a</a> <a href="https://x.org">x</a>', None),
        ('<a href="c.html">c</a>', "leads to no file"),
        ('<a href="b.html#gone">b</a>', "no such anchor"),
        ('<img src="no.png">', "leads to no file"),
        ('<script src="https://cdn.org/x.js"></script>', "from the network"),
        ('<link rel="stylesheet" href="//cdn.org/x.css">', "from the network"),
    ],
)
def test_a_broken_page_is_told(page, fault, tools, tmp_path):
    found = tools("check").faults(site(tmp_path, a=page, b='<p id="there">b</p>'), {"sdegen.sample"})
    assert [fault in f for f in found] == ([True] if fault else [])


def test_a_name_without_a_page_is_told(tools, tmp_path):
    found = tools("check").faults(site(tmp_path, a=""), {"sdegen.sample", "sdegen.fit"})
    assert found == ["sdegen.fit has no page in the reference"]


def test_every_public_name_is_on_a_shelf(tools, tmp_path):
    reference = tools("reference")
    reference.write(tmp_path)
    text = "\n".join(path.read_text() for path in tmp_path.glob("*.rst"))
    for name in sg.__all__:
        if not inspect.ismodule(getattr(sg, name)):
            assert f"\n   {name}\n" in text, name
    rooms = (sg.metrics, sg.plot, sg.nets, sg.discrete, sg.noise, sg.training, sg.testing)
    for name in (name for room in rooms for name in room.__all__):
        assert f"\n   {name}\n" in text or f"py:data:: {name}\n" in text, name
    solvers = (tmp_path / "solvers.md").read_text()
    assert all(f"| `{row.name}` |" in solvers for row in sg.solvers())
    assert "## sdegen sample" in (tmp_path / "shell.md").read_text()


def test_formulas_in_docstrings_are_no_markup(tools):
    blocks = tools("docstrings").blocks
    assert blocks(["|x|^2 and x_ of `a|b`"]) == [r"\|x\|^2 and x\_ of `a|b`"]
    assert blocks(["A law:", "    |x| = 1", "more"]) == [
        "A law:",
        "",
        ".. code-block:: text",
        "",
        "    |x| = 1",
        "",
        "more",
    ]
    assert blocks(["Args:", "    x: *any*"]) == ["Args:", r"    x: \*any\*"]
    assert blocks(["Example:", "    >>> f(*x)"]) == ["Example:", "    >>> f(*x)"]


REPORT = {
    "title": "T", "about": "A", "command": "python x.py", "date": "2026-01-02", "version": "1", "machine": "m",
    "tables": [{"title": "errors", "columns": ["n", "error"], "rows": [["adams", 0.00123], [20, None]]}],
    "figures": [{"title": "F", "error": "error", "lines": {"adams": [[5, 0.1], [10, 0.01]]}}],
}  # fmt: skip


def test_a_report_is_shown_as_it_was_written(tools):
    results = tools("results")
    assert results.rows(REPORT["tables"][0]) == ["| n | error |", "|---|---|", "| adams | 0.0012 |", "| 20 |  |"]
    assert results.made(REPORT) == "`python x.py`, 2026-01-02, sdegen 1, m."


def test_results_that_no_page_shows_get_a_page_and_figures_are_drawn(tools, tmp_path, monkeypatch):
    results, pages = tools("results"), tmp_path / "pages"
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    pages.mkdir()
    for name in ("told", "alone"):
        (tmp_path / f"{name}.json").write_text(json.dumps(REPORT))
    (pages / "own.md").write_text("# Own\n\n```{measured} told\n:made:\n```\n")
    (pages / "results-gone.md").write_text("# Of a file that is there no more")
    results.write(pages)
    assert {p.name for p in pages.iterdir()} == {
        "own.md",
        "results-alone.md",
        "results-alone-0.png",
        "results-told-0.png",
    }
    assert "```{measured} alone" in (pages / "results-alone.md").read_text()


def test_pages_of_measurements_hold_no_number_that_was_typed():
    """Tables there are what the results say, or about what solvers are; pages show results that exist."""
    pages = [p for p in sorted((SITE.parent / "measured").glob("*.md")) if not p.name.startswith("results-")]
    shown = {name for page in pages for name in re.findall(r"```\{measured\} (\S+)", page.read_text())}
    assert len(shown) > 3
    for name in shown:
        assert (SITE.parents[1] / "benchmarks" / "results" / f"{name}.json").exists(), name
    for page in pages:
        if "```{measured}" in page.read_text():
            rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
            assert not any(re.search(r"\d\.\d+ *\(|\de-\d|\|\s*\d+\.\d+ *\|", row) for row in rows), page.name


def test_the_citation_is_of_this_version():
    root = SITE.parents[1]
    assert f"version = {{{sg.__version__}}}" in (root / "docs" / "about" / "citation.md").read_text()
    assert f"version: {sg.__version__}\n" in (root / "CITATION.cff").read_text()


def test_a_class_shows_the_arguments_it_is_made_with(tools):
    """Also where a metaclass makes it, whose own signature says nothing."""
    signature = tools("docstrings").signature
    shown, _ = signature(None, "class", "sdegen.VPSDE", sg.VPSDE, None, "(*args, **kwargs)", None)
    assert shown.startswith("(beta_min=0.1, beta_max=20.0")
    assert signature(None, "function", "sdegen.sample", sg.sample, None, "(*args)", None) is None


def test_decisions_are_records_of_one_paragraph_whose_numbers_are_their_own():
    text = (SITE.parent / "decisions.md").read_text()
    records = [p.strip() for p in text.split("\n\n")[2:] if not p.strip().startswith("#")]
    assert all(record.startswith("**") for record in records)
    numbers = re.findall(r"(?m)^\*\*(\d+)\. ", text)
    assert len(numbers) == len(set(numbers)) > 30
