"""Likelihood along the probability flow: log_prob, with its errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import flag
from ..core.conditions import merged, rows_of
from ..core.errors import InvalidInputError, SolverError
from ..core.kinds import checked
from ..core.shapes import flat
from ..core.show import Shown, spread
from ..loop.how import How
from ..loop.modes import bar, quiet
from ..loop.run import run
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..noise.white import Noise, check_seed
from ..solvers import Solver, is_auto, named
from ..terms import ProbabilityFlow
from .checks import check_density_of, check_model, sample_numbers
from .chunks import check_batch_size, chunks, joined
from .column import DensityColumn, check_density_solver
from .divergence import choose_divergence


@dataclass(frozen=True, repr=False)
class LogProb(Shown):
    """Log-densities and their errors.

    Attributes:
        nats: (B,) float64, log p(x) in nats, p the density at the first time, t_min by default. NaN where `status` is
            not 0.
        stderr: (B,) the standard error of `nats` from the random probes; NaN for one probe, 0 for the exact divergence.
        errors: estimates in nats, (B,) each. The last two have a sign: `nats` minus what it would be without the error.

            - "solver", at least 0. Under error control a typical size, 2 (atol/s + rtol) sqrt(d), s the data's standard
              deviation; samples on the border between modes have several times more. On a fixed grid the difference
              between the solver's integral and a quadrature of its integrand at the nodes, plus the difference between
              that and the quadrature at every second node.
            - "prior": the density at t_max is taken to be Gaussian, with the moments of the data that the model knows;
              the error is that of the first moment missing, which is estimated from the belief at t_max.
            - "truncation": log p at t_min minus log p of clean data, both at x, to second order in sigma(t_min). It is
              large, and only a warning, where the data have structure finer than sigma(t_min), or no density.
        latent: (B, *event), the state at t_max.
        nfe: (B,) evaluations, each with its divergence; the last is the one at t_max for the errors.
        status, message: as in Solution.
        solver: what ran.
        seed: of the probes.
        of_latents: whether x were latents of the model's space.
    """

    nats: Tensor
    stderr: Tensor
    errors: dict[str, Tensor]
    latent: Tensor
    nfe: Tensor
    status: Tensor
    message: str
    solver: str
    seed: int
    of_latents: bool = False

    def _facts(self):
        return {
            "nats": spread(self.nats),
            "stderr": spread(self.stderr),
            **{f"{name}_error": spread(size) for name, size in self.errors.items()},
            "solver": self.solver,
            "evaluations": spread(self.nfe),
            "status": self.message,
            "seed": self.seed,
        }

    @checked
    def bits_per_dim(self, levels: int | None = None) -> Tensor:
        """-log2 p(x)/d, (B,); with `levels`, of the discrete data that x dequantises.

        With u = 0 .. L-1 and x = 2 (u + U[0, 1))/L - 1 a bin is 2/L wide, so the bits of u are those of x plus
        log2(L/2): 7 for L = 256, 8-bit data scaled to [-1, 1]. Nothing is added without `levels`. `bits_per_dim` of
        this module dequantises by itself, and is for levels at x = 2 u/(L-1) - 1, whose bins are 2/(L-1) wide.

        Raises:
            InvalidInputError: levels below 2, or of latents, which have none.

        Source: Theis et al. 2016 (arXiv 1511.01844) section 3.1.
        """
        d = max(flat(self.latent).shape[1], 1)
        bits = -self.nats / (d * math.log(2))
        if levels is not None and self.of_latents:
            raise InvalidInputError(
                f"levels={levels}: these are densities of latents, which have no grey levels; leave it out for their "
                "bits per dimension, which are no bits of pictures"
            )
        return bits if levels is None else bits + math.log2(check_levels(levels) / 2)


def check_levels(levels: Any) -> int:
    """A number of grey levels."""
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise InvalidInputError(f"got levels={levels!r}, expected the number of grey levels, such as 256")
    return levels


def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: str | Solver = "auto",
    steps: int | Sequence[float] | Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    t_span: tuple[float, float] | None = None,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    batch_size: int | None = None,
    progress: bool | None = None,
    divergence: str = "auto",
    probes: int = 1,
    seed: int | None = None,
    index: Sequence[int] | Tensor | None = None,
    grad: bool = False,
    **cond: Any,
) -> LogProb:
    """log p(x) in nats along the probability flow, from t_min to t_max.

        log p_0(x_0) = log p_T(x_T) + int_0^T div u dt,    u = f x - g^2/2 score,

    written as the departure from a Gaussian with the data's statistics, for which it is exact (see `density`). Nothing
    is asked of the network but autograd.

    Args:
        model: a ScoreModel.
        x: (B, *event), the state at t_min; any event shape, scalars too.
        solver, steps, rtol, atol, t_span, max_steps, on_failure, batch_size, progress: as `encode`. A tolerance holds
            for the data as in `encode`, and for the log-density: local errors are kept below about (atol/s + rtol)
            sqrt(d) nats, s the data's standard deviation.
        divergence: "exact" (d products with the Jacobian an evaluation), "rademacher" (or "hutchinson"), "gaussian", or
            "hutch++" (Rademacher, with two thirds of the products spent on a subspace that is summed exactly: 1.3 to 3
            times less noise on images' exact scores, 1.5 times more on a small network); "auto": exact up to 64
            dimensions, else "rademacher".
        probes: how many products with the Jacobian an evaluation, beside the exact divergence. The random vectors are
            kept along the whole way, so that the estimate is that of one quadratic form.
        seed: sample i's probes depend on (seed, its number) alone. None: a fresh one, told in `.seed`.
        index: the samples' numbers, default 0..B-1.
        grad: whether `.nats` can be differentiated, with respect to x and the network's parameters.
        **cond: conditions for the model.

    Returns:
        LogProb. Density of x itself, in x's units: no offset for grey levels is added. Of a model with a latent space,
        x are latents and it is their density: what they decode to has none that is known.

    Raises:
        InvalidInputError: before the first evaluation; a solver of SDEs has no density along its way.
        SolverError: its kinds, with the LogProb as `.partial`, unless on_failure="mark".

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 39 and section D.2; Chen et al. 2018 (arXiv 1806.07366) theorem 1.

    Example:
        >>> import sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2)
        >>> model = sg.MixtureModel(mixture, sg.EDMSDE())
        >>> x = mixture.sample(5, seed=0)
        >>> found = sg.log_prob(model, x, rtol=1e-3)
        >>> bool((found.nats - mixture.log_prob(x)).abs().max() < 0.01)
        True
    """
    check_model(model)
    check_density_of(model, x)
    seed, numbers = check_seed(seed), sample_numbers(index, x.shape[0])
    choose_divergence(divergence, flat(x).shape[1], probes)
    check_batch_size(batch_size)
    cond = merged(cond, log_prob, model.condition_names)
    model.check_conditions(cond, x.shape[0])
    grad = bool(flag(grad, "grad"))
    if not is_auto(solver):
        check_density_solver(named(solver), grad=grad)
    asked = How(solver, steps, rtol, atol, t_span, max_steps, on_failure)
    plan = asked.plan(ProbabilityFlow(model), x.dtype, span=(model.sde.t_min, model.sde.t_max))

    parts, columns = [], []
    with quiet(model, grad=grad), bar(progress) as report:
        places = int(batch_size) if batch_size and plan.refills else None
        for rows, tell in chunks(x.shape[0], None if places else batch_size, report):
            term, start = ProbabilityFlow(model, cond=rows_of(cond, rows)), x[rows.to(x.device)]
            noise = Noise(seed, index=numbers[rows])
            how = {"divergence": divergence, "probes": probes, "differentiable": grad}
            column = DensityColumn(plan, term, start, noise, **how, errors=True, places=places)
            columns.append(column)
            way = run(column.inside, column.term, column.x, noise=noise, report=tell, places=places)
            parts.append(column.read(way))
    solution = joined(parts)
    found = replace(_collected(solution, columns, seed), of_latents=model.space is not None)
    try:
        solution.or_raise(on_failure)
    except SolverError as error:
        error.partial = found
        raise
    return found


def _collected(solution: Solution, columns: Sequence[DensityColumn], seed: int) -> LogProb:
    errors = {name: torch.cat([c.errors[name] for c in columns]) for name in ("solver", "prior", "truncation")}
    return LogProb(
        nats=solution.log_prob,  # type: ignore[arg-type]
        stderr=torch.cat([c.stderr for c in columns]),
        errors=errors,
        latent=solution.x.detach(),
        nfe=solution.nfe,
        status=solution.status,
        message=solution.message,
        solver=solution.solver,
        seed=seed,
    )
