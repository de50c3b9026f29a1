"""The coefficients of every step of a multistep method on a grid, computed together in float64; symbols as in `gauges`.

A step from (xh, sh) to sh' with the polynomial P through the last values of V, in a variable u of the noise level:

    xh' = A xh + int w(l) P(u(l)) dl + (std/alpha') z

A and w are the gauge's, z standard normals. The integral is sum_i W_i V_i over the past values V_i, W_i by quadrature
(`weights.lagrange_weights`) or by a published rule. A corrector does it again with the value at the new time among
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...terms import Term
from ..stochastic.analytic import Variance, widened
from .gauges import ER, GAUGES, VARIABLES, Gauge, log_phi
from .weights import lagrange_weights, moments

_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What makes one multistep method of the machine; see `Multistep`."""

    gauge: str
    variable: str
    predictor: int  # past values that predict
    corrector: int  # past values beside the new one that correct, 0: none
    rule: str
    noise: str
    variance: Variance
    lowered_below: float = 0  # where order falls over the last steps: on grids of fewer steps than this


class StepPlan(NamedTuple):
    """The coefficients of one step.

        x' = a D + b eps + sum_i predictor_(1 + i) V_i        (a, b) = fused, V_i older values
        x' = ratio x + sum_i predictor_i V_i                  where x was corrected

    and then std times normals.

    Attributes:
        ratio: on the state.
        std: of the noise.
        log_widening: log of the widest noise over the narrowest.
        extra: the standard deviation that a sample's own variance can add.
        value: (a, b) of the value V = a D + b eps.
        fused: (a, b) of the state's part and the newest value in one.
        predictor, corrector: weights of the values, the newest first.
    """

    ratio: float
    std: float
    log_widening: float
    extra: float
    value: tuple[float, float]
    fused: tuple[float, float]
    predictor: list[float]
    corrector: list[float]


