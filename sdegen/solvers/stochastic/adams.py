"""Stochastic Adams: the multistep machine's best setting for noise, on a fixed grid and by tolerance.

In the frame xh = x/alpha, sh = sigma/alpha = exp(-l) the reverse SDE of noise level eta, e = eta^2, is solved by

    xh' = r xh + (1 + e) int exp((1 + e)(u - l')) D(u) du + sh'^(1 + e) (M(q') - M(q)),      r = (sh'/sh)^(1 + e)

with D = E[x0 | x] and M a Brownian motion in the clock q = exp(2 e l), at eta = 1 the signal-to-noise ratio. D is the
line through two values in theta = atan(sh/s), s the data's standard deviation: the last two to predict, the last and
the new one to correct, with the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.arguments import number
from ...core.errors import InvalidInputError
from ...core.quadrature import gauss_legendre
from ...core.shapes import expand
from ...noise.brownian import BrownianTree
from ...noise.white import Noise
from ...terms import Term
from ..base import ControlState, Entry, GridOrTolerance, Solver, Step, merge
from ..multistep.exponential import Multistep, MultistepState, check_scale
from ..multistep.gauges import angle
from ..multistep.gaussian_start import far_time, gaussian_step, is_far
from ..tolerance import Tolerance, rms

_POINTS = 5
_SHRINK, _GROW = 0.6, 1.25  # of an accepted step
_SHRINK_REFUSED, _GROW_REFUSED = 0.3, 0.7


class StochasticAdamsMethod(Solver):
    """The facts of stochastic Adams."""

    name = "d-adams2-sde"
    order, start_order = 2, 2
    kind = "SDE"
    adaptive = True
    needs_model = True
    leaps = True
    coordinates, grid = "lambda", "lambda"
    source = "this package, docs/decisions.md"


# ---- on a grid


@dataclass(slots=True, eq=False)
class AboveFar:
    """The steps of a grid that are made in closed form.

    Attributes:
        count: how many are left.
        rest: the state of the first step after them; None: there is none.
    """

    count: int
    rest: MultistepState | None


class StochasticAdamsGrid(StochasticAdamsMethod):
    """Stochastic Adams on a grid: steps in closed form down to sh = 10 s, then the multistep machine's."""

    def __init__(self, sigma_data: float | None) -> None:
        self._machine = Multistep(
            self.name, variable="theta", order=2, corrector=1, stochastic=True, sigma_data=sigma_data
        )

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> AboveFar | MultistepState:
        if grid is None:
            raise InvalidInputError(f"{self.name!r} on a grid needs its times: pass steps= instead of a tolerance")
        above = int(is_far(term, term.sde.half_log_snr(grid[1:])).sum())
        rest = self._machine.start(term, x, t, grid[above:]) if len(grid) - above > 1 else None
        return rest if rest is not None and not above else AboveFar(above, rest)

    def step(
        self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: AboveFar | MultistepState, noise: Noise
    ) -> Step:
        if isinstance(state, MultistepState):
            return self._machine.step(term, x, t, t_next, state, noise)
        left = AboveFar(state.count - 1, state.rest)
        after = left.rest if left.count == 0 and left.rest is not None else left
        return Step(gaussian_step(term, x, t, t_next, noise), after)


# ---- by tolerance


@dataclass(slots=True, eq=False, kw_only=True)
class Line(ControlState):
    """The line of D through its last two values, for samples that step for themselves.

    Attributes:
        l, l_before: log(alpha/sigma) of the two, (B,).
        d, d_before: D there, like x.
        unit: (B,) what a size of x is in data units at the end.
        narrow: (B,) how much more an error counts where data are narrower than s, see `_narrowness`.
    """

    l: Tensor
    l_before: Tensor
    d: Tensor
    d_before: Tensor
    unit: Tensor | None = None
    narrow: Tensor | None = None


