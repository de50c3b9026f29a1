"""What a model believes at one (x, t): the clean sample and the noise, and every other quantity as a view of them."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level

from ..core.errors import InvalidInputError
from ..core.kinds import told
from ..core.shapes import ZERO, as_time, check_time, expand, scaled
from ..core.show import Shown
from ..processes import SDE

Coefficient = Any  # a float, or a tensor of t's shape
FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)  # coefficients of x0 and noise where these two are the basis


class Prediction(Shown):
    """The belief (x0, noise) at one (x, t) along a process: x = alpha x0 + sigma noise.

    Every view is a combination p u + q w of two tensors, the basis: (x0, noise) itself, or the input x and the raw
    network output. Their coefficients are combined in float64 before they touch the tensors, so that nothing cancels at
    small or large noise.

        score = -noise/sigma        v = alpha noise - sigma x0        velocity = alpha' x0 + sigma' noise

    Args:
        x0, noise: (B, *event) each.
        sde, t: where; t is a scalar or (B,).

    Source: Salimans & Ho 2022 (arXiv 2202.00512) for v; Lipman et al. 2022 (arXiv 2210.02747) for the velocity.
    """

    __slots__ = ("_basis", "_noise", "_x0", "sde", "t")

    def __init__(self, x0: Tensor, noise: Tensor, sde: SDE, t: float | Tensor) -> None:
        self._basis = _alike(x0, noise)
        self._x0: tuple[Coefficient, Coefficient] = FIRST
        self._noise: tuple[Coefficient, Coefficient] = SECOND
        self.sde, self.t = sde, as_time(t)

    @classmethod
    def spanned(
        cls,
        x: Tensor,
        output: Tensor,
        x0: tuple[Coefficient, Coefficient],
        noise: tuple[Coefficient, Coefficient],
        sde: SDE,
        t: Tensor,
    ) -> Self:
        """x0 = x0[0] x + x0[1] output, noise = noise[0] x + noise[1] output; views are computed when asked for.

        x and output are of one shape and dtype.
        """
        prediction = cls.__new__(cls)
        prediction._basis, prediction._x0, prediction._noise = (x, output), x0, noise
        prediction.sde, prediction.t = sde, t
        return prediction

    @classmethod
    def from_x0(cls, x: Tensor, x0: Tensor, sde: SDE, t: float | Tensor) -> Prediction:
        """From the denoised mean: noise = (x - alpha x0)/sigma."""
        t = _checked_time(sde, t, x, x0)
        level = sde.at(t)
        return cls.spanned(
            *_alike(x, x0), (0.0, 1.0), (1 / some_noise(level.sigma), -level.alpha / level.sigma), sde, t
        )

    @classmethod
    def from_score(cls, x: Tensor, score: Tensor, sde: SDE, t: float | Tensor) -> Prediction:
        """From the score: noise = -sigma score, x0 = (x + sigma^2 score)/alpha."""
        t = _checked_time(sde, t, x, score)
        level = sde.at(t)
        if isinstance(level.alpha, float) and level.alpha == 0:
            raise InvalidInputError(f"at t = {float(t):g} alpha is 0: the score says nothing about x0 there")
        return cls.spanned(
            *_alike(x, score), (1 / level.alpha, level.sigma**2 / level.alpha), (0.0, -level.sigma), sde, t
        )

    def _facts(self):
        return {"x0": self._basis[0], "sde": self.sde, "t": self.t}

    def combine(self, a: Coefficient, b: Coefficient) -> Tensor:
        """a x0 + b noise, (B, *event), with coefficients of t's shape: combine(alpha', sigma') is DDIM's step."""
        (p0, q0), (p1, q1) = self._x0, self._noise
        if self._x0 is FIRST and self._noise is SECOND:
            return _mixed(a, self._basis[0], b, self._basis[1])
        return _mixed(_sum(a, p0, b, p1), self._basis[0], _sum(a, q0, b, q1), self._basis[1])

    def on(self, sde: SDE, t: Tensor) -> Prediction:
        """The same belief as seen from the point of another process that has the same sigma/alpha."""
        return Prediction.spanned(*self._basis, self._x0, self._noise, sde, t)

    @property
    def tracked(self) -> bool:
        """Whether autograd follows all that this belief was made of; False where a network cuts its graph."""
        return all(part.requires_grad for part in self._basis)

    @property
    def x0(self) -> Tensor:
        """The denoised mean E[x_0 | x_t], (B, *event)."""
        return _mixed(self._x0[0], self._basis[0], self._x0[1], self._basis[1])

    @property
    def noise(self) -> Tensor:
        """The mean of the noise given x_t, (B, *event)."""
        return _mixed(self._noise[0], self._basis[0], self._noise[1], self._basis[1])

    @property
    def score(self) -> Tensor:
        """grad_x log p_t(x) = -noise/sigma."""
        return self.combine(0.0, -1 / some_noise(self.sde.at(self.t).sigma))

    @property
    def v(self) -> Tensor:
        """alpha noise - sigma x0."""
        level = self.sde.at(self.t)
        return self.combine(-level.sigma, level.alpha)

    @property
    def velocity(self) -> Tensor:
        """alpha' x0 + sigma' noise, the drift of the probability flow dx/dt."""
        return self.combine(*self.sde.at(self.t).rates)


def _alike(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Both, in one dtype.

    Raises:
        InvalidInputError: they are no tensors, or differ in shape.
    """
    for part in (u, w):
        if not isinstance(part, Tensor):
            raise InvalidInputError(f"got {type(part).__name__} for a part of a prediction: expected a tensor like x")
    if u.shape != w.shape:
        raise InvalidInputError(
            f"got parts of a prediction of shapes {tuple(u.shape)} and {tuple(w.shape)}: expected that of x, twice"
        )
    if u.dtype is w.dtype:
        return u, w
    dtype = torch.promote_types(u.dtype, w.dtype)
    return u.to(dtype), w.to(dtype)


