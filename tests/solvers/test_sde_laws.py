"""Laws of all solvers that draw noise: at noise levels other than 0 and 1, along every process, and by their papers.

On Gaussian data every step is affine in the state and in the normals it draws, so the law of the output is had to rounding
without sampling: see `testing.affine_law`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import DISTINCT
from torch import Tensor

import sdegen as sg
from sdegen import testing
from sdegen.noise.brownian import BrownianTree, space_time_increment
from sdegen.solvers import choose
from sdegen.testing.doubles import NormalModel

F64 = torch.float64
MU, S = 0.7, 0.5
NOISY = [row.name for row in sg.solvers() if ":" not in row.name and row.kind != "ODE"]
KINKED = ("short-vp-table", "no-signal-table", "stairs", "kinked", "root")  # rates that are not smooth


def marginal(sde: sg.SDE, t: float) -> tuple[float, float]:
    """Mean and variance of x_t for data N(MU, S^2)."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    return alpha * MU, (alpha * S) ** 2 + sigma**2


def reverse(sde: sg.SDE, eta: float) -> sg.ReverseSDE:
    return sg.ReverseSDE(NormalModel(sde, MU, S), eta=eta)


def takes(name: str, eta: float) -> bool:
    try:
        sg.make_solver(name).check(reverse(sg.VPSDE(), eta))
    except sg.InvalidInputError:
        return False
    return True


def span_of(sde: sg.SDE) -> tuple[float, float]:
    """From much noise to little, as far as the process goes."""
    inside = sde.time(torch.tensor([-3.0, 1.5], dtype=F64)).clamp(sde.t_min, sde.t_max)
    return float(inside[0]), float(inside[1])


def misses(law: tuple[float, float] | None, wanted: tuple[float, float]) -> Tensor:
    """Of the mean in standard deviations, and of the variance, relative."""
    assert law is not None
    return torch.tensor([(law[0] - wanted[0]) / wanted[1] ** 0.5, law[1] / wanted[1] - 1])


def limit(few: Tensor, many: Tensor) -> float:
    """What misses at n and 3 n steps tend to if they fall at least like 1/n."""
    return float(((3 * many - few) / 2).abs().max())


def allowed(name: str, process: str) -> float:
    """What the next power of 1/n leaves, a few times what is measured."""
    first_order = sg.make_solver(name).order == 1
    return (0.15 if first_order else 0.06) * (2 if process in KINKED else 1)


@pytest.mark.parametrize(("name", "eta"), [(name, eta) for name in NOISY for eta in (0.5, 1.5) if takes(name, eta)])
def test_the_marginals_do_not_depend_on_eta_along_any_process(name, eta):
    """Every eta has the data's law: the misses at 20 and 60 steps go to 0, but for what kinks of a process cost."""
    for key, sde in DISTINCT.items():
        start, stop = span_of(sde)

        def miss(n: int, sde: sg.SDE = sde, start: float = start, stop: float = stop) -> Tensor:
            ts = sg.grid(sde, n, kind="lambda", t_span=(start, stop))
            law = testing.affine_law(sg.make_solver(name), reverse(sde, eta), ts, *marginal(sde, start))
            return misses(law, marginal(sde, stop))

        few, many = miss(20), miss(60)
        assert limit(few, many) < allowed(name, key), (key, few, many)


def test_every_solver_of_sdes_is_under_that_law_but_those_with_a_noise_of_their_own():
    free = {name for name in NOISY if takes(name, 0.5)}
    assert set(NOISY) - free == {"er-sde2", "er-sde3", "langevin", "karras-sde"}


# ---- the same with a time for each sample, as under error control


class OneAtATime(sg.Noise):
    """The k-th normal that is drawn is 1 in row k + 2 and 0 elsewhere; times may be per sample, all of them equal."""

    def __init__(self) -> None:
        super().__init__(0)
        self.known: dict[tuple[float, ...], int] = {}

    def normal(self, shape: Sequence[int], *address: Any, dtype, device) -> Tensor:
        key = tuple(float(torch.as_tensor(part, dtype=F64).flatten()[0]) for part in address)
        z = torch.zeros(tuple(shape), dtype=dtype)
        k = self.known.setdefault(key, len(self.known))
        z[k + 2 : k + 3] = 1.0
        return z