class StochasticAdamsTolerance(StochasticAdamsMethod):
    """Stochastic Adams by a tolerance; see `StochasticAdams`."""

    refills = True

    def __init__(self, aim: float, accept: float, sigma_data: float | None) -> None:
        self.aim, self.accept, self.sigma_data = aim, accept, sigma_data

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise, *, end: float) -> Entry:
        far = bool(is_far(term, term.sde.half_log_snr(t)).all())
        if far and float(stop := far_time(term)) > end:
            x, t = gaussian_step(term, x, t[0].cpu(), stop, noise), torch.full_like(t, float(stop))
        return Entry(x, t, self.start(term, x, t))

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> Line:
        l = term.sde.half_log_snr(t)
        if bool(torch.isinf(l).any()):
            raise InvalidInputError(
                f"{self.name!r} by tolerance cannot start where there is no signal (alpha = 0): begin at an earlier "
                "time, with t_span=, or pass steps="
            )
        d = term.predict(x, t).x0
        return Line(l=l, l_before=l - 1.0, d=d, d_before=d)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: Line, noise: Noise) -> Step:
        if isinstance(noise, BrownianTree):
            raise InvalidInputError(
                f"{self.name!r} by tolerance draws its path in a clock of its own, not in t: pass a seed or a Noise"
            )
        sde, e = term.sde, term.eta**2
        s = self.sigma_data or term.model.sigma_data
        l, d, alpha_next = state.l, state.d, sde.alpha(t_next)
        l_next = sde.half_log_snr(t_next)
        gone = -torch.expm1((1 + e) * (l - l_next))  # the weight's whole integral
        share = _share(l, l_next, e, s)  # of the new value, in the mean of the line
        theta, theta_next, theta_before = (angle(u, s) for u in (l, l_next, state.l_before))
        slope = expand((theta_next - theta) / (theta - theta_before), x) * (d - state.d_before)
        base = (
            expand(alpha_next * torch.exp((1 + e) * (l - l_next)) / sde.alpha(t), x) * x
            + expand(alpha_next * gone, x) * d
        )
        if e:
            clock, clock_next = torch.exp(2 * e * l), torch.exp(2 * e * l_next)
            dm = noise.increment(clock, clock_next, x)
            base = base + expand(alpha_next * torch.exp(-(1 + e) * l_next), x) * dm
        weight = expand(alpha_next * gone * share, x)
        predicted = base + weight * slope
        d_next = term.predict(predicted, t_next).x0
        corrected = base + weight * (d_next - d)
        unit = s / (s**2 + torch.exp(-2 * l_next)).sqrt() / alpha_next
        narrow = _narrowness(predicted / expand(alpha_next, x), d_next, torch.exp(-l_next), s)
        after = Line(l=l_next, l_before=l, d=d_next, d_before=d, unit=unit, narrow=narrow)
        return Step(corrected, after, corrected - predicted)

    def judge(self, step: Step, x: Tensor, state: Line, tolerance: Tolerance) -> tuple[Tensor, Tensor, Line]:
        """E is smoothed over two steps: in few dimensions one step's change of D is a matter of chance."""
        unit = step.state.unit
        size = rms(step.x.detach()).to(torch.float64) * unit
        error = rms(step.error.detach()).to(torch.float64) * unit * step.state.narrow  # type: ignore[union-attr]
        ratio = (error / (tolerance.atol + tolerance.rtol * size)).clamp_min(1e-10)
        accept = ratio <= self.accept
        before = ratio if state.ratio is None else torch.where(state.ratio.isnan(), ratio, state.ratio)
        smooth = (ratio * before).sqrt()
        gain = (self.aim / torch.where(accept, smooth, ratio)) ** (1 / 1.5)
        factor = torch.where(accept, gain.clamp(_SHRINK, _GROW), gain.clamp(_SHRINK_REFUSED, _GROW_REFUSED))
        after = replace(step.state, ratio=torch.where(torch.isfinite(ratio), ratio, 1.0))
        return accept, factor.nan_to_num(_SHRINK_REFUSED), merge(accept, after, state)


def _share(l: Tensor, l_next: Tensor, e: float, s: float) -> Tensor:
    """The weight's mean of (theta - theta(u))/(theta - theta'), the new value's part in the line's mean; (B,)."""
    nodes, w = (part.to(l.device) for part in gauss_legendre(_POINTS))
    h = (l_next - l)[:, None]
    u = l[:, None] + h * nodes
    weight = torch.exp((1 + e) * (u - l_next[:, None])) * w
    passed = angle(l, s)[:, None] - angle(u, s)
    return (weight * passed).sum(1) / (weight.sum(1) * (angle(l, s) - angle(l_next, s)))


def _narrowness(xh: Tensor, d: Tensor, sh: Tensor, s: float) -> Tensor:
    """(R/w)^(1/2), (B,): R = sqrt(s^2 + sh^2) is the scale of noisy data as wide as s, w that of these around a sample.

    Where data are N(m, c I), the mean of eps^2 over the event is sh^2/(c + sh^2) on the average, so that w^2 =
    sh^2/mean(eps^2) estimates c + sh^2. An error of x that is small beside R may be large beside w: the middle of the
    two is what it is measured by.
    """
    eps = rms((xh - d) / expand(sh, xh)).to(torch.float64).clamp(max=1.0)
    return (eps * (s**2 + sh**2).sqrt() / sh).clamp_min(1.0).sqrt()


# ---- the name for both


class StochasticAdams(GridOrTolerance, StochasticAdamsMethod):
    """Adams in D against theta for the reverse SDE: predict, evaluate, correct with the same noise.

    1 evaluation a step (by tolerance one more in the first step and, with the final denoising, in the last). Weak order
    2. Exact in one step on a point mass, at any step size and whatever decides about it.

    Where it begins at sh above 10 s, s the data's standard deviation, it first goes down to there in closed form, by
    the reverse SDE of Gaussian data of the data's mean and covariance (as far as the model knows them), at no
    evaluation: the marginals up there are that Gaussian but for O((s/sh)^3).

    By tolerance, per sample: E = rms(corrected - predicted)/scale, brought to data units as the flow of N(0, s^2) does,
    by s/sqrt(s^2 + sh^2), and more where data are narrower than s (`_narrowness`): else the last steps, on which the
    width of a narrow mode hangs, would be long whatever the tolerance. Steps are aimed at E = `aim` and redone above
    `accept`. A step depends on what came before it, never on its own noise, and a redone step draws from the law given
    what the refused one drew (`RefinablePath`): the law of the output is that of the equation, not bent by which steps
    were taken. sample goes by equal steps in lambda, where a step may be 0.6 to 1.25 times as long as the one before.

    Args:
        aim, accept: of E, aim < accept.

    Source: this package, docs/decisions.md; the predictor-corrector with shared noise is SA-Solver's (Xue et al. 2023,
    arXiv 2309.05019).
    """

    def __init__(self, *, aim: float = 0.5, accept: float = 4.0, sigma_data: float | None = None) -> None:
        aim, accept = (number(v, k, "a number above 0") for k, v in (("aim", aim), ("accept", accept)))
        if not 0 < aim < accept:
            raise InvalidInputError(f"got aim={aim}, accept={accept}, expected 0 < aim < accept")
        sigma_data = check_scale(sigma_data)
        by_tolerance = StochasticAdamsTolerance(aim, accept, sigma_data)
        super().__init__(StochasticAdamsGrid(sigma_data), by_tolerance)
