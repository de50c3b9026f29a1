"""The README's snippets and the scripts in examples/ run, and leave what they say they leave."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
SCRIPTS = {
    "train_toy.py": (
        ["--smoke", "--out", "toy"],
        ["toy/trajectories.png", "toy/density.png", "toy/reverse.gif", "toy/run/step-00000020"],
    ),
    "train_images.py": (
        ["--smoke", "--out", "run"],
        ["run/step-00000004", "run/metrics.csv", "run/previews/step-00000004.png"],
    ),
    "digits.py": (["--smoke", "--out", "run"], ["run/samples.png"]),
    "compare_solvers.py": (["--smoke"], ["work_precision.png"]),
}


@pytest.mark.parametrize("i", range(len(SNIPPETS)))
def test_readme_snippets_run_as_they_are(i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = SNIPPETS[i].replace("steps=1500", "steps=3")  # the training snippet, cut short
    names: dict = {}
    exec(compile(code, f"README snippet {i}", "exec"), names)
    for file in re.findall(r'"(\w+\.(?:png|gif))"', code):
        assert (tmp_path / file).stat().st_size > 1000, file
    if "by_tolerance" in names:
        assert bool((names["by_tolerance"].status == 0).all()) and int(names["by_budget"].nfe[0]) == 12
    if "samples" in names:
        assert names["samples"].x.shape == (20, 1, 8, 8)


def test_readme_has_a_snippet_for_each_use():
    assert len(SNIPPETS) == 3
    text = "".join(SNIPPETS)
    assert all(verb in text for verb in ("sg.sample(", "sg.plot.trajectories(", "sg.fit("))


def test_every_example_is_listed_here():
    assert {p.name for p in (ROOT / "examples").glob("*.py")} >= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_run(name, tmp_path, monkeypatch):
    arguments, files = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    for file in files:
        assert (tmp_path / file).exists(), file


def test_the_library_is_light():
    """import sdegen does not import matplotlib, scipy, torchdiffeq, torchsde or diffusers."""
    heavy = ["matplotlib", "scipy", "torchdiffeq", "torchsde", "diffusers", "sklearn"]
    code = f"import sys, sdegen; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"