def law_at_own_times(name: str, term: sg.ReverseSDE, ts: Tensor) -> tuple[float, float]:
    """Mean and variance of what the steps of error control make, on given times."""
    solver = choose(name, term, steps=None, adaptive=True)
    noise = OneAtATime()

    def run(x: Tensor) -> Tensor:
        state = solver.start(term, x, ts[0].expand(len(x)))
        for t, t_next in pairwise(ts):
            step = solver.step(term, x, t.expand(len(x)), t_next.expand(len(x)), state, noise)
            x, state = step.x, step.state
        return x[:, 0]

    run(torch.zeros(1, 1, dtype=F64))
    x = torch.zeros(len(noise.known) + 2, 1, dtype=F64)
    x[1] = 1.0
    came = run(x)
    b, a, c = came[0], came[1] - came[0], came[2:] - came[0]
    mean, variance = marginal(term.sde, float(ts[0]))
    return float(a * mean + b), float(a**2 * variance + c.square().sum())


@pytest.mark.parametrize("eta", [0.5, 1.5])
@pytest.mark.parametrize("name", [row.name for row in sg.solvers() if row.name in NOISY and row.adaptive])
def test_steps_of_error_control_have_the_same_marginals(name, eta):
    for key, sde in DISTINCT.items():
        start, stop = span_of(sde)
        found = []
        for n in (15, 45):
            ts = sg.grid(sde, n, kind="lambda", t_span=(start, stop))
            found.append(misses(law_at_own_times(name, reverse(sde, eta), ts), marginal(sde, stop)))
        assert limit(*found) < allowed(name, key), (key, found)


# ---- a published scheme


class Pendulum(sg.Term):
    """A drift that is not linear, and a noise whose size depends on time."""

    stochastic = True

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) * (1 + t) - x * t

    def diffusion(self, t: Tensor) -> Tensor:
        return 0.3 + t**2


def stochastic_runge_kutta(
    tableau: dict[str, Any], term: sg.Term, x: Tensor, t: Tensor, h: Tensor, i: Tensor, w: Tensor
):
    """One step of a method of Roessler's class for additive noise, by its definition (2010, section 6).

        H_i = x + h sum_j A_ij f(H_j, t + c0_j h) + (I_10/h) sum_j B_ij g(t + c1_j h)
        x'  = x + h sum_i a_i f(H_i, t + c0_i h) + sum_i (b1_i I_1 + b2_i I_10/h) g(t + c1_i h)

    with w = I_1 and i = I_10/h.
    """
    stages = range(len(tableau["a"]))
    g = [term.diffusion(t + tableau["c1"][k] * h) for k in stages]
    slopes: list[Tensor] = []
    for k in stages:
        stage = x
        for j in range(k):
            stage = stage + h * tableau["A"][k][j] * slopes[j] + i * tableau["B"][k][j] * g[j]
        slopes.append(term.drift(stage, t + tableau["c0"][k] * h))
    out = x
    for k in stages:
        out = out + h * tableau["a"][k] * slopes[k] + (tableau["b1"][k] * w + tableau["b2"][k] * i) * g[k]
    return out


SRA1 = {  # Roessler 2010 (SIAM J. Numer. Anal. 48), table 6.3
    "A": [[], [3 / 4]],
    "B": [[], [3 / 2]],
    "a": [1 / 3, 2 / 3],
    "b1": [1.0, 0.0],
    "b2": [-1.0, 1.0],
    "c0": [0.0, 3 / 4],
    "c1": [1.0, 0.0],
}


@pytest.mark.parametrize("ends", [(0.2, 1.4), (1.4, 0.2)])
def test_sra1_is_the_published_tableau(ends):
    """Also where g depends on time, which tells apart at which time each g is taken."""
    noise, term = BrownianTree(3, *ends, depth=10), Pendulum()
    ts = torch.linspace(*ends, 5, dtype=F64)
    x = start = sg.Noise(1).normal((6, 2), 31, dtype=F64, device="cpu")
    for t, t_next in pairwise(ts):
        w, z = space_time_increment(noise, t, t_next, x)
        x = stochastic_runge_kutta(SRA1, term, x, t, t_next - t, z / (t_next - t).abs(), w)
    came = sg.solve(term, start, solver="sra1", steps=ts, noise=noise).x
    torch.testing.assert_close(came, x, rtol=1e-12, atol=1e-12)