def _sum(a: Coefficient, p: Coefficient, b: Coefficient, q: Coefficient) -> Coefficient:
    """a p + b q of coefficients; what a basis has of x0 and noise, p and q, is often 0 or 1."""
    if isinstance(q, Tensor):
        if isinstance(p, Tensor):
            return torch.addcmul(a * p, b, q) if isinstance(b, Tensor) else a * p + b * q
    elif q == 0.0:
        return a if not isinstance(p, Tensor) and p == 1.0 else a * p
    if not isinstance(p, Tensor) and p == 0.0:
        return b if not isinstance(q, Tensor) and q == 1.0 else b * q
    return (a if not isinstance(p, Tensor) and p == 1.0 else a * p) + b * q


def _mixed(p: Coefficient, u: Tensor, q: Coefficient, w: Tensor) -> Tensor:
    """p u + q w, with the work that zeros and ones make needless left out."""
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        p, q = expand(p, u), expand(q, u)
        return torch.addcmul(p * u, q, w) if isinstance(q, Tensor) else torch.add(p * u, w, alpha=q)
    if q == 0.0:
        return u if p == 1.0 else scaled(p, u)
    if p == 0.0:
        return w if q == 1.0 else scaled(q, w)
    first = torch.add(ZERO, u, alpha=p)  # `scaled` without its call: this is every step's
    return first.add_(w, alpha=q) if maybe_current_level() is None else torch.add(first, w, alpha=q)


def some_noise(sigma: Coefficient) -> Coefficient:
    """sigma at one time or many; where one time has no noise nothing can be divided by it."""
    if isinstance(sigma, float) and sigma == 0:
        raise InvalidInputError("got a time where sigma = 0, expected some noise: a score is -noise/sigma")
    return sigma


def _checked_time(sde: SDE, t: float | Tensor, x: Tensor, output: Tensor) -> Tensor:
    """t as a tensor, once it is known that the other three are what `from_x0` and `from_score` take."""
    if not isinstance(sde, SDE):
        raise InvalidInputError(f"got sde={told(sde)}, expected a process such as VPSDE()")
    t = as_time(t)
    check_time(t, x)
    if not isinstance(output, Tensor) or output.shape != x.shape:
        raise InvalidInputError(
            f"got {told(output)} beside x of shape {tuple(x.shape)}, expected a tensor of its shape"
        )
    return t


def check_prediction(model: Any, belief: Any, *_: Any) -> None:
    """Raise unless it is what a model's `forward` has to return."""
    if not isinstance(belief, Prediction):
        raise InvalidInputError(
            f"{type(model).__name__} returned {told(belief)}, expected a Prediction, such as "
            "Prediction.from_x0(x, x0, self.sde, t)"
        )
