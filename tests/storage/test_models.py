"""Models that come with the package."""

from pathlib import Path

import pytest

import sdegen as sg


def test_a_model_that_comes_with_the_package_is_found_by_its_name(tmp_path, monkeypatch):
    """From anywhere; a folder of that name comes first."""
    monkeypatch.chdir(tmp_path)
    fashion = sg.load(Path("fashion"), device="cpu")
    assert fashion.event_shape == (1, 28, 28) and fashion.about["n_classes"] == 10
    own = sg.Denoiser(sg.nets.MLP(2, hidden=8), sg.VPSDE())
    sg.save(own, "fashion")
    assert sg.load("fashion", device="cpu").event_shape == (2,)
    with pytest.raises(sg.CheckpointError, match="there is no checkpoint"):
        sg.load("nowhere")


def test_a_network_that_is_a_function_has_nothing_to_keep(tmp_path):
    with pytest.raises(sg.InvalidInputError, match="net is a function, expected a torch.nn.Module"):
        sg.save(sg.Denoiser(lambda x, t: x, sg.VPSDE()), tmp_path / "model")
    assert not any(tmp_path.iterdir())
