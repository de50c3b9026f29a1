"""One exponential multistep machine: DDIM, DEIS, DPM-Solver, UniPC, iPNDM, v-Adams and their SDE forms are its
settings.

A gauge splits the flow into a part that is solved exactly and a value V that is integrated (see `gauges`). V is
replaced by the polynomial through its last values in a variable of the noise level, integrated in float64 (see
`coefficients`). A corrector puts the value at the new point into the polynomial that led there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import number, whole
from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...core.shapes import event_mean, expand, scaled
from ...models.learned_variance import fraction_of
from ...noise.white import Noise
from ...terms import Term
from ..base import Solver, Step
from ..stochastic.analytic import Variance, check_variance
from .coefficients import Coefficients, Settings, StepPlan
from .gauges import GAUGES, VARIABLES
from .orders import warn_of_order
from .weights import made_of_grid, summed

RULES = ("exact", "mean", "end", "half-curvature", "constant")
NOISES = ("sde", "ddim", "ddpm-large", "ddpm-learned", "er")


@dataclass(slots=True, eq=False)
class MultistepState:
    """Where a run over a grid stands.

    Attributes:
        plans: the coefficients of all steps.
        k: which of them is next.
        values: past values, the newest first.
        x: the state before, corrected; None without a corrector.
        z: the normals that were added to it, None: none.
    """

    plans: list[StepPlan]
    k: int = 0
    values: Sequence[Tensor] = ()
    x: Any = None
    z: Tensor | None = None


class Multistep(Solver):
    """The machine: gauge, variable, number of past values, corrector, weight rule, noise.

    With k past values a step is of order k (of order 1 at the start, rising by one a step, which caps the global order
    at 2, with the corrector at 3, unless the field is flat at the start); a corrector adds one node, so one order.
    1 evaluation a step. At eta = 0 either direction of time. A step from or to a time where alpha = 0 is of order 1:

        x' = alpha' D + r alpha' sh eps (+ noise)

    Args:
        name, source: as the table of solvers has them.
        gauge: "noise", "data" or "v".
        variable: what the polynomial is a function of: "lambda", "theta", "sigma" (sh), "time" or "sqrt-time".
        order: how many past values the predictor uses.
        corrector: how many past values the corrector uses beside the new one; 0: no corrector.
        rule: weights of the polynomial:
            "exact"
            "mean", as published: with two nodes half the zeroth moment for the first
            "end", as published: with two nodes the trapezoidal rule
            "half-curvature", as published: "mean", and with three nodes half the second derivative
            "constant": Adams-Bashforth's, as if steps were equal in sh
        noise: how eta makes noise:
            "sde": the reverse SDE with D held
            "ddim": the DDIM paper's eta (order 1)
            "ddpm-large": the posterior's mean with the forward kernel's variance sigma^2 - (alpha sigma'/alpha')^2,
                beta_i between a table's nodes (order 1, eta = 1)
            "ddpm-learned": log variance between the posterior's and that one, by the `fraction` of a prediction that
                has one (order 1, eta = 1)
            "er": r = phi(sh')/phi(sh), phi(s) = s (exp(s^0.3) + 10), for (sh'/sh)^(1 + e) (gauge "data", eta = 1)
        stochastic: whether noise is the default (eta = 1).
        sigma_data: s of the gauge "v" and the variable "theta"; None: the model's.
        grid: the kind of grid that the verbs lay.
        variance: of a first-order step xh' = D + r (xh - D) + noise (order 1, "sde" or "ddim", eta > 0):
            "held": as if D were x0
            "analytic": with what D leaves open, (1 - r)^2 Var(x0 | x), estimated from the sample itself as
                (1 - r)^2 sh^2 (1 - |eps|^2/d), not below 0 in all; right on average over samples, and good for each of
                many dimensions
            a function of log(alpha/sigma) such as `measure_noise(model, data)` gives: the same with its value for
                |eps|^2/d
        lower_order_final: whether order falls by one a step to 1 in the last step on the way down, the final denoising
            if there is one; a number: on grids of fewer steps than that.
    """

    needs_model = True

    @checked
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
        variance: Variance = "held",
        lower_order_final: bool | int = False,
    ) -> None:
        order, corrector = whole(order, "order", least=1, most=8), whole(corrector, "corrector", least=0, most=8)
        check_variance(variance, order, corrector, noise)
        lowered_below = _lowered_below(lower_order_final)
        _check_settings(gauge, variable, rule, noise)
        if not isinstance(stochastic, bool):
            raise InvalidInputError(f"got stochastic={stochastic!r}, expected True or False")
        self.settings = Settings(gauge, variable, order, corrector, rule, noise, variance, lowered_below)
        self.name, self.source, self.grid, self.sigma_data = name, source, grid, check_scale(sigma_data)
        self.kind = "any" if gauge == "data" else "ODE"
        self._eta = 1.0 if stochastic else 0.0
        self.order = self._order()
        # one Euler step at the start, two with a corrector; one at the end has none
        self.start_order = min(self.order, 3 if corrector and lowered_below < math.inf else 2)
        self.uneven_order = min(self.order, 1) if rule == "constant" else None

    def _order(self) -> float:
        """The order of convergence, from an accurate start."""
        rule, predictor, corrector = self.settings.rule, self.settings.predictor, self.settings.corrector
        order = min(predictor, {"half-curvature": 2, "constant": 2}.get(rule, predictor))
        return max(order, corrector + 1) if corrector and rule != "half-curvature" else order

    @property
    def default_eta(self) -> float:
        return self._eta

    def check(self, term: Term) -> None:
        super().check(term)
        eta, settings = term.eta or 0.0, self.settings
        if eta and settings.noise == "ddim" and (eta > 1 or settings.predictor > 1):
            raise InvalidInputError(
                f"got eta={eta}, expected one in [0, 1], as the DDIM paper's: use 'ancestral' for more noise"
            )
        if settings.noise.startswith("ddpm") and (eta != 1 or settings.predictor > 1 or settings.corrector):
            raise InvalidInputError(
                f"noise={settings.noise!r} is DDPM's own: got eta={eta}, expected eta=1, and order=1 without corrector"
            )
        if settings.variance != "held" and not eta:
            raise InvalidInputError("variance= belongs to the noise, and eta=0 has none: use eta=1")
        if settings.noise == "er" and (eta not in (0, 1) or settings.gauge != "data"):
            raise InvalidInputError(
                f"noise='er': got eta={eta} and gauge={settings.gauge!r}, expected eta=1 (or 0) and gauge='data'"
            )

    def begin(self, term: Term, x: Tensor, grid: Tensor, *, ahead: int = 0, rests: bool = False) -> MultistepState:
        if self.settings.rule != "constant":  # constant weights extrapolate little
            warn_of_order(self.name, self.settings.predictor, len(grid) - 1 + ahead)
        s = self.sigma_data or term.model.sigma_data

        def plans() -> list[StepPlan]:
            return Coefficients(self.settings, term, grid, s, ahead).plans()

        return MultistepState(made_of_grid(term, grid, (StepPlan, self.settings, s, term.eta, ahead), plans))

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> MultistepState:
        if grid is None:
            raise InvalidInputError(
                f"{self.name!r} works on a fixed grid: pass steps= instead of a tolerance, or use 'adams'"
            )
        return self.begin(term, x, grid)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: MultistepState, noise: Noise) -> Step:
        plan, before = state.plans[state.k], state.plans[state.k - 1]
        settings, prediction = self.settings, term.predict(x, t)
        keeps = len(state.plans) > 1 and (settings.predictor > 1 or settings.corrector)
        value = prediction.combine(*plan.value) if keeps else None
        if before.corrector and state.k and value is not None:
            x = summed(scaled(before.ratio, state.x), before.corrector, [value, *state.values])
            if state.z is not None:
                x = torch.add(x, state.z, alpha=before.std)
            x_next = summed(scaled(plan.ratio, x), plan.predictor, [value, *state.values])
        else:  # x = alpha D + sigma eps: the state's part and the newest value in one
            x_next = prediction.combine(*plan.fused)
            if state.values:
                x_next = summed(x_next, plan.predictor[1:], state.values)
        z = None
        if plan.std:
            z = self._normals(prediction, noise.standard(t, t_next, x), plan)
            x_next = torch.add(x_next, z, alpha=plan.std)
        values = [] if value is None else [value, *state.values][: max(settings.predictor - 1, settings.corrector)]
        after = MultistepState(state.plans, state.k + 1, values, x if settings.corrector else None, z)
        return Step(x_next, after, slope=lambda: prediction.velocity)

    def _normals(self, prediction: Any, z: Tensor, plan: StepPlan) -> Tensor:
        """z, widened where the variance depends on the sample."""
        if plan.extra:
            left = 1 - event_mean(prediction.noise.square())
            z = z * expand((1 + (plan.extra / plan.std) ** 2 * left).clamp_min(0.0).sqrt(), z)
        if self.settings.noise == "ddpm-learned":
            z = z * torch.exp(plan.log_widening * fraction_of(prediction))
        return z


def _lowered_below(asked: Any) -> float:
    """`lower_order_final=` as the number of steps from which on order is not lowered."""
    if isinstance(asked, bool):
        return math.inf if asked else 0
    return whole(asked, "lower_order_final", least=0, most=10**6)


def check_scale(sigma_data: Any) -> float | None:
    """`sigma_data=` as a number above 0, or None."""
    if sigma_data is None:
        return None
    scale = number(sigma_data, "sigma_data", "a number above 0, or None for the model's")
    if scale <= 0:
        raise InvalidInputError(f"got sigma_data={scale:g}, expected a number above 0, or None for the model's")
    return scale


def _check_settings(gauge: str, variable: str, rule: str, noise: str) -> None:
    for what, value, known in (
        ("gauge", gauge, tuple(GAUGES)),
        ("variable", variable, tuple(VARIABLES)),
        ("rule", rule, RULES),
        ("noise", noise, NOISES),
    ):
        if value not in known:
            raise InvalidInputError(f"got {what}={value!r}, expected one of {', '.join(map(repr, known))}")
