"""What pictures need to know of a Solution: its path as arrays, the scale to draw it on, and the frames to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import told
from ..loop.solution import Solution
from ..processes import SDE

FRAMES = ("auto", "x", "data")
LARGE = 4.0  # a process that stretches data by more than this is drawn on the data's scale


@dataclass(frozen=True)
class Path:
    """States along the way: ts (S, B) and xs (S, B, *event), in float64 on the CPU."""

    ts: Tensor
    xs: Tensor
    shared: bool = True  # the samples share their times

    @classmethod
    def of(cls, solution: Solution) -> Path:
        """The saved path of a solution; raises where there is none."""
        if not isinstance(solution, Solution):
            raise InvalidInputError(
                f"got solution={told(solution)}, expected what sample, encode or solve returned, with save='all'"
            )
        ts, xs = (v.detach().to("cpu", torch.float64) for v in (solution.ts, solution.xs))
        if len(ts) < 2:
            raise InvalidInputError(
                f"the solution holds {len(ts)} saved time: a path needs at least 2; pass save='all' (or "
                "times) to the solve"
            )
        if not xs.shape[1]:
            raise InvalidInputError("the solution holds no samples: there is nothing to draw")
        return cls(ts if ts.ndim == 2 else ts[:, None].expand(len(ts), xs.shape[1]), xs, ts.ndim == 1)

    def first(self, n: int | None) -> Path:
        """The first n samples."""
        return self if n is None else Path(self.ts[:, :n], self.xs[:, :n], self.shared)

    def resampled(self, n: int) -> tuple[Tensor, Tensor]:
        """At most n states at times all samples share, ends included: ts (n,), xs (n, B, *event).

        Shared times: states as saved, evenly in their number. Else: at quantiles of all times, linear inside each
            sample's steps.
        """
        if self.shared:
            keep = torch.linspace(0, len(self.ts) - 1, min(n, len(self.ts))).round().long()
            return self.ts[keep, 0], self.xs[keep]
        sign = 1.0 if bool(self.ts[-1, 0] >= self.ts[0, 0]) else -1.0
        clock = (sign * self.ts).T.contiguous()  # (B, S), rising
        every = torch.unique(clock)
        at = every[torch.linspace(0, len(every) - 1, min(n, len(every))).round().long()]
        right = torch.searchsorted(clock, at.expand(clock.shape[0], -1).contiguous()).clamp(
            1, clock.shape[1] - 1
        )  # (B, n)
        left = right - 1
        a, b = clock.gather(1, left), clock.gather(1, right)
        u = ((at - a) / (b - a).clamp_min(1e-300)).clamp(0, 1).T.reshape(len(at), -1, *(1,) * (self.xs.ndim - 2))
        rows = torch.arange(clock.shape[0])
        return sign * at, (1 - u) * self.xs[left.T, rows] + u * self.xs[right.T, rows]


@dataclass(frozen=True)
class Scale:
    """How states are scaled before they are drawn: not, or to the data's scale, x s/sqrt(alpha^2 s^2 + sigma^2)."""

    sde: SDE | None
    s: float

    @classmethod
    def chosen(cls, frame: str, sde: SDE | None, s: float | None, path: Path | None = None) -> Scale:
        """The frame asked for; "auto" is the data's where the process stretches data a lot."""
        if frame not in FRAMES:
            raise InvalidInputError(f"got frame={frame!r}, expected one of {', '.join(map(repr, FRAMES))}")
        if sde is None:
            if frame == "data":
                raise InvalidInputError("frame='data' needs the process: pass sde= (or the model as density=)")
            return cls(None, 1.0)
        if s is None and path is not None:  # of the cleanest states there are
            end = path.xs[-1] if float(path.ts[-1, 0]) < float(path.ts[0, 0]) else path.xs[0]
            s = float(end[torch.isfinite(end)].std())
        s = s if s is not None and 0 < s < float("inf") else 1.0
        full = cls(sde, s)
        stretch = 1 / float(full.factor(torch.tensor(sde.t_max, dtype=torch.float64)))
        return full if frame == "data" or (frame == "auto" and stretch > LARGE) else cls(None, s)

    def factor(self, ts: Tensor) -> Tensor:
        """What a state at t is multiplied by, of ts' shape."""
        if self.sde is None:
            return torch.ones_like(ts)
        inner = ts.clamp(self.sde.t_min, self.sde.t_max)
        factor = self.s / torch.hypot(self.sde.alpha(inner) * self.s, self.sde.sigma(inner))
        return torch.where(ts == 0, 1.0, factor)

    def __call__(self, path: Path) -> np.ndarray:
        """The states of a path as drawn, (S, B, *event)."""
        factor = self.factor(path.ts)
        return (path.xs * factor.reshape(*factor.shape, *(1,) * (path.xs.ndim - 2))).numpy()

    @property
    def words(self) -> str:
        """What the axis says of it."""
        return "" if self.sde is None else " (scaled)"


def array(x: Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return x.detach().to("cpu", torch.float64).numpy()
