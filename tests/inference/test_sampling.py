"""The verbs: sample, encode and grid in the model's own time, whatever coordinates and chunks are behind them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import beginning
from torch import Tensor, nn

import sdegen as sg
from sdegen.models.exact import MixtureModel
from sdegen.solvers.grids import GRIDS
from sdegen.testing.doubles import WatchedModel

F64 = torch.float64
MIXTURE = sg.GaussianMixture([[1.0, 0.4], [-0.8, 0.9]], std=[0.3, 0.4], weights=[1, 2])
MODEL = MixtureModel(MIXTURE, sg.VPSDE())
SDE = MODEL.sde
MOVED = ["heun", "rk4", "bosh3", "dopri5", "adams"]  # solvers that run in better coordinates


class Net(nn.Module):
    """A network with an eval mode and a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
        self.grads: list[bool] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        self.grads.append(torch.is_grad_enabled())
        self.modes.append(self.training)
        return self.inner(torch.cat([x, t[:, None].to(x.dtype)], 1)) + bias


# ---- coordinates


@pytest.mark.parametrize(
    "sde", [sg.VPSDE(), sg.VESDE(), sg.EDMSDE(), sg.LinearPathSDE()], ids=["vp", "ve", "edm", "line"]
)
def test_better_coordinates_are_the_same_flow(sde):
    """What `sample` makes in them is what `solve` makes in the process's own time, to the tolerance."""
    model = MixtureModel(MIXTURE, sde)
    x = sde.prior((6, 2), seed=1, dtype=F64)
    came = sg.sample(model, 6, x_init=x, solver="dopri5", rtol=1e-10, t_span=(sde.t_max, sde.t_min))
    own = sg.solve(sg.ProbabilityFlow(model), x, solver="dopri5", rtol=1e-10, max_steps=100_000)
    torch.testing.assert_close(came.x, own.x, rtol=0, atol=1e-6)
    assert came.t.tolist() == pytest.approx([sde.t_min] * 6, rel=1e-9)


@pytest.mark.parametrize("solver", MOVED)
def test_times_and_states_come_back_as_the_models_own(solver):
    when = torch.tensor([1.0, 0.7, 0.25, 0.02, 0.0], dtype=F64)
    start = beginning(MODEL, (6, 2), seed=2, t=1.0)
    flow = sg.ProbabilityFlow(MODEL)
    exact = sg.solve(flow, start, solver="dopri5", rtol=1e-8, save=when[1:-1], t_span=(1.0, 0.02)).xs
    for how in ({"rtol": 1e-6}, {"steps": 150}):
        if solver in ("heun", "rk4") and "rtol" in how:
            continue
        came = sg.sample(MODEL, 6, solver=solver, seed=2, dtype=F64, save=when, **how)
        assert torch.equal(came.ts, when) and torch.equal(came.xs[-1], came.x)
        torch.testing.assert_close(came.xs[0], start, rtol=1e-10, atol=1e-10)
        assert float((came.xs[1:-1] - exact).abs().max()) < 5e-3, how
        path = sg.sample(MODEL, 6, solver=solver, seed=2, dtype=F64, save="all", **how)
        assert torch.equal(path.x, came.x) and torch.equal(path.nfe, came.nfe)
        ts = path.ts if path.ts.ndim == 2 else path.ts[:, None]
        assert bool((ts[0] == 1.0).all()) and bool((ts[-1] == 0.0).all()) and bool((ts.diff(dim=0) <= 0).all())


@pytest.mark.parametrize("solver", MOVED)
def test_the_final_denoising_is_the_models_belief_at_t_min(solver):
    low = torch.tensor(SDE.t_min, dtype=F64)
    for how, fewer in (({"steps": 14}, {"steps": 13}), ({"rtol": 1e-6}, {"rtol": 1e-6})):
        if solver in ("heun", "rk4") and "rtol" in how:
            continue
        x0 = sg.sample(MODEL, 6, solver=solver, seed=2, dtype=F64, **how)
        state = sg.sample(MODEL, 6, solver=solver, seed=2, dtype=F64, t_span=(1.0, SDE.t_min), **fewer)
        torch.testing.assert_close(x0.x, MODEL(state.x, low).x0, rtol=0, atol=1e-11)
        assert torch.equal(x0.nfe, state.nfe + 1) and torch.equal(x0.accepted, state.accepted + 1)


