"""The pages in docs/: their snippets run as they stand, one after the other, and what they point to exists."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = ("_build", "gallery", "reference", "jupyter_execute")
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if page.relative_to(DOCS).parts[0] not in GENERATED and not page.name.startswith("results-")
]
SNIPPETS = {
    page.relative_to(DOCS).as_posix(): re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    for page in PAGES
}
THE_READERS = {  # pages with files, data sets or devices of the reader's own
    "howto/data.md",
    "howto/evaluate.md",
    "howto/networks.md",
    "howto/train.md",
}
RUN = [page for page, snippets in SNIPPETS.items() if snippets and page not in THE_READERS]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", RUN)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    for module in ("diffusers", "accelerate"):
        if any(f"import {module}" in code for code in SNIPPETS[page]):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for i, code in enumerate(SNIPPETS[page]):
        code = re.sub(r"(?<=steps=)\d{4,}", "3", code)  # training, cut short
        exec(compile(code, f"{page}, snippet {i}", "exec"), names)
    for file in re.findall(r'"(\w+\.(?:png|gif))"', "".join(SNIPPETS[page])):
        assert (tmp_path / file).stat().st_size > 1000, file


def test_snippets_are_python():
    for page, snippets in SNIPPETS.items():
        for i, code in enumerate(snippets):
            compile(code, f"{page}, snippet {i}", "exec")


def test_links_and_commands_lead_somewhere():
    for page in [*PAGES, DOCS.parent / "README.md"]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
            made = (page.parent / link).resolve().relative_to(DOCS.parent).parts[:2]
            if made[0] == "docs" and (made[1] in GENERATED or link.endswith("_static/explorer.html")):
                continue  # written by `make docs`, whose check.py looks at every link
            assert (page.parent / link).exists() or (page.parent / f"{link}.md").exists(), f"{page.name}: {link}"
        for script in re.findall(r"python ((?:examples|benchmarks)/\w+\.py)", text):
            assert (DOCS.parent / script).exists(), f"{page.name}: {script}"
