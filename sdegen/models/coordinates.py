"""Better coordinates: a model as a solver sees it, along the circular path and centred, and the way there and back."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.cache import Recent
from ..core.shapes import expand
from ..processes import SDE, VESDE, Crossing, Level, TrigSDE, once, rescaling
from .base import OnPath, ScoreModel

_FAR = 3.0  # of a mean from 0, in standard deviations


@dataclass(frozen=True)
class Coordinates:
    """A model as a solver sees it: possibly along another process, possibly centred.

    The state x at time t of the model's own process is, at the time t' of equal sigma/alpha,
    x' = alpha' (x/alpha - centre), or (sigma'/sigma) x - alpha' centre where alpha may be 0.
    """

    own: SDE
    model: ScoreModel
    centre: Tensor | None = None
    crossing: Crossing | None = None  # None: the model's own

    @classmethod
    def own_of(cls, model: ScoreModel) -> Coordinates:
        """The model's own; around the data's mean where that is far from 0, since steps of low order follow what is
        only moved with an error: of N(300, 5^2) 1000 steps of reverse diffusion end at 296."""
        mean, scale = model.data.mean, model.data.scale
        if mean is None or not bool(mean.abs().max() > _FAR * scale):
            return cls(model.sde, model)
        return cls._once(model, _own)

    @classmethod
    def best_of(cls, model: ScoreModel) -> Coordinates:
        """The circular path of the data's scale around the data's mean."""
        return cls._once(model, _circle)

    @classmethod
    def even_of(cls, model: ScoreModel) -> Coordinates:
        """alpha = 1 and a time in proportion to log(sigma), up to 10,000 standard deviations of the data; centred."""
        return cls._once(model, _even)

    @classmethod
    def _once(cls, model: ScoreModel, path: Callable[[SDE, float], SDE]) -> Coordinates:
        """A path of the data's scale around their mean, made once for what the model knows now."""
        sde, known = model.sde, model.data

        def made() -> Coordinates:
            with torch.inference_mode(False), torch.no_grad():
                return cls._along(model, once(sde, (path, known.scale), lambda: path(sde, known.scale)), known.mean)

        seen: Recent = vars(model).setdefault("_seen_along", Recent(2, _are))
        return seen.of((path, sde, known), made)

    @classmethod
    def _along(cls, model: ScoreModel, sde: SDE, centre: Tensor | None) -> Coordinates:
        if centre is not None and bool((centre == 0).all()):
            centre = None
        moved = OnPath(model, sde, centre)
        return cls(model.sde, moved, centre, moved.crossing)

    def there(self, ts: Any) -> Tensor:
        """Times of the own process in these coordinates."""
        ts = torch.as_tensor(ts, dtype=torch.float64, device="cpu")
        return ts if self.crossing is None else self.crossing.times(ts)

    def back(self, ts: Tensor) -> Tensor:
        """Times in these coordinates as times of the own process."""
        if self.crossing is None or self.model.sde is self.own:
            return ts
        clean = ts == 0
        if bool(clean.all()):
            return ts
        inner = self.own.time(self.model.sde.half_log_snr(ts.clamp_min(self.model.sde.t_min)))
        return torch.where(clean, ts, inner.clamp(self.own.t_min, self.own.t_max))

    def state_there(self, x: Tensor, t: Tensor) -> Tensor:
        """A state at a scalar time t of the own process, in these coordinates."""
        if self.crossing is None:
            return x
        _, ratio, alpha = self.crossing.from_known(t)
        return x * ratio if self.centre is None else x * ratio - alpha * self.centre.to(x)

    def state_back(self, x: Tensor, t: Tensor) -> Tensor:
        """A state at time t (scalar or per sample) of these coordinates, as the own process has it."""
        if self.crossing is None:
            return x
        clean = t == 0
        if bool(clean.all()):  # the data themselves
            return x if self.centre is None else x + self.centre.to(x)
        back = self.back(t)
        ratio = torch.where(clean, 1.0, rescaling(Level(self.model.sde, t), Level(self.own, back)))
        shift = torch.where(clean, 1.0, self.own.alpha(back))
        x = x * expand(ratio, x)
        return x if self.centre is None else x + expand(shift, x) * self.centre.to(x)


def _are(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return all(map(operator.is_, a, b))


def _own(sde: SDE, scale: float) -> SDE:
    return sde


def _circle(sde: SDE, scale: float) -> TrigSDE:
    low, high = _range(sde)
    return TrigSDE(scale, sigma_min=low, sigma_max=high)


def _even(sde: SDE, scale: float) -> VESDE:
    low, high = _range(sde)
    high, t_min = min(high, 1e4 * scale), 1e-3
    rate = math.log(high / low) / (1 - t_min)
    return VESDE(high * math.exp(-rate), high, t_min=t_min)


def _range(sde: SDE) -> tuple[float, float]:
    """The smallest and the largest sigma/alpha."""
    high, low = torch.exp(
        -sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))
    ).tolist()
    return low, high
