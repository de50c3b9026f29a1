"""Stochastic samplers at 10, 20 and 50 evaluations: how far is the law of their output from the data's?

Exact scores of random 2-D mixtures, half along VP and half along Karras' range; eta = 1; 20,000 samples in float64, the
state at t_min. The measure is the Kolmogorov distance of the exact log-density between the samples and the exact law (a
million draws of it), which sees what sliced distances cannot past 20 evaluations. Exact samples of that number score
what the line "exact" says. Every sampler runs as it comes: `sample(solver=..., steps=N)`, or by tolerance. The peers are
the formulas of k-diffusion (2M SDE, 3M SDE, Euler ancestral), each on Karras' grid and on equal steps of log sigma, and
diffusers' EDM scheduler where it is installed; of their settings the best of each problem is shown too, chosen
afterwards.

    python benchmarks/stochastic.py [--instances 8] [--seeds 3]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from problems import random_mixture
from report import table, write
from torch import Tensor

import sdegen as sg

F64 = torch.float64
BATCH = 20_000
BUDGETS = (10, 20, 50)
OWN = ("d-adams2-sde", "dpm++2m-sde", "sa-solver3", "er-sde3", "ancestral")
TOLERANCES = (0.11, 0.023)  # about 10 and 20 evaluations


def models(instances: int) -> dict[str, sg.MixtureModel]:
    made = {}
    for i in range(instances):
        name, sde = (("VP", sg.VPSDE()), ("Karras", sg.EDMSDE()))[i % 2]
        made[f"{name} {i}"] = sg.MixtureModel(random_mixture(2, i), sde)
    return made


def truth(model: sg.MixtureModel, n: int, seed: int) -> Tensor:
    """Exact draws of the law at t_min."""
    sde = model.sde
    z = sg.Noise(seed).normal((n, 2), 41, dtype=F64, device="cpu")
    return sde.perturb(model.mixture.sample(n, seed=seed, dtype=F64), sde.t_min, z)


def kolmogorov(known: Tensor, values: Tensor) -> float:
    """The largest gap between the distribution functions of two samples, the first of them sorted."""
    level = torch.searchsorted(known, values.sort().values).double() / len(known)
    steps = torch.arange(len(values) + 1, dtype=F64) / len(values)
    return float(torch.maximum((level - steps[1:]).abs(), (level - steps[:-1]).abs()).max())


# ---- the peers, in x/alpha and sigma/alpha


def denoiser(model: sg.MixtureModel) -> Callable[[Tensor, float], Tensor]:
    return lambda x, sigma: model.mixture.denoise(x, 1.0, sigma)[1]


def karras(low: float, high: float, n: int) -> list[float]:
    u = torch.linspace(0, 1, n + 1, dtype=F64)
    return ((high ** (1 / 7) + u * (low ** (1 / 7) - high ** (1 / 7))) ** 7).tolist()


def exponential(low: float, high: float, n: int) -> list[float]:
    return torch.exp(torch.linspace(math.log(high), math.log(low), n + 1, dtype=F64)).tolist()


def euler_ancestral(d, x: Tensor, sigmas: list[float], noise) -> Tensor:
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        up = math.sqrt(b**2 * (a**2 - b**2) / a**2)
        down = math.sqrt(b**2 - up**2)
        x = x + (x - d(x, a)) / a * (down - a) + noise() * up
    return x


def dpmpp_2m_sde(d, x: Tensor, sigmas: list[float], noise) -> Tensor:
    """k-diffusion's sample_dpmpp_2m_sde, eta = 1, "midpoint"."""
    old, h_last = None, 0.0
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        now, h = d(x, a), math.log(a / b)
        x = b / a * math.exp(-h) * x - math.expm1(-2 * h) * now
        if old is not None:
            x = x + 0.5 * -math.expm1(-2 * h) * h / h_last * (now - old)
        x = x + noise() * b * math.sqrt(-math.expm1(-2 * h))
        old, h_last = now, h
    return x


def dpmpp_3m_sde(d, x: Tensor, sigmas: list[float], noise) -> Tensor:
    """k-diffusion's sample_dpmpp_3m_sde, eta = 1."""
    d_1 = d_2 = None
    h_1 = h_2 = 0.0
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        now, h = d(x, a), math.log(a / b)
        h_eta = 2 * h
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * now
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        if d_2 is not None and d_1 is not None:
            r0, r1 = h_1 / h, h_2 / h
            first, second = (now - d_1) / r0, (d_1 - d_2) / r1
            slope = first + (first - second) * r0 / (r0 + r1)
            curve = (first - second) / (r0 + r1)
            x = x + phi_2 * slope - (phi_2 / h_eta - 0.5) * curve
        elif d_1 is not None:
            x = x + phi_2 * (now - d_1) / (h_1 / h)
        x = x + noise() * b * math.sqrt(-math.expm1(-2 * h))
        d_1, d_2, h_1, h_2 = now, d_1, h, h_1
    return x


