"""A process at one time, or at many: alpha, sigma, their derivatives and g, each computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..core.cache import carries

if TYPE_CHECKING:
    from .base import SDE


class Level(NamedTuple):
    """A process at one time: alpha, sigma, their derivatives in t, and g, all computed and remembered."""

    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any
    g: Any

    @property
    def rates(self) -> tuple[Any, Any]:
        return self.d_alpha, self.d_sigma


class LevelsOf:
    """A process at times of any shape: as `Level`, but tensors, every one computed when first asked for."""

    __slots__ = ("_known", "_sde", "t")

    def __init__(self, sde: SDE, t: Tensor, **known: Tensor) -> None:
        self._sde, self.t = sde, t
        self._known: dict[str, Any] = known

    def _once(self, name: str, function: Callable[[Tensor], Any]) -> Any:
        value = function(self.t)
        if not carries(value[0] if isinstance(value, tuple) else value):
            self._known[name] = value
        return value

    @property
    def alpha(self) -> Tensor:
        return self._known["alpha"] if "alpha" in self._known else self._once("alpha", self._sde.alpha)

    @property
    def sigma(self) -> Tensor:
        return self._known["sigma"] if "sigma" in self._known else self._once("sigma", self._sde.sigma)

    @property
    def rates(self) -> tuple[Tensor, Tensor]:
        return self._known["rates"] if "rates" in self._known else self._once("rates", self._sde.rates)

    @property
    def d_alpha(self) -> Tensor:
        return self.rates[0]

    @property
    def d_sigma(self) -> Tensor:
        return self.rates[1]

    @property
    def g(self) -> Tensor:
        return self._known["g"] if "g" in self._known else self._once("g", self._sde.diffusion)
