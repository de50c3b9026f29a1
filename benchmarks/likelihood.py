"""Log-densities of mixtures with exact scores, in float64: evaluations against torchdiffeq, errors, probes, round trips.

Errors are against the closed form at t_min, so that truncation plays no part; the prior's error is taken off where it
is said so. torchdiffeq's dopri5 integrates (x, log-density) in the process's own time, as everybody does, its error
norm over the whole batch; it is given the exact law at t_max, so that only its steps are judged.

    python benchmarks/likelihood.py
"""

from __future__ import annotations

import math

import torch
import torchdiffeq
from problems import problems, random_mixture
from report import table, write
from torch import Tensor

import sdegen as sg
from sdegen.inference.divergence import divergence

TARGET = 1e-3  # nats per sample


def data(model: sg.MixtureModel, n: int, seed: int) -> Tensor:
    """Draws of the law at t_min."""
    sde = model.sde
    x0 = model.mixture.sample(n, seed=seed, dtype=torch.float64)
    return sde.perturb(x0, sde.t_min, sg.Noise(seed).normal(x0.shape, 77, dtype=torch.float64, device="cpu"))


def count(dim: int) -> int:
    """Samples of a problem: fewer where the exact divergence costs more."""
    return 64 if dim <= 16 else 16


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# ---- evaluations


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
        point = (math.log(rms(error)), evaluations)
        if point[0] <= math.log(target):
            if before is None or before[0] <= point[0]:
                return evaluations
            share = (before[0] - math.log(target)) / (before[0] - point[0])
            return before[1] + share * (evaluations - before[1])
        before = point
    return math.nan


def evaluations() -> None:
    ratios, rows = [], []
    for problem in problems(instances=2, batch=2):
        x = data(problem.model, count(problem.x.shape[1]), seed=1)
        mine, other = needed(ours, problem.model, x), needed(theirs, problem.model, x)
        ratios.append(mine / other)
        rows.append([problem.name, f"{mine:.0f}", f"{other:.0f}", f"{ratios[-1]:.2f}"])
    rows.append(["median (worst)", "", "", f"{sorted(ratios)[len(ratios) // 2]:.2f} ({max(ratios):.2f})"])
    print(table([f"evaluations for {TARGET:g} nats per sample (root mean square)", "ours", "dopri5", "ratio"], rows))


# ---- errors


def errors() -> None:
    rows = []
    for problem in problems(instances=1, batch=2):
        x = data(problem.model, count(problem.x.shape[1]), seed=2)
        truth, cells = problem.model.log_prob(x, problem.model.sde.t_min), []
        for k in (3, 4, 5, 6):
            found = sg.log_prob(problem.model, x, rtol=10.0**-k, divergence="exact")
            cells.append(rms(found.nats - found.errors["prior"] - truth) / x.shape[1])
        cells.append(rms(found.errors["prior"]))
        rows.append([problem.name, *(f"{c:.1e}" for c in cells)])
    title = "root mean square error in nats per dimension by rtol, without the prior's error (last, in nats)"
    print(table([title, *(f"{10.0**-k:.0e}" for k in (3, 4, 5, 6)), "prior"], rows))


def probes() -> None:
    """One sample, 1000 seeds of four probes each: the spread over seeds, and the standard error that each one tells."""
    rows = []
    model = sg.MixtureModel(random_mixture(2, 0), sg.VPSDE())
    x, how = data(model, 1, seed=3), {"steps": 20}
    exact = float(sg.log_prob(model, x, divergence="exact", **how).nats)
    for kind in ("rademacher", "gaussian"):
        alone = {"divergence": kind, "probes": 4}
        found = [sg.log_prob(model, x, seed=s, **alone, **how) for s in range(50)]  # a call for each seed
        many = sg.log_prob(model, x.expand(950, -1), index=range(50, 1000), seed=0, **alone, **how)
        nats = torch.cat([f.nats for f in found] + [many.nats])
        told = rms(torch.cat([f.stderr for f in found] + [many.stderr]))
        spread = float(nats.std())
        off = f"{float(nats.mean()) - exact:+.4f} +- {spread / 1000**0.5:.4f}"
        rows.append([kind, f"{spread:.4f}", f"{told:.4f}", f"{told / spread:.2f}", off])
    title = "four random probes, 2-D: spread of log p over 1000 seeds, and the standard error told (nats)"
    print(table([title, "spread", "told", "told / spread", "mean - exact"], rows))


# ---- there and back


def round_trips() -> None:
    """The median sample and the worst of 32: one that starts where modes part is carried far by any error."""
    ks, rows = range(3, 9), []
    for problem in problems(instances=1, batch=2):
        model, x, cells = problem.model, data(problem.model, 32, seed=4), []
        for k in ks:
            tol = 10.0**-k
            latent = sg.encode(model, x, rtol=tol).x
            back = sg.sample(model, x.shape, x_init=latent, t_span=(model.sde.t_max, model.sde.t_min), rtol=tol).x
            apart = (back - x).norm(dim=1) / x.norm(dim=1).square().mean().sqrt() / tol
            cells.append(f"{float(apart.median()):.2f} ({float(apart.max()):.2g})")
        rows.append([problem.name, *cells])
    title = "data to latent and back: relative error over the tolerance, median sample (worst)"
    print(table([title, *(f"{10.0**-k:.0e}" for k in ks)], rows))


def main() -> None:
    torch.set_num_threads(1)
    evaluations()
    errors()
    probes()
    round_trips()
    about = "Random Gaussian mixtures with exact scores, in float64, against the closed form at t_min."
    write("likelihood", "Likelihoods, as the benchmark writes them", about)


if __name__ == "__main__":
    main()
