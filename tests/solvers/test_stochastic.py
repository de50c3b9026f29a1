"""Stochastic solvers: rejected steps that leave the law as it is, weak orders without sampling, optimal variances.

Monte Carlo comparisons use up to 100,000 samples and four standard errors; with the seeds fixed here they give the same answer
on every run. Weak orders and covariances come from `testing.affine_law` and quadrature: no sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen import testing
from sdegen.models.exact import MixtureModel
from sdegen.noise.brownian import BrownianTree, RefinablePath
from sdegen.solvers.base import merge
from sdegen.testing.doubles import NormalModel

F64 = torch.float64
N = 100_000
MU, S = 0.7, 0.5


def time(*values: float) -> Tensor:
    t = torch.tensor(values, dtype=F64)
    return t if len(values) > 1 else t[0]


def assert_moments(x: Tensor, mean: float, variance: float) -> None:
    """Mean, variance and fourth moment of a normal law, to four standard errors."""
    n = x.numel()
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / n)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / n)
    kurtosis = float(((x - x.mean()) ** 4).mean() / x.var() ** 2)
    assert abs(kurtosis - 3) < 4 * math.sqrt(24 / n)


# ---- a path that is asked again after it was told


def walk(noise: sg.Noise, n: int, *, area: bool = False, down: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """W, the integral of W, and refusals of walkers over unit time that refuse steps with large |dW|, half of them."""
    x = torch.zeros(n, 1, dtype=F64)
    t, h, w, z = torch.zeros(n, dtype=F64), torch.full((n,), 0.4, dtype=F64), torch.zeros(n), torch.zeros(n)
    refused = torch.zeros(n, dtype=torch.int64)
    sign, origin = (-1.0, 1.0) if down else (1.0, 0.0)
    w, z = w.double(), z.double()
    while bool((t < 1).any()):
        there = torch.where(h >= 1 - t, 1.0, t + h)
        moving = t < 1
        there = torch.where(moving, there, t + 0.1)
        ends = origin + sign * t, origin + sign * there
        if area:
            dw, dz = (part[:, 0] for part in noise.space_time(*ends, x))
        else:
            dw = noise.increment(*ends, x)[:, 0]
            dz = torch.zeros_like(dw)
        width = there - t
        accept = moving & ((dw.abs() < 0.67 * width.sqrt()) | (width < 0.03))
        refused += moving & ~accept
        z = torch.where(accept, z + dz + w * width, z)
        w = torch.where(accept, w + dw, w)
        t = torch.where(accept, there, t)
        h = torch.where(accept, 1.6 * h, 0.45 * width)
    return w, z, refused


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("area", [False, True])
def test_refusals_that_look_at_the_noise_do_not_change_its_law(area, down):
    n = 20_000
    w, z, refused = walk(RefinablePath(3), n, area=area, down=down)
    assert float(refused.double().mean()) > 10
    assert_moments(w, 0.0, 1.0)
    if area:
        assert_moments(z, 0.0, 1 / 3)
        assert abs(float((w * z).mean()) - 0.5) < 4 * math.sqrt((1 / 3 + 1 / 4) / n)


def test_without_a_memory_they_do():
    """The test above can fail: noise drawn anew for every interval loses two thirds of its variance."""

    class Forgetful(sg.Noise):
        pass

    w, _, _ = walk(Forgetful(3), 2_000)
    assert float(w.var()) < 0.6


@pytest.mark.parametrize("area", [False, True])
def test_what_was_told_stays_true(area):
    """Parts of a refused interval add up to it, in any order of halving; so does what reaches beyond it."""
    x, noise = torch.zeros(6, 2, dtype=F64), RefinablePath(2)

    def ask(a: float, b: float) -> tuple[Tensor, Tensor]:
        return noise.space_time(time(a), time(b), x) if area else (noise.increment(time(a), time(b), x), x)

    whole = ask(0.2, 1.0)
    half = ask(0.2, 0.6)
    quarter = ask(0.2, 0.3)
    again = ask(0.2, 0.6)
    rest, last = ask(0.3, 0.6), ask(0.6, 1.0)
    torch.testing.assert_close(again, half, rtol=0, atol=1e-14)
    torch.testing.assert_close(quarter[0] + rest[0], half[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(half[0] + last[0], whole[0], rtol=0, atol=1e-14)
    if area:
        torch.testing.assert_close(half[1] + last[1] + 0.4 * half[0], whole[1], rtol=0, atol=1e-14)
        torch.testing.assert_close(quarter[1] + rest[1] + 0.3 * quarter[0], half[1], rtol=0, atol=1e-14)
    told = ask(1.0, 1.5)
    beyond = ask(1.0, 2.0)  # part of it told: the rest is new
    first, second = ask(1.0, 1.5), ask(1.5, 2.0)
    torch.testing.assert_close(first[0], told[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(first[0] + second[0], beyond[0], rtol=0, atol=1e-14)


class OneNormal(RefinablePath):
    """Row k has the k-th of all normals that are drawn set to 1, the others 0."""

    def normal(self, shape, *address, dtype, device):
        first = 2 * (int(address[1][0]) - 1) if shape[1] == 2 else int(address[1][0]) - 1
        z = torch.zeros(tuple(shape), dtype=dtype)
        for k in range(shape[1]):
            z[first + k : first + k + 1, k] = 1.0  # a third draw, of what is known already, is not used
        return z


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("area", [False, True])
def test_both_parts_of_a_refused_interval_have_the_law_of_brownian_motion(area, fraction):
    """Increments and integrals over the first part and the rest: their covariance, from one normal at a time.

    Over a length h it is [[h, h^2/2], [h^2/2, h^3/3]], and two parts have none in common.
    """
    h, parts = 1.7, 2 if area else 1
    x, noise = torch.zeros(2 * parts, 1, dtype=F64), OneNormal(0)

    def ask(a: float, b: float) -> list[Tensor]:
        ends = (torch.full((len(x),), t, dtype=F64) for t in (a, b))
        told = noise.space_time(*ends, x) if area else (noise.increment(*ends, x),)
        return [part[:, 0] for part in told]

    ask(0.3, 0.3 + h)
    split = 0.3 + fraction * h
    came = torch.stack([*ask(0.3, split), *ask(split, 0.3 + h)])
    wanted = torch.zeros(2 * parts, 2 * parts, dtype=F64)
    for k, length in enumerate((fraction * h, (1 - fraction) * h)):
        law = torch.tensor([[length, length**2 / 2], [length**2 / 2, length**3 / 3]], dtype=F64)
        wanted[parts * k : parts * (k + 1), parts * k : parts * (k + 1)] = law[:parts, :parts]
    torch.testing.assert_close(came @ came.T, wanted, rtol=0, atol=1e-12)


def test_the_last_bit_of_a_time_is_no_other_noise():
    """Times of error control carry rounding that depends on the batch."""
    x = torch.zeros(4, 2, dtype=F64)
    up = lambda t: torch.nextafter(t, 2 * t)  # noqa: E731
    one, other = RefinablePath(1), RefinablePath(1)
    for a, b in ((0.1, 0.9), (0.1, 0.4), (0.4, 1.3)):
        u, v = one.increment(time(a), time(b), x), other.increment(up(time(a)), up(time(b)), x)
        torch.testing.assert_close(u, v, rtol=0, atol=1e-7)


def test_a_memory_is_per_sample():
    """Each with its own times and refusals: the same alone, in parts and after others have left."""
    n = 9
    x = torch.zeros(n, 1, dtype=F64)
    ends = 0.1 + torch.rand(n, 5, dtype=F64, generator=torch.Generator().manual_seed(0))

    def run(rows: Tensor, leave: bool = False) -> Tensor:
        noise, told = RefinablePath(1, index=rows), []
        for k in range(5):
            if leave and k == 3:
                noise, rows = noise.select(torch.arange(1, len(rows))), rows[1:]
                told = [u[1:] for u in told]
            told.append(noise.increment(torch.zeros(len(rows), dtype=F64), ends[rows, k], x[rows]))
        return torch.stack(told)

    whole = run(torch.arange(n))
    for rows in (torch.tensor([4]), torch.tensor([8, 2, 5])):
        assert torch.equal(run(rows), whole[:, rows])
    assert torch.equal(run(torch.arange(n), leave=True), whole[:, 1:])


# ---- forced rejections in a solver


@dataclass
class Refused:
    """What `Refusing` carries: the solver's own state, whether the last step was refused, and how many may still be."""

    own: Any
    tried: Tensor
    left: Tensor