def diffusers_edm(d, x: Tensor, n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """diffusers' EDMDPMSolverMultistepScheduler, sde-dpmsolver++ of order 2, its own grid; ends at sigma = low."""
    from diffusers import EDMDPMSolverMultistepScheduler

    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=low, sigma_max=high, sigma_data=1.0, algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(n)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        scaled = scheduler.scale_model_input(x, t)
        s = scheduler.config["sigma_data"]
        skip, out = s**2 / (sigma**2 + s**2), sigma * s / (sigma**2 + s**2) ** 0.5
        output = (d(x, sigma) - skip * x) / out
        x = scheduler.step(output, t, x, generator=generator).prev_sample.double()
        del scaled
    return x


def peers(model: sg.MixtureModel, n: int, seed: int) -> dict[str, Tensor]:
    """The states at t_min in the model's own time, by name."""
    sde = model.sde
    high, low = torch.exp(-sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=F64))).tolist()
    alpha = float(sde.alpha(sde.t_min))
    d, found = denoiser(model), {}
    for kind, lay in (("karras", karras), ("exponential", exponential)):
        for f in (dpmpp_2m_sde, dpmpp_3m_sde, euler_ancestral):
            g = torch.Generator().manual_seed(seed)
            draw = lambda g=g: torch.randn(BATCH, 2, generator=g, dtype=F64)
            found[f"{f.__name__}, {kind}"] = alpha * f(d, high * draw(), lay(low, high, n), draw)
    try:
        g = torch.Generator().manual_seed(seed)
        x = high * torch.randn(BATCH, 2, generator=g, dtype=F64)
        found["diffusers EDM sde-dpmsolver++"] = alpha * diffusers_edm(d, x, n, low, high, g)
    except ImportError:
        pass
    return found


# ---- the table


class Scores:
    """Kolmogorov distances by (name, column), problem by problem, each the mean over seeds."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], dict[str, list[float]]] = {}
        self.nfe: dict[tuple[str, int], list[float]] = {}

    def add(self, name: str, column: int, problem: str, value: float, nfe: float | None = None) -> None:
        self.values.setdefault((name, column), {}).setdefault(problem, []).append(value)
        if nfe is not None:
            self.nfe.setdefault((name, column), []).append(nfe)

    def row(self, name: str) -> list[str]:
        cells = [name.strip()]
        for column in range(len(BUDGETS)):
            by_problem = self.values.get((name, column))
            if by_problem is None:
                cells.append("")
                continue
            means = [sum(v) / len(v) for v in by_problem.values()]
            cell = f"{sum(means) / len(means):.4f} ({max(means):.3f})"
            nfe = self.nfe.get((name, column))
            cells.append(cell + (f" at {sum(nfe) / len(nfe):.1f}" if nfe else ""))
        return cells

    def best(self, names: list[str]) -> None:
        """A row of the best of these on each problem."""
        for column in range(len(BUDGETS)):
            tables = [self.values[(n, column)] for n in names if (n, column) in self.values]
            for problem in tables[0] if tables else ():
                self.add(
                    "best peer of each problem", column, problem, min(sum(t[problem]) / len(t[problem]) for t in tables)
                )


def measure(scores: Scores, problem: str, model: sg.MixtureModel, seed: int, known: Tensor, own: bool) -> None:
    sde = model.sde

    def note(name: str, column: int, x: Tensor, nfe: float | None = None) -> None:
        scores.add(name, column, problem, kolmogorov(known, model.log_prob(x, sde.t_min)), nfe)

    how = {"eta": 1.0, "seed": seed, "dtype": F64, "t_span": (sde.t_max, sde.t_min)}
    note("exact", 0, truth(model, BATCH, 1000 + seed))
    for column, n in enumerate(BUDGETS):
        for name in OWN[:1] if own else OWN:
            note(name, column, sg.sample(model, (BATCH, 2), solver=name, steps=n, **how).x)
        if not own:
            for name, x in peers(model, n, seed).items():
                note("  " + name, column, x)
    for column, tolerance in enumerate(TOLERANCES):
        found = sg.sample(model, (BATCH, 2), solver=OWN[0], rtol=tolerance, **how)
        note(f"{OWN[0]}, by tolerance", column, found.x, float(found.nfe.double().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--own", action="store_true", help="the default solver alone")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    scores = Scores()
    for problem, model in models(chosen.instances).items():
        known = model.log_prob(truth(model, 1_000_000, 7), model.sde.t_min).sort().values
        for seed in range(chosen.seeds):
            measure(scores, problem, model, seed, known, chosen.own)
    names = list(dict.fromkeys(name for name, _ in scores.values))
    scores.best([name for name in names if name.startswith("  ")])
    rows = [scores.row(name) for name in dict.fromkeys(name for name, _ in scores.values)]
    print(table(["Kolmogorov distance, mean (worst)", *map(str, BUDGETS)], rows))
    about = (
        f"Kolmogorov distance of the exact log-density, {BATCH} samples, {chosen.instances} random 2-D mixtures, "
        f"{chosen.seeds} seeds, by evaluations."
    )
    write("stochastic", "Solvers of the reverse SDE", about)


if __name__ == "__main__":
    main()
