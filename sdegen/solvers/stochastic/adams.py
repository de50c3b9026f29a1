"""Stochastic Adams: the multistep machine's best setting for noise, on a fixed grid and by tolerance.

In the frame xh = x/alpha, sh = sigma/alpha = exp(-l) the reverse SDE of noise level eta, e = eta^2, is solved by

    xh' = r xh + (1 + e) int exp((1 + e)(u - l')) D(u) du + sh'^(1 + e) (M(q') - M(q)),      r = (sh'/sh)^(1 + e)

with D = E[x0 | x] and M a Brownian motion in the clock q = exp(2 e l), at eta = 1 the signal-to-noise ratio. D is the
line through two values in theta = atan(sh/s), s the data's standard deviation: the last two to predict, the last and
the new one to correct, with the same noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.quadrature import gauss_legendre
from ...core.shapes import expand, flat
from ...models.facts import known
from ...noise.brownian import BrownianTree
from ...noise.white import STEP, Noise
from ...terms import Term
from ..advice import FAR
from ..base import Entry, State, Step, merge
from ..multistep.exponential import Multistep
from ..tolerance import Tolerance, rms

_POINTS = 5


class StochasticAdams(Multistep):
    """Adams in D against theta for the reverse SDE: predict, evaluate, correct with the same noise.

    1 evaluation a step (by tolerance one more in the first step and, with the final denoising, in the last). Weak order
    2. Exact in one step on a point mass, at any step size and whatever decides about it.

    Where it begins at sh above 10 s, s the data's standard deviation, it first goes down to there in closed form, by
    the reverse SDE of Gaussian data of the data's mean and covariance (as far as the model knows them), at no
    evaluation: the marginals up there are that Gaussian but for O((s/sh)^3).

    By tolerance, per sample: E = rms(corrected - predicted)/scale, brought to data units as the flow of N(0, s^2) does,
    by s/sqrt(s^2 + sh^2). Steps are aimed at E = `aim` and redone above `accept`. A step depends on what came before
    it, never on its own noise, and a redone step draws from the law given what the refused one drew (`Remembered`): the
    law of the output is that of the equation, not bent by which steps were taken. sample goes by equal steps in lambda,
    where a step may be 0.6 to 1.25 times as long as the one before.

    Args:
        aim, accept: of E, aim < accept.

    Source: this package, docs/decisions.md; the predictor-corrector with shared noise is SA-Solver's (Xue et al. 2023,
    arXiv 2309.05019).
    """

    kind = "SDE"
    adaptive = True
    coordinates = "lambda"
    error_order = 1
    first_step = 1 / 20
    largest_step = 1 / 9
    default_steps = 50

    def __init__(self, *, aim: float = 0.5, accept: float = 4.0, sigma_data: float | None = None) -> None:
        if not 0 < aim < accept < math.inf:
            raise InvalidInputError(f"aim={aim}, accept={accept}: wanted 0 < aim < accept")
        super().__init__(
            "d-adams2-sde",
            variable="theta",
            order=2,
            corrector=1,
            stochastic=True,
            sigma_data=sigma_data,
            grid="lambda",
            source="this package, docs/decisions.md",
        )
        self.kind, self.aim, self.accept = "SDE", float(aim), float(accept)

    # ---- above sh = 10 s

    def landing(self, n: int) -> float | None:
        return FAR

    def _leaps(self, term: Term, l: Tensor) -> Tensor:
        """Whether noise levels are so high that a step down to them is closed form."""
        if not term.eta or term.model.data_std is None:
            return torch.zeros_like(l, dtype=torch.bool)
        return l <= -math.log(FAR * term.model.sigma_data) + 1e-6

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise) -> Entry:
        if bool(self._leaps(term, term.sde.half_log_snr(t)).all()):
            far = torch.tensor(-math.log(FAR * term.model.sigma_data), dtype=torch.float64)
            landing = term.sde.time(far).clamp(term.t_min, term.t_max)
            x, t = _gaussian_step(term, x, t[0].cpu(), landing, noise), torch.full_like(t, float(landing))
        return Entry(x, t, self.start(term, x, t))

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        if grid is not None:
            above = int(self._leaps(term, term.sde.half_log_snr(grid[1:])).sum())
            rest = grid[above:]
            return {**(super().start(term, x, t, rest) if len(rest) > 1 else {}), "above": above}
        l = term.sde.half_log_snr(t)
        if bool(torch.isinf(l).any()):
            raise InvalidInputError(
                f"{self.name!r} by tolerance cannot start where there is no signal (alpha = 0): begin at an earlier "
                "time, with t_span=, or pass steps="
            )
        d = term.predict(x, t).x0
        return {"l": l, "before": l - 1.0, "d": d, "d_before": d}

    # ---- a step

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        if state.get("above"):
            return Step(_gaussian_step(term, x, t, t_next, noise), {**state, "above": state["above"] - 1})
        if "run" in state:
            return super().step(term, x, t, t_next, state, noise)
        if isinstance(noise, BrownianTree):
            raise InvalidInputError(
                f"{self.name!r} by tolerance draws its path in a clock of its own, not in t: pass a seed or a Noise"
            )
        sde, e = term.sde, term.eta**2
        s = self.sigma_data or term.model.sigma_data
        l, d, alpha_next = state["l"], state["d"], sde.alpha(t_next)
        l_next = sde.half_log_snr(t_next)
        gone = -torch.expm1((1 + e) * (l - l_next))  # the weight's whole integral
        share = _share(l, l_next, e, s)  # of the new value, in the mean of the line
        theta, theta_next, theta_before = (_theta(u, s) for u in (l, l_next, state["before"]))
        slope = expand((theta_next - theta) / (theta - theta_before), x) * (d - state["d_before"])
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
        unit = s / (s**2 + torch.exp(-2 * l_next)).sqrt() / alpha_next  # of an error in x, to data units at the end
        carried = {"l": l_next, "before": l, "d": d_next, "d_before": d, "unit": unit}
        return Step(corrected, carried, corrected - predicted)

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        """E is smoothed over two steps: in few dimensions one step's change of D is a matter of chance."""
        unit = step.state["unit"]
        size = rms(step.x.detach()).to(torch.float64) * unit
        error = rms(step.error.detach()).to(torch.float64) * unit  # type: ignore[union-attr]
        ratio = (error / (tolerance.atol + tolerance.rtol * size)).clamp_min(1e-10)
        accept = ratio <= self.accept
        smooth = (ratio * state["ratio"]).sqrt() if "ratio" in state else ratio
        gain = (self.aim / torch.where(accept, smooth, ratio)) ** (1 / 1.5)
        factor = torch.where(accept, gain.clamp(0.6, 1.25), gain.clamp(0.3, 0.7)).nan_to_num(0.3)
        carried = {**step.state, "ratio": torch.where(torch.isfinite(ratio), ratio, 1.0)}
        return accept, factor, merge(accept, carried, state)


