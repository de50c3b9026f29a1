"""Likelihood along the probability flow: log_prob, with its errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, SolverError
from ..core.shapes import check_state, flat
from ..loop.solution import ARRIVED, Solution, judged
from ..models.base import ScoreModel
from ..models.facts import reference
from ..noise.white import Noise, check_seed
from ..solvers import OutsideSolver, Solver, State, Step, choose
from ..solvers.multistep.weights import lagrange_weights
from ..solvers.tolerance import Tolerance, check_tolerances
from ..terms import ProbabilityFlow, Term
from .density import DensityFlow, prior, tail_power
from .divergence import choose_divergence, draw_probes
from .running import Plan, Run, Trip, check_model, sample_numbers


@dataclass(frozen=True)
class LogProb:
    """Log-densities and their errors.

    Attributes:
        nats: (B,) float64, log p(x) in nats, p the law at the first time, t_min unless told otherwise. NaN where
            `status` is not 0.
        stderr: (B,) the standard error of `nats` from the random probes; NaN for one probe, 0 for the exact divergence.
        errors: estimates in nats, (B,) each, of what no tolerance shows. The last two have a sign: `nats` minus what it
            would be without the error.

            - "solver", a size. Under error control what the tolerance leaves, 2 (atol/s + rtol) sqrt(d), s the data's
              standard deviation: typical, no bound (samples near a watershed between modes have several times more).
              On a fixed grid how far the solver's sum is from a quadrature of the values it met at the nodes, plus how
              far that is from one of every second node.
            - "prior": the law at t_max was taken for the Gaussian with as many of the data's moments as the model
              knows; the first one missing is read off the belief at t_max.
            - "truncation": log p at t_min minus log p of clean data, both at x, to second order in sigma(t_min). Large,
              and no more than a warning, where the data have structure finer than that, or no density at all.
        latent: (B, *event), the state at t_max.
        nfe: (B,) evaluations, each with its divergence; the last is the one at t_max for the errors.
        status, message: as in Solution.
        solver: what ran.
        seed: of the probes.
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

    def bits_per_dim(self, levels: int | None = None) -> Tensor:
        """-log2 p(x)/d, (B,); with `levels`, of the discrete data that x dequantises.

        With u = 0 .. L-1 and x = 2 (u + U[0, 1))/L - 1 a bin is 2/L wide, so the bits of u are those of x plus
        log2(L/2): 7 for L = 256, 8-bit data scaled to [-1, 1]. Nothing is added without `levels`. `bits_per_dim` of
        this module dequantises by itself, and is for levels at x = 2 u/(L-1) - 1, whose bins are 2/(L-1) wide.

        Raises:
            InvalidInputError: levels below 2.

        Source: Theis et al. 2016 (arXiv 1511.01844) section 3.1.
        """
        d = max(flat(self.latent).shape[1], 1)
        bits = -self.nats / (d * math.log(2))
        return bits if levels is None else bits + math.log2(check_levels(levels) / 2)


