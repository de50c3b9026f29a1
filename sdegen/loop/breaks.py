"""Jumps of a belief on the way: their two sides, and which sample has met which."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers.grids import GRIDS
from ..terms import Counted
from .plan import Plan

_GROWTH = 1.25  # the k-th of n steps beyond a jump ends at (k/n)^1.25 of the way; measured
_BESIDE = 1e-8  # in log(alpha/sigma): how near a break steps end and begin


def sides_of_breaks(term: Counted, plan: Plan) -> tuple[Tensor, Tensor] | None:
    """Times before and after each jump inside of a plan's span, (n,) float64, as they are met; None: there are none."""
    levels = term.breaks()
    if not levels:
        return None
    downward = plan.end < plan.start
    levels = sorted(levels, reverse=downward)
    log_snr = -torch.tensor(levels, dtype=torch.float64, device="cpu").log()
    sides = torch.stack([term.sde.time(log_snr - _BESIDE), term.sde.time(log_snr + _BESIDE)])  # type: ignore[union-attr]
    low, high = sorted((plan.start, plan.end))
    inside = (sides.amin(0) > low) & (sides.amax(0) < high)
    before, after = sides[:, inside] if downward else sides[:, inside].flip(0)
    return (before, after) if len(before) else None


def pieces(plan: Plan, term: Counted) -> list[Tensor]:
    """A fixed grid of as many steps in parts that jumps of the belief divide: a part ends before a jump, the next
    begins after it, with steps that grow from short ones while the solver's history does.

    Times that the user gave stay as they are, and so do grids with too few nodes between jumps.
    """
    ts, sides = plan.times, sides_of_breaks(term, plan) if plan.grid in GRIDS else None
    if sides is None:
        return [ts]
    found, start, begin = [], ts[0], 0  # the part's first time and the number of its node
    for before, after in zip(*sides, strict=True):
        k = int((ts - before).abs().argmin())
        if begin < k < len(ts) - 1:
            found.append(_part(ts, (begin, k), (start, before)))
            start, begin = after, k
    return [*found, _part(ts, (begin, len(ts) - 1), (start, ts[-1]))]


def _part(ts: Tensor, nodes: tuple[int, int], ends: tuple[Tensor, Tensor]) -> Tensor:
    """Times between two ends, as many as between two nodes of a grid and spaced like them but for the first steps."""
    inner, first, n = ts[nodes[0] + 1 : nodes[1]], nodes[0] == 0, nodes[1] - nodes[0]
    own = torch.cat([ends[0][None], inner, ends[1][None]])
    if first or n < 3:
        return own
    place = n * torch.linspace(0, 1, n + 1, dtype=torch.float64, device="cpu") ** _GROWTH
    k = place.floor().clamp_max(n - 1).long()
    return torch.lerp(own[k], own[k + 1], place - k)


class Breaks:
    """Where on their way the samples of a batch meet jumps of the drift.

    Args:
        before, after: (n,) float64, times on either side of each break, as they are met.
        end: the last time.
    """

    def __init__(self, before: Tensor, after: Tensor, end: float) -> None:
        self.after = after
        self.goals = torch.cat([before, before.new_tensor([end])])
        self.met = torch.zeros(0, dtype=torch.int64, device=before.device)

    @classmethod
    def between(cls, term: Counted, plan: Plan) -> Breaks | None:
        """Those inside of a plan's span; None: there are none, or noise, which jumps everywhere."""
        sides = None if plan.noisy else sides_of_breaks(term, plan)
        return None if sides is None else cls(*sides, plan.end)

    def goal(self, t: Tensor) -> Tensor:
        """Up to where each sample's next step may go, (B,)."""
        return self.goals.to(t.device)[self.met.to(t.device)]

    @property
    def over(self) -> Tensor:
        """Which samples have no break ahead."""
        return self.met == len(self.after)

    def cross(self, rows: Tensor) -> Tensor:
        """The times beyond the break that these samples are at."""
        found = self.after.to(rows.device)[self.met[rows]]
        self.met = self.met.index_add(0, rows, torch.ones_like(rows))
        return found

    def restrict(self, keep: Tensor) -> None:
        self.met = self.met[keep]

    def begin(self, met: Tensor) -> None:
        """Samples, by how many breaks each has met."""
        self.met = met

    def replace(self, at: Tensor) -> None:
        """Samples that begin take the places of others."""
        self.met = self.met.index_fill(0, at, 0)
