"""Whether a model is smooth in time is found out, not presumed."""

from __future__ import annotations

import pytest
import torch

import sdegen as sg

F64 = torch.float64
MIXTURE = sg.data.toys.ring(8, std=0.1)


class Knows(torch.nn.Module):
    """A network that knows the answer, told with ripples of this size in log(sigma/alpha)."""

    event_shape = (2,)

    def __init__(self, sde, ripple=0.0):
        super().__init__()
        self.exact, self.ripple = sg.MixtureModel(MIXTURE, sde), ripple

    def forward(self, x, t):
        level = self.exact.sde.half_log_snr(t.double()).clamp(-8, 8)[:, None]
        told = self.exact(x.double(), t.double()).x0 * (1 + self.ripple * torch.sin(12 * level))
        return told.to(x.dtype)


def presumed(sde, ripple=0.0) -> sg.Denoiser:
    mean, std = MIXTURE.mean, MIXTURE.covariance.diagonal().mean().sqrt()
    model = sg.Denoiser(Knows(sde, ripple), sde, parametrization="x0", data_mean=mean, data_std=std)
    model.data_turn = sg.MixtureModel(MIXTURE, sde).data.turning  # as fit measures it
    return model


def error(model, steps) -> float:
    x = model.sde.prior((64, 2), seed=7, dtype=F64)
    ends = [sg.sample(model, x.shape, x_init=x, steps=n, progress=False).x for n in (steps, 201)]
    return float((ends[0] - ends[1]).square().mean().sqrt())


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.CosineSDE()], ids=repr)
def test_an_exact_score_in_a_denoiser_is_found_and_gains(sde):
    """What a network is presumed to be costs an exact score twice the error at 20 steps, and more from there on."""
    model = presumed(sde)
    before = [error(model, n) for n in (20, 40)]
    assert not model.smooth and "smooth=False" in sg.sample(model, 2, steps=20, seed=0).solver
    assert sg.measure_smooth(model) is True and model.smooth and model.data.smooth
    assert "smooth=False" not in sg.sample(model, 2, steps=20, seed=0).solver
    after = [error(model, n) for n in (20, 40)]
    assert after[0] < 0.7 * before[0] and after[1] < 0.2 * before[1]


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE()], ids=repr)
def test_what_ripples_in_time_is_rough_whatever_was_presumed(sde):
    """A ripple of 2 % with twelve radians a unit of log(sigma/alpha), such as time features make."""
    model = presumed(sde, ripple=0.02)
    for before in (False, True):
        model.smooth = before
        assert sg.measure_smooth(model) is False and not model.smooth


def test_checkpoints_keep_it(tmp_path):
    torch.manual_seed(0)
    model = sg.Denoiser(sg.nets.MLP(2, hidden=8), sg.VPSDE(), data_mean=0.0, data_std=0.5)
    found = sg.measure_smooth(model, samples=4)
    sg.save(model, tmp_path / "model")
    assert sg.load(tmp_path / "model").smooth is found


def test_it_costs_what_it_says_and_leaves_nothing_else():
    class Asked(sg.Wrapped):
        asked = 0

        def forward(self, x, t, **cond):
            type(self).asked += len(x)
            return self.model(x, t, **cond)

    model = Asked(sg.MixtureModel(MIXTURE, sg.VPSDE()))
    state = torch.random.get_rng_state()
    assert sg.measure_smooth(model, samples=4) and Asked.asked == 4 * 280
    assert torch.equal(torch.random.get_rng_state(), state) and model.model.smooth


def test_conditions_are_passed_on_and_what_cannot_be_is_refused():
    labelled = sg.MixtureModel(MIXTURE, sg.VPSDE(), labels=[0, 1] * 4)
    assert sg.measure_smooth(labelled, samples=4, label=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(sg.InvalidInputError, match="label"):
        sg.measure_smooth(labelled, samples=4, label=torch.tensor([0, 1]))
    with pytest.raises(sg.InvalidInputError, match="event_shape"):
        sg.measure_smooth(sg.Denoiser(torch.nn.Identity(), sg.VPSDE(), parametrization="noise"))


def test_a_run_that_fails_changes_nothing():
    class Failing(sg.Wrapped):
        def forward(self, x, t, **cond):
            return sg.Prediction.from_x0(x, x * torch.nan, self.sde, t)

    model = Failing(sg.MixtureModel(MIXTURE, sg.VPSDE()))
    with pytest.raises(sg.SolverError):
        sg.measure_smooth(model, samples=2)
    assert model.smooth
