"""What a run remembers of its steps: the loss, by noise level too, and the steps that failed."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import NonFiniteError, warn
from ..core.shapes import numbers as listed
from ..core.show import Shown, curves
from ..processes import SDE

_BINS = 24
_EVERY = 8  # steps between those whose losses are sorted by level
_KEPT = 1 - _EVERY / 1000  # from one of these to the next: the loss by level looks back over about a thousand steps
_MOST_FAILURES = 10  # in a row


@dataclass(frozen=True)
class LossByLevel:
    """The loss of the last thousand steps or so, by noise level.

    Attributes:
        edges: (K + 1,) half log-SNR, rising: from noise to data; (0,) for a module that is no model of scores, K = 0.
        loss: (K,) mean loss of the samples between two edges; NaN where there were none.
        count: (K,) how many samples a mean is made of (of every eighth step), older ones counting less.
    """

    edges: Tensor
    loss: Tensor
    count: Tensor


@dataclass(frozen=True, repr=False)
class History(Shown):
    """What `fit` gives back.

    Attributes:
        loss: (steps,) mean loss of each step's batch, float64; NaN where the step was skipped.
        loss_by_level: the loss by noise level.
        skipped: steps, counted from 0, that were left out because their loss or gradient was not finite.
        seed: of the run.
        statistics: whether data_mean and data_std were measured, measured again or kept, in words; and whether the
            model was found smooth in time, where that was measured, with the evaluations it took.
    """

    loss: Tensor
    loss_by_level: LossByLevel
    skipped: list[int]
    seed: int
    statistics: str = ""

    def _facts(self):
        last = self.loss[-max(1, len(self.loss) // 10) :]
        return {
            "steps": len(self.loss),
            "last_loss": float(last.nanmean()),
            "skipped": len(self.skipped),
            "seed": self.seed,
            "statistics": self.statistics or None,
        }

    def _picture(self):
        return curves(self.loss)


class Step(NamedTuple):
    """What a step leaves behind, still on its device: nothing here has been waited for."""

    losses: Tensor  # (B,)
    t: Tensor | None  # () or (B,), the times the model was asked at
    mean: Tensor  # ()
    gradient_norm: Tensor  # ()
    failed: Tensor  # (), 1 where loss or gradient was not finite
    numbers: Tensor | None  # (B,), which samples of the data


class Recorder:
    """Collects steps and evaluates many at once, so that the loop neither computes for it nor waits for the device."""

    def __init__(self, sde: SDE | None) -> None:
        bins = 0 if sde is None else _BINS
        self.edges = self.times = torch.empty(0, dtype=torch.float64, device="cpu")
        if sde is not None:
            self._take_levels(sde)
        self.sums, self.counts = np.zeros(bins), np.zeros(bins)
        self.loss, self.gradient_norm = array("d"), array("d")
        self.skipped: list[int] = []
        self.failures = 0  # in a row
        self._waiting: list[Step] = []

    def _take_levels(self, sde: SDE) -> None:
        """The edges of the bins of noise levels, evenly over those of a process."""
        levels = sde.half_log_snr(torch.linspace(sde.t_min, sde.t_max, 1025, dtype=torch.float64, device="cpu"))
        levels = levels[torch.isfinite(levels)]
        self.edges = torch.linspace(float(levels[-1]), float(levels[0]), _BINS + 1, dtype=torch.float64, device="cpu")
        self.times = sde.time(self.edges[1:-1].flip(0))  # the same edges as times, rising: from data to noise

    def __len__(self) -> int:
        """How many steps wait to be evaluated."""
        return len(self._waiting)

    def add(self, step: Step) -> None:
        self._waiting.append(step)

    def evaluate(self, seed: int) -> None:
        """Take in the waiting steps.

        Warns:
            RuntimeWarning: names a step, its times and samples, that was not finite.

        Raises:
            NonFiniteError: ten steps in a row were not.
        """
        steps, self._waiting = self._waiting, []
        if not steps:
            return
        first = len(self.loss)
        columns = zip(*((s.mean, s.gradient_norm, s.failed) for s in steps), strict=True)
        means, norms, failed = torch.stack([torch.stack(column).double() for column in columns]).tolist()
        self.gradient_norm.extend(norms)
        self._add_levels([s for i, s in enumerate(steps) if not failed[i] and (first + i) % _EVERY == 0])
        for i, bad in enumerate(failed):
            self.loss.append(math.nan if bad else means[i])
            self.failures = self.failures + 1 if bad else 0
            if not bad:
                continue
            self.skipped.append(first + i)
            what = _failure(first + i, steps[i])
            if self.failures == _MOST_FAILURES:
                raise NonFiniteError(
                    f"{_MOST_FAILURES} steps in a row were not finite, at last {what}. The weights are those from "
                    "before; look at these samples, or take a smaller lr or clip",
                    partial=self.history(seed),
                )
            warn(f"{what}: the step was skipped", RuntimeWarning)

    def history(self, seed: int) -> History:
        """As it stands."""
        return History(self._losses(), self.levels(), list(self.skipped), seed)

    def levels(self) -> LossByLevel:
        """The loss by noise level, as it stands."""
        with np.errstate(invalid="ignore"):
            loss = torch.from_numpy(self.sums / self.counts)
        return LossByLevel(self.edges, loss, torch.from_numpy(self.counts.copy()))

    def _losses(self) -> Tensor:
        return torch.from_numpy(np.array(self.loss))

    def _add_levels(self, steps: list[Step]) -> None:
        """Sums by level: step after step, so that it makes no difference which steps were evaluated together."""
        steps = [step for step in steps if step.t is not None]
        if not steps:
            return
        losses = torch.cat([step.losses for step in steps]).double()
        times = torch.cat([_times_of(step) for step in steps])
        row = torch.cat([torch.full_like(step.losses, i, dtype=torch.int64) for i, step in enumerate(steps)])
        cell = _BINS * row + _BINS - 1 - torch.bucketize(times, self.times.to(times.device))
        weights = (losses, torch.ones_like(losses))
        both = [torch.bincount(cell, weights=w, minlength=_BINS * len(steps)) for w in weights]
        sums, counts = torch.stack(both).reshape(2, -1, _BINS).cpu().numpy()
        for own_sums, own_counts in zip(sums, counts, strict=True):
            self.sums = _KEPT * self.sums + own_sums
            self.counts = _KEPT * self.counts + own_counts

    # ---- what a checkpoint keeps of it

    def tensors(self) -> dict[str, Tensor]:
        levels = {"history.sums": self.sums, "history.counts": self.counts} if len(self.sums) else {}
        return {"history.loss": self._losses(), **{name: torch.from_numpy(kept) for name, kept in levels.items()}}

    def restore(self, tensors: dict[str, Tensor], failures: int) -> None:
        self.loss = array("d", tensors["history.loss"].tolist())
        self.gradient_norm = array("d", [math.nan] * len(self.loss))
        if len(self.sums):
            self.sums, self.counts = (tensors[f"history.{name}"].numpy().copy() for name in ("sums", "counts"))
        self.skipped = [i for i, loss in enumerate(self.loss) if math.isnan(loss)]
        self.failures = failures


def _times_of(step: Step) -> Tensor:
    """(B,) float64, beside the losses."""
    t = torch.tensor(math.nan, device="cpu") if step.t is None else step.t
    return t.to(step.losses.device, torch.float64).expand(len(step.losses))


def _failure(at: int, step: Step) -> str:
    """Which step, times and samples were not finite."""
    bad = (~torch.isfinite(step.losses)).nonzero().flatten().cpu()
    t = _times_of(step).cpu()
    if not len(bad):
        low, high = (t.min(), t.max()) if len(t) else (math.nan, math.nan)
        return f"step {at}: the gradient is not finite, though the loss is, at t = {low:.4g} to {high:.4g}"
    times = ", ".join(f"{float(u):.4g}" for u in t[bad][:8]) + ", ..." * (len(bad) > 8)
    samples = bad if step.numbers is None else step.numbers[bad]
    return f"step {at}: the loss is not finite for samples {listed(samples)} at t = {times}"
