"""More samples than places: those that wait take the places of those that are done, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

import sdegen as sg
from sdegen.inference.column import DensityColumn
from sdegen.loop.how import How

F64 = torch.float64
MIXTURE = sg.GaussianMixture([[-1.0, 0.3], [1.0, -0.4], [0.2, 1.5]], std=[0.1, 0.3, 0.2])
N, PLACES = 90, 8


class Watched(sg.Wrapped):
    """Notes how many samples each call was asked about."""

    def __init__(self, model):
        super().__init__(model)
        self.sizes = []

    def forward(self, x, t, **cond):
        self.sizes.append(len(x))
        return self.model(x, t, **cond)


def model_of(sde=None) -> Watched:
    return Watched(sg.MixtureModel(MIXTURE, sde or sg.VPSDE(), labels=[0, 1, 1]))


WAYS = {
    "adams": {"rtol": 1e-3},
    "adams, its steps": {"rtol": 1e-3, "save": "all"},
    "adams, at times": {"rtol": 1e-3, "save": [0.7, 0.3, 0.05]},
    "adams, to t_min": {"rtol": 1e-2, "t_span": (1.0, 1e-3)},
    "adams, labels": {"rtol": 1e-3, "label": torch.arange(N) % 3 - 1},
    "bosh3": {"solver": "bosh3", "rtol": 1e-2},
    "dopri5": {"solver": "dopri5", "rtol": 1e-3},
    "reverse SDE": {"eta": 1.0, "rtol": 0.1},
    "reverse SDE, labels": {"eta": 1.0, "rtol": 0.1, "label": torch.arange(N) % 2},
    "gaussian start": {"solver": sg.make_solver("adams", start="gaussian"), "rtol": 1e-3},
    "sra1": {"solver": "sra1", "rtol": 0.2},
    "few steps at most": {"rtol": 1e-3, "max_steps": 17, "on_failure": "mark"},
}


@pytest.mark.parametrize("name", WAYS)
def test_no_sample_knows_how_many_places_there_were(name):
    how = {"seed": 5, "dtype": F64, "progress": False, **WAYS[name]}
    whole, some = (sg.sample(model_of(), N, batch_size=size, **how) for size in (None, PLACES))
    torch.testing.assert_close(some.x, whole.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(some.xs, whole.xs, rtol=0, atol=1e-10)
    torch.testing.assert_close(some.ts, whole.ts, rtol=0, atol=1e-10)
    for what in ("nfe", "accepted", "rejected", "status"):
        assert torch.equal(getattr(some, what), getattr(whole, what)), what
    assert name != "few steps at most" or 0 < int((whole.status == 0).sum()) < N


def test_encoding_too():
    x = MIXTURE.sample(N, seed=0, dtype=F64)
    whole, some = (sg.encode(model_of(), x, rtol=1e-3, batch_size=size) for size in (None, PLACES))
    torch.testing.assert_close(some.x, whole.x, rtol=0, atol=1e-10)
    assert torch.equal(some.nfe, whole.nfe)


DENSITIES = {
    "exact": {"rtol": 1e-3},
    "probes": {"rtol": 1e-2, "divergence": "rademacher", "probes": 3},
    "labels": {"rtol": 1e-3, "label": torch.arange(N) % 3 - 1},
    "dopri5": {"rtol": 1e-3, "solver": "dopri5"},
    "grid": {"steps": 12},
    "few steps at most": {"rtol": 1e-3, "max_steps": 26, "on_failure": "mark"},
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_too_with_all_that_is_said_of_their_errors(name):
    x, how = MIXTURE.sample(N, seed=0, dtype=F64), {"seed": 2, **DENSITIES[name]}
    whole, some = (sg.log_prob(model_of(), x, batch_size=size, **how) for size in (None, PLACES))
    for a, b in ((some.nats, whole.nats), (some.stderr, whole.stderr), (some.latent, whole.latent)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, equal_nan=True)
    for error in whole.errors:
        torch.testing.assert_close(some.errors[error], whole.errors[error], rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.equal(some.nfe, whole.nfe) and torch.equal(some.status, whole.status)
    assert name != "few steps at most" or 0 < int((whole.status == 0).sum()) < N


def test_a_part_of_a_part_notes_the_samples_of_the_whole():
    x, noise = MIXTURE.sample(8, seed=0, dtype=F64), sg.Noise(0)
    flow = sg.ProbabilityFlow(model_of(), label=torch.arange(8) % 3 - 1)
    plan = How(rtol=1e-3).plan(flow, F64, span=(1e-3, 1.0))
    whole, part = (DensityColumn(plan, flow, x, noise) for _ in range(2))
    whole.term.drift(whole.x, torch.tensor(0.3))
    rows = torch.tensor([6, 1, 5, 2])
    there = torch.tensor([3, 0])
    chosen = part.term.select(rows).select(there)
    chosen.drift(part.x[rows[there]], torch.tensor(0.3))
    told = part.term.starts.noise.isfinite().all(1)
    assert told.nonzero()[:, 0].tolist() == sorted(rows[there].tolist())
    torch.testing.assert_close(part.term.starts.noise[told], whole.term.starts.noise[told])


def test_samples_with_their_densities_too():
    how = {"seed": 5, "dtype": F64, "rtol": 1e-3, "return_log_prob": True, "progress": False}
    whole, some = (sg.sample(model_of(), N, batch_size=size, **how) for size in (None, PLACES))
    torch.testing.assert_close(some.x, whole.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(some.log_prob, whole.log_prob, rtol=0, atol=1e-9)
    assert torch.equal(some.nfe, whole.nfe)


def test_calls_for_densities_follow_counts():
    n = 400
    x = MIXTURE.sample(n, seed=0, dtype=F64)
    for run in (
        lambda model: sg.log_prob(model, x, rtol=1e-3, batch_size=PLACES),
        lambda model: sg.sample(model, n, seed=0, rtol=1e-3, return_log_prob=True, batch_size=PLACES, progress=False),
    ):
        model = model_of()
        found = run(model)
        assert max(model.sizes) <= PLACES
        assert len(model.sizes) * PLACES <= 1.1 * float(found.nfe.sum())
        assert sum(model.sizes) == int(found.nfe.sum())


@pytest.mark.parametrize(
    "how",
    [
        {"rtol": 1e-3},
        {"rtol": 1e-5},
        {"eta": 1.0, "rtol": 0.05},
        {"solver": "dopri5", "rtol": 1e-3},
        {"solver": "sra1", "rtol": 0.2},
        {"solver": sg.make_solver("adams", start="gaussian"), "rtol": 1e-3},
    ],
    ids=str,
)
def test_calls_follow_counts(how):
    """No call is larger than the places, all are counted, and hardly a place is empty until none waits."""
    model = model_of()
    found = sg.sample(model, 400, batch_size=20, seed=0, dtype=F64, progress=False, **how)
    assert max(model.sizes) <= 20
    assert sum(model.sizes) == int(found.nfe.sum())
    assert len(model.sizes) == found.calls
    assert 20 * found.calls < 1.1 * sum(model.sizes)


def test_what_fails_makes_room():
    """Samples that are not finite leave, and those after them come out as ever."""

    class Failing(sg.Wrapped):
        def forward(self, x, t, **cond):
            found = self.model(x, t, **cond)
            bad = torch.where(x[:, :1] > 1.2, torch.nan, 0.0)
            return sg.Prediction.from_x0(x, found.x0 + bad, self.sde, t)

    model = Failing(sg.MixtureModel(MIXTURE, sg.VPSDE()))
    how = {"rtol": 1e-2, "seed": 1, "dtype": F64, "progress": False, "on_failure": "mark"}
    whole, some = (sg.sample(model, N, batch_size=size, **how) for size in (None, PLACES))
    assert torch.equal(whole.status, some.status) and 0 < int((whole.status == 0).sum()) < N
    good = whole.status == 0
    torch.testing.assert_close(some.x[good], whole.x[good], rtol=0, atol=1e-10)


def test_evaluations_of_models_made_of_models_are_counted_as_ever():
    def guided():
        return sg.Guided(
            sg.MixtureModel(MIXTURE, sg.VPSDE(), labels=[0, 1, 1]), 2.0, null={"label": -1}, interval=(0.3, 5.0)
        )

    how = {"rtol": 1e-2, "seed": 1, "dtype": F64, "progress": False, "label": torch.arange(N) % 2}
    whole, some = (sg.sample(guided(), N, batch_size=size, **how) for size in (None, PLACES))
    torch.testing.assert_close(some.x, whole.x, rtol=0, atol=1e-10)
    assert torch.equal(some.nfe, whole.nfe)


def test_steps_end_at_breaks_of_samples_that_come_later():
    """Guidance over an interval of noise levels makes the drift jump: every sample steps up to it."""
    guided = sg.Guided(
        sg.MixtureModel(MIXTURE, sg.VPSDE(), labels=[0, 1, 1]), 3.0, null={"label": -1}, interval=(0.3, 5)
    )
    how = {"rtol": 1e-4, "seed": 1, "dtype": F64, "progress": False, "label": torch.arange(N) % 2, "save": "all"}
    whole, some = (sg.sample(guided, N, batch_size=size, **how) for size in (None, PLACES))
    torch.testing.assert_close(some.ts, whole.ts, rtol=0, atol=1e-9)
    torch.testing.assert_close(some.x, whole.x, rtol=0, atol=1e-9)


def test_a_solver_of_ones_own_takes_part_after_part():
    class Midpoint(sg.Solver):
        name, order, adaptive, evaluations = "own midpoint", 2, True, 2

        def step(self, term, x, t, t_next, state, noise):
            h = (t_next - t).to(x.dtype).reshape(-1, 1)
            slope = term.drift(x, t)
            moved = x + h * term.drift(x + h / 2 * slope, t + (t_next - t) / 2)
            return sg.Step(moved, error=moved - x - h * slope)

    model = model_of()
    how = {"solver": Midpoint(), "rtol": 0.1, "seed": 1, "dtype": F64, "progress": False}
    whole, some = (sg.sample(model, 20, batch_size=size, **how) for size in (None, PLACES))
    assert max(model.sizes[whole.calls :]) <= PLACES
    torch.testing.assert_close(some.x, whole.x, rtol=0, atol=1e-10)
