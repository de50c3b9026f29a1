"""The log-density along the probability flow: one more number per sample, or one per probe, that travels with the
state.

Let q_t = N(alpha m, P), P = alpha^2 C + sigma^2, be the marginals of Gaussian data, and P_s = alpha^2 s^2 + sigma^2
with the number s the data's standard deviation. With the belief (x0, noise) at x and y = x - alpha m

    h = (P_s/alpha) (noise - noise under q) = alpha s^2 noise - sigma x0 + sigma m + alpha sigma P^-1 (C - s^2) y
    log p_t(x_t) - log q_t(x_t) = int_t^t_max (div h - h.P^-1 y)/s dtheta + log p(x) - log q(x) at t_max,    theta =
    atan(sigma/(alpha s)).

(The left side changes along the flow by the divergence of u - u_q and by (u - u_q).grad log q, u and u_q the two
velocities: a Stein operator.) The integrand is 0 wherever the belief is that of q, whatever the errors of the path, so
    the log-density of Gaussian data is exact to rounding; else
the solver has only the departure from q to integrate. On the circular path (TrigSDE) h is s times the velocity.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, warn
from ..core.shapes import as_time, flat
from ..distributions.gaussian import Gaussian, column
from ..models.base import ScoreModel
from ..models.prediction import Prediction
from ..terms import ProbabilityFlow, Term
from .divergence import Probes, divergence


def tail_power(model: ScoreModel) -> int:
    """k of log p - log q ~ (alpha/sigma)^k at high noise: the first moment of the data that q does not have."""
    if model.data_std is None or model.data_mean is None:
        return 1
    return 2 if model.data_covariance is None else 3


# ---- the equation


class Starts:
    """What is remembered of every sample's first evaluation, without gradients, whichever part of a batch it was in.

    Args:
        size: how many samples, B.

    Attributes:
        noise, trace: the belief's noise (B, d) and div h (B,), NaN where there was no evaluation yet; None before any.
    """

    def __init__(self, size: int) -> None:
        self.noise: Tensor | None = None
        self.trace: Tensor | None = None
        self._missing = size

    def note(self, rows: Tensor | None, noise: Tensor, trace: Tensor) -> None:
        """An evaluation of the samples `rows`, None: of all, which counts for those that had none."""
        if not self._missing:
            return
        if rows is None:
            self.noise, self.trace, self._missing = noise, trace, 0
            return
        if self.noise is None or self.trace is None:
            self.noise = noise.new_full((self._missing, noise.shape[1]), math.nan)
            self.trace = trace.new_full((self._missing,), math.nan)
            self._known = torch.zeros(self._missing, dtype=torch.bool, device=rows.device)
        new = ~self._known[rows]
        self.noise[rows[new]], self.trace[rows[new]], self._known[rows] = noise[new], trace[new], True
        self._missing = int((~self._known).sum())


class DensityFlow(Term):
    """The probability flow of the state (x, l), (B, d + m): d numbers of x and m of l, one for each probe.

        dx/dt = alpha' x0 + sigma' noise,    dl/dt = kappa (div h - h.P^-1 y),    kappa = (alpha sigma' - alpha'
        sigma)/P_s

    The columns of l are in the data's units, `unit` to the nat: they are unit l for solvers of plain drifts. Solvers
    that work on a Prediction see unit sigma l, whose belief is

        x0 = -unit sigma^2/P_s rate,    noise = unit (l + alpha sigma/P_s rate),    rate = div h - h.P^-1 y.

    Args:
        flow: the flow of x.
        q: the Gaussian to measure from.
        event: one sample's shape.
        probes: of the divergence; None: the exact one.
        unit: of the columns.
        scaled: whether they are unit sigma l.
        differentiable: whether gradients are to flow through.
        starts: where first evaluations are noted.
    """

    def __init__(
        self,
        flow: ProbabilityFlow,
        q: Gaussian,
        event: tuple[int, ...],
        probes: Probes | None,
        *,
        unit: float,
        scaled: bool,
        differentiable: bool,
        starts: Starts,
    ) -> None:
        self.flow, self.q, self.event, self.probes = flow, q, event, probes
        self.unit, self.scaled, self.differentiable = unit, scaled, differentiable
        self.model, self.sde, self.eta = flow.model, flow.sde, 0.0
        self.t_min, self.t_max = flow.t_min, flow.t_max
        self.dim, self.s2 = math.prod(event), flow.model.sigma_data**2
        self.starts, self.rows = starts, None  # which samples of the whole these are, None: all
        self.rates: dict[float, Tensor] = {}  # (B,) at each time that all samples shared, mean over probes

    def change(self, x: Tensor, t: Tensor) -> tuple[Prediction, Tensor, Tensor]:
        """The belief at x (B, d), s dl/dtheta (B, m), and div h (B, m)."""
        level = self.sde.at(t)
        with torch.inference_mode(False), torch.enable_grad():
            if not (self.differentiable and x.requires_grad):
                x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            state = x.reshape(-1, *self.event)
            prediction = self.flow.predict(state, t)
            h, slope = self._departure(prediction, state, level)
            trace = divergence(h, state, self.probes, create_graph=self.differentiable)
            rate = trace - slope[:, None]
        if not self.differentiable:
            rate, trace = rate.detach(), trace.detach()
        if self.starts.noise is None and not prediction.tracked:
            warn(
                "the network's output carries no gradient, so its divergence counts as 0 and the log-density is "
                "wrong unless it is a constant: take no_grad, detach and numpy out of it"
            )
        self.starts.note(self.rows, flat(prediction.noise).detach(), trace.detach().mean(1))
        if as_time(t).ndim == 0:
            self.rates[float(t)] = rate.detach().mean(1)
        return prediction, rate, trace

    def total(self, level: Any) -> Any:
        """P_s, of t's shape."""
        return level.alpha**2 * self.s2 + level.sigma**2

    def _departure(self, prediction: Prediction, state: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        """h (B, *event) and h.P^-1 y (B,)."""
        h = flat(prediction.combine(-level.sigma, level.alpha * self.s2))
        alpha, sigma = column(level.alpha, h), column(level.sigma, h)
        q = self.q
        y, total = q.offset(flat(state), alpha), q.total(alpha, sigma)
        h = h + sigma * q.mean
        if q.axes is not None:
            h = h + alpha * sigma * (y * ((q.variances - self.s2) / total)) @ q.axes.T
        return h.reshape(state.shape), ((h if q.axes is None else h @ q.axes) * (y / total)).sum(1)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.sde.at(t)
        prediction, rate, _ = self.change(x[:, : self.dim], t)
        kappa = (level.alpha * level.d_sigma - level.sigma * level.d_alpha) / self.total(level)
        velocity = flat(prediction.combine(level.d_alpha, level.d_sigma))
        return torch.cat([velocity, self.unit * column(kappa, x) * rate], 1)

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        """The belief of (x, l), for solvers that work on it.

        Raises:
            InvalidInputError: a solver that is said to work on drifts asks for beliefs on its way.
        """
        if not self.scaled:
            raise InvalidInputError(
                "this solver asks for predictions on its way: its class must say needs_model = True"
            )
        data, numbers = x[:, : self.dim], x[:, self.dim :]
        level = self.sde.at(t)
        alpha, sigma = column(level.alpha, x), column(level.sigma, x)
        prediction, rate, _ = self.change(data, t)
        rate = self.unit * rate / column(self.total(level), x)
        return self._beside(prediction, -(sigma**2) * rate, numbers / sigma + alpha * sigma * rate, t)

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoised x, and beside it the columns as they are at the end, which denoising does not change."""
        x0 = self.flow.denoised(x[:, : self.dim].reshape(-1, *self.event), t)
        return torch.cat([flat(x0), self.at_the_end(x, t).to(x)], 1)

    @property
    def asks_once(self) -> bool:
        return self.flow.asks_once

    def evaluations(self, t: Tensor) -> int | Tensor:
        return self.flow.evaluations(t)

    def breaks(self) -> tuple[float, ...]:
        return self.flow.breaks()

    def measured(self, x: Tensor) -> Tensor:
        return x[:, : self.dim]

    def _beside(self, prediction: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Prediction:
        """A prediction with more columns."""
        return Prediction(
            torch.cat([flat(prediction.x0), x0], 1), torch.cat([flat(prediction.noise), noise], 1), self.sde, t
        )

    def at_the_end(self, x: Tensor, t: Tensor) -> Tensor:
        """unit (l - log q(x)), (B, m): going down, the log-density is minus this plus a constant of the start."""
        level = self.sde.at(t)
        numbers = x[:, self.dim :] / (column(level.sigma, x) if self.scaled else 1.0)
        return numbers - self.unit * self.q.log_prob(x[:, : self.dim], level).to(x)[:, None]

    def check(self, x: Tensor) -> None:
        self.flow.check(x)

    def select(self, keep: Tensor) -> DensityFlow:
        chosen = copy.copy(self)
        chosen.flow = self.flow.select(keep)  # type: ignore[assignment]
        chosen.probes = None if self.probes is None else self.probes.select(keep)
        chosen.rows = keep if self.rows is None else self.rows[keep.to(self.rows.device)]
        return chosen

    def warm(self, ts: Tensor) -> None:
        self.flow.warm(ts)
