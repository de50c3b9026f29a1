"""All nodes and weights of a fitted solver at once: Gauss-Newton on the error at the end, derivatives by differences.

The parameters are log tan(theta_1 ... theta_(N-1)) and the weights w_nj of all steps but the last, whose weights are
solved for at every trial. What changes at step n leaves the slopes before it as they were, so that a column of the
Jacobian is N - n evaluations of the model.

Source: Levenberg 1944 for the damping; Golub & Pereyra 1973 for the variables that are solved for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.shapes import flat
from ..solvers.multistep.bands import Bands
from ..solvers.multistep.fitted import moved
from ..terms import Counted, ProbabilityFlow
from .lesson import Lesson, least_squares

_APART = 1e-3  # of the differences
_DAMPING, _TRIALS = 1e-2, 3


def cost(n: int) -> int:
    """Evaluations for each sample of one iteration for n steps."""
    return n * (n - 1) // 2 + (n - 1) * n * (n + 1) // 6 + (1 + _TRIALS) * n


def refined(
    lesson: Lesson, judging: Lesson, angles: Tensor, weights: Tensor, bands: Bands, *, most: int
) -> tuple[Tensor, Tensor]:
    """(angles, weights) after at most so many iterations, as long as the error falls on both lots of samples.

    Args:
        lesson: samples to learn from.
        judging: samples that only stop it.
        angles, weights: as they are, see `Fit`.
        bands: directions.
        most: iterations.
    """
    student, judge = Student(lesson, bands, weights), Student(judging, bands, weights)
    known, damping, best = judge.error(angles, weights), _DAMPING, (angles, weights)
    weights, rest, slopes = student.landed(angles, weights)
    for _ in range(most):
        jacobian = student.jacobian(angles, weights, rest, slopes)
        squares, slope = jacobian.T @ jacobian, jacobian.T @ rest
        for _ in range(_TRIALS):
            damped = squares + damping * squares.diagonal().diag() + 1e-12 * torch.eye(len(slope), dtype=slope.dtype)
            tried = _changed(angles, weights, -torch.linalg.solve(damped, slope))
            if bool((tried[0].diff() < 0).all()):
                found, left, way = student.landed(*tried)
                if float(left.norm()) < float(rest.norm()):
                    break
            damping *= 4
        else:
            break
        error = judge.error(tried[0], found)
        if not error < known:
            break
        angles, weights, rest, slopes, known, damping = tried[0], found, left, way, error, damping / 4
        best = angles, weights
    return best


class Student:
    """Some samples on their way with any nodes and weights.

    Args:
        lesson: the samples, and where they should go.
        bands: directions.
        weights: those around which the last step's are solved for, see `least_squares`.
    """

    def __init__(self, lesson: Lesson, bands: Bands, weights: Tensor) -> None:
        self.lesson, self.bands, self.around = lesson, bands, weights

    def walked(self, angles: Tensor, weights: Tensor, slopes: Sequence[Tensor] = ()) -> list[Tensor]:
        """All slopes v_0 ... v_(N-1); those given are known."""
        lesson, n, slopes = self.lesson, len(angles) - 1, list(slopes)
        term = Counted(ProbabilityFlow(lesson.view.model, cond=lesson.cond), len(lesson.start))
        term.warm(angles)
        for k in range(len(slopes), n):
            y = moved(lesson.start, weights[k - 1], slopes, self.bands) if k else lesson.start
            slopes.append(self.bands.into(term.drift(y, angles[k])))
        lesson.spent[0] += int(term.counts(torch.zeros(len(lesson.start), dtype=torch.int64)).sum())
        return slopes

    def landed(
        self, angles: Tensor, weights: Tensor, slopes: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(weights with the last step's solved for, what is left at the denoised end, all slopes)."""
        lesson, weights = self.lesson, weights.clone()
        slopes = self.walked(angles, weights, slopes)
        rest = lesson.start
        for row, goal, factor in lesson.ends(angles):
            base = goal - moved(factor * lesson.start, self.around[row], slopes, self.bands)
            weights[row] = self.around[row] + least_squares(slopes, self.bands.into(base), self.bands)
            rest = moved(factor * lesson.start, weights[row], slopes, self.bands) - goal
        return weights, flat(rest).double().flatten().cpu(), slopes

    def error(self, angles: Tensor, weights: Tensor) -> float:
        """The typical one of these weights as they are, at the denoised end."""
        slopes = self.walked(angles, weights)
        row, goal, factor = self.lesson.ends(angles)[-1]
        away = moved(factor * self.lesson.start, weights[row], slopes, self.bands) - goal
        return errors_of(away)[1]

    def jacobian(self, angles: Tensor, weights: Tensor, rest: Tensor, slopes: list[Tensor]) -> Tensor:
        """Derivatives of what is left, (numbers, parameters), see `_changed`."""
        columns, n = [], len(angles) - 1
        steps = [*range(1, n), *(k + 1 for k in range(n - 1) for _ in range(k + 1))]  # the first slope to change
        for i, first in enumerate(steps):
            change = torch.zeros(len(steps), dtype=torch.float64)
            change[i] = _APART
            tried = _changed(angles, weights, change)
            columns.append((self.landed(*tried, slopes[:first])[1] - rest) / _APART)
        return torch.stack(columns, 1)


def errors_of(away: Tensor) -> tuple[float, float]:
    """(root mean square, geometric mean over samples of theirs): the first is of a few samples, the second typical."""
    squares = flat(away).double().square().mean(1)
    return float(squares.mean().sqrt()), float(squares.clamp_min(1e-300).log().mean().div(2).exp())


def _changed(angles: Tensor, weights: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """(angles, weights) with the changes of log tan(theta_1 ... theta_(N-1)), then of w_00, w_10, w_11 ... added."""
    n, angles, weights = len(angles) - 1, angles.clone(), weights.clone()
    angles[1:n] = torch.atan(angles[1:n].tan() * change[: n - 1].exp())
    rows = change[n - 1 :].split([k + 1 for k in range(n - 1)])
    for k, row in enumerate(rows):
        weights[k, :, : k + 1] += row
    return angles, weights
