"""Explicit schemes of SDEs warn where their steps are so long that they blow up, and only there."""

from __future__ import annotations

import math
import warnings

import pytest
from cases import SDES

import sdegen as sg
from sdegen.solvers.stochastic.explicit import ExplicitScheme

EXPLICIT = [row.name for row in sg.solvers() if isinstance(sg.make_solver(row.name), ExplicitScheme)]
PROCESSES = [sg.VPSDE(), sg.EDMSDE(), sg.VESDE(), sg.LinearPathSDE(), sg.CosineSDE(), sg.SubVPSDE()]
MIXTURE = sg.GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], std=0.3)


def run(model: sg.ScoreModel, name: str, steps: int, eta: float | None = None) -> tuple[float, list[str]]:
    """The samples' spread over the data's, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = sg.sample(model, 300, solver=name, steps=steps, seed=0, eta=eta).x
    return float(x.std() / model.sigma_data), [str(w.message) for w in caught if "blow up" in str(w.message)]


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", [*EXPLICIT, "torchsde:euler", "torchsde:srk", "torchsde:heun"])
def test_samples_twice_as_wide_as_the_data_were_warned_of(name, sde):
    """Whatever the number of steps; and with many there is no warning."""
    if name.startswith("torchsde"):
        pytest.importorskip("torchsde")
    model = sg.MixtureModel(MIXTURE, sde)
    for steps in (2, 3, 5, 7, 9, 10, 12, 16):
        spread, said = run(model, name, steps)
        assert said or spread < 2, (steps, spread)
        assert all(repr(name) in text and "at least" in text and "'ancestral'" in text for text in said)
    assert not run(model, name, 64)[1]


@pytest.mark.parametrize("name", EXPLICIT)
def test_below_six_steps_of_the_whole_way_every_explicit_scheme_warns(name):
    for sde in PROCESSES:
        assert run(sg.MixtureModel(MIXTURE, sde), name, 5)[1]


def test_more_noise_needs_shorter_steps():
    model = sg.MixtureModel(MIXTURE, sg.VESDE())
    for eta, steps in ((0.5, 7), (1.0, 12), (2.0, 28)):
        assert not run(model, "euler-maruyama", steps, eta)[1]
        assert run(model, "euler-maruyama", steps // 2, eta)[1]


@pytest.mark.parametrize("name", ["ancestral", "dpm++2m-sde", "d-adams2-sde"])
def test_what_the_warning_names_is_stable_at_any_length(name):
    for sde in PROCESSES:
        for steps in (2, 3, 5, 8):
            spread, said = run(sg.MixtureModel(MIXTURE, sde), name, steps)
            assert spread < 2 and not said, (sde, steps)


def test_equations_that_are_not_stiff_are_left_alone():
    """The flow, the forward SDE, a short way, steps by tolerance."""
    model, sde = sg.MixtureModel(MIXTURE, sg.VPSDE()), sg.VPSDE()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sde.prior((4, 2), seed=0)
        sg.solve(sg.ProbabilityFlow(model), x, solver="euler-maruyama", steps=3)
        sg.solve(sg.ForwardSDE(sde), MIXTURE.sample(4, seed=0), solver="euler-maruyama", steps=3, noise=0)
        sg.solve(sg.ReverseSDE(model), x, solver="sra1", steps=3, t_span=(0.4, 0.3), noise=0)
        sg.sample(model, 3, solver="sra1", eta=1.0, rtol=0.3, seed=0)


# ---- where there is no signal

NO_SIGNAL = {name: SDES[name] for name in ("linear-path-to-1", "no-signal-table", "trig-endless")}
REFUSE = {"euler-maruyama", "heun-sde", "sra1", "langevin", "karras-sde"}


class Counting(sg.MixtureModel):
    calls = 0

    def forward(self, x, t):
        self.calls += 1
        return super().forward(x, t)


@pytest.mark.parametrize("sde", NO_SIGNAL.values(), ids=NO_SIGNAL)
@pytest.mark.parametrize(
    "name", [row.name for row in sg.solvers() if row.name.split(":")[0] not in ("scipy", "torchdiffeq")]
)
def test_from_a_time_without_signal_samples_are_right_or_refused_before_the_first_evaluation(name, sde):
    """Half of the processes in use end with alpha = 0 (or 6e-17, as the circle does): no NaN, no wrong spread."""
    if name.startswith("torchsde"):
        pytest.importorskip("torchsde")
    for how in ({"steps": 40}, {"rtol": 0.1})[: 1 + sg.make_solver(name).adaptive]:
        model = Counting(MIXTURE, sde)
        if name in REFUSE or name.startswith("torchsde"):
            with pytest.raises(sg.InvalidInputError, match=r"no signal .alpha = 0.*t_span="):
                sg.sample(model, 8, solver=name, seed=0, **how)
            assert model.calls == 0
        else:
            x = sg.sample(model, 400, solver=name, seed=0, **how).x
            assert abs(float(x.std() / model.sigma_data) - 1) < 0.25


@pytest.mark.parametrize("kind", ["lambda", "theta", "blend", "karras", "sqrt-time"])
def test_a_grid_from_an_endless_circle_has_times_that_can_be_told_apart(kind):
    sde = NO_SIGNAL["trig-endless"]
    ts = sg.grid(sde, 40, kind=kind, t_span=(sde.t_max, sde.t_min))
    assert float((ts[:-1] - ts[1:]).min()) > 1e-6 and float(ts[0]) == sde.t_max


def test_a_rate_of_noise_that_is_infinite_beside_signal_is_refused_too():
    """g = t^-1/4 at 0, where alpha is 1: upward from there; from a little later it works."""
    sde, x = SDES["root"], MIXTURE.sample(4, seed=0)
    with pytest.raises(sg.InvalidInputError, match="infinite: pass other times"):
        sg.solve(sg.ForwardSDE(sde), x, solver="euler-maruyama", steps=[0.0, 0.5, 1.0], noise=0)
    assert sg.solve(sg.ForwardSDE(sde), x, solver="euler-maruyama", steps=[0.01, 0.5, 1.0], noise=0).x.isfinite().all()


@pytest.mark.parametrize(
    "corrections, levels, settles", [(100, 10, True), (20, 4, True), (5, 13, True), (1, 40, False)]
)
def test_langevins_levels_may_lie_as_far_apart_as_their_steps_settle(corrections, levels, settles):
    """The paper's ten levels of a hundred steps are no long steps."""
    sde = sg.TabulatedVESDE(sg.discrete.sigmas(levels, sigma_min=0.05, sigma_max=5.0))
    model = sg.MixtureModel(sg.GaussianMixture([[0.0]], std=0.05), sde)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sg.discrete.annealed_langevin(model, 2000, steps_per_level=corrections, seed=0, denoise=False)
    told = any("'langevin' with" in str(w.message) for w in caught)
    assert told == (not settles) and (float(found.x.std()) / math.hypot(0.05, 0.05) < 2) == settles