@pytest.mark.parametrize("solver", MOVED)
def test_the_network_is_asked_at_its_own_times_and_as_often_as_is_told(solver):
    for how in ({"steps": 5}, {"rtol": 1e-3}):
        if solver in ("heun", "rk4") and "rtol" in how:
            continue
        watched = WatchedModel(MODEL)
        came = sg.sample(watched, 7, solver=solver, seed=0, dtype=F64, **how)
        assert (came.calls, int(came.nfe.sum())) == (watched.calls, watched.rows)
        assert SDE.t_min * (1 - 1e-9) <= watched.first and watched.last <= SDE.t_max * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["dopri5", "adams", "bosh3"])
def test_failures_are_told_in_the_models_own_time_and_state(solver):
    watched = WatchedModel(MODEL, below=0.3)
    spoiled = torch.tensor([False, True, False])
    came = sg.sample(watched, 3, solver=solver, rtol=1e-7, seed=4, dtype=F64, on_failure="mark", spoiled=spoiled)
    clean = sg.sample(WatchedModel(MODEL), 3, solver=solver, rtol=1e-7, seed=4, dtype=F64, spoiled=spoiled)
    assert came.status.tolist() == [0, 1, 0]
    torch.testing.assert_close(came.x[~spoiled], clean.x[~spoiled], rtol=0, atol=1e-12)
    reached = float(came.t[1])
    assert 0.3 <= reached < 0.301 and f"t = {reached:g}" in came.message and came.t[0] == 0
    exact = sg.sample(MODEL, 3, solver=solver, rtol=1e-10, seed=4, dtype=F64, t_span=(1.0, reached)).x
    torch.testing.assert_close(came.x[1], exact[1], rtol=0, atol=1e-5)  # the partial result is a state at that time


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_a_mean_does_not_cost_evaluations(rtol):
    """Coordinates are centred on the data: moving them far away changes nothing."""
    counts = []
    for shift in (0.0, 100.0):
        mixture = sg.GaussianMixture(MIXTURE.means + shift, std=[0.3, 0.4], weights=[1, 2])
        model = MixtureModel(mixture, sg.EDMSDE())
        x = sg.EDMSDE().prior((8, 2), seed=1, dtype=F64) + shift
        counts.append(sg.sample(model, 8, x_init=x, solver="dopri5", atol=rtol, rtol=0.0).nfe)
    assert torch.equal(*counts)


# ---- seeds, chunks, dtypes


@pytest.mark.parametrize("solver", ["auto", "ddim", "ancestral", "heun", "predictor-corrector"])
def test_a_seed_is_told_and_draws_the_same_again(solver):
    first = sg.sample(MODEL, 5, solver=solver, steps=6)
    assert isinstance(first.seed, int)
    again = sg.sample(MODEL, 5, solver=solver, steps=6, seed=first.seed)
    other = sg.sample(MODEL, 5, solver=solver, steps=6)
    assert torch.equal(first.x, again.x) and other.seed != first.seed and not torch.equal(first.x, other.x)


def test_a_decoded_latent_needs_no_seed():
    x = SDE.prior((3, 2), seed=0)
    assert sg.sample(MODEL, 3, x_init=x, solver="ddim", steps=4).seed is None
    assert isinstance(sg.sample(MODEL, 3, x_init=x, solver="ancestral", steps=4).seed, int)


