"""Model cards: a snippet that runs, facts that are true, and a README that stays its author's."""

from __future__ import annotations

import re

import pytest
import torch

import sdegen as sg


def model(**conditions) -> sg.Denoiser:
    torch.manual_seed(0)
    net = sg.nets.UNet(1, channels=8, **conditions)
    made = sg.Denoiser(net, sg.VPSDE(), data_mean=0.0, data_std=0.5)
    made.event_shape = (1, 8, 8)
    return made


def snippet(folder) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


@pytest.mark.parametrize(
    "conditions",
    [{}, {"n_classes": 3}, {"image_channels": 2}, {"token_channels": 4}, {"vector_channels": 5, "n_classes": 2, "image_channels": 1}],
)  # fmt: skip
def test_the_snippet_of_a_card_runs_where_the_folder_is(conditions, tmp_path, monkeypatch):
    given = model(**conditions)
    sg.save(given, tmp_path / "shoes", card="Boots, by *nobody*.")
    text = (tmp_path / "shoes" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: sdegen\n") and "# shoes\n" in text and "Boots, by *nobody*." in text
    count = sum(p.numel() for p in given.net.parameters())
    assert f"UNet, {count:,} parameters" in text and repr(given.sde) in text
    monkeypatch.chdir(tmp_path / "shoes")
    names: dict = {}
    exec(compile(snippet(tmp_path / "shoes"), "the card's snippet", "exec"), names)
    cond = {k: v for k, v in (("label", 0), ("image", names.get("image"))) if f"{k}=" in snippet(tmp_path / "shoes")}
    assert torch.equal(names["x"], sg.sample(given, 4, steps=20, seed=0, **cond).x)


def test_a_readme_stays_its_authors_and_is_not_sealed(tmp_path):
    folder = tmp_path / "m"
    sg.save(model(), folder, card="First.")
    (folder / "README.md").write_text("My own words.")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    sg.load(folder, device="cpu")
    sg.save(model(n_classes=2), folder)  # replaces the model, not what its author wrote
    assert (folder / "README.md").read_text() == "My own words." and (folder / ".gitattributes").exists()
    sg.save(model(), folder, card="Second.")
    assert "Second." in (folder / "README.md").read_text() and "My own" not in (folder / "README.md").read_text()
    (folder / "notes.txt").write_text("other things")
    with pytest.raises(sg.InvalidInputError, match="notes.txt"):
        sg.save(model(), folder)


def test_a_card_whose_snippet_could_not_run_is_refused(tmp_path):
    class Own(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    own = sg.Denoiser(Own(2, 2), sg.VPSDE(), data_std=1.0)
    own.event_shape = (2,)
    shapeless = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE())
    shapeless.event_shape = None
    for wrong, message in (
        (own, "cannot sample or rebuild a Own"),
        (torch.nn.Linear(1, 1), "a Linear of your own"),
        (shapeless, "shape of a sample is not known"),
    ):
        with pytest.raises(sg.InvalidInputError, match=message):
            sg.save(wrong, tmp_path / "m", card="It.")
        assert not (tmp_path / "m").exists()


def test_the_snippet_of_a_latent_model_decodes(tmp_path, monkeypatch):
    given = model()
    given.space = sg.LatentSpace(sg.nets.Autoencoder(3, 1, patch=2, width=8, blocks=1), mean=0.0, std=1.0)
    sg.save(given, tmp_path / "m", card="Latents.")
    monkeypatch.chdir(tmp_path / "m")
    names: dict = {}
    exec(compile(snippet(tmp_path / "m"), "the card's snippet", "exec"), names)
    assert "model.decode(x)" in snippet(tmp_path / "m") and names["model"].decode(names["x"]).shape == (4, 3, 16, 16)
