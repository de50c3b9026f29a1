"""The command line on a model of latents: pictures are what they decode to, never the latents themselves."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdegen as sg
from sdegen.app import cli
from sdegen.app.commands import train

CHANNELS = 4  # of the latents: as many as RGBA has, which is what they must not be taken for


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """An autoencoder of the digits and a model of its latents, by the commands."""
    folder = tmp_path_factory.mktemp("latent")
    images = sg.data.load_images("digits").unlabelled()
    torch.manual_seed(0)
    net = sg.nets.Autoencoder(1, CHANNELS, patch=2, width=16, blocks=1)
    words = dict(steps=150, batch_size=64, seed=0, progress=False, device="cpu")
    sg.fit(net, images, loss=sg.autoencoder_loss, out=folder / "coded", **words)
    words = ["--net", "channels=8", "--net", "patch=1", "--steps", "4", "--batch-size", "16", "--preview-every", "4"]
    told = ["train", "digits", "--space", str(folder / "coded"), *words, "--device", "cpu", "--out", folder / "run"]
    assert cli.main([*map(str, told), "--quiet"]) == 0
    return folder


def size(path: Path) -> tuple[str, tuple[int, int]]:
    with Image.open(path) as image:
        return image.mode, image.size


def expected(model: sg.Denoiser, n: int, **how) -> torch.Tensor:
    return model.decode(sg.sample(model, n, seed=0, progress=False, **how).x)


def test_samples_are_what_the_latents_decode_to(runs, tmp_path):
    model, words = sg.load(runs / "run", device="cpu"), ["--steps", "4", "--device", "cpu", "--quiet", "--label", "3"]
    assert model.event_shape == (CHANNELS, 4, 4) and model.space.channels == CHANNELS
    x = expected(model, 5, steps=4, label=torch.full((5,), 3))
    sample = ["sample", str(runs / "run"), "--n", "5", *words]
    assert cli.main([*sample, "--out", str(tmp_path / "x.npy")]) == 0
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "x.npy")), x, rtol=1e-4, atol=1e-4)
    assert cli.main([*sample, "--out", str(tmp_path / "x.png")]) == 0
    assert cli.main([*sample, "--to", str(tmp_path / "each"), "--strips", "2", "--batch-size", "5"]) == 0
    for i in range(5):
        assert size(tmp_path / "each" / f"{i:06d}.png") == ("L", (8, 8))
        with Image.open(tmp_path / "each" / f"{i:06d}.png") as image:
            shown = torch.from_numpy(np.array(image)).float() / 127.5 - 1
        assert float((shown - x[i, 0].clamp(-1, 1)).abs().max()) < 0.01
    assert (tmp_path / "each" / "strips.png").exists()
    for kind in ("npz", "png"):
        assert cli.main([*sample, "--to", str(tmp_path / kind), "--kind", kind]) == 0
        (found,) = list(sg.inference.files.read_samples(tmp_path / kind))
        assert found.shape == (5, 1, 8, 8)
        torch.testing.assert_close(found, x if kind == "npz" else x.clamp(-1, 1), rtol=1e-4, atol=0.01)


def test_previews_are_pictures(runs):
    files = list((runs / "run" / "previews").glob("*.png"))
    assert files
    previews = train.Previews(Namespace(smoke=True, steps=1), 10)
    assert previews.draw(sg.load(runs / "run", device="cpu"), 2).shape == (10, 1, 8, 8)


def test_a_run_goes_on_from_what_its_folder_knows(runs, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "run")
    words = ["train", "--out", str(tmp_path / "run"), "--steps", "6", "--space", "nowhere", "--device", "cpu"]
    assert cli.main([*words, "--quiet"]) == 0
    again, before = sg.load(tmp_path / "run", device="cpu"), sg.load(runs / "run", device="cpu")
    assert torch.equal(again.space.std, before.space.std)


def test_evaluate_scores_pictures(runs, tmp_path, capsys):
    words = ["--smoke", "--device", "cpu", "--classifier", str(tmp_path / "c.safetensors")]
    assert cli.main(["evaluate", str(runs / "run"), *words, "--out", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert set(found) == {"samples", "reconstruction"} and found["reconstruction"]["PSNR"] > 8
    assert cli.main(["evaluate", str(runs / "run"), *words, "--only", "bits"]) == 1
    assert "a model of latents" in capsys.readouterr().err


def test_info_tells_the_space(runs, capsys):
    assert cli.main(["info", str(runs / "run")]) == 0
    assert "latents of Autoencoder of" in (told := capsys.readouterr().out) and "[1, 8, 8]" in told


def test_inpaint_keeps_the_pixels_that_are_seen(runs, tmp_path):
    image = sg.data.load_images("digits", split="held-out").images[0]
    u = ((image[0] + 1) * 127.5).round().byte().numpy()
    Image.fromarray(u).save(tmp_path / "digit.png")
    words = ["--n", "2", "--steps", "4", "--device", "cpu", "--quiet", "--out", str(tmp_path / "x.npy")]
    for method in ("repaint", "guided", "twisted"):
        assert (
            cli.main(["inpaint", str(runs / "run"), str(tmp_path / "digit.png"), "half", "--method", method, *words])
            == 0
        )
        x = torch.from_numpy(np.load(tmp_path / "x.npy"))
        seen = sg.data.mask("half", (1, 8, 8))
        exact = torch.from_numpy(u).float() / 127.5 - 1
        assert x.shape == (2, 1, 8, 8)
        torch.testing.assert_close(x[:, seen], exact[None][seen].expand(2, -1), rtol=0, atol=1e-5)


def test_a_space_of_no_autoencoder_is_refused(runs, tmp_path, capsys):
    sg.save(sg.Denoiser(sg.nets.UNet(1, channels=8), sg.VPSDE()), tmp_path / "plain")
    words = ["train", "digits", "--space", str(tmp_path / "plain"), "--steps", "2", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 1
    assert "expected an autoencoder" in capsys.readouterr().err
