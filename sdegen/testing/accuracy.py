"""Laws of solvers that measure: orders, errors against a tolerance, the law of a stochastic solver's output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distributions.mixture import GaussianMixture
from ..loop.run import solve
from ..loop.solution import Solution
from ..models.exact import MixtureModel
from ..noise.white import Noise
from ..processes import VPSDE
from ..solvers import Solver
from ..solvers.grids import formula_grid
from ..terms import ProbabilityFlow, ReverseSDE
from .affine import affine_law
from .checks import STATES, broken, check_equal, normals
from .doubles import NormalModel, WatchedModel
from .problems import ALTERNATING, PROCESS, SPAN, smooth_problems, uneven_times, wide_problem

_ROUNDING = 3e-14  # errors below it are no longer the method's


def order(solver: Solver) -> None:
    """The slope of error against step is the order, on uneven and on even grids, down and up."""
    model, problems = smooth_problems()
    uneven = solver.order if solver.uneven_order is None else solver.uneven_order
    cases = (("down", "uneven", ALTERNATING, uneven), ("up", "even", (1.0,), solver.order))
    for direction, grid, ratios, most in cases:
        p = most if solver.start_order is None else min(most, solver.start_order)
        x, span, exact = problems[direction]
        errors: list[float] = []
        for n in (40, 80, 160) if p < 5 else (10, 20, 40, 80):
            got = solve(ProbabilityFlow(model), x, solver=solver, steps=uneven_times(span, n, ratios)).x
            # the geometric mean: the root mean square is one or two samples that started near a separatrix
            error = float((got - exact).square().sum(1).clamp_min(1e-36).log().mean().exp().sqrt())
            if not error > _ROUNDING:
                break
            errors.append(error)
        law = f"order {p:g} on {grid} grids, {direction}"
        if len(errors) < 2 or not all(math.isfinite(e) for e in errors):
            raise broken(solver, law, f"errors {errors}", "errors that fall step by step, above rounding")
        slope = math.log2(errors[-2] / errors[-1])
        more = 0.3 if solver.kind == "ODE" else 0.65  # a strong order may be half a one below that of the flow
        if not p - 0.15 <= slope <= most + more:  # between the two where the start has not yet taken over
            shown = " ".join(f"{e:.1e}" for e in errors)
            got = f"slope {slope:.2f} (errors by halved steps: {shown})"
            raise broken(solver, law, got, f"{p:g} - 0.15 .. {most:g} + {more}")


def gaussian_flow(solver: Solver) -> None:
    """x' = alpha' mu + sqrt((alpha'^2 c + sigma'^2)/(alpha^2 c + sigma^2)) (x - alpha mu), c an axis' variance."""
    sde = VPSDE()
    mu, c = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    model = MixtureModel(GaussianMixture([mu.tolist()], covariances=torch.diag(c)), sde)
    for start, stop in ((0.8, 0.1), (0.1, 0.8)):
        a, b = sde.alpha(start), sde.alpha(stop)
        spread = (a**2 * c + sde.sigma(start) ** 2).sqrt()
        z = normals((6, 3), STATES)
        exact = b * mu + (b**2 * c + sde.sigma(stop) ** 2).sqrt() * z
        errors = []
        for n in (20, 80):
            ts = uneven_times((start, stop), n)
            got = solve(ProbabilityFlow(model), a * mu + spread * z, solver=solver, steps=ts).x
            errors.append(float((got - exact).square().mean().sqrt()))
        if not errors[1] <= min(0.2, max(errors[0] / 3, 1e-10)):
            law = f"the flow of Gaussian data, t = {start:g} to {stop:g}"
            raise broken(solver, law, f"errors {errors} at 20 and 80 steps", "a fall by at least 3, below 0.2")