def _theta(l: Tensor, s: float) -> Tensor:
    return torch.atan(torch.exp(-l) / s)


def _share(l: Tensor, l_next: Tensor, e: float, s: float) -> Tensor:
    """The weight's mean of (theta - theta(u))/(theta - theta'), the new value's part in the line's mean; (B,)."""
    nodes, w = (part.to(l.device) for part in gauss_legendre(_POINTS))
    h = (l_next - l)[:, None]
    u = l[:, None] + h * nodes
    weight = torch.exp((1 + e) * (u - l_next[:, None])) * w
    passed = _theta(l, s)[:, None] - _theta(u, s)
    return (weight * passed).sum(1) / (weight.sum(1) * (_theta(l, s) - _theta(l_next, s)))


def _gaussian_step(term: Term, x: Tensor, t: Tensor, t_next: Tensor, noise: Noise) -> Tensor:
    """One exact step of the reverse SDE of N(m, C), with what the model knows of m and C.

    Along an eigenvector of C with eigenvalue c, P = c + sh^2:
    xh' = m + (P'/P)^((1 + e)/2) (xh - m) + sqrt(P' (1 - (P'/P)^e)) z.
    """
    model, e = term.model, term.eta**2
    here, there = term.sde.level(t), term.sde.level(t_next)
    q = known(model).to(x.double())
    after = q.variances + (there.sigma / there.alpha) ** 2
    total = q.total(here.alpha, here.sigma)  # alpha^2 P, which alpha = 0 leaves finite
    kept = here.alpha**e * (after / total) ** ((1 + e) / 2)
    std = (after * -torch.expm1(e * torch.log(here.alpha**2 * after / total))).sqrt()
    z = noise.normal(x.shape, STEP, t, t_next, dtype=x.dtype, device=x.device)
    q = q.to(x)
    inner = kept.to(x) * q.offset(flat(x), here.alpha) + std.to(x) * flat(z)
    if q.axes is not None:
        inner = inner @ q.axes.mT
    return there.alpha * (q.mean + inner).reshape(x.shape)
