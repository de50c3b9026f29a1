"""One condition for the coarse, another for the fine: what a model hears may change at a noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import number
from ...core.errors import InvalidInputError
from ...core.shapes import as_time, check_time
from ..base import ScoreModel, Wrapped
from ..prediction import Prediction


class Switched(Wrapped):
    """A model whose conditions change below a noise level: one set decides the layout, at high noise, and another the
    detail, at low noise (style mixing).

    Args:
        model: the belief.
        level: the noise level sigma/alpha; at it and below the second set is used.
        below: the conditions that change, as {"label": "style"}: the result takes both `label` and `style`, and below
            the level gives `style` to `model` as its `label`.

    Raises:
        InvalidInputError: a level that is no positive number, names that are no conditions of the model or taken
            already; before the first call, one of a pair without the other.

    Source: Karras et al. 2019 (arXiv 1812.04948) section 3.1 for the idea, there by the layers of a generator.

    Example:
        >>> import torch, sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0, -0.1], [-1.0, 0.1], [1.0, -0.1], [1.0, 0.1]], std=0.03)
        >>> model = sg.MixtureModel(mixture, sg.VPSDE(), labels=[0, 0, 1, 1])
        >>> switched = sg.Switched(model, 0.1, {"label": "style"})
        >>> found = sg.sample(switched, 2, rtol=1e-2, label=torch.tensor([0, 1]), style=torch.tensor([-1, -1]))
        >>> found.x[:, 0].round().tolist()
        [-1.0, 1.0]
    """

    conditioned = True  # type: ignore[assignment]

    def __init__(self, model: ScoreModel, level: float, below: Mapping[str, str]) -> None:
        super().__init__(model, covariance=None)
        self.level = number(level, "level", "a noise level sigma/alpha above 0")
        if self.level <= 0:
            raise InvalidInputError(f"got level={level!r}, expected a noise level sigma/alpha above 0")
        names = model.condition_names()
        if not isinstance(below, Mapping) or not below or not all(isinstance(v, str) for v in below.values()):
            raise InvalidInputError(f'got below={below!r}, expected names of conditions, such as {{"label": "style"}}')
        for name, other in below.items():
            if names is not None and (name not in names or other in names):
                raise InvalidInputError(
                    f"got below={dict(below)}, expected a condition of the model, {sorted(names)}, and a new name"
                )
        self.below = dict(below)

    def _facts(self):
        return {**super()._facts(), "level": self.level, "below": self.below}

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        fine = self.sde.half_log_snr(t) >= -math.log(self.level) - 1e-12
        return self.model(x, t, **self._heard(cond, fine))

    def _heard(self, cond: Mapping[str, Any], fine: Tensor) -> dict[str, Any]:
        """The model's own conditions, at one time or at each sample's."""
        heard = {name: value for name, value in cond.items() if name not in self.below.values()}
        for name, other in self.below.items():
            if other not in cond:
                continue
            above, under = cond[name], cond[other]
            if fine.ndim and isinstance(above, Tensor):
                chosen = fine.to(above.device).reshape(-1, *(1,) * (above.ndim - 1))
                heard[name] = torch.where(chosen, under, above)
            else:
                heard[name] = under if bool(fine.all()) else above
        return heard

    def breaks(self) -> tuple[float, ...]:
        return tuple(sorted({self.level, *self.model.breaks()}))

    def settled(self, x0: Tensor, /, **cond: Any) -> Tensor:
        return self.model.settled(x0, **self._heard(cond, torch.tensor(True)))

    def condition_names(self) -> set[str] | None:
        names = self.model.condition_names()
        return None if names is None else names | set(self.below.values())

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        super().check_conditions(cond, batch)
        for name, other in self.below.items():
            if (name in cond) != (other in cond):
                got, missing = (name, other) if name in cond else (other, name)
                raise InvalidInputError(f"got {got}= without {missing}=, expected both, of the same kind")
            if name in cond:
                a, b = cond[name], cond[other]
                if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape):
                    raise InvalidInputError(
                        f"got {name}= and {other}= of different kinds, expected tensors of one shape"
                    )
        for fine in (True, False):
            self.model.check_conditions(self._heard(cond, torch.tensor(fine)), batch)
