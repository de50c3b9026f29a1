"""Where the belief comes from: ScoreModel, and the same belief along another process."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.cache import CachedFunction, LastAnswer
from ..core.errors import InvalidInputError
from ..core.shapes import as_time, check_time, expand
from ..processes import SDE, Level
from .prediction import Prediction


class ScoreModel(nn.Module):
    """A belief about the data along a process: (x, t, **cond) -> Prediction.

    Subclasses define `forward`; `sdegen.testing.check_model(model)` proves it.

    Attributes:
        sde: the process it lives on.
        data_mean, data_std: the data's mean and standard deviation, scalar or event-shaped tensors, None where unknown.
            Solvers choose their coordinates from them.
        data_covariance: the data's covariance, (d, d) over the flattened event, None where unknown.
        event_shape: the shape of one sample, None where unknown.
        smooth: whether the belief is an analytic function of time, as exact scores are. What networks make of time is
            rougher, and carries lower orders and other steps: solvers that choose these by themselves ask for it. Set
            it where you know better.
    """

    smooth: bool = False
    sde: SDE
    data_mean: Tensor | None
    data_std: Tensor | None
    data_covariance: Tensor | None
    event_shape: tuple[int, ...] | None

    def __init__(
        self,
        sde: SDE,
        *,
        data_mean: float | Tensor | None = None,
        data_std: float | Tensor | None = None,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._size = LastAnswer()  # data_std as one number
        if not isinstance(sde, SDE):
            raise InvalidInputError(f"sde is {sde!r}: pass a process such as VPSDE()")
        self.sde = sde
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.register_buffer("data_mean", None, persistent=False)
        self.register_buffer("data_std", None, persistent=False)
        self.register_buffer("data_covariance", None, persistent=False)
        self.set_statistics(data_mean, data_std)

    @abstractmethod
    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        """The belief at x (B, *event) and t, a scalar or (B,)."""

    def score(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """grad_x log p_t(x), (B, *event)."""
        return self(x, t, **cond).score

    def on(self, sde: SDE) -> ScoreModel:
        """The same belief along another process, narrowed to the noise levels this model knows.

        A belief depends on x/alpha and sigma/alpha alone: at (x', t') of the other process ask this one at the time t
        of equal sigma/alpha and at x = x' alpha(t)/alpha'(t').

        Raises:
            InvalidInputError: the two processes share no noise levels.
        """
        if not isinstance(sde, SDE):
            raise InvalidInputError(f"on() takes a process such as EDMSDE(), not {sde!r}")
        return self if sde is self.sde else _OnPath(self, sde)

    def set_statistics(self, mean: float | Tensor | None, std: float | Tensor | None) -> None:
        """Store the data's mean and standard deviation, scalars or event-shaped."""
        for name, value in (("data_mean", mean), ("data_std", std)):
            if value is None:
                tensor = None
            else:
                try:
                    tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
                except (TypeError, ValueError, RuntimeError) as error:
                    raise InvalidInputError(f"{name} = {value!r}: wanted a number or a tensor") from error
                if not bool(torch.isfinite(tensor).all()) or (
                    name == "data_std" and not bool((tensor >= 0).all() and tensor.max() > 0)
                ):
                    raise InvalidInputError(
                        f"{name} = {value}: wanted finite numbers{', not negative, not all 0' * (name == 'data_std')}"
                    )
                if tensor.ndim and self.event_shape is not None and tuple(tensor.shape) != self.event_shape:
                    raise InvalidInputError(
                        f"{name} has shape {tuple(tensor.shape)}, wanted a scalar or the event shape {self.event_shape}"
                    )
            setattr(self, name, tensor)

    def _apply(self, fn: Any, recurse: bool = True) -> ScoreModel:
        """Move like any module, but keep what is known of the data in float64: half() changes no coefficient."""
        known = {name: getattr(self, name) for name in vars(self)["_buffers"] if name.startswith("data_")}
        super()._apply(fn, recurse)
        for name, value in known.items():
            if value is not None and value.dtype == torch.float64:
                setattr(self, name, value.to(getattr(self, name).device))
        return self

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation as one number: the root mean square of `data_std`, 1 where unknown."""
        std = self.data_std
        if std is None:
            return 1.0
        known = self._size.of(std)  # asked for at every call
        if known is None:
            known = float(std.double().square().mean().sqrt())
            self._size.keep(std, known)
        return known

    def warm(self, ts: Tensor) -> None:
        """Compute the coefficients at all of these times in one go, before a fixed grid is walked."""
        self.sde.warm(ts)

    def condition_names(self) -> set[str] | None:
        """The words this model takes as conditions; None: any."""
        return _words(self.forward)

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        """Raise on a word that the model does not take, and on a tensor whose first axis is not the batch."""
        known = self.condition_names()
        for name, value in cond.items():
            if known is not None and name not in known:
                takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
                raise InvalidInputError(f"condition {name!r} is unknown to the model: {takes}")
            if isinstance(value, Tensor) and (value.ndim == 0 or value.shape[0] != batch):
                raise InvalidInputError(
                    f"condition {name!r} has shape {tuple(value.shape)} for {batch} samples: tensors are per sample, "
                    f"({batch}, ...); pass a Python number for a value that all share"
                )


class Centred(ScoreModel):
    """A model's belief about x0 - mean: the state is x - alpha mean, the data's mean 0.

    Solvers that are exact for centred Gaussian data become exact for any.
    """

    def __init__(self, model: ScoreModel, mean: Tensor) -> None:
        super().__init__(
            model.sde, data_mean=torch.zeros_like(mean), data_std=model.data_std, event_shape=model.event_shape
        )
        self.data_covariance, self.smooth = model.data_covariance, model.smooth
        self.model = model
        self.register_buffer("centre", mean, persistent=False)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        t = as_time(t)
        centre = self.centre.to(x)
        prediction = self.model(x + expand(self.sde.at(t).alpha, x) * centre, t, **cond)
        return Prediction(prediction.x0 - centre, prediction.noise, self.sde, t)

    def warm(self, ts):
        self.model.warm(ts)

    def condition_names(self):
        return self.model.condition_names()


class _OnPath(ScoreModel):
    """A model's belief along another process: see `ScoreModel.on`."""

    def __init__(self, model: ScoreModel, sde: SDE) -> None:
        known = model.sde
        levels = known.half_log_snr(torch.tensor([known.t_min, known.t_max], dtype=torch.float64))
        own = sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
        if not (levels[0] > own[1] and levels[1] < own[0]):
            raise InvalidInputError(
                f"{sde} has half log-SNR from {float(own[1]):.3g} to {float(own[0]):.3g}, but the model knows only "
                f"{float(levels[1]):.3g} to {float(levels[0]):.3g}: the two share no noise level"
            )
        t_min = sde.t_min if levels[0] >= own[0] else float(sde.time(levels[0]))
        t_max = sde.t_max if levels[1] <= own[1] else float(sde.time(levels[1]))
        super().__init__(
            sde.narrowed(t_min, t_max),
            data_mean=model.data_mean,
            data_std=model.data_std,
            event_shape=model.event_shape,
        )
        self.data_covariance, self.smooth = model.data_covariance, model.smooth
        self.model = model
        self._map = CachedFunction(self._evaluate_map)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        there, ratio = self._map(t)
        return self.model(x * expand(ratio, x), as_time(there), **cond).on(self.sde, t)

    def on(self, sde):
        return self.model.on(sde.narrowed(*self._shared_range(sde))) if sde is not self.model.sde else self.model

    def _shared_range(self, sde: SDE) -> tuple[float, float]:
        ends = self.sde.half_log_snr(torch.tensor([self.sde.t_min, self.sde.t_max], dtype=torch.float64))
        return float(sde.time(ends[0])), float(sde.time(ends[1]))

    def warm(self, ts):
        super().warm(ts)
        self._map.warm(ts)
        self.model.warm(
            torch.tensor([self._map(t)[0] for t in ts.detach().to("cpu", torch.float64)], dtype=torch.float64)
        )

    def condition_names(self):
        return self.model.condition_names()

    def _evaluate_map(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The model's time of equal sigma/alpha, kept inside its range against rounding, and the factor on x."""
        at = self.sde.at(t.to(torch.float64))
        there = self.model.sde.at_ratio(at.sigma / at.alpha)
        return there.t, _rescaling(at, there)


def rescaling(sde: SDE, t: Tensor, other: SDE, there: Tensor) -> Tensor:
    """alpha_there/alpha = sigma_there/sigma for times of equal sigma/alpha."""
    return _rescaling(Level(sde, t), Level(other, there))


def _rescaling(here: Level, there: Level) -> Tensor:
    """By the sums: alpha alone may be 0."""
    return (there.alpha + there.sigma) / (here.alpha + here.sigma)


def _words(function: Any) -> set[str] | None:
    """The keywords a forward function takes beyond (x, t); None where it takes any."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters[2:] if p.kind is not p.VAR_POSITIONAL}