class Refusing(sg.Solver):
    """Refuses a step where the state went up, once at every place: half of all steps, by what was drawn."""

    adaptive = True

    def __init__(self, inner: sg.Solver) -> None:
        self.inner = inner
        for fact in ("name", "order", "kind", "needs_model"):
            setattr(self, fact, getattr(inner, fact))

    def start(self, term, x, t, grid=None):
        # a last step may be refused and halved
        return Refused(self.inner.start(term, x, t), torch.zeros(len(x), dtype=torch.bool), torch.full((len(x),), 8))

    def step(self, term, x, t, t_next, state, noise):
        return self.inner.step(term, x, t, t_next, state.own, noise)

    def judge(self, step, x, state, tolerance):
        accept, factor, own = self.inner.judge(step, x, state.own, tolerance)
        force = ~state.tried & (state.left > 0) & (step.x[:, 0] > x[:, 0])
        own = merge(~force, own, state.own)
        factor = torch.where(force, 0.5, torch.where(state.tried, 2 * factor.clamp_max(1.0), factor))  # and back again
        return accept & ~force, factor, Refused(own, force, state.left - force.long())


def test_forced_rejections_leave_the_exact_law_of_a_point():
    """Data at 0: xh' = r xh + sh' sqrt(1 - (sh'/sh)^2) z whatever the steps. Redrawn, the variance would be off."""
    sde = sg.VESDE()
    model = MixtureModel(sg.GaussianMixture([[0.0]], std=0.0), sde)
    t, t_next = 0.55, 0.25
    x = torch.full((N, 1), 0.8, dtype=F64)
    came = sg.solve(
        sg.ReverseSDE(model), x, solver=Refusing(sg.make_solver("d-adams2-sde")), rtol=1.0, t_span=(t, t_next), noise=4
    )
    assert float(came.rejected.double().mean()) > 0.4 * float(came.accepted.double().mean()) > 1.5
    sh, sh_next = float(sde.sigma(t)), float(sde.sigma(t_next))
    assert_moments(came.x, (sh_next / sh) ** 2 * 0.8, sh_next**2 * (1 - (sh_next / sh) ** 2))


