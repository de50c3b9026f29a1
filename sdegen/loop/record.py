"""The states that a solve keeps on its way, and interpolation inside a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.shapes import expand
from ..solvers import Step

NEAR = 1e-9  # times closer than this, relatively, are the same


class SharedPath:
    """The saved states of a run whose samples share their times.

    Args:
        save: "last", "all" or times.
        t, x: where the run starts.

    Attributes:
        whole: whether it needs every step; else the last one will do.
    """

    def __init__(self, save: str | Tensor, t: Tensor, x: Tensor) -> None:
        self._all = isinstance(save, str) and save == "all"
        self._wanted = save if isinstance(save, Tensor) else torch.empty(0, dtype=torch.float64, device="cpu")
        self._at_times = isinstance(save, Tensor)
        self.whole = self._all or self._at_times  # or its end alone
        self._ts, self._xs = [t], [x]
        self._at: dict[int, Tensor] = {i: x for i, s in enumerate(self._wanted.tolist()) if _same(s, t)}
        self._open: tuple[Tensor, Tensor, Tensor, Step, list[int]] | None = None

    def add(self, t: Tensor, t_next: Tensor, x: Tensor, step: Step) -> None:
        """Note the step from (x, t) to t_next."""
        if self._all:
            self._ts.append(t_next)
            self._xs.append(step.x)
        else:
            self._ts, self._xs = [t_next], [step.x]
        if self._at_times:
            self._close(step)
            a, b = sorted((float(t), float(t_next)))
            near = NEAR * b
            inside = [i for i, s in enumerate(self._wanted.tolist()) if i not in self._at and a - near <= s <= b + near]
            if inside:
                self._open = (t, t_next, x, step, inside)

    def end_at(self, x: Tensor) -> None:
        """The last state was changed after its step."""
        if x is self._xs[-1]:
            return
        self._xs[-1] = x
        if self._open is not None:
            t, t_next, before, _, inside = self._open
            self._open = (t, t_next, before, Step(x), inside)

    def denoised(self, x: Tensor, t: Tensor, x0: Tensor) -> None:
        """Note the final denoising, from (x, t) to (x0, 0): between them the path is a straight line."""
        self.add(t, torch.zeros_like(t), x, Step(x0))

    def saved(self, t_end: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """(ts, xs) at the end of the run, at x."""
        if not self.whole:
            return self._ts[0][None], x[None]
        if self._all:
            return torch.stack(self._ts), torch.stack(self._xs)
        self._close(None)
        return self._wanted, torch.stack([self._at[i] for i in range(len(self._wanted))])

    def _close(self, following: Step | None) -> None:
        """Interpolate inside the step that is open, now that the slope at its end may be known."""
        if self._open is None:
            return
        t, t_next, x, step, inside = self._open
        slope, slope_next = _value(step.slope), step.slope_next
        if slope_next is None and slope is not None and following is not None:
            slope_next = _value(following.slope)
        for i in inside:
            self._at[i] = interpolate(self._wanted[i], t, t_next, x, step.x, slope, slope_next=slope_next)
        self._open = None


class OwnPath:
    """The saved states of samples that step on their own.

    Args:
        save: "last", "all" or times.
        t, x: where the run starts, (B,) and (B, *event).
    """

    def __init__(self, save: str | Tensor, t: Tensor, x: Tensor) -> None:
        self._save = save
        rows = torch.arange(x.shape[0], device=x.device)
        self._records = [(rows, t, x)]
        self._at = x[None].repeat(len(save), *(1,) * x.ndim) if isinstance(save, Tensor) else None

    def add(self, rows: Tensor, accept: Tensor, t: Tensor, t_next: Tensor, x: Tensor, step: Step) -> None:
        """Note the accepted ones among steps from (x, t) to t_next of the samples `rows`."""
        if isinstance(self._save, str):
            if self._save == "all":
                self._records.append((rows[accept], t_next[accept], step.x[accept]))
            return
        slope = _value(step.slope)
        low, high = torch.minimum(t, t_next), torch.maximum(t, t_next)
        for i, s in enumerate(self._save.to(t.device)):
            inside = accept & (low * (1 - NEAR) <= s) & (s <= high * (1 + NEAR))
            if bool(inside.any()):
                x_s = interpolate(s, t, t_next, x, step.x, slope, slope_next=step.slope_next)
                self._at[i, rows[inside]] = x_s[inside]  # type: ignore[index]

    def denoised(self, x: Tensor, t: Tensor, x0: Tensor) -> None:
        """Note the final denoising, from (x, t) to (x0, 0): between them the path is a straight line."""
        rows = torch.arange(x.shape[0], device=x.device)
        if self._at is not None and isinstance(self._save, Tensor):
            for i, s in enumerate(self._save.tolist()):
                if s < float(t):
                    self._at[i] = x0 + s / float(t) * (x - x0)
        elif self._save == "all":
            self._records.append((rows, torch.zeros(len(rows), dtype=torch.float64, device=x.device), x0))

    def saved(self, t_end: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """(ts, xs) at the end of the run, at x."""
        if self._at is not None and isinstance(self._save, Tensor):
            return self._save, self._at
        if self._save == "last":
            return torch.tensor([t_end], dtype=torch.float64, device="cpu"), x[None]
        lengths = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        places = []
        for rows, _, _ in self._records:
            places.append(lengths[rows])
            lengths[rows] += 1
        s = int(lengths.max())
        ts = torch.zeros(s, x.shape[0], dtype=torch.float64, device=x.device)
        xs = x.new_zeros(s, *x.shape)
        for place, (rows, t, x_rows) in zip(places, self._records, strict=True):
            ts[place, rows], xs[place, rows] = t, x_rows
        for k in range(1, s):  # short paths repeat their end
            short = lengths <= k
            ts[k, short], xs[k, short] = ts[k - 1, short], xs[k - 1, short]
        return ts, xs


def interpolate(
    s: Tensor, t: Tensor, t_next: Tensor, x: Tensor, x_next: Tensor, slope: Tensor | None, *, slope_next: Tensor | None
) -> Tensor:
    """The state at time s inside a step: cubic Hermite where both slopes are known, quadratic with one, else linear.

    Times are scalars or (B,).
    """
    h = t_next - t
    u = ((s - t) / h).clamp(0, 1)
    line = torch.lerp(x, x_next, torch.as_tensor(expand(u, x), dtype=x.dtype, device=x.device))  # exact at both ends
    if slope is None:
        return line
    chord = (x_next - x) / expand(h, x)
    bend = expand(h * u * (1 - u), x)
    if slope_next is None:
        return line + bend * (slope - chord)
    return line + bend * (expand(1 - u, x) * (slope - chord) - expand(u, x) * (slope_next - chord))


def _value(slope: Any) -> Tensor | None:
    return slope() if callable(slope) else slope  # pyright: ignore


def _same(s: float, t: Tensor) -> bool:
    return abs(s - float(t)) <= NEAR * abs(float(t))
