"""`sdegen sample FOLDER --prompt ...`: the pictures of a diffusers pipeline."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_pipelines import pipeline

import sdegen as sg
from sdegen.app.cli import main
from sdegen.app.sample_folder import image_of
from sdegen.data.png import encoded

pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> str:
        if not (root / name).exists():
            pipeline(diffusers, name).save_pretrained(root / name)
        return str(root / name)

    return folder


def test_a_prompt_becomes_pictures_of_its_seed(folders, tmp_path, capsys):
    folder = folders("stable diffusion")
    words = ["sample", folder, "--prompt", "red cat", "--negative-prompt", "boot", "--scale", "3", "--rtol", "0.1"]
    assert main([*words, "--n", "3", "--seed", "5", "--to", str(tmp_path / "cats")]) == 0
    model, _, text = sg.from_pipeline(folder)
    cond = text("red cat", n=3, negative="boot")
    x = sg.sample(sg.Guided(model, 3.0, null=cond.pop("null")), 3, rtol=0.1, seed=5, **cond).x
    with torch.no_grad():
        wanted = model.decode(x)
    for i in range(3):
        found = (tmp_path / "cats" / f"{i:06d}.png").read_bytes()
        (tmp_path / "wanted.png").write_bytes(encoded(wanted[i]))
        assert (image_of(tmp_path / "cats" / f"{i:06d}.png") - image_of(tmp_path / "wanted.png")).abs().max() < 0.02, (
            found[:4]
        )
    capsys.readouterr()
    assert main([*words, "--n", "3", "--seed", "5", "--to", str(tmp_path / "cats"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["were_there"]) == (0, 3)
    assert main([*words, "--n", "3", "--seed", "5", "--scale", "4", "--to", str(tmp_path / "cats")]) == 1
    assert "samples of other settings (scale)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stable diffusion xl", "flux"])
def test_several_prompts_come_in_turn(folders, name, tmp_path):
    """Samples are those of their numbers, whichever others are drawn."""
    words = ["sample", folders(name), "--prompt", "red cat", "--prompt", "blue boot", "--steps", "2"]
    if name == "flux":
        words += ["--size", "16x16"]
    assert main([*words, "--n", "4", "--to", str(tmp_path / "all")]) == 0
    assert main([*words, "--index", "1,2", "--to", str(tmp_path / "some")]) == 0
    for i in (1, 2):
        a, b = (image_of(tmp_path / folder / f"{i:06d}.png") for folder in ("all", "some"))
        assert torch.equal(a, b)
    one = ["sample", folders(name), "--prompt", "blue boot", "--steps", "2", *words[8:]]
    assert main([*one, "--index", "1", "--to", str(tmp_path / "one")]) == 0
    assert (image_of(tmp_path / "one" / "000001.png") - image_of(tmp_path / "all" / "000001.png")).abs().max() < 0.02


def test_a_grid_of_classes_and_of_what_takes_no_text(folders, tmp_path):
    assert (
        main(["sample", folders("dit"), "--prompt", "3", "--steps", "2", "--n", "2", "--out", str(tmp_path / "a.npy")])
        == 0
    )
    assert (
        main(["sample", folders("dit"), "--label", "3", "--steps", "2", "--n", "2", "--out", str(tmp_path / "b.png")])
        == 0
    )
    assert (
        main(["sample", folders("latent diffusion"), "--steps", "2", "--n", "2", "--out", str(tmp_path / "c.png")]) == 0
    )
    import numpy as np

    assert np.load(tmp_path / "a.npy").shape == (2, 3, 16, 16)
    assert all((tmp_path / name).stat().st_size > 500 for name in ("b.png", "c.png"))


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("stable diffusion", [], "got no --prompt, expected what"),
        ("latent diffusion", ["--prompt", "a"], "takes no text"),
        ("dit", ["--prompt", "shark"], "expected the name of a class"),
        ("stable diffusion", ["--prompt", "a", "--size", "9x16"], "multiples of 2"),
    ],
)
def test_wrong_prompts_say_why(folders, name, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", folders(name), *words]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_prompts_are_for_pipelines_and_guidance_for_models_with_labels(tmp_path, capsys):
    torch.manual_seed(0)
    labelled = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1, n_classes=3), sg.VPSDE(), data_std=1.0)
    plain = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), data_std=1.0)
    labelled.event_shape = plain.event_shape = (2,)
    sg.save(labelled, tmp_path / "labelled")
    sg.save(plain, tmp_path / "plain")
    assert main(["sample", str(tmp_path / "plain"), "--prompt", "a"]) == 1
    assert "expected --label" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "plain"), "--scale", "2"]) == 1
    assert "takes no label that guidance could leave out" in capsys.readouterr().err
    words = ["sample", str(tmp_path / "labelled"), "--label", "1", "--scale", "2", "--steps", "3", "--json"]
    assert main([*words, "--out", str(tmp_path / "x.npy")]) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == 6
