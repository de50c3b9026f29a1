"""What a model knows of its data before and after fit, and what is told about it."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from cases import points, small

from sdegen import EDMSDE, VPSDE, Denoiser, InvalidInputError, LinearPathSDE
from sdegen.nets import MLP
from sdegen.storage.models import load, save
from sdegen.training import fit

fit = functools.partial(fit, progress=False, device="cpu", seed=0, batch_size=16)

TRIAL = points(40) * 1e-2
REAL = points(300) + 3


def knows(model, data) -> bool:
    std = (data - data.mean(0)).double().square().mean().sqrt()
    same = torch.allclose(model.data_mean, data.double().mean(0), atol=1e-6)
    return same and torch.allclose(model.data_std, std, rtol=1e-5)


def told(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught]


def test_the_real_run_after_a_trial_takes_its_own_statistics():
    model = small()
    assert fit(model, TRIAL, steps=1).statistics == "data_mean measured, data_std measured"
    assert knows(model, TRIAL)
    history = fit(model, REAL, steps=5)
    assert knows(model, REAL) and history.statistics == "data_mean measured again, data_std measured again"
    other = points(100) * 7
    words = told(lambda: fit(model, other, steps=5))  # as many steps as were trained: fine-tuning
    assert knows(model, REAL) and any("statistics='measure'" in w for w in words)
    fit(model, other, steps=10, statistics="keep")
    assert knows(model, REAL)
    fit(model, other, steps=1, statistics="measure")
    assert knows(model, other)


def test_steps_add_up():
    model = small()
    fit(model, REAL, steps=4)
    fit(model, REAL, steps=4)
    fit(model, TRIAL, steps=7)
    assert knows(model, REAL)
    fit(model, TRIAL, steps=16)
    assert knows(model, TRIAL)


@pytest.mark.parametrize("how", ["given", "assigned", "loaded"])
def test_what_fit_did_not_measure_is_never_overwritten_unasked(how, tmp_path):
    model = Denoiser(MLP(2), VPSDE(), data_mean=1.0, data_std=0.125) if how == "given" else small()
    if how == "assigned":
        fit(model, TRIAL, steps=1)
        model.set_statistics(1.0, 0.125)
    if how == "loaded":
        fit(model, TRIAL, steps=1)
        save(model, tmp_path / "model")
        model = load(tmp_path / "model")
    before = copy.deepcopy((model.data_mean, model.data_std))
    words = told(lambda: setattr(model, "history", fit(model, REAL, steps=50)))
    assert torch.equal(model.data_mean, before[0]) and torch.equal(model.data_std, before[1])
    assert model.history.statistics == "data_mean kept, data_std kept"
    assert any("keeps its statistics" in w for w in words)
    assert not told(lambda: fit(model, REAL, steps=1, statistics="keep"))
    assert fit(model, REAL, steps=1, statistics="measure").statistics.count("measured again") == 2
    assert knows(model, REAL)


def test_only_what_was_measured_is_measured_again():
    model = Denoiser(MLP(2), VPSDE(), data_std=0.125)
    fit(model, TRIAL, steps=1)
    history = fit(model, REAL, steps=5)
    assert float(model.data_std) == 0.125 and torch.allclose(model.data_mean, REAL.double().mean(0), atol=1e-6)
    assert history.statistics == "data_mean measured again, data_std kept"


def test_the_same_data_change_nothing_and_nothing_is_said():
    model = small()
    assert not told(lambda: fit(model, REAL / 3, steps=1))
    mean, std = model.data_mean, model.data_std
    assert not told(lambda: fit(model, REAL / 3, steps=9))
    assert torch.equal(model.data_mean, mean) and torch.equal(model.data_std, std)


def test_a_model_of_constant_data_learns_what_varies():
    model = small()
    fit(model, torch.ones(7, 2), steps=1)
    assert model.data_std is None
    fit(model, REAL, steps=2)
    assert knows(model, REAL)


def test_a_run_that_goes_on_keeps_its_statistics(tmp_path):
    fit(small(), REAL, steps=2, out=tmp_path)
    again = small()
    history = fit(again, REAL, steps=4, out=tmp_path, statistics="measure")
    assert knows(again, REAL) and "checkpoint" in history.statistics


@pytest.mark.parametrize(
    ("data", "sde", "says"),
    [
        (torch.randint(0, 256, (50, 1, 4, 4)).float(), VPSDE(), "look like bytes"),
        (points(100) * 1e-3, VPSDE(), "least noise"),
        (points(100) * 1e3, VPSDE(), "not forgotten"),
        (points(100) + 1e3, EDMSDE(), "mean reaches"),
        (points(100) + 1e2, LinearPathSDE(), "standard deviations: subtract the mean"),
        (points(100), VPSDE(), None),
    ],
)
def test_data_out_of_scale_are_told_once_at_the_start(data, sde, says):
    model = Denoiser(MLP(tuple(data.shape[1:])), sde)
    words = told(lambda: fit(model, data, steps=2))
    assert [says in w for w in words].count(True) == 1 if says else not words


def test_another_wish_is_refused():
    with pytest.raises(InvalidInputError, match="'keep' or 'measure'"):
        fit(small(), REAL, steps=1, statistics="forget")
