"""One process seen from another: their times of equal sigma/alpha, and what is between their states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.cache import CachedFunction, LastAnswer
from ..core.errors import InvalidInputError
from .base import SDE, once
from .level import Level


class Crossing:
    """The way between a process and another one, as far as both have the same noise levels.

    At times t and t' of equal sigma/alpha their states are x and x' = r x, r = alpha'/alpha = sigma'/sigma.

    Args:
        sde: the process that a state is asked about on.
        known: the one whose noise levels count.

    Attributes:
        sde: the first, narrowed to the noise levels of the second; of a process and itself that, times to the bit.
        to_known: t of `sde` -> (t', r, alpha') of `known`, t' kept inside its range against rounding.
        from_known: t of `known` -> (t', r, alpha') of `sde`, the same.

    Raises:
        InvalidInputError: the two processes share no noise level.
    """

    def __init__(self, sde: SDE, known: SDE) -> None:
        self.sde, self.known = known if sde is known else _narrowed(sde, known), known
        self.to_known = CachedFunction(self._to_known)
        self.from_known = CachedFunction(self._from_known)
        self._grid = LastAnswer()

    @classmethod
    def between(cls, sde: SDE, known: SDE) -> Crossing:
        """The one of these two, made once."""
        return once(known, ("crossing", sde), lambda: cls(sde, known))

    def times(self, ts: Tensor) -> Tensor:
        """Times of `known`, 0 among them or not, as times of `sde`; nobody may write into them."""
        there = self._grid.of(ts)
        if there is None:
            with torch.inference_mode(False), torch.no_grad():
                there = torch.where(ts == 0, ts, self._time(ts.clamp(self.known.t_min, self.known.t_max)))
            self._grid.keep(ts, there)
        return there

    def warm(self, ts: Tensor) -> Tensor:
        """Compute what is asked at times of `sde` in one go; these as times of `known`."""
        self.sde.warm(ts)
        there = [row[0] for row in self.to_known.of_several(ts.detach())]
        return torch.tensor(there, dtype=torch.float64, device="cpu")

    def _time(self, t: Tensor) -> Tensor:
        if self.sde is self.known:
            return t
        return self.sde.time(self.known.half_log_snr(t)).clamp(self.sde.t_min, self.sde.t_max)

    def _from_known(self, t: Tensor) -> tuple[Tensor, Any, Any]:
        there = Level(self.sde, self._time(t.clamp(self.known.t_min, self.known.t_max)))
        return there.t, rescaling(Level(self.known, t), there), there.alpha

    def _to_known(self, t: Tensor) -> tuple[Tensor, Any, Any]:
        at = self.sde.at(t.to(torch.float64))
        there = at if self.sde is self.known else self.known.at_ratio(at.sigma / at.alpha)
        return there.t, rescaling(at, there), there.alpha


def rescaling(here: Level, there: Level) -> Any:
    """alpha'/alpha = sigma'/sigma at two levels of equal sigma/alpha: by the sums, since alpha alone may be 0."""
    return (there.alpha + there.sigma) / (here.alpha + here.sigma)


def _narrowed(sde: SDE, known: SDE) -> SDE:
    """A process, as far as its noise levels are those of another one."""
    levels = known.half_log_snr(torch.tensor([known.t_min, known.t_max], dtype=torch.float64, device="cpu"))
    own = sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device="cpu"))
    if not (levels[0] > own[1] and levels[1] < own[0]):
        raise InvalidInputError(
            f"{sde} has half log-SNR from {float(own[1]):.3g} to {float(own[0]):.3g}, but the model knows only "
            f"{float(levels[1]):.3g} to {float(levels[0]):.3g}: the two share no noise level"
        )
    t_min = sde.t_min if levels[0] >= own[0] else float(sde.time(levels[0]))
    t_max = sde.t_max if levels[1] <= own[1] else float(sde.time(levels[1]))
    return sde.narrowed(t_min, t_max)
