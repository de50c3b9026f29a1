"""Data out of scale are told, with numbers and the cure, and data in scale are not."""

from __future__ import annotations

import warnings

import pytest
from cases import BUILT_IN

import sdegen as sg
from sdegen.models.scale import out_of_scale

USUAL = [name for name in BUILT_IN if name in ("vp", "sub-vp", "cosine", "linear-path", "ve", "edm", "ddpm-table")]


def facts(std: float, mean: float = 0.0, event: tuple[int, ...] = (2,)) -> sg.DataFacts:
    return sg.DataFacts(mean=mean, std=std, event_shape=event)


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
def test_data_of_a_usual_size_are_in_scale(name, std):
    assert out_of_scale(facts(std, 0.5), BUILT_IN[name]) == []


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize(
    ("std", "mean", "words"), [(1e-3, 0.0, "least noise"), (1e3, 0.0, "not forgotten"), (1.0, 1e4, "subtract the mean")]
)
def test_data_of_another_size_are_told(name, std, mean, words):
    sde = BUILT_IN[name]
    if words == "least noise" and sde.sigma(sde.t_min) / sde.alpha(sde.t_min) < std / 3:
        pytest.skip("this process resolves them")
    if words != "least noise" and float(sde.alpha(sde.t_max)) == 0:
        pytest.skip("without signal at t_max nothing is left of any data")
    assert any(words in told for told in out_of_scale(facts(std, mean), sde))


def test_the_least_noise_is_told_in_the_data_s_units():
    (told,) = out_of_scale(facts(1e-3), sg.VPSDE())  # sigma/alpha at t_min is 0.0105
    assert "sigma/alpha = 0.0105 at t_min = 0.001, is 10.5 of that" in told


@pytest.mark.parametrize("name", USUAL)
def test_a_mean_far_from_0_is_told_to_those_who_train(name):
    sde, off = BUILT_IN[name], facts(0.5, 20.0)
    assert any("subtract the mean" in told for told in out_of_scale(off, sde, trained=True))
    assert len(out_of_scale(off, sde, trained=True)) == 1 and out_of_scale(facts(0.5, 0.9), sde, trained=True) == []
    shifted = float(sde.alpha(sde.t_max)) * 20 > float(sde.sigma(sde.t_max))
    assert bool(out_of_scale(off, sde)) == shifted  # exact scores know their mean


def test_bytes_are_told_to_be_pictures():
    (told, *_) = out_of_scale(facts(70.0, 127.0, (1, 8, 8)), sg.VPSDE())
    assert "127.5" in told and "load_images" in told


def test_sample_tells_once_and_says_nothing_of_sound_data():
    model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0], [1e-3, 0.0]], std=1e-4), sg.VPSDE())
    with pytest.warns(UserWarning, match="least noise") as told:
        sg.sample(model, 4, steps=4, seed=0)
    assert len([w for w in told if "least noise" in str(w.message)]) == 1 and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.sample(sg.MixtureModel(sg.data.toys.ring(8), sg.VPSDE()), 4, steps=4, seed=0)
        sg.sample(sg.Denoiser(sg.nets.MLP(2), sg.VPSDE()), 4, steps=4, seed=0)
