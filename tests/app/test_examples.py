"""The README's snippets and the scripts in examples/ run, and leave what they say they leave."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.S)  # each with what it prints
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
SCRIPTS = {
    "train_toy.py": (
        ["--smoke", "--out", "toy"],
        ["toy/trajectories.png", "toy/density.png", "toy/reverse.gif", "toy/run/step-00000020"],
    ),
    "digits.py": (["--smoke", "--out", "run"], ["run/samples.png"]),
    "ddim_eta_table.py": (["--smoke", "--out", "eta"], ["eta/table.csv", "eta/few_steps.png"]),
    "digits_likelihood.py": (["--smoke", "--out", "bits"], ["bits/bits.csv"]),
    "compare_solvers.py": (["--smoke"], ["work_precision.png"]),
    "emoji_data.py": (["--smoke", "--out", "emoji.npz"], ["emoji.npz", "emoji.png"]),
    "text_to_image.py": (["--smoke", "--out", "text"], ["text/text.png", "text/run/metrics.csv"]),
    "clip.py": (["--smoke", "--out", "pairs"], ["pairs/guided.png"]),
    "inpaint.py": (["--smoke", "--out", "inpainted"], ["inpainted/masks.png", "inpainted/passes.png"]),
    "edit_and_translate.py": (
        ["--smoke", "--out", "edited"],
        [f"edited/{name}.png" for name in ("edits", "translated", "between", "mixed")],
    ),
    "cascade.py": (["--smoke", "--out", "cascade"], ["cascade/cascade.png"]),
    "style_mixing.py": (
        ["--smoke", "--out", "mixed"],
        [f"mixed/{name}.png" for name in ("mixed", "curve", "variation")],
    ),
    "families.py": (["--smoke", "--out", "families"], ["families/families.png"]),
    "image_to_image.py": (["--smoke", "--out", "tasks"], ["tasks/answers.png"]),
    "train_autoencoder.py": (["--smoke", "--out", "coded"], ["coded/reconstructions.png"]),
    "translate.py": (["--smoke", "--out", "translated"], ["translated/translated.png"]),
    "unclip.py": (["--smoke", "--out", "unclip"], ["unclip/unclip.png", "unclip/between.png"]),
}


@pytest.mark.parametrize("i", range(len(SNIPPETS)))
def test_readme_snippets_run_as_they_are_and_print_what_is_shown(i, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, shown = SNIPPETS[i]
    code = code.replace("steps=1500", "steps=3")  # the training snippet, cut short
    exec(compile(code, f"README snippet {i}", "exec"), {})
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.01)  # another machine's rounding
    for file in re.findall(r'"(\w+\.(?:png|gif))"', code):
        assert (tmp_path / file).stat().st_size > 1000, file


def test_readme_has_a_snippet_for_each_use():
    assert len(SNIPPETS) == README.count("```python") == 4
    text = "".join(code for code, _ in SNIPPETS)
    assert all(verb in text for verb in ("sg.sample(", "sg.fit(", "sg.log_prob(", "sg.Posterior("))


def test_every_example_is_listed_here():
    assert {p.name for p in (ROOT / "examples").glob("*.py")} >= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_run(name, tmp_path, monkeypatch):
    arguments, files = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))  # as python does
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    for file in files:
        assert (tmp_path / file).exists(), file


def test_the_library_is_light():
    """import sdegen does not import matplotlib, scipy, torchdiffeq, torchsde or diffusers."""
    heavy = ["matplotlib", "scipy", "torchdiffeq", "torchsde", "diffusers", "sklearn"]
    code = f"import sys, sdegen; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def run(monkeypatch, name: str, *arguments: str) -> None:
    assert status(monkeypatch, name, *arguments) in (0, None)


def status(monkeypatch, name: str, *arguments: str) -> object:
    """What a script of examples/ exits with."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    except SystemExit as done:
        return done.code
    return None


