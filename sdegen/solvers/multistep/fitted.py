"""A multistep solver whose nodes and weights were fitted to one model: see `sdegen.fit_solver`.

On the circular path of the data's scale, y = cos(theta) x0 + s sin(theta) eps, with v = dy/dtheta and one evaluation
v_j = v(y_j, theta_j) at each of theta_0 > ... > theta_(N-1),

    y_(n+1) = y_0 + sum_(j<=n) w_nj v_j,        x0 = cos(theta_N) y_0 + sum_(j<N) w_Nj v_j,

theta_N that of t_min. Where what the model says at t_max is known theta_0 is below it, and y_0 the state at both, since
v is 0 there. Every linear multistep method is of this form: y_j is a sum of y_0 and earlier v's. The last row lands on
what a final denoising would return, so that all N evaluations are steps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError, warn
from ...models.base import ScoreModel
from ...models.coordinates import Coordinates
from ...models.identity import changed, weights_of, wrappers_of
from ...noise.white import Noise
from ...terms import Term
from ..base import Solver, Step
from .bands import Bands
from .weights import summed

_NEAR = 1e-6  # relative; noise levels closer than this are the same


@dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted for N evaluations.

    Attributes:
        angles: (N + 1,) theta_0 ... theta_N, falling.
        weights: (N + 1, bands, N): w, the state at theta_(n+1) in row n, the denoised end in the last.
        error, unfitted: of the samples held out, this solver's and that of "auto" without it: root mean square to the
            exact flow's end, in the data's standard deviations.
        evaluations: of the model, for one sample each, that the fit took.
        better: whether it is better than without it on the samples held out; if not, it is not used.
    """

    angles: Tensor
    weights: Tensor
    error: float
    unfitted: float
    evaluations: int
    better: bool = True


@dataclass(frozen=True)
class FittedTo:
    """What a solver was fitted to.

    Attributes:
        weights: checksums of the model's parameters, buffers and statistics, by name.
        wrappers: what it is wrapped in, see `wrappers_of`.
        conditions: the names of the conditions that it was given.
        levels: sigma/alpha at t_min and t_max.
        scale: of the data.
    """

    weights: Mapping[str, str]
    wrappers: Sequence[Mapping[str, Any]]
    conditions: tuple[str, ...]
    levels: tuple[float, float]
    scale: float

    @classmethod
    def of(cls, model: ScoreModel, conditions: Sequence[str]) -> FittedTo:
        sde = Coordinates.best_of(model).model.sde
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device="cpu")
        low, high = torch.exp(-sde.half_log_snr(ends)).tolist()
        return cls(weights_of(model), wrappers_of(model), tuple(sorted(conditions)), (low, high), model.sigma_data)

    def differs(self, other: FittedTo) -> str:
        """What tells another model and its call from this one, in words; "" if nothing does."""
        if words := changed(self.weights, other.weights):
            return f"it was fitted to a model {words}"
        if self.conditions != other.conditions:
            return f"it was fitted with the conditions {list(self.conditions)}, not {list(other.conditions)}"
        near = all(math.isclose(a, b, rel_tol=_NEAR) for a, b in zip(self.levels, other.levels, strict=True))
        if not near or not math.isclose(self.scale, other.scale, rel_tol=_NEAR):
            return f"it was fitted to noise levels sigma/alpha from {self.levels[0]:g} to {self.levels[1]:g}"
        return "" if self.wrappers == other.wrappers else f"it was fitted to {self._worn()}, not {other._worn()}"

    def but_for_guidance(self, other: FittedTo) -> bool:
        """Whether nothing but the strength of guidance tells them apart."""
        bare = [replace(of, wrappers=[{**w, "scale": None} for w in of.wrappers]) for of in (self, other)]
        return self.wrappers != other.wrappers and not bare[0].differs(bare[1])

    def _worn(self) -> str:
        words = [f"{w['class']} with scale={w['scale']}" if "scale" in w else str(w["class"]) for w in self.wrappers]
        return " of ".join([*words, "the model"])


@dataclass(slots=True, eq=False)
class FittedRun:
    """Where a run over a grid stands.

    Attributes:
        fit: of its number of steps.
        k: which step is next; -1 for the one from t_max to theta_0.
        x: the state at the beginning.
        slopes: v_0 ... so far, in the basis of the bands.
    """

    fit: Fit
    k: int
    x: Tensor
    slopes: tuple[Tensor, ...] = ()


