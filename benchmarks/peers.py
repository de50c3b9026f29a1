"""The peers: solvers of other libraries, and published samplers, on problems with exact scores, all in float64.

Adaptive solvers run in the problem's native time (VP time, or sigma in Karras' range) by their own libraries: scipy,
torchdiffeq, torchode (where it is installed). k-diffusion's adaptive solver needs torchvision to be imported, so its
formulas stand here (`DPM-Solver-12` and `-23` with its step-size controller).

Published samplers on fixed grids: the multistep ones are this package's named settings, which agree with diffusers' and
k-diffusion's own code to rounding (tests/laws/test_identities.py); single-step DPM-Solvers and Heun's method are typed from
their papers; azula's v-prediction Adams-Bashforth runs from azula, where it is installed. Its others (zAB, zEAB, xEAB)
are exact-weight rows of the list.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from problems import Problem
from torch import Tensor

import sdegen as sg
from sdegen.solvers.multistep.exponential import Multistep

Run = Callable[[Problem, float, float], tuple[Tensor, float]]  # (problem, rtol, atol) -> states, evaluations a sample
Fixed = Callable[[Problem, str, int], Tensor]  # (problem, kind of grid, evaluations) -> states


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


# ---- adaptive, in native time


def drift_of(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dt along the probability flow, at times kept in [t_min, t_max]."""
    sde, term = problem.model.sde, sg.ProbabilityFlow(problem.model, **problem.cond)
    return lambda t, x: term.drift(x, t.clamp(sde.t_min, sde.t_max))


def scipy_rk45(problem: Problem, rtol: float, atol: float) -> tuple[Tensor, float]:
    """scipy.integrate.solve_ivp, the whole batch one state."""
    from scipy.integrate import solve_ivp

    sde, drift, shape = problem.model.sde, drift_of(problem), problem.x.shape

    def function(t: float, y: np.ndarray) -> np.ndarray:
        return drift(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y).reshape(shape)).numpy().ravel()

    end = solve_ivp(function, (sde.t_max, sde.t_min), problem.x.numpy().ravel(), method="RK45", rtol=rtol, atol=atol)
    return torch.from_numpy(end.y[:, -1]).reshape(shape), end.nfev


