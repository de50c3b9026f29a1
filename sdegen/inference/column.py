"""The log-density of a batch, as numbers that travel beside its state along the flow."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import flat
from ..loop.plan import Plan
from ..loop.solution import ARRIVED, Solution
from ..models.base import ScoreModel
from ..models.coordinates import Coordinates
from ..noise.white import Noise
from ..solvers import Fitted, Solver
from ..solvers.multistep.weights import lagrange_weights
from ..terms import ProbabilityFlow
from .density import DensityFlow, Starts, tail_power
from .divergence import choose_divergence, draw_probes


def check_density_solver(solver: Solver, *, grad: bool = False) -> None:
    """Raise where a solver has no log-density along its way, or cuts gradients that are asked for."""
    if solver.kind == "SDE":
        raise InvalidInputError(
            f"a log-density follows the flow, but {solver.name!r} draws noise: use a flow solver such as 'adams' or "
            "'dopri5'"
        )
    if isinstance(solver, Fitted):
        raise InvalidInputError(f"{solver!r} was fitted to samples, not to densities: use 'adams'")
    if grad and solver.name.startswith("scipy"):
        raise InvalidInputError(f"grad=True: {solver.name!r} cuts gradients; use 'adams' or 'dopri5'")


def check_density_along(plan: Plan, model: ScoreModel, eta: float) -> None:
    """Raise where samples drawn by this plan have no known log-density: noise on the way, a start short of t_max."""
    if eta:
        raise InvalidInputError(
            f"return_log_prob: samples drawn with noise (eta={eta:g}) have no density along their way; use eta=0"
        )
    check_density_solver(plan.solver)
    if plan.start < model.sde.t_max * (1 - 1e-6):
        raise InvalidInputError(
            f"return_log_prob: the way starts at t = {plan.start:g}, but the density is known at t_max = "
            f"{model.sde.t_max:g}; start there, or use log_prob on the samples"
        )


class DensityColumn:
    """A batch on its way along the flow with its log-density, up from data or down from noise.

    Args:
        plan: of the way.
        flow: the probability flow of the user's model.
        x: (B, *event), the state at the plan's first time, as the model's own process has it.
        noise: of these samples, from which probes are drawn.
        divergence, probes: as of `log_prob`.
        differentiable: whether gradients are to flow through.
        errors: whether errors are estimated, at the cost of one more evaluation, at t_max.
        places: how many samples the network is given at once, None: all.

    Attributes:
        inside, term, x, noise: what `run` is to be given.
        stderr: (B,) after `read`, the standard error of the log-density from its probes.
        errors: after `read`, (B,) each, where asked for.
    """

    def __init__(
        self,
        plan: Plan,
        flow: ProbabilityFlow,
        x: Tensor,
        noise: Noise,
        *,
        divergence: str = "auto",
        probes: int = 1,
        differentiable: bool = False,
        errors: bool = False,
        places: int | None = None,
    ) -> None:
        model, view = flow.model, plan.view or Coordinates.own_of(flow.model)
        self.plan, self.view, self.inside, self.noise = plan, view, plan.inside(), noise
        x = view.state_there(x, plan.times[0])
        flow = flow if view.crossing is None else flow.along(view.model)
        self.event, self.begin, self.dim = tuple(x.shape[1:]), flat(x), math.prod(x.shape[1:])
        self.times = self.inside.times
        self.upward = bool(self.times[-1] > self.times[0])
        self.q, self.prior = (g.shifted(view.centre).to(x) for g in (model.data.reference, model.data.prior))
        self.conditioned = model.conditioned
        self.power, self.scale = tail_power(model), model.sigma_data
        drawn = draw_probes(choose_divergence(divergence, self.dim, probes), x, probes, noise)
        self.columns = 1 if drawn is None else drawn.columns
        self.unit = self.scale / math.sqrt(self.columns)
        self.term = DensityFlow(
            flow,
            self.q,
            self.event,
            drawn,
            unit=self.unit,
            scaled=plan.solver.needs_model,
            differentiable=differentiable,
            starts=Starts(len(x)),
        )
        self.x = torch.cat([self.begin, self.begin.new_zeros(len(x), self.columns)], 1)
        self.audited, self.places = errors, places or max(len(x), 1)
        self.stderr = self.begin.new_zeros(0)
        self.errors: dict[str, Tensor] = {}

    def read(self, solution: Solution) -> Solution:
        """The Solution of the user's state alone, with `.log_prob`, from that of `run(inside, term, x)`."""
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
        return self.plan.back(self._with_errors(solution) if self.audited else solution)

    def _numbers(self, solution: Solution) -> Tensor:
        """What the columns hold at the end, (B, m): unit l going up, unit (log q - l) at the end going down."""
        if self.upward:
            columns = solution.x[:, self.dim :]
            return columns / self.term.sde.at(self.times[-1]).sigma if self.term.scaled else columns
        if not self.plan.denoise:
            return -self.term.at_the_end(solution.x, self.times[-1])
        return -solution.x[:, self.dim :]

    def _constant(self, x: Tensor) -> Tensor:
        """What is to be added, (B,) float64: log q at the data (up), the prior's part, the change of variables."""
        noisy, clean = (-1, 0) if self.upward else (0, -1)
        x_noisy = x if self.upward else self.begin
        level = self.term.sde.at(self.times[noisy])
        constant = self.prior.log_prob(x_noisy, level) - self.q.log_prob(x_noisy, level)
        if self.upward:
            constant = constant + self.q.log_prob(self.begin, self.term.sde.at(self.times[clean]))
        if self.view.crossing is None:
            return constant
        alpha_there = float(self.term.sde.alpha(self.times[clean]))
        return constant + self.dim * math.log(alpha_there / float(self.view.own.alpha(self.plan.times[clean])))

    # ---- errors

    def _with_errors(self, solution: Solution) -> Solution:
        """Fill in `errors`, going up: one evaluation of the samples that arrived."""
        there = (solution.status == ARRIVED).nonzero().flatten().to(self.begin.device)
        nothing = torch.full_like(solution.log_prob, math.nan).detach()  # type: ignore[arg-type]
        self.errors = {name: nothing.clone() for name in ("solver", "prior", "truncation")}
        if not len(there):
            return solution
        x_end = flat(solution.x.detach())[there]
        parts = torch.arange(len(there), device=there.device).split(self.places)
        rate = torch.cat([self.term.select(there[some]).change(x_end[some], self.times[-1])[1] for some in parts])
        if not self.conditioned:  # else the moments of its law are unknown
            self.errors["prior"][there] = self._prior_error(x_end, rate.detach().mean(1))
        self.errors["truncation"][there] = self._truncation_error()[there].double()
        self.errors["solver"][there] = self._tolerated(there) if self.plan.tolerance else self._missed(solution, there)
        nfe = solution.nfe.clone()
        made = self.term.evaluations(self.times[-1])
        nfe[there.cpu()] += made
        return replace(solution, nfe=nfe, calls=solution.calls + int(made) * len(parts))

    def _tolerated(self, there: Tensor) -> Tensor:
        """What a tolerance leaves: 2 (atol/s + rtol) sqrt(d) nats, calibrated on mixtures."""
        eps = 10 * torch.finfo(self.begin.dtype).eps
        rtol, atol = (max(v, eps) for v in (self.plan.tolerance.rtol, self.plan.tolerance.atol))  # type: ignore[union-attr]
        return torch.full_like(there, 2 * (atol / self.scale + rtol) * math.sqrt(self.dim), dtype=torch.float64)

    def _prior_error(self, x: Tensor, rate: Tensor) -> Tensor:
        """log of the prior over the law of the data, at t_max.

        Above t_max log p - log q = int (div h - h.P^-1 y) (alpha sh/P_s) d log(sh), sh = sigma/alpha, falls like sh^-k.
        """
        level = self.term.sde.at(self.times[-1])
        beyond = level.alpha * level.sigma / self.term.total(level) * rate / self.power
        return self.prior.log_prob(x, level) - self.q.log_prob(x, level) - beyond

    def _truncation_error(self) -> Tensor:
        """log p_t(x) - log p_0(x) = sh^2/2 (div s + |s|^2) + s.(xh - x) - d log(alpha) + O(sh^4).

        s is the score of xh = x/alpha at sh = sigma/alpha.
        """
        level, first = self.term.sde.at(self.times[0]), self.term.starts
        if first.noise is None or first.trace is None:
            return torch.full_like(self.begin[:, 0], math.nan)
        xh, noise = self.begin.detach() / level.alpha, first.noise
        if self.view.centre is not None:
            xh = xh + self.view.centre.to(xh).flatten()
        alpha = float(self.view.own.alpha(self.plan.times[0]))
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
        half = torch.unique(
            torch.cat([torch.arange(0, len(times), 2, device="cpu"), torch.tensor([len(times) - 1], device="cpu")])
        )
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
    first = (torch.arange(n, device="cpu") - 1).clamp(0, n + 1 - count)
    around = first[:, None] + torch.arange(count, device="cpu")
    weights = lagrange_weights(nodes[around], nodes[:-1], nodes[1:], torch.ones_like, lambda u: u)
    return torch.einsum("nk,nkb->b", weights.to(values), values[around])