class Anew(sg.Noise):
    """Noise without a memory: what a loop that redraws after a rejection would use."""


def test_the_forced_rejections_would_show():
    sde = sg.VESDE()
    model = MixtureModel(sg.GaussianMixture([[0.0]], std=0.0), sde)
    t, t_next = 0.55, 0.25
    x = torch.zeros(20_000, 1, dtype=F64)
    came = sg.solve(
        sg.ReverseSDE(model),
        x,
        solver=Refusing(sg.make_solver("d-adams2-sde")),
        rtol=1.0,
        t_span=(t, t_next),
        noise=Anew(4),
    )
    sh, sh_next = float(sde.sigma(t)), float(sde.sigma(t_next))
    spread = sh_next * math.sqrt(1 - (sh_next / sh) ** 2)
    assert abs(float(came.x.mean())) > 20 * spread / math.sqrt(20_000)


@pytest.mark.parametrize("name", ["d-adams2-sde", "sra1"])
def test_forced_rejections_leave_the_law_of_gaussian_data(name):
    """From the exact marginal at t to that at t': what the law of so small steps is off is far below chance."""
    sde = sg.VPSDE()
    model = NormalModel(sde, MU, S)
    t, t_next = 0.6, 0.2

    def marginal(u: float) -> tuple[float, float]:
        alpha, sigma = float(sde.alpha(u)), float(sde.sigma(u))
        return alpha * MU, (alpha * S) ** 2 + sigma**2

    mean, variance = marginal(t)
    n, rtol = {"d-adams2-sde": (N, 5e-3), "sra1": (20_000, 0.05)}[name]
    x = mean + math.sqrt(variance) * sg.Noise(8).normal((n, 1), 31, dtype=F64, device="cpu")
    came = sg.solve(
        sg.ReverseSDE(model),
        x,
        solver=Refusing(sg.make_solver(name)),
        rtol=rtol,
        atol=rtol * S,
        t_span=(t, t_next),
        noise=4,
    )
    assert float(came.rejected.double().mean()) > 0.2 * float(came.accepted.double().mean())
    assert_moments(came.x, *marginal(t_next))


