"""The pages in docs/: their snippets run as they stand, one after the other, and what they point to exists."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SNIPPETS = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.S) for page in DOCS.glob("*.md")}
RUN = (
    "discrete.md",
    "likelihood.md",
    "your_network.md",
    "your_solver.md",
    "your_sde.md",
)  # the others have files and data sets of the reader's own


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", RUN)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    if any("import diffusers" in code for code in SNIPPETS[page]):
        pytest.importorskip("diffusers")
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
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for script in re.findall(r"python ((?:examples|benchmarks)/\w+\.py)", text):
            assert (DOCS.parent / script).exists(), f"{page.name}: {script}"