def check_levels(levels: Any) -> int:
    """A number of grey levels."""
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise InvalidInputError(f"levels={levels!r}: wanted the number of grey levels, such as 256")
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
            for the data as there, and for the log-density in nats per root dimension: local errors are kept below about
            (atol/s + rtol) sqrt(d) nats, s the data's standard deviation.
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
        LogProb. Density of x itself, in x's units: no offset for grey levels is added.

    Raises:
        InvalidInputError: before the first evaluation; a solver of SDEs has no density along its way.
        SolverError: its kinds, with the LogProb as `.partial`, unless on_failure="mark".

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 39 and section D.2; Chen et al. 2018 (arXiv 1806.07366) theorem 1.
    """
    check_model(model)
    check_state(x, event_shape=model.event_shape)
    seed, numbers = check_seed(seed), sample_numbers(index, x.shape[0])
    kind = choose_divergence(divergence, flat(x).shape[1], probes)
    chosen = choose(solver, ProbabilityFlow(model), steps=steps, adaptive=rtol is not None or atol is not None)
    check_density_solver(chosen, grad=grad)
    tolerance = Tolerance(1e-3, 1e-3) if rtol is None and atol is None else check_tolerances(rtol, atol)
    trips: list[Journey] = []

    def board(term: Term, x: Tensor, plan: Plan, rows: Tensor) -> Trip:
        noise = Noise(seed, index=numbers[rows])
        trips.append(Journey(term, x, plan, model, kind, probes, noise, differentiable=grad, tolerance=tolerance))
        return trips[-1]

    run = Run(
        model,
        lambda chosen, cond: ProbabilityFlow(chosen, **cond),
        lambda rows, t: x[rows.to(x.device)],
        t_span,
        (model.sde.t_min, model.sde.t_max),
        {"solver": chosen, "steps": steps, "rtol": rtol, "atol": atol, "max_steps": max_steps},
        "last",
        seed,
        numbers,
        cond,
        board,
        grad,
    )
    solution = run(x.shape[0], batch_size, progress, "mark" if on_failure == "raise" else on_failure)
    found = _collected(solution, trips, seed)
    try:
        judged(solution, on_failure)
    except SolverError as error:
        error.partial = found
        raise
    return found


def _collected(solution: Solution, trips: Sequence[Journey], seed: int) -> LogProb:
    errors = {name: torch.cat([trip.errors[name] for trip in trips]) for name in ("solver", "prior", "truncation")}
    return LogProb(
        nats=solution.log_prob,  # type: ignore[arg-type]
        stderr=torch.cat([trip.stderr for trip in trips]),
        errors=errors,
        latent=solution.x.detach(),
        nfe=solution.nfe,
        status=solution.status,
        message=solution.message,
        solver=solution.solver,
        seed=seed,
    )


def journeys(model: ScoreModel, eta: float, seed: int, numbers: Tensor) -> Callable[[Term, Tensor, Plan, Tensor], Trip]:
    """What takes the log-density along when samples are drawn; see `Run.board`.

    Raises:
        InvalidInputError: noise on the way, or a start short of t_max.
    """
    if eta:
        raise InvalidInputError(
            f"return_log_prob: samples drawn with noise (eta={eta:g}) have no density along their way; use eta=0"
        )

    def board(term: Term, x: Tensor, plan: Plan, rows: Tensor) -> Trip:
        check_density_solver(plan.solver)
        start, t_max = float(plan.nodes[0]), model.sde.t_max
        if start < t_max * (1 - 1e-6):
            raise InvalidInputError(
                f"return_log_prob: the way starts at t = {start:g}, but the density is known at t_max = {t_max:g}; "
                "start there, or use log_prob on the samples"
            )
        kind = choose_divergence("auto", flat(x).shape[1], 1)
        return Journey(term, x, plan, model, kind, 1, Noise(seed, index=numbers[rows]))

    return board


def check_density_solver(solver: Solver, *, grad: bool = False) -> None:
    """Raise where a solver has no log-density along its way, or cuts gradients that are asked for."""
    if solver.kind == "SDE":
        raise InvalidInputError(
            f"a log-density follows the flow, but {solver.name!r} draws noise: use a flow solver such as 'adams' or "
            "'dopri5'"
        )
    if grad and solver.name.startswith("scipy"):
        raise InvalidInputError(f"grad=True: {solver.name!r} cuts gradients; use 'adams' or 'dopri5'")


# ---- one chunk


class Journey(Trip):
    """One chunk's way along the flow with its log-density, up from data or down from noise, in the solver's
    coordinates.

    Args:
        flow: the probability flow there.
        x: (B, *event), the state at the first time, there.
        plan: of the run.
        model: as the user gave it.
        kind, probes, noise: of the divergence.
        differentiable: whether gradients are to flow through.
        tolerance: that of the run, for its errors to be estimated (at the cost of one more evaluation, at t_max); None:
            they are not.
    """

    def __init__(
        self,
        flow: Term,
        x: Tensor,
        plan: Plan,
        model: ScoreModel,
        kind: str,
        probes: int,
        noise: Noise,
        *,
        differentiable: bool = False,
        tolerance: Tolerance | None = None,
    ) -> None:
        self.plan, self.tolerance, self.event = plan, tolerance, tuple(x.shape[1:])
        self.begin, self.dim = flat(x), math.prod(x.shape[1:])
        self.times = plan.view.there(plan.nodes).clamp(flow.t_min, flow.t_max)
        self.upward = bool(self.times[-1] > self.times[0])
        self.q, self.prior = (g.shifted(plan.view.centre).to(x) for g in (reference(model), prior(model)))
        self.power = tail_power(model)
        drawn = draw_probes(kind, x, probes, noise)
        self.columns = 1 if drawn is None else drawn.columns
        self.scale = model.sigma_data
        self.unit = self.scale / math.sqrt(self.columns)
        self.term: DensityFlow = DensityFlow(
            flow,  # type: ignore[arg-type]
            self.q,
            self.event,
            drawn,
            unit=self.unit,
            scaled=plan.solver.needs_model,
            differentiable=differentiable,
            denoise_at=float(self.times[-1]) if plan.denoise else None,
        )
        self.x = torch.cat([self.begin, self.begin.new_zeros(len(x), self.columns)], 1)
        self.solver = plan.solver if isinstance(plan.solver, OutsideSolver) else self._watched(plan.solver)
        self.stderr = self.begin.new_zeros(0)
        self.errors: dict[str, Tensor] = {}

    def _watched(self, solver: Solver) -> Solver:
        """The solver with its tolerance taken of the data alone.

        Errors are measured as sqrt((|e_x|^2 + s^2 mean(e_l^2))/d): a nat weighs like a standard deviation of the data
        in one dimension, and the number of columns changes nothing.
        """
        fewer = math.sqrt(self.dim / (self.dim + self.columns))
        watched = copy.copy(solver)

        def judge(step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
            of_data = _OfData(tolerance.rtol, tolerance.atol, tolerance.share * fewer, dim=self.dim)
            return solver.judge(step, x, state, of_data)

        watched.judge = judge  # type: ignore[method-assign]
        return watched

    # ---- at the end

    def arrive(self, solution: Solution) -> Solution:
        x = solution.x[:, : self.dim]
        numbers, constant = self._numbers(solution), self._constant(x)
        values = numbers / self.unit + constant[:, None]  # (B, m), one for each probe
        bad = (solution.status != ARRIVED).to(x.device)
        values = values.masked_fill(bad[:, None], math.nan)
        exact = torch.zeros_like(constant).masked_fill(bad, math.nan)
        self.stderr = exact if self.term.probes is None else standard_error(values.detach())
        solution = replace(
            solution,
            x=x.reshape(-1, *self.event),
            xs=solution.xs[..., : self.dim].reshape(*solution.xs.shape[:2], *self.event),
            log_prob=values.mean(1),
        )
        return solution if self.tolerance is None else self._audited(solution)

    def _numbers(self, solution: Solution) -> Tensor:
        """What the columns hold at the end, (B, m): unit l going up, unit (log q - l) at the end going down."""
        if self.upward:
            columns = solution.x[:, self.dim :]
            return columns / self.term.sde.level(self.times[-1]).sigma if self.term.scaled else columns
        if not self.plan.denoise:
            return -self.term.at_the_end(solution.x, self.times[-1])
        return -(self.term.left if self.term.scaled and self.term.left is not None else solution.x[:, self.dim :])

    def _constant(self, x: Tensor) -> Tensor:
        """What is to be added, (B,) float64: log q at the data (up), the prior's part, the change of variables."""
        noisy, clean = (-1, 0) if self.upward else (0, -1)
        x_noisy = x if self.upward else self.begin
        level = self.term.sde.level(self.times[noisy])
        constant = self.prior.log_prob(x_noisy, level) - self.q.log_prob(x_noisy, level)
        if self.upward:
            constant = constant + self.q.log_prob(self.begin, self.term.sde.level(self.times[clean]))
        if self.plan.view.same:
            return constant
        alpha_there = float(self.term.sde.alpha(self.times[clean]))
        return constant + self.dim * math.log(alpha_there / float(self.plan.view.own.alpha(self.plan.nodes[clean])))

    # ---- errors

    def _audited(self, solution: Solution) -> Solution:
        """Fill in `errors`, going up: one evaluation of the samples that arrived."""
        there = (solution.status == ARRIVED).nonzero().flatten().to(self.begin.device)
        nothing = torch.full_like(solution.log_prob, math.nan).detach()  # type: ignore[arg-type]
        self.errors = {name: nothing.clone() for name in ("solver", "prior", "truncation")}
        if not len(there):
            return solution
        x_end = flat(solution.x.detach())[there]
        _, rate, _ = self.term.select(there).change(x_end, self.times[-1])
        self.errors["prior"][there] = self._prior_error(x_end, rate.detach().mean(1))
        self.errors["truncation"][there] = self._truncation_error()[there].double()
        self.errors["solver"][there] = self._tolerated(there) if self.plan.controlled else self._missed(solution, there)
        nfe = solution.nfe.clone()
        nfe[there.cpu()] += 1
        return replace(solution, nfe=nfe, calls=solution.calls + 1)

    def _tolerated(self, there: Tensor) -> Tensor:
        """What a tolerance leaves: 2 (atol/s + rtol) sqrt(d) nats, calibrated on mixtures."""
        eps = 10 * torch.finfo(self.begin.dtype).eps
        rtol, atol = (max(v, eps) for v in (self.tolerance.rtol, self.tolerance.atol))  # type: ignore[union-attr]
        return torch.full_like(there, 2 * (atol / self.scale + rtol) * math.sqrt(self.dim), dtype=torch.float64)

    def _prior_error(self, x: Tensor, rate: Tensor) -> Tensor:
        """log of the prior over the law of the data, at t_max.

        Above t_max log p - log q = int (div h - h.P^-1 y) (alpha sh/P_s) d log(sh), sh = sigma/alpha, falls like sh^-k.
        """
        level = self.term.sde.level(self.times[-1])
        beyond = level.alpha * level.sigma / self.term.total(level) * rate / self.power
        return self.prior.log_prob(x, level) - self.q.log_prob(x, level) - beyond

    def _truncation_error(self) -> Tensor:
        """log p_t(x) - log p_0(x) = sh^2/2 (div s + |s|^2) + s.(xh - x) - d log(alpha) + O(sh^4).

        s is the score of xh = x/alpha at sh = sigma/alpha.
        """
        level, first = self.term.sde.level(self.times[0]), self.term.first
        if first is None or len(first.noise) != len(self.begin):
            return torch.full_like(self.begin[:, 0], math.nan)
        xh, noise = self.begin.detach() / level.alpha, first.noise
        if self.plan.view.centre is not None:
            xh = xh + self.plan.view.centre.to(xh).flatten()
        alpha = float(self.plan.view.own.alpha(self.plan.nodes[0]))
        total = self.term.total(level)
        of_q = (level.sigma**2 / self.q.total(level.alpha, level.sigma)).expand(self.dim).sum()
        spread = level.alpha * level.sigma / total * first.trace + of_q  # sh div noise
        moved = (1 - alpha) * (xh * noise).sum(1) * (level.alpha / level.sigma)
        return (noise.square().sum(1) - spread) / 2 - moved - self.dim * math.log(alpha)

    def _missed(self, solution: Solution, there: Tensor) -> Tensor:
        """The solver's l against a quadrature of the rates at the nodes, plus that against one of every second node."""
        term, times = self.term, self.times.tolist()
        rates = [term.rates.get(t) for t in times]
        if any(rate is None or len(rate) not in (len(self.begin), len(there)) for rate in rates):
            return torch.full_like(there, math.nan, dtype=torch.float64)  # a solver that never looked at some node
        theta = torch.atan(torch.exp(-term.sde.half_log_snr(self.times)) / self.scale)
        met = torch.stack([r if len(r) == len(there) else r[there] for r in rates]).double() / self.scale  # type: ignore
        solved = (solution.log_prob.detach() - self._constant(flat(solution.x.detach())))[there]  # type: ignore[union-attr]
        half = torch.unique(torch.cat([torch.arange(0, len(times), 2), torch.tensor([len(times) - 1])]))
        fine, coarse = quadrature(theta, met), quadrature(theta[half], met[half])
        return (solved - fine).abs() + (fine - coarse).abs()


def standard_error(values: Tensor) -> Tensor:
    """Of the mean of (B, m) values; NaN for one."""
    m = values.shape[1]
    return values.std(1) / math.sqrt(m) if m > 1 and len(values) else torch.full_like(values[:, 0], math.nan)


def quadrature(nodes: Tensor, values: Tensor) -> Tensor:
    """The integral of values (n, B) at nodes (n,), by a cubic through the four nodes around each interval."""
    n = len(nodes) - 1
    count = min(4, n + 1)
    first = (torch.arange(n) - 1).clamp(0, n + 1 - count)
    around = first[:, None] + torch.arange(count)
    weights = lagrange_weights(nodes[around], nodes[:-1], nodes[1:], torch.ones_like, lambda u: u)
    return torch.einsum("nk,nkb->b", weights.to(values), values[around])


@dataclass(frozen=True)
class _OfData(Tolerance):
    """A tolerance whose scale is that of the first `dim` numbers of the state."""

    dim: int = 0

    def scale(self, x: Tensor, x_next: Tensor) -> Any:
        return super().scale(x.detach()[:, : self.dim], x_next.detach()[:, : self.dim])