@pytest.mark.parametrize("name", ["d-adams2-sde", "sra1"])
def test_by_tolerance_samples_have_the_law_of_the_data(name):
    """The solvers as they are, seeds and compaction included, over the whole range of noise."""
    sde = sg.VPSDE()
    model = NormalModel(sde, MU, S)
    n, rtol = {"d-adams2-sde": (20_000, 0.01), "sra1": (5_000, 0.1)}[name]
    came = sg.sample(model, (n, 1), solver=name, rtol=rtol, seed=6, dtype=F64, t_span=(1.0, sde.t_min))
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    assert came.nfe.unique().numel() > 1 and int(came.nfe.max()) == came.calls
    assert_moments(came.x, alpha * MU, (alpha * S) ** 2 + sigma**2)


def test_a_tighter_tolerance_takes_more_steps_and_rejects_few():
    model = MixtureModel(sg.GaussianMixture([[1.0, 0.4], [-0.8, 0.9]], std=[0.1, 0.3]), sg.VPSDE())
    counts = []
    for rtol in (0.3, 0.1, 0.03, 0.01):
        came = sg.sample(model, 500, solver="d-adams2-sde", rtol=rtol, seed=0)
        counts.append(float(came.nfe.double().mean()))
        assert float(came.rejected.double().sum() / came.accepted.double().sum()) < 0.1
    # E goes like the step to the power 3/2 where noise rules, so the number of steps at most like rtol^(-2/3)
    assert all(1.05 < b / a < 2.6 for a, b in zip(counts, counts[1:], strict=False))


def test_between_steps_nothing_is_saved_and_a_tree_is_refused():
    model = MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.VPSDE())
    with pytest.raises(sg.InvalidInputError, match="saves nodes"):
        sg.sample(model, 3, solver="d-adams2-sde", rtol=0.1, save=[1.0, 0.5, 0.0])
    tree = BrownianTree(0, 0.0, 1.0)
    with pytest.raises(sg.InvalidInputError, match="clock of its own"):
        sg.solve(sg.ReverseSDE(model), torch.zeros(3, 1), solver="d-adams2-sde", rtol=0.1, noise=tree)
    came = sg.solve(sg.ReverseSDE(model), torch.zeros(3, 1), solver="sra1", rtol=0.1, noise=tree)
    finer = sg.solve(sg.ReverseSDE(model), torch.zeros(3, 1), solver="sra1", rtol=0.001, noise=tree)
    assert float((came.x - finer.x).abs().max()) < 0.1  # one path: another tolerance ends close by


# ---- the closed-form start


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.LinearPathSDE(t_max=1.0)], ids=["vp", "edm", "no-signal"])
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_above_ten_standard_deviations_gaussian_data_are_exact_at_no_evaluation(sde, eta):
    """x' = A x + b + B z with A V A' + B B' the covariance at t', from one input at a time."""
    mu, c = torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
    model = MixtureModel(sg.GaussianMixture([mu.tolist()], covariances=c), sde)
    low = float(sde.time(torch.tensor(-math.log(FAR_OF(model)), dtype=F64)))
    ts = torch.tensor([sde.t_max, (sde.t_max + low) / 2, low], dtype=F64)

    class OneAtATime(sg.Noise):
        """Row k + 3 has the k-th normal of all 4 set to 1."""

        def normal(self, shape, *address, dtype, device):
            z = torch.zeros(shape, dtype=dtype)
            first = 3 if float(address[1]) == sde.t_max else 5
            z[first, 0] = z[first + 1, 1] = 1.0
            return z

    x = torch.zeros(7, 2, dtype=F64)
    x[1, 0] = x[2, 1] = 1.0
    came = sg.solve(sg.ReverseSDE(model, eta=eta), x, solver="d-adams2-sde", steps=ts, noise=OneAtATime(0))
    assert came.calls == 0

    def covariance(t: float) -> Tensor:
        return float(sde.alpha(t)) ** 2 * c + float(sde.sigma(t)) ** 2 * torch.eye(2, dtype=F64)

    parts = came.x[1:] - came.x[0]
    a, b = parts[:2].T, parts[2:].T
    start = a @ (float(sde.alpha(sde.t_max)) * mu) + came.x[0]
    torch.testing.assert_close(start, float(sde.alpha(low)) * mu, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a @ covariance(sde.t_max) @ a.T + b @ b.T, covariance(low), rtol=1e-9, atol=1e-9)