def test_images_from_training_to_scores(tmp_path, monkeypatch, capsys):
    """One run folder goes through all scripts, and no script is told what the checkpoint knows."""
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    words = ["--network", "mnist-small", "--net", "channels=8", "--net", "patch=1"]
    run(monkeypatch, "train_images.py", "--data", "digits", "--sde", "edm", *words, "--out", "run", "--smoke")
    assert (tmp_path / "run" / "step-00000004").exists() and (tmp_path / "run" / "metrics.csv").exists()
    assert (tmp_path / "run" / "previews" / "step-00000004.png").stat().st_size > 1000
    run(monkeypatch, "train_images.py", "--out", "run", "--steps", "6", "--device", "cpu")
    assert (tmp_path / "run" / "step-00000006").exists()
    run(monkeypatch, "sample_images.py", "run", "--smoke", "--out", "samples", "--index", "0-2,9", "--strips", "2")
    files = sorted(p.name for p in (tmp_path / "samples").glob("*.png"))
    assert files == ["000000.png", "000001.png", "000002.png", "000009.png", "grid.png", "strips.png"]
    capsys.readouterr()
    assert status(monkeypatch, "sample_images.py", "run", "--smoke", "--out", "samples", "--seed", "1") == 1
    assert "other settings" in capsys.readouterr().err
    run(monkeypatch, "evaluate_images.py", "run", "--smoke", "--out", "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["likelihood"]["levels"] == 17 and scores["samples"]["images"] == 80
    assert "Frechet distance, floor" in capsys.readouterr().out
    for part in ("kernel distance", "kernel distance, floor"):
        assert len(scores["samples"][part]) == 2
    assert scores["reconstruction"]["PSNR"] > 15


def test_samples_are_the_same_files_however_they_are_asked_for(tmp_path, monkeypatch):
    """A sample's file depends on the seed and its number: damaged and missing ones come back as they were."""
    import sdegen as sg

    model = sg.Denoiser(sg.nets.UNet(1, channels=8, multipliers=(1, 2)), sg.VPSDE(), data_std=0.5)
    model.event_shape = (1, 8, 8)
    sg.save(model, tmp_path / "model")
    words = ["model", "--steps", "3", "--batch-size", "4"]
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "sample_images.py", *words, "--n", "10", "--out", "a")
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert len(set(wanted.values())) == 12, "ten samples that differ, the settings and the grid"
    (tmp_path / "a" / "000003.png").unlink()
    (tmp_path / "a" / "000007.png").write_bytes(wanted["000007.png"][:60])
    data = bytearray(wanted["000008.png"])
    data[len(data) // 2] ^= 4
    (tmp_path / "a" / "000008.png").write_bytes(data)
    run(monkeypatch, "sample_images.py", *words, "--n", "10", "--out", "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == wanted
    run(monkeypatch, "sample_images.py", *words, "--index", "5,9", "--out", "b")
    assert (tmp_path / "b" / "000005.png").read_bytes() == wanted["000005.png"]
    assert (tmp_path / "b" / "000009.png").read_bytes() == wanted["000009.png"]


@pytest.mark.slow
def test_solvers_are_compared_on_the_score_that_is_kept_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "compare_solvers.py", "--model", "fashion", "--label", "3", "--n", "4", "--smoke")
    assert "adams" in capsys.readouterr().out and (tmp_path / "work_precision.png").exists()


def test_emoji_without_packages_say_how_to_get_them_and_with_them_pair_the_artists(tmp_path, monkeypatch):
    """Row i is one emoji in both artists' hands; the split is by emoji; pictures lie on white."""
    import sdegen as sg

    said = str(status(monkeypatch, "emoji_data.py", "--packages", str(tmp_path)))
    assert "npm pack emoji-datasource-" in said
    run(monkeypatch, "emoji_data.py", "--smoke", "--size", "8", "--out", str(tmp_path / "emoji.npz"))
    made = np.load(tmp_path / "emoji.npz")
    noto, twemoji = made["noto"].astype(float), made["twemoji"].astype(float)
    assert noto.shape == twemoji.shape == (40, 8, 8, 3)
    ink = [(255 - drawn[..., channel]).reshape(40, -1) / 255 for drawn, channel in ((noto, 2), (twemoji, 0))]
    assert (np.abs(ink[0] - ink[1]).max(1) < 0.01).all()  # the same digit in orange and in blue
    parts = {part: sg.data.load_images(tmp_path / "emoji.npz", split=part) for part in ("train", "held-out")}
    assert [len(part) for part in parts.values()] == [70, 10] and not parts["train"].labels.any()
    assert np.array_equal(parts["held-out"].stored[5:].permute(0, 2, 3, 1), made["twemoji"][made["held_out"]])
    assert made["held_out"].sum() == 5 and len(made["names"]) == len(made["categories"]) == 40
