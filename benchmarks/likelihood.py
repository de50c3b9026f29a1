"""Evaluations for a log-density of given accuracy: `sdegen.log_prob` against torchdiffeq's dopri5 in the process's own
time.

Exact scores and divergences in float64, root mean square error in nats per sample over samples of each mixture.
torchdiffeq
integrates (x, log-density) as everybody does, its error norm over the whole batch; it is given the exact law at t_max,
so that
only its steps are judged. Ours is judged after its own estimate of the prior's error is taken off.

    python benchmarks/likelihood.py
"""

from __future__ import annotations

import math

import torch
import torchdiffeq
from problems import problems
from torch import Tensor

import sdegen as sg
from sdegen.divergence import divergence

TARGET = 1e-3  # nats per sample


def data(model: sg.MixtureModel, n: int, seed: int) -> Tensor:
    """Draws of the law at t_min."""
    sde = model.sde
    x0 = model.mixture.sample(n, seed=seed, dtype=torch.float64)
    return sde.perturb(x0, sde.t_min, sg.Noise(seed).normal(x0.shape, 77, dtype=torch.float64, device="cpu"))


def ours(model: sg.MixtureModel, x: Tensor, tol: float) -> tuple[Tensor, float]:
    """Errors in nats and evaluations per sample."""
    found = sg.log_prob(model, x, rtol=tol)
    return found.nats - found.errors["prior"] - model.log_prob(x, model.sde.t_min), float(found.nfe.double().mean())


def theirs(model: sg.MixtureModel, x: Tensor, tol: float) -> tuple[Tensor, float]:
    """The same by torchdiffeq in the process's time."""
    calls, sde, flow = 0, model.sde, sg.ProbabilityFlow(model)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            u = flow.drift(y, t.clamp(sde.t_min, sde.t_max))
            return u.detach(), divergence(u, y, None)[:, 0]

    ts = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    start = (x, torch.zeros(len(x), dtype=x.dtype))
    x_t, total = torchdiffeq.odeint(field, start, ts, rtol=tol, atol=tol, method="dopri5")
    return model.log_prob(x_t[-1], sde.t_max) + total[-1] - model.log_prob(x, sde.t_min), float(calls)


def needed(method, model: sg.MixtureModel, x: Tensor, target: float = TARGET) -> float:
    """Evaluations for a root mean square error of `target` nats, log-interpolated between tolerances."""
    before = None
    for k in range(4, 22):
        error, evaluations = method(model, x, 10 ** (-k / 2))
        point = (math.log(float(error.square().mean().sqrt())), evaluations)
        if point[0] <= math.log(target):
            if before is None or before[0] <= point[0]:
                return evaluations
            share = (before[0] - math.log(target)) / (before[0] - point[0])
            return before[1] + share * (evaluations - before[1])
        before = point
    return math.nan


def main() -> None:
    torch.set_num_threads(1)
    print(f"evaluations for {TARGET:g} nats per sample (root mean square)\n{'problem':16}  ours  dopri5  ratio")
    ratios = []
    for problem in problems(instances=2, batch=2):
        x = data(problem.model, 64, seed=1)
        mine, other = needed(ours, problem.model, x), needed(theirs, problem.model, x)
        ratios.append(mine / other)
        print(f"{problem.name:16}  {mine:4.0f}  {other:6.0f}  {ratios[-1]:.2f}", flush=True)
    print(f"median {sorted(ratios)[len(ratios) // 2]:.2f}, worst {max(ratios):.2f}")


if __name__ == "__main__":
    main()