def FAR_OF(model: sg.ScoreModel) -> float:
    return 10 * model.sigma_data


def test_a_budget_is_a_budget():
    for sde in (sg.VPSDE(), sg.EDMSDE()):
        model = MixtureModel(sg.GaussianMixture([[1.0], [-1.0]], std=0.3), sde)
        for n in (1, 2, 5, 10):
            assert int(sg.sample(model, 3, solver="d-adams2-sde", steps=n, seed=0).nfe.max()) <= n


# ---- weak orders, by recursions of the moments


def misses(name: str, n: int, span: tuple[float, float] = (0.7, 0.2)) -> tuple[float, float]:
    """Relative errors of the output's mean and variance on Gaussian data, which begin at their exact law."""
    sde = sg.VPSDE()
    model = NormalModel(sde, MU, S)

    def marginal(u: float) -> tuple[float, float]:
        alpha, sigma = float(sde.alpha(u)), float(sde.sigma(u))
        return alpha * MU, (alpha * S) ** 2 + sigma**2

    ts = torch.linspace(*span, n + 1, dtype=F64)
    law = testing.affine_law(sg.make_solver(name), sg.ReverseSDE(model), ts, *marginal(span[0]))
    assert law is not None
    wanted = marginal(span[1])
    return abs(law[0] / wanted[0] - 1), abs(law[1] / wanted[1] - 1)


@pytest.mark.parametrize(
    ("name", "p"),
    [("heun-sde", 2), ("sra1", 2), ("d-adams2-sde", 2), ("euler-maruyama", 1), ("ancestral", 1)],
)
def test_weak_order(name, p):
    coarse, fine = misses(name, 80), misses(name, 160)
    for k, what in enumerate(("mean", "variance")):
        if coarse[k] < 1e-11:  # exact: D is a martingale, its mean needs no steps
            continue
        assert p - 0.2 <= math.log2(coarse[k] / fine[k]) <= p + 0.6, (what, coarse, fine)
    assert coarse[1] > 1e-8


# ---- Analytic-DPM's variance


MIX = sg.GaussianMixture([[-1.0], [0.5], [2.0]], std=[0.2, 0.3, 0.5], weights=[1, 2, 3])


def line(model: MixtureModel, t: float) -> tuple[Tensor, Tensor]:
    """A grid on the line and its weights under the exact marginal at t: the trapezoidal rule, exact to rounding."""
    x = torch.linspace(-12, 14, 20001, dtype=F64)[:, None]
    return x, torch.exp(model.log_prob(x, t)) * float(x[1] - x[0])


class Constant(sg.Noise):
    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def normal(self, shape, *address, dtype, device):
        return torch.full(tuple(shape), self.value, dtype=dtype, device=device)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_analytic_variance_makes_a_steps_covariance_exact(name, eta):
    """Var(xh') = Var(x0) + sh'^2 for any data, from the exact marginal, with E eps^2 by quadrature."""
    sde = sg.VPSDE()
    model = MixtureModel(MIX, sde)
    for t, t_next in ((0.9, 0.3), (0.4, 0.35), (0.3, 0.05)):
        x, weight = line(model, t)
        told = float(weight @ model(x, t).noise[:, 0] ** 2)
        out = {}
        for variance in ("held", lambda l, told=told: torch.full_like(l, told)):
            solver = sg.make_solver(name, variance=variance)
            steps = torch.tensor([t, t_next], dtype=F64)
            low, high = (
                sg.solve(sg.ReverseSDE(model, eta=eta), x, solver=solver, steps=steps, noise=Constant(z)).x[:, 0]
                for z in (0.0, 1.0)
            )
            centre = float(weight @ low)
            out[callable(variance)] = float(weight @ (low - centre) ** 2) + float((high - low).square().mean())
        alpha, sigma = float(sde.alpha(t_next)), float(sde.sigma(t_next))
        wanted = alpha**2 * float(MIX.covariance) + sigma**2
        assert out[True] == pytest.approx(wanted, rel=1e-8)
        assert out[False] < (1 - 1e-3) * wanted