def torchdiffeq_dopri5(problem: Problem, rtol: float, atol: float) -> tuple[Tensor, float]:
    """torchdiffeq.odeint; its last step ends at t_min instead of passing it (`step_t`)."""
    from torchdiffeq import odeint

    sde, drift, calls = problem.model.sde, drift_of(problem), [0]

    def function(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return drift(t, x)

    ts = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    x = odeint(function, problem.x, ts, method="dopri5", rtol=rtol, atol=atol, options={"step_t": ts[1:]})[-1]
    return x, calls[0]


def torchode_dopri5(problem: Problem, rtol: float, atol: float) -> tuple[Tensor, float]:
    """torchode's dopri5: every sample its own steps, so its evaluations are counted by sample."""
    import torchode

    sde, drift, batch, shape = problem.model.sde, drift_of(problem), len(problem.x), problem.x.shape
    term = torchode.ODETerm(lambda u, x: -drift(sde.t_max - u, x.reshape(shape)).flatten(1))  # u rises
    method = torchode.Dopri5(term=term)
    control = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    start = torch.zeros(batch, dtype=torch.float64)
    task = torchode.InitialValueProblem(y0=problem.x.flatten(1), t_start=start, t_end=start + sde.t_max - sde.t_min)
    solution = torchode.AutoDiffAdjoint(method, control).solve(task)
    evaluations = 2 + 6 * solution.stats["n_steps"].double().mean()  # two for the first step size
    return solution.ys[:, -1].reshape(shape), float(evaluations)


# ---- exponential Runge-Kutta methods in lambda: DPM-Solver-2, -3, DPM-Solver++ 2S, 3S


class Frame:
    """A problem in xh = x/alpha and lambda = -log sh: D and eps, and a count of evaluations."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.model, self.sde, self.calls = problem, problem.model, problem.model.sde, 0

    def value(self, xh: Tensor, l: Tensor, data: bool) -> Tensor:
        """D where `data`, else eps."""
        self.calls += 1
        t = self.sde.time(l).clamp(self.sde.t_min, self.sde.t_max)
        prediction = self.model(self.sde.alpha(t) * xh, t, **self.problem.cond)
        return prediction.x0 if data else prediction.noise

    def carry(self, h: Tensor, data: bool) -> Tensor:
        return torch.exp(-h) if data else torch.ones_like(h)

    def weights(self, l: Tensor, h: Tensor, data: bool) -> tuple[Tensor, Tensor]:
        """The integrals of the weight times 1 and (u - l)/h, over u from l to l + h."""
        if data:
            return -torch.expm1(-h), torch.expm1(-h) / h + 1
        sh = torch.exp(-l - h)
        return -sh * torch.expm1(h), -sh * (torch.expm1(h) / h - 1)

    def step(self, x: Tensor, l: Tensor, h: Tensor, order: int, data: bool) -> tuple[Tensor, Tensor]:
        """One step of this order, and the embedded one of the order below (Lu et al. 2022, algorithms 1, 2 and 4)."""
        v = self.value(x, l, data)
        w0, w1 = self.weights(l, h, data)
        first = self.carry(h, data) * x + w0 * v
        if order == 1:
            return first, x
        r = 1 / order
        inner = self.carry(r * h, data) * x + self.weights(l, r * h, data)[0] * v
        change = self.value(inner, l + r * h, data) - v
        second = first + w0 / (2 * r) * change
        if order == 2:
            return second, first
        a0, a1 = self.weights(l, 2 / 3 * h, data)
        inner = self.carry(2 / 3 * h, data) * x + a0 * v + 2 * a1 * change
        return first + 1.5 * w1 * (self.value(inner, l + 2 / 3 * h, data) - v), second


def single_step(order: int, data: bool) -> Fixed:
    """DPM-Solver of an order; what evaluations are left over make a first step of lower order.

    At the end, where DPM-Solver-fast has it, that step caps the order of the whole: 3 times the error from 50 on.
    """

    def run(problem: Problem, kind: str, n: int) -> Tensor:
        frame, sde = Frame(problem), problem.model.sde
        orders = [n % order] * (n % order > 0) + [order] * (n // order)
        ts = grid(problem, kind, len(orders))
        l, x = sde.half_log_snr(ts), problem.x / sde.alpha(ts[0])
        for k, p in enumerate(orders):
            x, _ = frame.step(x, l[k], l[k + 1] - l[k], p, data)
        return x * sde.alpha(ts[-1])

    return run


def heun(problem: Problem, kind: str, n: int) -> Tensor:
    """Karras et al. 2022, algorithm 1: Heun's method in sh; an Euler step at the end of an odd number."""
    frame, sde = Frame(problem), problem.model.sde
    ts = grid(problem, kind, (n + 1) // 2)
    l, x = sde.half_log_snr(ts), problem.x / sde.alpha(ts[0])
    sh = torch.exp(-l)
    for k in range(len(ts) - 1):
        h = sh[k + 1] - sh[k]
        slope = frame.value(x, l[k], False)
        if frame.calls < n:
            slope = (slope + frame.value(x + h * slope, l[k + 1], False)) / 2
        x = x + h * slope
    return x * sde.alpha(ts[-1])


def dpm_adaptive(order: int) -> Run:
    """k-diffusion's `sample_dpm_adaptive`: embedded orders, the batch's norm, an integral controller, safety 0.81."""

    def run(problem: Problem, rtol: float, atol: float) -> tuple[Tensor, float]:
        frame, sde = Frame(problem), problem.model.sde
        l, end = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
        x = before = problem.x / sde.alpha(torch.tensor(sde.t_max, dtype=torch.float64))
        h = torch.tensor(0.05, dtype=torch.float64)
        while l < end - 1e-5:
            reach = torch.minimum(end, l + h) - l
            high, low = frame.step(x, l, reach, order, False)
            scale = torch.maximum(torch.tensor(atol), rtol * torch.maximum(low.abs(), before.abs()))
            error = ((low - high) / scale).square().mean().sqrt()
            factor = 1 + math.atan((float(error) + 1e-8) ** (-1 / order) - 1)
            if factor >= 0.81:
                l, x, before = l + reach, high, low
            h = h * factor
        return x * sde.alpha(torch.tensor(sde.t_min, dtype=torch.float64)), frame.calls

    return run


def adaptive() -> dict[str, Run]:
    found: dict[str, Run] = {"scipy RK45": scipy_rk45, "torchdiffeq dopri5": torchdiffeq_dopri5}
    if installed("torchode"):
        found["torchode dopri5"] = torchode_dopri5
    return {**found, "k-diffusion DPM-12": dpm_adaptive(2), "k-diffusion DPM-23": dpm_adaptive(3)}


# ---- fixed grids

KINDS = ("karras", "lambda", "sqrt-time", "theta", "uniform")


def grid(problem: Problem, kind: str, n: int) -> Tensor:
    sde = problem.model.sde
    return sg.grid(problem.model, n, kind=kind, t_span=(sde.t_max, sde.t_min))


def multistep(**setting: Any) -> Fixed:
    """One setting of the multistep machine, told as published: gauge, variable, order, corrector, weight rule."""
    solver = Multistep(**setting)

    def run(problem: Problem, kind: str, n: int) -> Tensor:
        how = {"steps": grid(problem, kind, n), "x_init": problem.x, "on_failure": "mark", "eta": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an order is above what the budget carries
            return sg.sample(problem.model, problem.x.shape, solver=solver, **how).x

    return run


def azula_vab(order: int) -> Fixed:
    """azula's vABSampler: velocity prediction, Adams-Bashforth in sigma/(alpha + sigma)."""
    from azula.sample import vABSampler

    def run(problem: Problem, kind: str, n: int) -> Tensor:
        model, ts = problem.model, grid(problem, kind, n)

        class OnGrid(vABSampler):
            timesteps = ts

        class Denoiser:
            def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
                return model.sde.alpha(t), model.sde.sigma(t)

            def __call__(self, x: Tensor, t: Tensor) -> Any:
                return SimpleNamespace(mean=model(x, t).x0)

        return OnGrid(Denoiser(), order=order, silent=True)(problem.x)

    return run


def fixed() -> dict[str, Fixed]:
    """Published samplers by name; each runs on every kind of grid."""
    noise, data = {"gauge": "noise"}, {"gauge": "data"}
    found = {
        "DDIM": multistep(**data, order=1),
        "DPM-Solver 2M": multistep(**noise, order=2, rule="mean"),
        "DPM-Solver 3M": multistep(**noise, order=3, rule="half-curvature"),
        "DPM-Solver++ 2M": multistep(**data, order=2, rule="mean"),
        "DPM-Solver++ 2M heun": multistep(**data, order=2),
        "DPM-Solver++ 3M": multistep(**data, order=3, rule="half-curvature"),
        "xEAB 3": multistep(**data, order=3),
        "DEIS 2": multistep(**noise, order=2),
        "DEIS 3": multistep(**noise, order=3),
        "DEIS tAB 3": multistep(**noise, variable="time", order=3),
        "DEIS tAB 4": multistep(**noise, variable="time", order=4),
        "LMS 4": multistep(**noise, variable="sigma", order=4),
        "iPNDM 3": multistep(**noise, variable="sigma", order=3, rule="constant"),
        "iPNDM 4": multistep(**noise, variable="sigma", order=4, rule="constant"),
        "UniPC 2": multistep(**data, order=2, corrector=2, rule="mean"),
        "UniPC 3": multistep(**data, order=3, corrector=3, rule="mean"),
        "UniPC 3 noise": multistep(**noise, order=3, corrector=3, rule="mean"),
        "DPM-Solver-2": single_step(2, data=False),
        "DPM-Solver-3": single_step(3, data=False),
        "DPM-Solver++ 2S": single_step(2, data=True),
        "DPM-Solver++ 3S": single_step(3, data=True),
        "Heun": heun,
    }
    if installed("azula"):
        found |= {"azula vAB 2": azula_vab(2), "azula vAB 3": azula_vab(3)}
    return found
