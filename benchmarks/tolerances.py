"""Evaluations for an error by tolerance on trained networks: adams beside five adaptive peers.

The networks are those of `few_evaluations.py`, where they are trained once and kept. All begin with the same noise and
end at t_min, no final denoising. The error is that of the end-point against the same flow solved tightly, root mean
square over samples and numbers, in units of the data's standard deviation; evaluations are means over samples, read
off between tolerances a factor of sqrt(10) apart. torchdiffeq's, scipy's and torchode's dopri5 run in the process's own
time and k-diffusion's DPM-Solver in log(sigma/alpha), as they are used; the last peer is torchdiffeq's on the circular
path, which is where this package solves.

    python benchmarks/tolerances.py     # 10 minutes with the networks kept; writes results/tolerances.json
"""

from __future__ import annotations

import math
import statistics
import sys
from typing import Any

import peers
import torch
from few_evaluations import Case, cases
from problems import Problem
from report import table, write
from solvers import reach
from torch import Tensor

import sdegen as sg

ERRORS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
TOLERANCES = [10 ** (-k / 2) for k in range(1, 11)]
MOST = 300  # evaluations, after which a ladder of tolerances ends
SAMPLES = 256
CIRCULAR = "torchdiffeq dopri5, circular path"


def circular(problem: Problem, rtol: float, atol: float) -> tuple[Tensor, float]:
    """torchdiffeq's dopri5 along the circular path around the data's mean."""
    from torchdiffeq import odeint

    rhs, span, into, out = sg.ProbabilityFlow(problem.model, **problem.cond).as_ode()
    calls = [0]

    def function(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return rhs(t, x)

    ts = torch.tensor(span, dtype=torch.float64)
    x = odeint(function, into(problem.x), ts, method="dopri5", rtol=rtol, atol=atol, options={"step_t": ts[1:]})[-1]
    return out(x), calls[0]


def lines(case: Case) -> dict[str, list[tuple[float, float]]]:
    """(evaluations, error) by tolerance, of adams and of each peer."""
    n = min(SAMPLES, case.n)
    cond = {name: value[:n] for name, value in case.cond.items()}
    problem = Problem(case.name, case.model, case.x[:n], cond)
    case.model.solvers = ()
    runs = {"adams": adams, **peers.adaptive(), CIRCULAR: circular}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for name, run in runs.items():
        for tol in TOLERANCES:
            x, nfe = run(problem, tol, tol * case.model.sigma_data)
            error = float((x.double() - case.exact[:n]).square().mean().sqrt()) / case.model.sigma_data
            found[name].append((float(nfe), error if math.isfinite(error) else math.inf))
            if nfe > MOST or error < min(ERRORS):
                break
    return found


def adams(problem: Problem, rtol: float, atol: float) -> tuple[Tensor, float]:
    sde = problem.model.sde
    span = {"t_span": (sde.t_max, sde.t_min), "progress": False}
    found = sg.sample(
        problem.model, problem.x.shape, x_init=problem.x, solver="adams", rtol=rtol, atol=atol, **span, **problem.cond
    )
    return found.x, float(found.nfe.double().mean())


def cell(found: dict[str, list[tuple[float, float]]], error: float, beside: set[str]) -> tuple[str, float]:
    """What adams and the best of these peers need, and the ratio; a peer that never comes so far needs what it made."""
    own = reach(found["adams"], error)
    name, best = min(((name, reach(found[name], error)) for name in beside), key=lambda pair: pair[1])
    if math.isinf(best):
        most = max(line[-1][0] for name, line in found.items() if name in beside)
        return f"{own:.0f} / more than {most:.0f}", own / most
    return (
        f"{own:.0f} / {best:.0f} ({name.split()[-1] if name != CIRCULAR else 'circular'}) = {own / best:.2f}",
        own / best,
    )


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with torch.no_grad():
        for make in cases().values():
            case = make()
            found[case.name] = lines(case)
            print(case.name, found[case.name], file=sys.stderr, flush=True)
    used = set(next(iter(found.values()))) - {"adams", CIRCULAR}
    for title, beside in (("peers as they are used", used), ("with dopri5 on the circular path", used | {CIRCULAR})):
        rows: list[list[Any]] = []
        ratios: list[list[float]] = []
        for name, of in found.items():
            cells = [cell(of, error, beside) for error in ERRORS]
            rows.append([name, *(text for text, _ in cells)])
            ratios.append([value for _, value in cells])
        middle = [f"{statistics.median(c):.2f} ({max(c):.2f})" for c in zip(*ratios, strict=True)]
        rows.append(["median (worst) ratio", *middle])
        print(table([title, *map(str, ERRORS)], rows))
    write("tolerances", "Tolerances on trained networks", __doc__.split("\n\n")[1].replace("\n", " "))


if __name__ == "__main__":
    main()