def test_a_samples_own_estimate_is_right_on_average():
    """The same identity with |eps|^2 of each point, where no sample's variance would be negative: a short step."""
    sde = sg.VPSDE()
    model = MixtureModel(MIX, sde)
    t, t_next = 0.3, 0.29
    x, weight = line(model, t)
    inside = weight > 1e-12 * weight.max()
    x, weight = x[inside], weight[inside]
    steps = torch.tensor([t, t_next], dtype=F64)
    solver = sg.make_solver("ancestral", variance="analytic")
    low, high = (
        sg.solve(sg.ReverseSDE(model), x, solver=solver, steps=steps, noise=Constant(z)).x[:, 0] for z in (0.0, 1.0)
    )
    came = float(weight @ (low - float(weight @ low)) ** 2) + float(weight @ (high - low) ** 2)
    wanted = float(sde.alpha(t_next)) ** 2 * float(MIX.covariance) + float(sde.sigma(t_next)) ** 2
    assert came == pytest.approx(wanted, rel=1e-5)  # and far out it would be, for 1e-6 of all


def test_noise_is_measured_from_data():
    """On Gaussian data E eps^2 = sh^2/(s^2 + sh^2); and the measure makes few steps' variance right."""
    sde = sg.VPSDE()
    model = NormalModel(sde, MU, S)
    data = MU + S * sg.Noise(3).normal((400, 50), 31, dtype=F64, device="cpu")
    level = sg.measure_noise(model, data, seed=0, batch_size=150)
    l = torch.linspace(-4, 4, 11, dtype=F64)
    sh2 = torch.exp(-2 * l)
    torch.testing.assert_close(level(l), sh2 / (S**2 + sh2), rtol=0, atol=0.03)
    whole = sg.measure_noise(model, data, seed=0)
    torch.testing.assert_close(whole.values, level.values, rtol=1e-12, atol=0)
    ts = sg.grid(model, 8, kind="lambda", t_span=(sde.t_max, sde.t_min))
    x = sde.prior((20_000, 1), seed=1, dtype=F64)
    found = {
        kind: float(
            sg.solve(
                sg.ReverseSDE(model), x, solver=sg.make_solver("ancestral", variance=variance), steps=ts, noise=2
            ).x.var()
        )
        for kind, variance in (("held", "held"), ("measured", level))
    }
    wanted = float(sde.alpha(sde.t_min)) ** 2 * S**2 + float(sde.sigma(sde.t_min)) ** 2
    assert abs(found["measured"] / wanted - 1) < 0.06 and found["held"] / wanted < 0.8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sg.make_solver("ancestral", variance="best"), "expected 'held', 'analytic'"),
        (lambda: sg.make_solver("dpm++2m-sde", variance="analytic"), "first-order steps"),
        (lambda: sg.make_solver("d-adams2-sde", aim=2.0, accept=1.0), "expected 0 < aim < accept"),
        (
            lambda: sg.sample(
                NormalModel(sg.VPSDE(), 0.0, 1.0), (2, 1), solver=sg.make_solver("ddim", variance="analytic"), eta=0.0
            ),
            "eta=0 has none",
        ),
        (lambda: sg.measure_noise(NormalModel(sg.VPSDE(), 0.0, 1.0), torch.zeros(0, 1)), "expected at least 1"),
    ],
)
def test_wrong_calls(make, words):
    with pytest.raises(sg.InvalidInputError, match=words):
        make()


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.CosineSDE(), sg.LinearPathSDE(t_max=1.0)], ids=repr)
def test_many_steps_of_a_model_that_does_not_know_its_data(sde):
    """No two times of a fine grid, which goes up to sh = 148, become one in the solver's coordinates."""
    model = sg.MixtureModel(sg.GaussianMixture([[0.5, -0.5]], std=0.4), sde)
    model.set_statistics(None, None)
    model.data_covariance = None
    run = sg.sample(model, 2000, solver="d-adams2-sde", steps=150, seed=0)
    assert int(run.nfe.max()) == 150
    assert float(run.x.std(0).mean()) == pytest.approx(0.4, abs=0.4 * 4 / math.sqrt(2 * 2 * 2000))
