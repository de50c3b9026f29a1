"""One exponential multistep machine: DDIM, DEIS, DPM-Solver, UniPC, iPNDM, v-Adams and their SDE forms are its
settings.

Frame: xh = x/alpha, sh = sigma/alpha = exp(-l), D = E[x0 | x], eps = (xh - D)/sh; a prime marks the next time, r =
sh'/sh. A *gauge* splits the flow
d(xh)/d(sh) = eps into a linear part, solved exactly, and a value V to integrate:

    "noise"   xh' = xh + int eps d(sh)                                           V = eps
    "data"    xh' = r^(1+e) xh + int (1+e) exp((1+e)(l - l')) D dl               V = D            e = eta^2, with noise
    where eta > 0
    "v"       xh' = (R'/R) xh - R' int F d(theta), R = sqrt(s^2 + sh^2)          V = F            theta = atan(sh/s), s
    = sigma_data

with F = sin(theta) D/s - cos(theta) eps, the velocity of Karras' preconditioning. V is replaced by the polynomial
through its last values in a *variable*
(l, theta, sh or the process's time), integrated by quadrature in float64. A corrector puts the value at the new point
into the polynomial that led there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import event_mean, expand, scaled
from ...noise.white import Noise
from ...processes import SDE
from ...terms import Term
from ..advice import warn_of_order
from ..base import Solver, State, Step
from ..stochastic.analytic import Variance, check_variance, widened
from .weights import lagrange_weights, moments, summed

_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class _Gauge:
    """One way to split the flow: the carried part and the integrand's weight per dl, for noise level e = eta^2 and data
    scale s.

    carry: (l, l', e, s) -> (A, A sh), the factor on xh; weight: (l, l', e, s) -> the weight of V at l per dl in a step
        to l';
    value: (l, s) -> (a, b) of V = a D + b eps; total: (l, l', e, s) -> the weight's whole integral, exactly.
    """

    carry: Callable[..., tuple[Tensor, Tensor]]
    weight: Callable[..., Tensor]
    value: Callable[..., tuple[Any, Any]]
    total: Callable[..., Tensor]


def _data_carry(l, l_next, e, s):
    rho = torch.exp(l - l_next)
    return rho ** (1 + e), torch.exp(-l_next) * rho**e


def _radius(l, s):
    return torch.sqrt(s**2 + torch.exp(-2 * l))


def _theta(l, s):
    return torch.atan(torch.exp(-l) / s)


_GAUGES = {
    "noise": _Gauge(
        carry=lambda l, l_next, e, s: (torch.ones_like(l), torch.exp(-l)),
        weight=lambda l, l_next, e, s: -torch.exp(-l),
        value=lambda l, s: (torch.zeros_like(l), torch.ones_like(l)),
        total=lambda l, l_next, e, s: torch.exp(-l_next) - torch.exp(-l),
    ),
    "data": _Gauge(
        carry=_data_carry,
        weight=lambda l, l_next, e, s: (1 + e) * torch.exp((1 + e) * (l - l_next)),
        value=lambda l, s: (torch.ones_like(l), torch.zeros_like(l)),
        total=lambda l, l_next, e, s: -torch.expm1((1 + e) * (l - l_next)),
    ),
    "v": _Gauge(
        carry=lambda l, l_next, e, s: (
            _radius(l_next, s) / _radius(l, s),
            _radius(l_next, s) * torch.sin(_theta(l, s)),
        ),
        weight=lambda l, l_next, e, s: _radius(l_next, s) * torch.sin(_theta(l, s)) * torch.cos(_theta(l, s)),
        value=lambda l, s: (torch.sin(_theta(l, s)) / s, -torch.cos(_theta(l, s))),
        total=lambda l, l_next, e, s: -_radius(l_next, s) * (_theta(l_next, s) - _theta(l, s)),
    ),
}

VARIABLES: dict[str, Callable[[SDE, Tensor, float], Tensor]] = {
    "lambda": lambda sde, l, s: l,
    "theta": lambda sde, l, s: _theta(l, s),
    "sigma": lambda sde, l, s: torch.exp(-l),
    "time": lambda sde, l, s: sde.time(l),
    "sqrt-time": lambda sde, l, s: sde.time(l).sqrt(),
}


def _log_phi(l: Tensor) -> Tensor:
    """log phi(sh), phi(s) = s (exp(s^0.3) + 10)."""
    return -l + torch.logaddexp(torch.exp(-0.3 * l), torch.tensor(math.log(10.0), dtype=l.dtype))


def _er_weight(l: Tensor, l_next: Tensor, e: float, s: float) -> Tensor:
    """d/dl of phi(sh')/phi(exp(-l))."""
    power = torch.exp(-0.3 * l)
    slope = 1 + 0.3 * power * torch.sigmoid(power - math.log(10.0))  # d log(phi)/d log(sh)
    return slope * torch.exp(_log_phi(l_next) - _log_phi(l))


# Gauge "data" with more noise at high noise levels, after Cui et al. 2023.
_ER = _Gauge(
    carry=lambda l, l_next, e, s: (
        torch.exp(_log_phi(l_next) - _log_phi(l)),
        torch.exp(_log_phi(l_next) - _log_phi(l) - l),
    ),
    weight=_er_weight,
    value=_GAUGES["data"].value,
    total=lambda l, l_next, e, s: -torch.expm1(_log_phi(l_next) - _log_phi(l)),
)

NOISES = ("sde", "ddim", "ddpm-large", "ddpm-learned", "er")


class Multistep(Solver):
    """The machine: gauge, variable, order, corrector, weight rule, noise.

    Order k means k past values (k - 1 at the start, rising by one a step, which caps the global order at 2, with the
    corrector at 3, unless the
    field is flat at the start); a corrector adds one node, so one order. 1 evaluation a step. At eta = 0 either
    direction of time.
    A step from or to a time where alpha = 0, and xh infinite, is of order 1 in gauge 0: x' = alpha' D + r alpha' sh eps
    (+ noise).

    Args:
        gauge: "noise", "data" or "v".
        variable: what the polynomial is a function of: "lambda", "theta", "sigma" (sh), "time" or "sqrt-time".
        order: how many past values the predictor uses.
        corrector: how many past values the corrector uses beside the new one; 0: no corrector.
        rule: weights of the polynomial. "exact", or as published: "mean" (two nodes: half the zeroth moment for the
            first), "end" (two
            nodes: the trapezoidal one), "half-curvature" ("mean", and at three nodes half the second derivative),
                "constant" (Adams-Bashforth's, as if
            steps were equal in sh).
        noise: how eta makes noise:
            "sde": the reverse SDE with D held
            "ddim": the DDIM paper's eta (order 1)
            "ddpm-large": the posterior's mean with the forward kernel's variance sigma^2 - (alpha sigma'/alpha')^2,
                beta_i between a table's nodes (order 1, eta = 1)
            "ddpm-learned": log variance between the posterior's and that one, by the `fraction` of a prediction that
                has one (order 1, eta = 1)
            "er": r = phi(sh')/phi(sh), phi(s) = s (exp(s^0.3) + 10), for (sh'/sh)^(1 + e) (gauge "data", eta = 1)
        sigma_data: s of the gauge "v" and the variable "theta"; None: the model's.
        variance: of a first-order step xh' = D + r (xh - D) + noise (order 1, "sde" or "ddim", eta > 0):
            "held": as if D were x0
            "analytic": with what D leaves open, (1 - r)^2 Var(x0 | x), estimated from the sample itself as
                (1 - r)^2 sh^2 (1 - |eps|^2/d), not below 0 in all; right on average over samples, and good for each of
                many dimensions
            a function of log(alpha/sigma) such as `measure_noise(model, data)` gives: the same with its value for
                |eps|^2/d
    """

    needs_model = True

    def __init__(
        self,
        name: str = "multistep",
        *,
        gauge: str = "data",
        variable: str = "lambda",
        order: int = 2,
        corrector: int = 0,
        rule: str = "exact",
        noise: str = "sde",
        stochastic: bool = False,
        sigma_data: float | None = None,
        grid: str = "lambda",
        source: str = "",
        declared: float | None = None,
        variance: Variance = "held",
    ) -> None:
        check_variance(variance, order, corrector, noise)
        self.variance = variance
        for what, value, known in (
            ("gauge", gauge, tuple(_GAUGES)),
            ("variable", variable, tuple(VARIABLES)),
            ("rule", rule, ("exact", "mean", "end", "half-curvature", "constant")),
            ("noise", noise, NOISES),
        ):
            if value not in known:
                raise InvalidInputError(f"{what}={value!r}: wanted one of {', '.join(map(repr, known))}")
        if not 1 <= order <= 8 or not 0 <= corrector <= 8:
            raise InvalidInputError(
                f"order={order}, corrector={corrector}: wanted an order from 1 to 8, a corrector from 0 to 8"
            )
        self.name, self.source, self.grid = name, source, grid
        self.gauge, self.variable, self.values, self.corrector = gauge, variable, order, corrector
        self.rule, self.noise, self.sigma_data = rule, noise, sigma_data
        self.kind = "any" if gauge == "data" else "ODE"
        self._eta = 1.0 if stochastic else 0.0
        self.order = declared if declared is not None else self._order()
        self.start_order = min(self.order, 3 if corrector else 2)  # one Euler step at the start, two with a corrector
        self.uneven_order = min(self.order, 1) if rule == "constant" else None

    def _order(self) -> float:
        two = {"half-curvature": 2, "constant": 2}.get(self.rule, self.values)
        order = min(self.values, two)
        return max(order, self.corrector + 1) if self.corrector and self.rule != "half-curvature" else order

    @property
    def default_eta(self) -> float:
        return self._eta

    def options(self) -> dict[str, Any]:
        return {}

    def check(self, term: Term) -> None:
        super().check(term)
        eta = getattr(term, "eta", 0.0)
        if eta and self.noise == "ddim" and (eta > 1 or self.values > 1):
            raise InvalidInputError(
                f"eta={eta}: the DDIM paper's eta lies in [0, 1]; use 'ancestral' or 'euler-maruyama' for more noise"
            )
        if self.noise.startswith("ddpm") and (eta != 1 or self.values > 1 or self.corrector):
            raise InvalidInputError(
                f"noise={self.noise!r} is DDPM's own: wanted eta=1 and order=1 without corrector, came eta={eta}"
            )
        if self.variance != "held" and not eta:
            raise InvalidInputError("variance= belongs to the noise, and eta=0 has none: use eta=1")
        if self.noise == "er" and (eta not in (0, 1) or self.gauge != "data"):
            raise InvalidInputError(f"noise='er' wants eta=1 (or 0) and gauge='data': came {eta} and {self.gauge!r}")

    # ---- the plan of a grid

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if grid is None:
            raise InvalidInputError(
                f"{self.name!r} works on a fixed grid: pass steps= instead of a tolerance, or use 'adams'"
            )
        if self.rule != "constant":  # constant weights extrapolate little
            warn_of_order(self.name, self.values, len(grid) - 1)
        return {"run": _Run(self._plan(term, grid))}

    def _plan(self, term: Term, ts: Tensor) -> list[_Planned]:
        """All coefficients of all steps, computed together."""
        sde, eta = term.sde, term.eta
        s = self.sigma_data or term.model.sigma_data
        l, alpha, sigma = sde.half_log_snr(ts), sde.alpha(ts), sde.sigma(ts)
        p = VARIABLES[self.variable](sde, l, s)
        gauge, e = _ER if self.noise == "er" and eta else _GAUGES[self.gauge], eta**2
        n = len(ts) - 1
        endless = torch.isinf(l[:-1]) | torch.isinf(l[1:])  # steps from or to alpha = 0
        a, b = gauge.value(l, s)
        carry, carry_sh = gauge.carry(l[:-1], l[1:], e, s)
        held = torch.exp(e * (l[:-1] - l[1:])) if eta else torch.ones(n, dtype=l.dtype)  # r sh/sh', D being held
        std = sigma[1:] * torch.sqrt(-torch.expm1(2 * e * (l[:-1] - l[1:]))) if eta else torch.zeros(n, dtype=l.dtype)
        if eta and self.noise == "ddim":
            lost = eta**2 * -torch.expm1(2 * (l[:-1] - l[1:]))
            held, std = torch.sqrt(1 - lost), sigma[1:] * torch.sqrt(lost)
            carry_sh = torch.exp(-l[1:]) * held
            carry = carry_sh * torch.exp(l[:-1])
        if eta and self.noise == "er":
            log_held = _log_phi(l[1:]) + l[1:] - _log_phi(l[:-1]) - l[:-1]
            log_held = torch.where(endless, -math.inf, log_held)
            held, std = torch.exp(log_held), sigma[1:] * torch.sqrt(-torch.expm1(2 * log_held))
        extra = widened(l[:-1], l[1:], carry, alpha[1:]) if eta and self.variance != "held" else torch.zeros_like(std)
        if callable(self.variance) and eta:
            std, extra = torch.sqrt(std**2 + extra**2 * (1 - self.variance(l[:-1]))), torch.zeros_like(std)
        widest = std * sigma[:-1] / sigma[1:]  # the forward kernel's, at eta = 1
        if self.noise == "ddpm-large":
            std = widest

        def weights(first: int, count: int, rows: list[int]) -> Tensor:
            """(len(rows), count) weights of the values at nodes k + first, k + first - 1, ... for the steps k in
            rows."""
            k = torch.tensor(rows)
            nodes = k[:, None] + first - torch.arange(count)
            return self._weights(gauge, sde, l[k], l[k + 1], l[nodes], p[nodes], e, s, carry[k])

        ahead: list[list[float]] = [[]] * n
        back: list[list[float]] = [[]] * n
        finite, without_signal = torch.isfinite(p).tolist(), endless.tolist()
        for first, most, table in ((0, self.values, ahead), (1, self.corrector + 1, back)):
            if table is back and not self.corrector:
                break
            groups: dict[int, list[int]] = {}
            for k in range(n):
                if without_signal[k]:
                    continue
                # order rises by one a step; a node where the variable is infinite (alpha = 0) is not used
                count = min(most, k + 1 + first)
                while count > 1 and not finite[k + first - count + 1]:
                    count -= 1
                groups.setdefault(count, []).append(k)
            for count, rows in groups.items():
                w = weights(first, count, rows) * alpha[1:][rows][:, None]
                for row, k in zip(w.tolist(), rows, strict=True):
                    table[k] = row
        spread = torch.log(widest / std) if self.noise == "ddpm-learned" else torch.zeros(n, dtype=l.dtype)
        columns = (
            *(alpha[1:] * carry / alpha[:-1], std, spread, extra),
            *(a[:-1], b[:-1], alpha[1:] * carry, alpha[1:] * carry_sh, alpha[1:], sigma[1:] * held),
        )
        for k in endless.nonzero().flatten().tolist():
            back[k - 1] = []  # what leads up to a step from or to alpha = 0 is not corrected
        planned = []
        for k, (ratio, std_k, spread_k, extra_k, a_k, b_k, p_x0, p_noise, alpha_k, held_k) in enumerate(
            zip(*(c.tolist() for c in columns), strict=True)
        ):
            if without_signal[k]:
                fused = alpha_k, held_k
            else:
                w0 = ahead[k][0]
                fused = p_x0 + w0 * a_k, p_noise + w0 * b_k
            planned.append(_Planned(ratio, std_k, spread_k, extra_k, (a_k, b_k), fused, ahead[k], back[k]))
        return planned

    def _weights(self, gauge: _Gauge, sde: SDE, l, l_next, l_nodes, p_nodes, e, s, carry) -> Tensor:
        """Weights of the values at the nodes (newest first) in the integral from l to l_next: (n, m)."""
        m = p_nodes.shape[1]
        if m == 1:
            total = 1 - carry if self.noise == "ddim" else gauge.total(l, l_next, e, s)
            return total[:, None]

        def weight(u: Tensor) -> Tensor:
            return gauge.weight(u, l_next[:, None], e, s)

        if self.rule == "constant":
            sh_step = torch.exp(-l_next) - torch.exp(-l)
            return sh_step[:, None] * torch.tensor(_ADAMS_BASHFORTH[m], dtype=l.dtype)
        if self.rule in ("mean", "end", "half-curvature") and m <= 3 and not (m == 3 and self.rule != "half-curvature"):
            return _published(self.rule, l, l_next, l_nodes, weight)
        return lagrange_weights(p_nodes, l, l_next, weight, lambda u: VARIABLES[self.variable](sde, u, s))

    # ---- one step

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        run: _Run = state["run"]
        plan = run.plan[run.k]
        prediction = term.predict(x, t)
        keeps = len(run.plan) > 1 and (self.values > 1 or self.corrector)
        value = prediction.combine(*plan.value) if keeps else None
        corrected = None
        before = run.plan[run.k - 1]
        if before.back and run.k and value is not None:
            corrected = summed(scaled(before.ratio, run.x), before.back, [value, *run.values])
            if run.z is not None:
                corrected = torch.add(corrected, run.z, alpha=before.std)
        if corrected is None:  # x = alpha D + sigma eps: the carried part and the newest value in one
            x_next = prediction.combine(*plan.fused)
            if run.values:
                x_next = summed(x_next, plan.ahead[1:], run.values)
        else:
            x_next = summed(scaled(plan.ratio, corrected), plan.ahead, [value, *run.values])
        z = None
        if plan.std:
            z = noise.standard(t, t_next, x)
            if plan.extra:
                left = 1 - event_mean(prediction.noise.square())
                z = z * expand((1 + (plan.extra / plan.std) ** 2 * left).clamp_min(0.0).sqrt(), x)
            if self.noise == "ddpm-learned":
                z = z * torch.exp(plan.spread * _fraction(prediction))
            x_next = torch.add(x_next, z, alpha=plan.std)
        values = [] if value is None else [value, *run.values][: max(self.values - 1, self.corrector)]
        after = _Run(run.plan, run.k + 1, values, x if corrected is None else corrected, z)
        return Step(x_next, {"run": after}, slope=lambda: prediction.velocity)


class _Planned(NamedTuple):
    """The coefficients of one step: x' = fused (D, eps) + ahead[1:] past values, or ratio x + ahead values; then std
    noise.

    `spread` is the log of the widest noise over the narrowest, `extra` the std that a sample's own variance can add.
    """

    ratio: float
    std: float
    spread: float
    extra: float
    value: tuple[float, float]
    fused: tuple[float, float]
    ahead: list[float]
    back: list[float]


@dataclass(slots=True, eq=False)
class _Run:
    """Where a run over a grid stands: the plan, the step, past values (newest first), the corrected state and the
    normals whose std-fold led on from it."""

    plan: list[_Planned]
    k: int = 0
    values: Sequence[Tensor] = ()
    x: Any = None
    z: Tensor | None = None


def _fraction(prediction: Any) -> Tensor:
    fraction = getattr(prediction, "fraction", None)
    if fraction is None:
        raise InvalidInputError(
            "noise='ddpm-learned' needs a model that predicts its variance: discrete.LearnedVariance(net, sde)"
        )
    return fraction


def _published(rule: str, l: Tensor, l_next: Tensor, nodes: Tensor, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Published weights on two or three nodes, in the variable l; see solvers of Lu et al. 2022 and Zhao et al. 2023.

    With v(u) = v_0 + slope (u - l) + curve (u - l)^2 the step is w_0 v_0 + w_1 h slope + w_2 h^2 curve, w_j the
    weight's moments. "mean" takes
    w_0/2 for w_1, "end" weight(l') h/2; on three nodes "half-curvature" takes w_2/2 for w_2.
    The polynomial is expanded about node l; where the newest node lies ahead (a corrector) the roles of the nodes
    change with it.
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
