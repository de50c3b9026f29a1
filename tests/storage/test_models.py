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