@pytest.mark.parametrize("how", [{"steps": 7}, {"rtol": 1e-4}, {"solver": "ancestral", "steps": 7}])
@pytest.mark.parametrize("save", ["last", "all", [1.0, 0.0]])
def test_chunks_make_one_solution(how, save):
    if save == [1.0, 0.0] and how.get("solver") == "ancestral":
        how = {**how}
    whole = sg.sample(MODEL, 11, seed=3, dtype=F64, save=save, **how)
    for size in (1, 4, 11, 50):
        parts = sg.sample(MODEL, 11, seed=3, dtype=F64, save=save, batch_size=size, **how)
        torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)
        torch.testing.assert_close(parts.xs, whole.xs, rtol=0, atol=1e-12)
        torch.testing.assert_close(parts.ts, whole.ts, rtol=0, atol=1e-15)
        for name in ("nfe", "accepted", "rejected", "t", "status"):
            assert torch.equal(getattr(parts, name), getattr(whole, name)), name
        assert parts.seed == 3 and parts.message == whole.message and parts.calls >= whole.calls


def test_numbers_address_samples():
    whole = sg.sample(MODEL, 9, solver="ancestral", steps=5, seed=3, dtype=F64)
    for index in ([7, 0, 3], torch.tensor([7, 0, 3])):
        some = sg.sample(MODEL, 3, solver="ancestral", steps=5, seed=3, dtype=F64, index=index)
        torch.testing.assert_close(some.x, whole.x[[7, 0, 3]], rtol=0, atol=1e-12)
    chunked = sg.sample(MODEL, 3, solver="ancestral", steps=5, seed=3, dtype=F64, index=[7, 0, 3], batch_size=2)
    torch.testing.assert_close(chunked.x, whole.x[[7, 0, 3]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["ddim", "heun", "ancestral", "euler-maruyama"])
def test_single_precision_draws_the_same_noise(solver):
    """5e-3: rounding by 1e-7 grows along the flow and in 1/sigma at the last levels; other noise would be off by 1."""
    low, high = (sg.sample(MODEL, 50, solver=solver, steps=20, seed=3, dtype=d).x for d in (torch.float32, F64))
    assert low.dtype == torch.float32 and high.dtype == F64
    assert float((low - high).abs().median()) < 1e-5
    assert float((low - high).abs().quantile(0.9)) < 5e-3


def test_the_states_dtype_is_the_networks_at_least_single():
    net = Net()
    model = sg.Denoiser(net, SDE, data_std=1.0)
    model.event_shape = (2,)
    assert sg.sample(model, 3, steps=2).x.dtype == torch.float32
    assert sg.sample(model.double(), 3, steps=2).x.dtype == F64
    assert sg.sample(model.bfloat16(), 3, steps=2).x.dtype == torch.float32
    x = torch.zeros(3, 2, dtype=F64)
    assert sg.sample(model, 3, steps=2, x_init=x).x.dtype == F64
    assert sg.sample(model, 3, steps=2, x_init=x, dtype=torch.float32).x.dtype == torch.float32


# ---- modes and conditions


def test_verbs_run_without_gradients_in_eval_mode_and_put_everything_back():
    net = Net()
    model = sg.Denoiser(net, SDE, data_std=1.0)
    model.event_shape = (2,)
    model.train()
    net.inner[0].eval()  # a part that its owner keeps frozen
    sg.sample(model, 3, steps=3, solver="ddim")
    sg.encode(model, torch.zeros(3, 2), steps=3, solver="heun")
    assert not any(net.grads) and not any(net.modes)
    assert model.training and net.training and net.inner[1].training and not net.inner[0].training
    with pytest.raises(RuntimeError, match="boom"):

        def fail(*args, **kwargs):
            raise RuntimeError("boom")

        net.forward = fail  # type: ignore[method-assign]
        sg.sample(model, 3, steps=3, solver="ddim")
    assert model.training and net.inner[1].training and not net.inner[0].training


def test_conditions_are_cut_with_their_samples():
    net = Net().eval()
    model = sg.Denoiser(net, SDE, data_std=1.0)
    bias = torch.randn(7, 2)
    for how in ({"solver": "ddim", "steps": 4}, {"solver": "dopri5", "rtol": 1e-3}):
        whole = sg.sample(model, (7, 2), seed=1, bias=bias, **how)
        chunked = sg.sample(model, (7, 2), seed=1, bias=bias, batch_size=3, **how)
        torch.testing.assert_close(chunked.x, whole.x, rtol=0, atol=1e-4)
        shared = sg.sample(model, (7, 2), seed=1, bias=0.5, **how)
        same = sg.sample(model, (7, 2), seed=1, bias=torch.full((7, 2), 0.5), **how)
        torch.testing.assert_close(shared.x, same.x, rtol=0, atol=1e-4)


def test_eta_is_the_solvers_own_unless_given():
    for solver, eta in (("ddim", 0.0), ("ancestral", 1.0), ("heun", 0.0), ("euler-maruyama", 1.0)):
        assert torch.equal(
            sg.sample(MODEL, 4, solver=solver, steps=5, seed=1).x,
            sg.sample(MODEL, 4, solver=solver, steps=5, seed=1, eta=eta).x,
        )
    low, high = (sg.sample(MODEL, 4, solver="ddim", steps=5, seed=1, eta=e).x for e in (0.0, 0.5))
    assert not torch.equal(low, high)
    torch.testing.assert_close(
        sg.sample(MODEL, 4, solver="ddim", steps=5, seed=1, eta=1.0, dtype=F64).x,
        sg.sample(MODEL, 4, solver="ancestral", steps=5, seed=1, eta=1.0, dtype=F64).x,
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "euler-maruyama"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_sample_is_solve_at_that_eta_from_a_draw_of_the_prior(solver, eta):
    steps, x = [1.0, 0.6, 0.3, 0.1], beginning(MODEL, (6, 2), seed=4, t=1.0)
    came = sg.sample(MODEL, 6, solver=solver, steps=steps, eta=eta, seed=4, dtype=F64)
    term = sg.ReverseSDE(MODEL, eta=eta)
    alone = sg.solve(term, x, solver=solver, steps=steps, noise=4)
    torch.testing.assert_close(came.x, alone.x, rtol=1e-12, atol=1e-13)


def test_editing_starts_in_the_middle():
    """x_init at the first time of the span, and a draw of that time's law without it."""
    x0 = MIXTURE.sample(6, seed=1, dtype=F64)
    x = SDE.perturb(x0, 0.3, sg.Noise(8).normal((6, 2), 2, dtype=F64, device="cpu"))
    came = sg.sample(MODEL, 6, x_init=x, t_span=(0.3, 0.0), solver="adams", rtol=1e-6).x
    exact = sg.solve(sg.ProbabilityFlow(MODEL), x, solver="dopri5", rtol=1e-9, t_span=(0.3, 0.0)).x
    torch.testing.assert_close(came, exact, rtol=0, atol=1e-4)
    drawn = sg.sample(MODEL, 40, t_span=(0.3, 0.2), seed=1, solver="ddim", steps=1, save="all", dtype=F64).xs[0]
    torch.testing.assert_close(drawn, beginning(MODEL, (40, 2), seed=1, t=0.3), rtol=1e-12, atol=1e-13)


def test_nothing_in_nothing_out():
    for how in ({"steps": 5}, {"rtol": 1e-3}, {"solver": "ancestral", "steps": 5}, {"batch_size": 4, "steps": 5}):
        for save in ("last", "all", [0.0]):
            came = sg.sample(MODEL, 0, save=save, **how)
            assert came.x.shape == (0, 2) and came.xs.shape[1:] == (0, 2) and came.nfe.shape == (0,)
            assert came.calls == 0 and "0 samples" in came.message
    assert sg.encode(MODEL, torch.zeros(0, 2), rtol=1e-3).x.shape == (0, 2)


def test_progress_goes_to_stderr_when_asked(capsys):
    sg.sample(MODEL, 4, steps=5, progress=True, batch_size=2)
    out, err = capsys.readouterr()
    assert out == "" and "%" in err
    sg.sample(MODEL, 4, steps=5, progress=False)
    assert capsys.readouterr() == ("", "")


def test_encoding_comes_back_from_noise():
    """Up from data and down again, by error control at both ends: within ten times the tolerance."""
    x = MIXTURE.sample(12, seed=1, dtype=F64)
    for solver in ("dopri5", "adams", "bosh3"):
        up = sg.encode(MODEL, x, solver=solver, rtol=1e-7)
        down = sg.sample(MODEL, 12, x_init=up.x, solver=solver, rtol=1e-7, t_span=(1.0, SDE.t_min))
        assert float((down.x - x).square().mean().sqrt()) < 1e-6
        assert up.t.tolist() == [1.0] * 12
    # the latents of data have the prior's law
    latents = sg.encode(MODEL, MIXTURE.sample(4000, seed=2, dtype=F64), solver="adams", rtol=1e-3).x
    assert float(latents.std()) == pytest.approx(1.0, abs=0.03)


# ---- grids


def test_grids_are_their_formulas():
    n, start, stop = 10, 0.9, 0.01
    even = torch.linspace(0, 1, n + 1, dtype=F64)

    def sh(t: Tensor) -> Tensor:
        return SDE.sigma(t) / SDE.alpha(t)

    s, turn = float(MIXTURE.covariance.diagonal().mean().sqrt()), MODEL.data.turning
    formulas = {
        "uniform": lambda t: t,
        "sqrt-time": lambda t: t.sqrt(),
        "lambda": lambda t: -sh(t).log(),
        "theta": lambda t: torch.atan(sh(t) / s) ** (1 / 1.6),
        "karras": lambda t: sh(t) ** (1 / 7),
    }
    both = torch.tensor([start, stop], dtype=F64)

    def part(v: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        return (v(t) - v(both[:1])) / (v(both[1:]) - v(both[:1]))

    def blend(t: Tensor, s: float) -> Tensor:
        return 0.75 * part(lambda t: torch.atan(sh(t) / s) ** (1 / 1.3), t) + 0.25 * part(formulas["lambda"], t)

    formulas["blend"] = lambda t: blend(t, s)
    formulas["turn"] = lambda t: blend(t, 0.4 * turn)
    few = sg.grid(MODEL, 8, kind="turn", t_span=(start, stop))  # closer to the turn on few steps
    u = blend(few, 0.5 * turn)
    torch.testing.assert_close(u, torch.linspace(0, 1, 9, dtype=F64), rtol=1e-10, atol=1e-10)
    for kind, u in formulas.items():
        ts = sg.grid(MODEL, n, kind=kind, t_span=(start, stop))
        ends = u(both)
        torch.testing.assert_close(u(ts), ends[0] + even * (ends[1] - ends[0]), rtol=1e-10, atol=1e-12)
        assert float(ts[0]) == start and float(ts[-1]) == stop and bool((ts.diff() < 0).all())
        up = sg.grid(MODEL, n, kind=kind, t_span=(stop, start))
        torch.testing.assert_close(up, ts.flip(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.CosineSDE(), sg.VESDE(), sg.EDMSDE(), sg.TrigSDE(0.5)], ids=repr)
@pytest.mark.parametrize("kind", GRIDS)
def test_grids_of_a_sampler_end_with_the_denoising(sde, kind):
    for n in (1, 2, 7):
        ts = sg.grid(sde, n, kind=kind)
        assert len(ts) == n + 1 and ts[0] == sde.t_max and ts[-1] == 0 and bool((ts.diff() < 0).all())
        if n > 1:
            assert ts[-2] == sde.t_min
        came = sg.sample(MixtureModel(MIXTURE, sde), 3, solver="ddim", steps=ts, seed=0)
        assert came.nfe.tolist() == [n] * 3 and came.accepted.tolist() == [n] * 3


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_a_budget_is_kept(n):
    for solver in ("auto", "ddim", "dpm++2m"):
        came = sg.sample(MODEL, 3, solver=solver, steps=n, seed=0)
        assert came.nfe.tolist() == [n] * 3, solver
        assert math.isfinite(float(came.x.sum()))
