"""At its end a run finds out whether what it trained is smooth in time."""

from __future__ import annotations

import pytest
import torch

import sdegen as sg
from sdegen.training import smoothness


class Told(torch.nn.Module):
    """An answer in closed form as a network, with ripples of this size in log(sigma/alpha), and one weight."""

    event_shape = (2,)

    def __init__(self, sde, ripple):
        super().__init__()
        self.weight, self.ripple = torch.nn.Parameter(torch.ones(())), ripple
        self.exact = (sg.MixtureModel(sg.data.toys.ring(8, std=0.1), sde),)  # in a tuple: it is not to be trained

    def forward(self, x, t):
        level = self.exact[0].sde.half_log_snr(t.double()).clamp(-8, 8)[:, None]
        x0 = self.exact[0](x.double(), t.double()).x0 * (1 + self.ripple * torch.sin(12 * level))
        return self.weight * x0.to(x.dtype)


def ended(ripple=0.0, smooth=None, *, batch_size=4096, **how):
    """What a run leaves that takes steps of no length, and its words."""
    sde = sg.VPSDE()
    model = sg.Denoiser(Told(sde, ripple), sde, parametrization="x0", smooth=smooth)
    data = sg.data.toys.ring(8, std=0.1).sample(4096, seed=0).float()
    history = sg.fit(model, data, steps=28, batch_size=batch_size, lr=1e-12, seed=0, progress=False, **how)
    return model, history.statistics


@pytest.mark.parametrize(("ripple", "smooth"), [(0.0, True), (0.02, False)])
def test_a_run_finds_out_whether_its_model_is_smooth_and_says_what_it_took(ripple, smooth):
    model, words = ended(ripple)
    assert model.smooth is smooth and f"smooth measured: {smooth} (3360 evaluations)" in words
    assert ("smooth=False" in sg.sample(model, 2, steps=20, seed=0).solver) is not smooth


@pytest.mark.parametrize("said", [True, False])
def test_what_is_said_of_smoothness_stays(said):
    for ripple in (0.0, 0.02):
        model, words = ended(ripple, said)
        assert model.smooth is said and "smooth" not in words
    model, words = ended(0.02)
    model.smooth = True  # said afterwards
    sg.fit(model, torch.randn(4096, 2), steps=28, batch_size=4096, lr=1e-12, seed=0, progress=False)
    assert model.smooth


def test_nothing_is_spent_on_it_where_that_would_be_more_than_a_hundredth_of_the_run():
    model, words = ended(batch_size=3900)
    assert model.smooth is False and "smooth" not in words


def test_what_is_found_out_of_smoothness_changes_no_weight_and_no_draw():
    state = torch.random.get_rng_state()
    weights = [ended(smooth=said)[0].net.weight.detach() for said in (None, True)]
    assert weights[0] == weights[1] and torch.equal(torch.random.get_rng_state(), state)


def test_a_flow_that_cannot_be_solved_leaves_what_was_presumed(monkeypatch):
    def failing(*_):
        raise sg.NonFiniteError("no")

    monkeypatch.setattr(smoothness, "smooth_in_time", failing)
    model, words = ended()
    assert model.smooth is False and "smooth not to be measured: False (3360 evaluations)" in words


def test_a_run_folder_keeps_whether_its_model_is_smooth(tmp_path, monkeypatch):
    def run(steps, found):
        monkeypatch.setattr(smoothness, "smooth_in_time", lambda *_: found)
        data = torch.randn(2048, 2, generator=torch.Generator().manual_seed(0))
        model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE())
        sg.fit(model, data, steps=steps, batch_size=2048, seed=0, out=tmp_path, save_every=100, progress=False)
        return model.smooth, sg.load(tmp_path).smooth

    assert run(55, True) == (True, True)
    assert run(55, False) == (True, True)  # nothing left to do
    with pytest.warns(UserWarning, match="steps 55 -> 56"):
        assert run(56, False) == (False, False)
