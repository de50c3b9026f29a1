"""Fit a multistep solver to a frozen model, for few evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.conditions import merged
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..loop.modes import bar, quiet
from ..loop.starts import unseen_starts
from ..models.base import ScoreModel
from ..models.coordinates import Coordinates
from ..noise.white import check_seed
from ..solvers import Adams
from ..solvers.advice import advise, few_steps
from ..solvers.grids import formula_grid
from ..solvers.multistep.bands import Bands
from ..solvers.multistep.fitted import Fit, Fitted, FittedTo
from ..solvers.multistep.gaussian_start import begins_at_the_mean
from .checks import check_model, placed
from .lesson import Lesson
from .refine import Student, errors_of, refined
from .refine import cost as cost_of_refining
from .sampling import sample

_MOST = 10_000  # evaluations of one sample each for a number of steps and 64 samples; the search takes what is left
_TEACHER = (48, 4)  # steps of the exact flow: at least, and for each step of the solver
_NUMBERS = 1280  # that a search looks at, of all samples together, at least
_PROBES, _REFINED = 16, 0.75  # of a search, at most; what refining may take of the evaluations that are left
_FEWEST = 20  # samples that refining looks at, unless a search looks at fewer
_WIDTH, _FINEST = 0.2, 0.04  # of the steps of the search
_CLOSEST = 0.02  # nodes, in steps of the grid that is not bent
_LOOKS = 10  # steps, from which on the last evaluation is best spent at t_min, as the final denoising does
_UNLIKE = 0.75  # of the error to another sample's end: what is not nearer to its own has learned nothing


@checked
def fit_solver(
    model: ScoreModel,
    *,
    steps: int | Sequence[int],
    samples: int = 64,
    seed: int = 0,
    bands: int = 1,
    refine: bool = False,
    progress: bool | None = None,
    **cond: Any,
) -> Fitted:
    """Fit nodes and weights of a multistep solver to a model, for some numbers of evaluations; the model is not
    changed.

    Some flows are solved to a tight tolerance; then the weights w of

        y_(n+1) = y_0 + sum_(j<=n) w_nj v_j,        v_j = dy/dtheta at (y_j, theta_j),

    along the circular path follow one after the other by least squares on the solver's own states, no gradient through
    the network, and the nodes by a search over two numbers. A third of the samples is held out: where the solver is not
    better on them than "auto" without it, "auto" does not use it. The last step lands on the denoised end.

    The model keeps what was fitted in `model.solvers`, and "auto" takes it in `sample` where weights, noise levels,
    names of conditions, guidance and `steps` agree; `Solution.solver` says so. `save` writes it with the model.

    Args:
        model: a ScoreModel that knows its event shape: a network, guided too.
        steps: numbers of evaluations, such as 8 or (5, 8, 10).
        samples: how many flows; a third of them only judges.
        seed: of their noise, which `sample` never draws.
        bands: directions with weights of their own, such as 8: frequencies of images, principal directions of vectors.
        refine: up to three Gauss-Newton iterations on all nodes and weights at once, however many evaluations they take
            (an iteration for 8 steps 144 for each sample, for 20 steps 1,600); False: as many as there are enough for.
        progress: a progress bar on stderr; None: where stderr is a terminal.
        **cond: conditions, as in `sample`: tensors have one row for each of the samples.

    Returns:
        Fitted, a Solver: `.fits[8].error` and `.unfitted` are errors on the samples held out, `.evaluations` what it
        took, its share of the exact flows included: at most 10,000 of one sample each for 64 samples.

    Raises:
        InvalidInputError: a model without an event shape, or wrapped in what cannot be told from other things; numbers
            that cannot be meant.

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2), sg.VPSDE())
        >>> fitted = sg.fit_solver(model, steps=6)
        >>> fitted.fits[6].error < fitted.fits[6].unfitted
        True
        >>> "fitted" in sg.sample(model, 4, steps=6, seed=0).solver
        True
    """
    check_model(model)
    counts = _counts(steps)
    samples = whole(samples, "samples", least=6)
    bands = whole(bands, "bands", least=1)
    cond = merged(cond, fit_solver, model.condition_names)
    model.check_conditions(cond, samples)
    if model.event_shape is None:
        raise InvalidInputError("fit_solver draws samples, but this model does not know its event_shape: set it")
    to = FittedTo.of(model, tuple(cond))
    before, model.solvers = model.solvers, ()
    try:
        with quiet(model), bar(progress) as report:
            x = prior_draws(model, samples, check_seed(seed))
            exact = Lesson.of(model, x, cond, max(_TEACHER[0], _TEACHER[1] * counts[-1]))
            basis = Bands.of(bands, exact.end, model.data.covariance)
            rests = begins_at_the_mean(model, cond)
            fitting = _Fitting(model, to, x, exact, basis, torch.arange(samples) % 3 == 2, refine, len(counts), rests)
            fits, bend = {}, (0.0, 0.0)
            for i, n in enumerate(counts):
                report((1 + i) / (1 + len(counts)))
                fits[n], bend = fitting.fit(n, bend)
    finally:
        model.solvers = before
    fitted = Fitted(to, fits, basis)
    model.solvers = _kept(before, fitted)
    return fitted


def _kept(before: Sequence[Fitted], fitted: Fitted) -> tuple[Fitted, ...]:
    """The solvers of a model with a new one: those fitted to the same for other numbers of steps stay."""
    own = [old for old in before if old.to.weights == fitted.to.weights]
    return (fitted, *(old for old in own if old.to.differs(fitted.to) or set(old.fits) - set(fitted.fits)))


def _counts(steps: Any) -> list[int]:
    given = steps if isinstance(steps, Sequence | set) and not isinstance(steps, str) else [steps]
    counts = sorted({whole(n, "steps", least=1, most=1000) for n in given})
    if not counts:
        raise InvalidInputError("got steps=[], expected numbers of evaluations such as (5, 8, 10)")
    return counts


def prior_draws(model: ScoreModel, samples: int, seed: int) -> Tensor:
    """Noise at t_max; in float64 where the model is a formula."""
    dtype, device = placed(model, None, None)
    dtype = dtype if any(p.is_floating_point() for p in model.parameters()) else torch.float64
    return unseen_starts(model, samples, seed, dtype, device)


@dataclass(frozen=True, eq=False)
class _Fitting:
    """What the fits of one model for several numbers of steps share.

    Attributes:
        model, to: the model, and what tells it from others.
        x: (B, *event), where the flows start, at t_max of the model's own process.
        exact: those flows.
        bands: directions.
        held: (B,) which samples only judge.
        refine: whether to refine beyond the evaluations that a fit may take.
        fits: how many there will be.
        rests: whether the belief at t_max is known, so that few evaluations are made below it.
    """

    model: ScoreModel
    to: FittedTo
    x: Tensor
    exact: Lesson
    bands: Bands
    held: Tensor
    refine: bool
    fits: int
    rests: bool

    def fit(self, n: int, bend: tuple[float, float]) -> tuple[Fit, tuple[float, float]]:
        """For n steps, and how the grid is bent; the search for that begins at `bend`."""
        exact, taught = self.exact, self.exact.spent[0]
        learning, judging = (exact.only(rows.nonzero().flatten()) for rows in (~self.held, self.held))
        cost = taught / (len(self.x) * exact.steps)  # of a call, for one sample
        share = taught / self.fits  # of the exact flows, which all fits look at
        left = _MOST * len(self.x) / 64 - share / cost - n * (2 * len(learning.start) + 4 * len(judging.start))
        least = min(len(learning.start), max(12, _NUMBERS // self.x[0].numel()))  # that a search looks at
        once = cost_of_refining(n)
        rows = min(int(left * _REFINED / once), len(learning.start))  # that can be afforded
        rounds = (
            3 if self.refine else min(2, int(left * _REFINED / (once * rows))) if rows >= min(_FEWEST, least) else 0
        )
        spare = left if self.refine else left - rounds * rows * once
        most = min(len(learning.start), int(spare / (n * _PROBES)))  # for which a whole search can be afforded
        few = learning.only(torch.arange(max(least, most)))
        rests = self.rests and few_steps(n)
        bend = _searched(few, n, bend, min(int(spare / (n * len(few.start))), _PROBES), rests)
        angles = _nodes(exact.view, n, bend, rests)
        weights, _ = learning.learned(angles, self.bands)
        if rounds and n > 1:
            own = learning if self.refine else learning.only(torch.arange(rows))
            student = Student(learning, self.bands, weights)
            angles, weights = refined(own, judging, angles, weights, self.bands, most=rounds)
            weights = student.landed(angles, weights)[0]
        fit = Fit(angles, weights, math.nan, math.nan, 0)
        fit = self._judged(n, fit, judging)
        spent, exact.spent[0] = exact.spent[0] - taught, taught
        return replace(fit, evaluations=round(spent + share)), bend

    def _judged(self, n: int, fit: Fit, judging: Lesson) -> Fit:
        """A fit with its errors on samples that it did not see."""
        rows, s = self.held.nonzero().flatten(), self.exact.view.model.sigma_data
        x, errors, centre = self.x[rows.to(self.x.device)], [], self.exact.centre
        for solver in (Fitted(self.to, {n: fit}, self.bands), "auto"):
            found = sample(self.model, x.shape, x_init=x, solver=solver, steps=n, progress=False, cond=judging.cond)
            self.exact.spent[0] += int(found.nfe.sum())
            away = [found.x - centre - end for end in (judging.end, judging.end.roll(1, 0))]
            errors.append([part for v in away for part in errors_of(v)])
        (own, typical, other, _), (unfitted, usual, _, _) = errors
        better = typical < usual and own < unfitted and own < _UNLIKE * other
        return replace(fit, error=own / s, unfitted=unfitted / s, better=better)


def _places(n: int, bend: tuple[float, float]) -> Tensor:
    """w(k/n), k = 0 ... n, of w(u) = u + u (1 - u) (p + q (1 - 2u))."""
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu")
    return u + u * (1 - u) * (bend[0] + bend[1] * (1 - 2 * u))


def _nodes(view: Coordinates, n: int, bend: tuple[float, float], rests: bool = False) -> Tensor:
    """theta_0 ... theta_n: the grid of "adams", bent; of many steps the last node but one is as good as the last. Where
    the solver `rests` at t_max, theta_0 is the second node of a grid with one more."""
    sde, looks = view.model.sde, n >= _LOOKS
    m = n - looks + rests
    data, kind = view.model.data, advise(Adams(), view.model).grid
    how = {"kind": kind, "sigma_data": data.scale, "turn": data.turning, "fraction": _places(m, bend)}
    nodes = formula_grid(sde, m, start=sde.t_max, stop=sde.t_min, **how)[int(rests) :]
    return torch.cat([nodes[:-1], torch.lerp(nodes[-1:], nodes[-2:-1], 1e-3), nodes[-1:]]) if looks else nodes


def _searched(
    lesson: Lesson, n: int, bend: tuple[float, float], probes: int, rests: bool = False
) -> tuple[float, float]:
    """The bend of the grid with the smallest error at the end, by a pattern search of so many probes."""
    known: dict[tuple[float, float], float] = {}

    def error(at: tuple[float, float]) -> float:
        if at not in known:
            falls = bool((_places(n - (n >= _LOOKS) + rests, at).diff() > _CLOSEST / n).all())
            tried = falls and len(known) < probes
            known[at] = lesson.learned(_nodes(lesson.view, n, at, rests), Bands())[1] if tried else math.inf
        return known[at]

    width = _WIDTH
    while n > 1 and width >= _FINEST and len(known) < probes:
        around = [(bend[0] + a * width, bend[1] + b * width) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        around = [(round(p, 4), round(q, 4)) for p, q in around]
        best = min([bend, *around], key=error)
        if best == bend:
            width /= 2
        bend = best
    return bend