@dataclass(eq=False, repr=False)
class Fitted(Solver):
    """Multistep nodes and weights fitted to one model by `sdegen.fit_solver`, for some numbers of evaluations.

    Attributes:
        to: what it was fitted to.
        fits: by number of evaluations.
        bands: the directions that have weights of their own.
    """

    to: FittedTo
    fits: Mapping[int, Fit]
    bands: Bands = field(default_factory=Bands)

    name = "fitted"
    order = 3
    kind = "ODE"
    coordinates = "best"
    source = "this package, docs/howto/few_evaluations.md; the family is that of arXiv 2403.01329"

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of evaluations for which it is better than "auto" without it."""
        return tuple(n for n, fit in sorted(self.fits.items()) if fit.better)

    def options(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def agrees(self, term: Term, steps: Any, span: tuple[float, float] | None) -> bool:
        """Whether it was fitted to such a run, and found better there than nothing fitted."""
        count = _count(steps)
        if self._of_run(term, count, span) or not self.fits[count].better:
            return False
        try:
            return not self.to.differs(_met(term))
        except InvalidInputError:  # wrapped in what cannot be told from other things
            return False

    def check_run(self, term: Term, steps: Any, span: tuple[float, float] | None) -> None:
        """Raise where it was fitted to another run, and say to which; warn where only guidance is of another strength.

        Args:
            term: the equation, in the model's own time.
            steps: as `sample` takes them.
            span: (from, to), None where the term runs in its own time.
        """
        words = self._of_run(term, _count(steps), span)
        if not words:
            found = _met(term)
            words = self.to.differs(found)
            if words and self.to.but_for_guidance(found):
                warn(f"{self!r}: {words}, where it is less exact")
                return
        if words:
            raise InvalidInputError(f"{self!r} is not for this: {words}; fit it anew, or pass solver='auto'")

    def _of_run(self, term: Term, count: int, span: tuple[float, float] | None) -> str:
        if term.stochastic or term.model is None:
            return "it is for the flow of a model: use eta=0"
        if count not in self.fits:
            return f"it was fitted for steps = {', '.join(map(str, sorted(self.fits)))}: pass one of them"
        if span is None or abs(span[0] / term.t_max - 1) > _NEAR or span[1] not in (0.0, term.t_min):
            return "it goes from t_max to t_min or 0, in sample"
        return ""

    def lay(self, model: ScoreModel, steps: int, ends: tuple[float, float]) -> Tensor:
        """Its nodes as times of the model's own process, from `ends[0]` to `ends[1]`, t_min or 0."""
        view, angles = Coordinates.best_of(model), self.fits[steps].angles
        first = view.there(torch.tensor(ends[:1], dtype=torch.float64, device="cpu"))
        rests = bool(angles[0] < first * (1 - _NEAR))  # one more step, without an evaluation
        times = view.back(torch.cat([first, angles]) if rests else angles.clone())
        times[0], times[-1] = ends
        return times

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> FittedRun:
        return self.begin(term, x, t[None] if grid is None else grid)

    def begin(self, term: Term, x: Tensor, grid: Tensor, *, ahead: int = 0, rests: bool = False) -> FittedRun:
        n = len(grid) - 1 - rests
        if n not in self.fits:
            raise InvalidInputError(f"{self!r} makes grids of {sorted(self.fits)} steps, not of {n}: pass steps=")
        return FittedRun(self.fits[n], -1 if rests else 0, x)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: FittedRun, noise: Noise) -> Step:
        fit, k = state.fit, state.k
        if k < 0:
            return Step(x, FittedRun(fit, 0, x), slope=torch.zeros_like(x))
        slope = term.drift(x, t)
        slopes = (*state.slopes, self.bands.into(slope))
        ends = float(t_next) == 0
        x_next = moved(
            state.x * math.cos(float(fit.angles[-1])) if ends else state.x,
            fit.weights[-1 if ends else k],
            slopes,
            self.bands,
        )
        return Step(x_next, FittedRun(fit, k + 1, state.x, slopes), slope=slope)


def moved(x: Tensor, weights: Tensor, slopes: Sequence[Tensor], bands: Bands) -> Tensor:
    """x + sum_j w_j v_j.

    Args:
        x: (B, *event).
        weights: (bands, at least as many as there are slopes).
        slopes: v_0, v_1 ..., in the basis of the bands.
        bands: those.
    """
    if bands.count == 1:
        return summed(x, weights[0].tolist(), slopes)
    total = torch.zeros_like(x)
    for j, v in enumerate(slopes):
        total.addcmul_(v, bands.spread(weights[:, j], v))
    return x + bands.out(total)


def _met(term: Term) -> FittedTo:
    return FittedTo.of(term.model, tuple(term.cond))  # type: ignore[attr-defined]


def _count(steps: Any) -> int:
    """A number of steps; 0 for anything else."""
    try:
        return 0 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        return 0