def check_counts(solver: Solver, solution: Solution, watched: WatchedModel) -> None:
    """All samples arrive, and their counts are those of the model that was watched."""
    if bool((solution.status != 0).any()):
        raise broken(solver, "all samples arrive", solution.message, "status 0")
    if solution.calls != watched.calls:
        raise broken(solver, "calls are the calls made", solution.calls, watched.calls)
    if int(solution.nfe.sum()) != watched.rows:
        raise broken(solver, "nfe, summed, are the rows computed", int(solution.nfe.sum()), watched.rows)
    sde = watched.sde
    if not (sde.t_min <= watched.first and watched.last <= sde.t_max):
        law = "the network is evaluated inside [t_min, t_max]"
        raise broken(solver, law, f"{watched.first} .. {watched.last}", f"{sde.t_min} .. {sde.t_max}")


def tolerance(solver: Solver) -> None:
    """The error falls in proportion to the tolerance."""
    model, x, exact = wide_problem()
    asked, errors = (1e-3, 1e-4, 1e-5), []
    for tol in asked:
        watched = WatchedModel(model)
        solution = solve(ProbabilityFlow(watched), x, solver=solver, t_span=(PROCESS.t_max, PROCESS.t_min), rtol=tol)
        errors.append(float((solution.x - exact).square().mean().sqrt()))
        check_counts(solver, solution, watched)
    shown = " ".join(f"{e:.1e}" for e in errors)
    slope = math.log(errors[0] / errors[-1]) / math.log(asked[0] / asked[-1])
    falls = all(b < a for a, b in zip(errors, errors[1:], strict=False))
    if not (falls and 0.7 <= slope <= 1.3 and all(e <= 30 * tol for e, tol in zip(errors, asked, strict=True))):
        raise broken(solver, "the error falls with the tolerance (1e-3 .. 1e-5)", shown, "in proportion to it")


def seeds(solver: Solver) -> None:
    """A sample depends on the seed and its own number alone."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    term, steps = ReverseSDE(model), uneven_times(SPAN, 6)

    def run(x: Tensor, noise: Noise) -> Tensor:
        return solve(term, x, solver=solver, steps=steps, noise=noise).x

    whole = run(x, Noise(3))
    if torch.equal(whole, run(x, Noise(4))) or torch.equal(run(x[:1], Noise(3)), run(x[:1], Noise(3, index=[9]))):
        raise broken(solver, "another seed, or number, draws other noise", "the same", "another result")
    rows = torch.tensor([9, 2, 17])
    check_equal(solver, "sample i depends on (seed, i) alone", run(x[rows], Noise(3, index=rows)), whole[rows])


def output_law(solver: Solver) -> None:
    """Mean and variance of the output on Gaussian data tend to the exact ones."""
    sde, mu, std = VPSDE(), 0.7, 0.5
    model = NormalModel(sde, mu, std)

    def marginal(t: float) -> tuple[float, float]:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        return alpha * mu, (alpha * std) ** 2 + sigma**2

    mean, variance = marginal(sde.t_max)
    wanted_mean, wanted_variance = marginal(sde.t_min)
    misses = []
    for n in (40, 160):
        steps = formula_grid(sde, n, kind=solver.grid, start=sde.t_max, stop=sde.t_min, sigma_data=std)
        law = affine_law(solver, ReverseSDE(model), steps, mean, variance)
        if law is None:  # not affine: sample
            x = mean + math.sqrt(variance) * normals((20_000, 1), STATES)
            got = solve(ReverseSDE(model), x, solver=solver, steps=steps, noise=3).x
            law = float(got.mean()), float(got.var())
        misses.append(((law[0] - wanted_mean) / math.sqrt(wanted_variance), law[1] / wanted_variance - 1))
    for k, name in enumerate(("mean (in units of the spread)", "variance (relative)")):
        coarse, fine = abs(misses[0][k]), abs(misses[1][k])
        if not fine <= max(0.45 * coarse, 0.02) or not fine <= 0.15:
            law = f"the law of its output tends to the data's: {name}"
            raise broken(solver, law, f"misses {coarse:.3g}, {fine:.3g} at 40 and 160 steps", "a fall in proportion")
