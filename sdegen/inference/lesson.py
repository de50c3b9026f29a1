"""What a solver is fitted to: flows solved tightly from some noises, and weights by least squares along the way.

For n = 0 .. N - 1 the slope v_n is taken at the solver's own y_n. With T the exact state at theta_(n+1) from the same
noise, f = (v_0 ... v_n), a the weights of Adams' method and r = T - y_0 - sum_j a_nj v_j, the weights are a + d with

    d = S (S G S + rho I)^-1 S <f, r>,        G = <f, f^T>,        S = diag(G)^(-1/2),

in each band of directions. The fit of a step therefore mends the errors of those before it, no gradient goes through
the network, and rho -> infinity gives Adams' method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import rows_of
from ..core.shapes import flat
from ..models.base import ScoreModel
from ..models.coordinates import Coordinates
from ..solvers.multistep.adams.grid import AdamsPlan
from ..solvers.multistep.bands import Bands
from ..solvers.multistep.fitted import moved
from ..terms import Counted, ProbabilityFlow
from .sampling import sample

RIDGE = 1e-4
_ORDERS = (2, 3)  # of the Adams' method that the weights are fitted around: past values of predictor and corrector
_NEIGHBOURS = 6  # states of a teacher's path that one between them is interpolated from


@dataclass(frozen=True, eq=False)
class Lesson:
    """Noises, the model's flow, and where it takes them.

    Attributes:
        view: the coordinates, in which everything here is.
        cond: conditions of these samples.
        start: (B, *event) at theta_0.
        angles: (M + 1,) of the exact path, falling to theta_N.
        path: (M + 1, B, *event), its states.
        end: (B, *event), its denoised end.
        spent: evaluations of one sample each that have been made.
    """

    view: Coordinates
    cond: dict[str, Any]
    start: Tensor
    angles: Tensor
    path: Tensor
    end: Tensor
    spent: list[int]

    @classmethod
    def of(cls, model: ScoreModel, x: Tensor, cond: dict[str, Any], steps: int) -> Lesson:
        """The exact flow from x, (B, *event) at t_max of the model's own process, by so many steps of Adams' method."""
        how: dict[str, Any] = {"solver": "adams", "steps": steps, "save": "all", "seed": 0, "progress": False}
        view, found = Coordinates.best_of(model), sample(model, x.shape, x_init=x, **how, cond=cond)
        nodes = found.ts[:-1]
        path = torch.stack([view.state_there(y, t) for t, y in zip(nodes, found.xs[:-1], strict=True)])
        lesson = cls(view, cond, path[0], view.there(nodes), path, found.x, [int(found.nfe.sum())])
        return replace(lesson, end=found.x - lesson.centre)

    @property
    def steps(self) -> int:
        """Evaluations of the exact path, for each sample."""
        return len(self.angles)

    @property
    def centre(self) -> Any:
        """What is taken off the states of the model's own process."""
        return 0.0 if self.view.centre is None else self.view.centre.to(self.end)

    def only(self, rows: Tensor) -> Lesson:
        """Some of the samples."""
        there = rows.to(self.start.device)
        cut = {"start": self.start[there], "path": self.path[:, there], "end": self.end[there]}
        return replace(self, cond=rows_of(self.cond, rows), **cut)

    def at(self, angle: float) -> Tensor:
        """The exact states there, by the polynomial through the nearest nodes."""
        near = int((self.angles > angle).sum())
        first = min(max(near - _NEIGHBOURS // 2, 0), max(len(self.angles) - _NEIGHBOURS, 0))
        nodes = self.angles[first : first + _NEIGHBOURS]
        gaps = nodes[:, None] - nodes + torch.eye(len(nodes), dtype=nodes.dtype)
        ahead = (angle - nodes).expand(len(nodes), -1).clone().fill_diagonal_(1.0)
        weights = (ahead / gaps).prod(1)
        return torch.tensordot(weights.to(self.path), self.path[first : first + len(nodes)], 1)

    def ends(self, angles: Tensor) -> list[tuple[int, Tensor, float]]:
        """(row of the weights, what it should land on, factor of y_0) of the last step: at theta_N, and denoised."""
        n, last = len(angles) - 1, float(angles[-1])
        return [(n - 1, self.at(last), 1.0), (n, self.end, math.cos(last))]

    def learned(self, angles: Tensor, bands: Bands, *, ridge: float = RIDGE) -> tuple[Tensor, float]:
        """(weights (N + 1, bands, N) of a solver with these nodes, its error on these samples), see `Fit`."""
        n, y = len(angles) - 1, self.start
        term = Counted(ProbabilityFlow(self.view.model, cond=self.cond), len(y))
        term.warm(angles)
        weights = _adams_weights(angles)[:, None].repeat(1, bands.count, 1)
        slopes: list[Tensor] = []
        error = math.nan
        for k in range(n):
            slopes.append(bands.into(term.drift(y, angles[k])))
            for row, goal, factor in self.ends(angles) if k == n - 1 else [(k, self.at(float(angles[k + 1])), 1.0)]:
                base = moved(factor * self.start, weights[row], slopes, bands)
                weights[row, :, : k + 1] += least_squares(slopes, bands.into(goal - base), bands, ridge)
                y = moved(factor * self.start, weights[row], slopes, bands)
                error = float(flat(y - goal).double().square().mean().sqrt()) / self.view.model.sigma_data
        self.spent[0] += int(term.counts(torch.zeros(len(y), dtype=torch.int64)).sum())
        return weights, error


def _adams_weights(angles: Tensor) -> Tensor:
    """(N + 1, N): the weights of Adams' method on these nodes, all the way from y_0; the last row is of the denoised
    end, D = cos(theta) y - sin(theta) v with v at theta_N extrapolated."""
    n = len(angles) - 1
    plan = AdamsPlan.of(angles, _ORDERS)
    rows, corrected = torch.zeros(n + 1, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for k in range(n):
        if k:
            _add(corrected, plan.corrector[k - 1], k)
        rows[k] = corrected
        _add(rows[k], plan.predictor[k], k)
    last = float(angles[-1])
    ahead = [1.0]
    if n > 1:
        far = float((angles[-1] - angles[-2]) / (angles[-2] - angles[-3]))
        ahead = [1 + far, -far]
    rows[n] = math.cos(last) * rows[n - 1]
    _add(rows[n], [-math.sin(last) * w for w in ahead], n - 1)
    return rows


def _add(row: Tensor, weights: Sequence[float], newest: int) -> None:
    """Add weights of slopes, the newest first."""
    for i, w in enumerate(weights[: newest + 1]):
        row[newest - i] += w


def least_squares(slopes: Sequence[Tensor], residual: Tensor, bands: Bands, ridge: float = RIDGE) -> Tensor:
    """(bands, slopes): the change of the weights that takes most off a residual, all in the basis of the bands."""
    f = torch.stack([flat(v).double() for v in slopes])  # (n, B, d)
    r = flat(residual).double()
    found = []
    for b in range(bands.count):
        mine = slice(None) if bands.count == 1 else bands.band.to(r.device) == b
        own, rest = f[:, :, mine].flatten(1), r[:, mine].flatten()
        found.append(ridge_weights(own @ own.T, own @ rest, ridge))
    return torch.stack(found).cpu()


def ridge_weights(gram: Tensor, moments: Tensor, ridge: float) -> Tensor:
    """S (S G S + rho I)^-1 S g with S = diag(G)^(-1/2); 0 for what is always 0."""
    diagonal = gram.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt() * (diagonal > 0)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return scale * torch.linalg.solve(scale[:, None] * gram * scale + ridge * eye, scale * moments)