class Coefficients:
    """A grid of times as a method sees it: (n + 1,) at the nodes, (n,) for the steps, all float64.

    Args:
        settings: the method.
        term: of a model.
        ts: the n + 1 times.
        s: the data's scale.
        ahead: how many evaluations follow after the grid, the final denoising among them.
    """

    def __init__(self, settings: Settings, term: Term, ts: Tensor, s: float, ahead: int = 0) -> None:
        evaluations, falling = len(ts) - 1 + ahead, bool(ts[0] > ts[-1])
        self.all = evaluations if falling and evaluations < settings.lowered_below else None
        self.settings, self.sde, self.eta, self.e, self.s = settings, term.sde, term.eta, term.eta**2, s
        self.gauge: Gauge = ER if settings.noise == "er" and self.eta else GAUGES[settings.gauge]
        self.l, self.alpha, self.sigma = self.sde.half_log_snr(ts), self.sde.alpha(ts), self.sde.sigma(ts)
        self.l_from, self.l_to = self.l[:-1], self.l[1:]
        self.u = VARIABLES[settings.variable](self.sde, self.l, s)
        self.endless = torch.isinf(self.l_from) | torch.isinf(self.l_to)  # steps from or to alpha = 0
        self.kept, self.kept_sh = self.gauge.linear(self.l_from, self.l_to, self.e, s)
        # `held` is r sh/sh', what is left of eps where D is held over the step
        self.held, self.std = torch.ones_like(self.l_from), torch.zeros_like(self.l_from)
        if self.eta:
            self._add_noise()
        self.widest = self.std * self.sigma[:-1] / self.sigma[1:]  # the forward kernel's, at eta = 1

    def _add_noise(self) -> None:
        gap, sigma_to = self.l_from - self.l_to, self.sigma[1:]
        if self.settings.noise == "ddim":
            lost = self.eta**2 * -torch.expm1(2 * gap)
            self.held, self.std = torch.sqrt(1 - lost), sigma_to * torch.sqrt(lost)
            self.kept_sh = torch.exp(-self.l_to) * self.held
            self.kept = self.kept_sh * torch.exp(self.l_from)
        elif self.settings.noise == "er":
            log_held = log_phi(self.l_to) + self.l_to - log_phi(self.l_from) - self.l_from
            log_held = torch.where(self.endless, -math.inf, log_held)
            self.held, self.std = torch.exp(log_held), sigma_to * torch.sqrt(-torch.expm1(2 * log_held))
        else:
            self.held, self.std = torch.exp(self.e * gap), sigma_to * torch.sqrt(-torch.expm1(2 * self.e * gap))

    def noise(self) -> tuple[Tensor, Tensor, Tensor]:
        """(std, log widening, extra std) of the steps, see `StepPlan`."""
        kind, variance = self.settings.noise, self.settings.variance
        std, extra = self.std, torch.zeros_like(self.std)
        if self.eta and variance != "held":
            extra = widened(self.l_from, self.l_to, self.kept, self.alpha[1:])
            if callable(variance):
                std, extra = torch.sqrt(std**2 + extra**2 * (1 - variance(self.l_from))), torch.zeros_like(std)
        if kind == "ddpm-large":
            std = self.widest
        return std, torch.log(self.widest / std) if kind == "ddpm-learned" else torch.zeros_like(std), extra

    # ---- weights of values

    def polynomials(self, ahead: int, most: int) -> list[list[float]]:
        """For each step, weights of up to `most` values, the newest of them at the step's beginning (`ahead` = 0) or
        end (1), times alpha'."""
        n = len(self.l_from)
        table: list[list[float]] = [[]] * n
        finite = torch.isfinite(self.u).tolist()
        groups: dict[int, list[int]] = {}
        for k, without_signal in enumerate(self.endless.tolist()):
            if without_signal:
                continue
            # order rises by one a step; a node where the variable is infinite (alpha = 0) is not used
            count = min(most, k + 1 + ahead)
            if self.all is not None:  # nor is it more than the number of steps left
                count = min(count, self.all - k + ahead)
            while count > 1 and not finite[k + ahead - count + 1]:
                count -= 1
            groups.setdefault(count, []).append(k)
        for count, rows in groups.items():
            weights = self._weights(torch.tensor(rows, device="cpu"), ahead, count) * self.alpha[1:][rows][:, None]
            for row, k in zip(weights.tolist(), rows, strict=True):
                table[k] = row
        return table

    def _weights(self, k: Tensor, ahead: int, count: int) -> Tensor:
        """(len(k), count) weights of the values at nodes k + ahead, k + ahead - 1, ... in the integrals of steps k."""
        l, l_next, settings = self.l[k], self.l[k + 1], self.settings
        if count == 1:
            total = 1 - self.kept[k] if settings.noise == "ddim" else self.gauge.total(l, l_next, self.e, self.s)
            return total[:, None]
        if settings.rule == "constant":
            sh_step = torch.exp(-l_next) - torch.exp(-l)
            return sh_step[:, None] * torch.tensor(_ADAMS_BASHFORTH[count], dtype=l.dtype, device="cpu")
        nodes = k[:, None] + ahead - torch.arange(count, device="cpu")

        def weight(u: Tensor) -> Tensor:
            return self.gauge.weight(u, l_next[:, None], self.e, self.s)

        if settings.rule == "half-curvature" and count <= 3 or settings.rule in ("mean", "end") and count == 2:
            return _published(settings.rule, l, l_next, self.l[nodes], weight)
        variable = VARIABLES[settings.variable]
        return lagrange_weights(self.u[nodes], l, l_next, weight, lambda u: variable(self.sde, u, self.s))

    # ---- all of it

    def plans(self) -> list[StepPlan]:
        n = len(self.l_from)
        predictor = self.polynomials(0, self.settings.predictor)
        corrector: list[list[float]] = [[]] * n
        if self.settings.corrector:
            corrector = self.polynomials(1, self.settings.corrector + 1)
        for k in self.endless.nonzero().flatten().tolist():
            corrector[k - 1] = []  # what leads up to a step from or to alpha = 0 is not corrected
        alpha_to = self.alpha[1:]
        a, b = (part[:-1].tolist() for part in self.gauge.value(self.l, self.s))
        ratio = (alpha_to * self.kept / self.alpha[:-1]).tolist()
        std, log_widening, extra = (part.tolist() for part in self.noise())
        kept = zip((alpha_to * self.kept).tolist(), (alpha_to * self.kept_sh).tolist(), strict=True)  # on D, eps
        held = list(zip(alpha_to.tolist(), (self.sigma[1:] * self.held).tolist(), strict=True))
        plans = []
        for k, (on_x0, on_noise) in enumerate(kept):
            # without signal xh is infinite: x' = alpha' D + r alpha' sh eps, of order 1
            fused = held[k]
            if predictor[k]:
                newest = predictor[k][0]
                fused = on_x0 + newest * a[k], on_noise + newest * b[k]
            parts = (ratio[k], std[k], log_widening[k], extra[k], (a[k], b[k]), fused, predictor[k], corrector[k])
            plans.append(StepPlan(*parts))
        return plans


def _published(rule: str, l: Tensor, l_next: Tensor, nodes: Tensor, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Published weights on two or three nodes, in the variable l.

    With V(u) = V_0 + slope (u - l) + curve (u - l)^2 and h = l' - l the step is

        w_0 V_0 + w_1 h slope + w_2 h^2 curve,      w_j = int weight(u) ((u - l)/h)^j du.

    "mean" takes w_0/2 for w_1, "end" weight(l') h/2; on three nodes "half-curvature" takes w_2/2 for w_2. The
    polynomial is expanded about node l; where the newest node lies ahead (a corrector) the roles of the nodes change
    with it.

    Source: Lu et al. 2022 (arXiv 2211.01095); Zhao et al. 2023 (arXiv 2302.04867).
    """
    h = l_next - l
    w0, w1, w2 = moments(l, l_next, weight, 3)
    m = nodes.shape[1]
    if m == 2:
        w1 = weight(l_next[:, None])[:, 0] * h / 2 if rule == "end" else w0 / 2
        # the line through the two nodes, as a function of (u - l)/h
        gap = (nodes[:, 0] - nodes[:, 1]) / h
        start = (l - nodes[:, 1]) / (nodes[:, 0] - nodes[:, 1])
        return torch.stack([w0 * start + w1 / gap, w0 * (1 - start) - w1 / gap], 1)
    z = (nodes - l[:, None]) / h[:, None]
    columns = []
    for i in range(3):
        j, k = [q for q in range(3) if q != i]
        scale = (z[:, i] - z[:, j]) * (z[:, i] - z[:, k])
        columns.append((w0 * z[:, j] * z[:, k] - w1 * (z[:, j] + z[:, k]) + w2 / 2 * 1.0) / scale)
    return torch.stack(columns, 1)
