"""A process at a time, or at many: alpha, sigma, their derivatives and g, each computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.cache import must_not_cache, rows_of_columns

if TYPE_CHECKING:
    from .base import SDE

_NO_SIGNAL = 1e-7  # alpha/sigma
_FUNCTIONS = {"alpha": "alpha", "sigma": "sigma", "rates": "rates", "g": "diffusion"}


class Level:
    """The coefficients of a process at t: plain floats at one time, tensors of t's shape at many.

    Each is computed when it is first asked for, and kept unless it carries derivatives.

    Attributes:
        t: the time or times.
        alpha, sigma: x_t given x_0 is N(alpha x_0, sigma^2 I).
        rates: (alpha', sigma'), the derivatives in t; also as `d_alpha` and `d_sigma`.
        g: the coefficient of dw.
    """

    __slots__ = ("_sde", "alpha", "g", "rates", "sigma", "t")
    alpha: Any
    sigma: Any
    rates: tuple[Any, Any]
    g: Any

    def __init__(self, sde: SDE | None, t: Any, **known: Any) -> None:
        self._sde, self.t = sde, t
        for name, value in known.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:  # asked only for what is not kept yet
        if name not in _FUNCTIONS:
            raise AttributeError(f"a Level has no {name}")
        value = getattr(type(self._sde), _FUNCTIONS[name]).unchecked(self._sde, self.t)
        if not must_not_cache(value[0] if isinstance(value, tuple) else value):
            setattr(self, name, value)
        return value

    @property
    def used(self) -> bool:
        """Whether any of them is kept."""
        return any(_is_kept(self, name) for name in _FUNCTIONS)

    @property
    def d_alpha(self) -> Any:
        return self.rates[0]

    @property
    def d_sigma(self) -> Any:
        return self.rates[1]


def _is_kept(level: Level, name: str) -> bool:
    try:
        object.__getattribute__(level, name)
    except AttributeError:
        return False
    return True


def without_signal(level: Level) -> bool:
    """Whether somewhere a float32 cannot tell alpha x_0 beside the noise: what is said of it, rounding decides."""
    if not isinstance(level.alpha, Tensor):
        return abs(level.alpha) < _NO_SIGNAL * level.sigma
    return bool((level.alpha.abs() < _NO_SIGNAL * level.sigma).any())


def in_tensors(sde: SDE, t: Tensor) -> Level:
    """The coefficients at t as tensors of its shape and dtype, at one time too: for formulas in torch functions."""
    return sde.at(t) if t.ndim else Level(sde, t)


def levels_of_numbers(levels: Level, ts: Tensor) -> list[Level] | None:
    """The level at every one of ts (S,), in plain floats; None if the process carries derivatives."""
    rows = rows_of_columns((levels.alpha, levels.sigma, *levels.rates, levels.g), ts)
    if rows is None:
        return None
    return [
        Level(None, t, alpha=alpha, sigma=sigma, rates=(d_alpha, d_sigma), g=g)
        for t, (alpha, sigma, d_alpha, d_sigma, g) in zip(ts.tolist(), rows, strict=True)
    ]
