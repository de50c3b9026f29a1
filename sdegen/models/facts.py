"""What is known of the data: one value that travels with a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import kind_of, take, told
from ..core.roots import find_root
from ..core.show import Shown
from ..distributions.gaussian import Gaussian, flat_mean

_SHAPE, _TENSOR = kind_of(tuple[int, ...] | None), kind_of(Tensor)


@dataclass(frozen=True, eq=False, repr=False)
class DataFacts(Shown):
    """What is known of the data whose score a model gives; `model.data` is one.

    Solvers choose their coordinates, grids and orders from it, samples start from it, and log-densities are measured
    from it. Make another one with `facts.but(mean=..., smooth=...)`.

    Attributes:
        mean, std: scalar or event-shaped, float64; None where unknown.
        covariance: (d, d) over the flattened event, None where unknown.
        event_shape: the shape of one sample, None where unknown.
        smooth: whether the belief is an analytic function of time, as exact scores are. Networks are taken not to be.
        turn: the noise level sigma/alpha at which the best linear guess of x0 explains half of the data's variance, see
            `turning_level`; None where unknown.

    Raises:
        InvalidInputError: numbers that are not finite, a negative or vanishing standard deviation, other shapes than
            the event's.
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    covariance: Tensor | None = None
    event_shape: tuple[int, ...] | None = None
    smooth: bool = False
    turn: Tensor | None = None

    def __post_init__(self) -> None:
        shape = take(self.event_shape, "event_shape", _SHAPE)
        object.__setattr__(self, "event_shape", shape)
        for name in ("mean", "std", "covariance", "turn"):
            object.__setattr__(self, name, statistic(name, getattr(self, name), shape))
        object.__setattr__(self, "_decomposed", _Decomposed(self.covariance))

    def _facts(self):
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def but(self, **changed: Any) -> DataFacts:
        """The same facts but for these, by the names above or by those that a model gives them (`data_mean` ...)."""
        named = {name.removeprefix("data_"): value for name, value in changed.items()}
        known = [f.name for f in fields(self)]
        for name in named:
            if name not in known:
                raise InvalidInputError(f"got {name!r}, expected what can be known of data: {', '.join(known)}")
        facts = replace(self, **named)
        if facts.covariance is self.covariance:  # every view of a model has facts of its own, and this takes long
            object.__setattr__(facts, "_decomposed", vars(self)["_decomposed"])
        return facts

    @cached_property
    def centred(self) -> DataFacts:
        """Those of the data minus their mean."""
        return self if self.mean is None else self.but(mean=torch.zeros_like(self.mean))

    @cached_property
    def scale(self) -> float:
        """The data's standard deviation as one number: the root mean square of `std`, 1 where unknown."""
        return 1.0 if self.std is None else float(self.std.double().square().mean().sqrt())

    @cached_property
    def turning(self) -> float | None:
        """The noise level at which half of the data is told: `turn`, or that of the covariance; None where unknown."""
        if self.turn is not None:
            return float(self.turn)
        if self.covariance is not None:
            return turning_level(vars(self)["_decomposed"].law.variances) or None
        return None

    @cached_property
    def reference(self) -> Gaussian:
        """The data's mean with its covariance or, where that is unknown, its standard deviation (1 at worst)."""
        if self.covariance is not None:
            return replace(vars(self)["_decomposed"].law, mean=flat_mean(self.mean))
        return Gaussian.of_variances(torch.tensor(self.scale**2, dtype=torch.float64, device="cpu"), self.mean)

    @cached_property
    def law(self) -> Gaussian:
        """The data's mean with its covariance or, where that is unknown, each coordinate's variance (1 at worst)."""
        if self.covariance is not None or self.std is None:
            return self.reference
        return Gaussian.of_variances(self.std.double() ** 2, self.mean)

    @cached_property
    def prior(self) -> Gaussian:
        """The data's law as samples and log-densities take it at t_max: `law`, or a point where no spread is known."""
        if self.std is None:
            return Gaussian.of_variances(torch.zeros((), dtype=torch.float64, device="cpu"), self.mean)
        return self.law


class _Decomposed:
    """A covariance and, once it is asked for, its Gaussian around 0."""

    def __init__(self, covariance: Tensor | None) -> None:
        self._covariance = covariance

    @cached_property
    def law(self) -> Gaussian:
        return Gaussian.of_covariance(self._covariance)  # type: ignore[arg-type]


def turning_level(variances: Tensor) -> float:
    """The noise level sh = sigma/alpha at which half of the data is told by x, 0 for data without spread.

    Told is what the best linear guess D of x0 knows, E|D - mean|^2, in the end tr C. Along a principal axis of variance
    c it is c^2/(c + sh^2), so that at this level

        sum_i c_i^2/(c_i + sh^2) = sum_i c_i/2.

    It is s for N(0, s^2 I), and far above that where much of the data lies along few axes, as with pictures. Of
    mixtures and for networks a nonlinear guess tells half at 0.9 to 1.4 times this level.

    Args:
        variances: (r,) c_i, at least 0.
    """
    c = variances.detach().double().flatten().clamp_min(0)
    if not bool(c.sum() > 0):
        return 0.0
    low, high = (0.5 * f(c[c > 0]).log().reshape(1) for f in (torch.min, torch.max))

    def untold(log_level: Tensor) -> Tensor:
        return (c / (1 + c * torch.exp(-2 * log_level))).sum(0, keepdim=True) / c.sum()

    return float(find_root(untold, torch.tensor([0.5], dtype=c.dtype, device=c.device), low, high).exp())


def spread_out(x0: Tensor) -> Tensor:
    """As many of the samples, evenly from all of them, as principal axes are worth: 32 to 512, 2^24 numbers at most."""
    most = min(max(2**24 // max(x0[:1].numel(), 1), 32), 512)
    return x0[torch.linspace(0, len(x0) - 1, min(len(x0), most), device="cpu").round().long()]


def turning_of(x0: Tensor) -> float:
    """The turning level of samples (n, *event), by the variances along their principal axes."""
    x = x0.detach().reshape(len(x0), -1)
    columns = max(2**21 // max(len(x), 1), 1)
    if len(x) < x.shape[1]:
        gram = sum(part @ part.T for part in map(_centred, x.split(columns, 1)))
    else:
        gram = (centred := _centred(x)).T @ centred
    return turning_level(torch.linalg.eigvalsh(gram / max(len(x), 1)))


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def statistic(name: str, value: Any, event_shape: Sequence[int] | None) -> Tensor | None:
    """A mean, standard deviation or covariance, checked, in float64."""
    if value is None:
        return None
    try:
        tensor = torch.as_tensor(
            value, dtype=torch.float64, device=value.device if isinstance(value, Tensor) else "cpu"
        )
        tensor = tensor.detach() if tensor.requires_grad else tensor
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(f"data_{name} = {told(value)}: expected a number or a tensor") from error
    tensor = take(tensor, f"data_{name}", _TENSOR)
    if not tensor.numel():
        raise InvalidInputError(f"data_{name} = {told(value)}: expected numbers, one or one for each coordinate")
    good = bool(torch.isfinite(tensor).all())
    if name == "turn" and (tensor.ndim or not tensor > 0):
        raise InvalidInputError(f"got data_turn={value!r}, expected a noise level sigma/alpha, one number above 0")
    if name == "std":
        good = good and bool((tensor >= 0).all() and tensor.max() > 0)
    if not good:
        raise InvalidInputError(
            f"data_{name} = {value}: expected finite numbers{', not negative, not all 0' * (name == 'std')}"
        )
    wanted = None if event_shape is None or name == "covariance" else tuple(event_shape)
    if tensor.ndim and wanted is not None and tuple(tensor.shape) != wanted:
        raise InvalidInputError(
            f"data_{name} has shape {tuple(tensor.shape)}, expected a scalar or the event shape {wanted}"
        )
    return tensor


def beside(old: Tensor | None, new: Tensor) -> Tensor:
    """A copy of a statistic, where the one before it was; an ordinary tensor also in inference mode."""
    with torch.inference_mode(False):
        return new.detach().to(torch.device("cpu") if old is None else old.device, torch.float64, copy=True)


def same_statistic(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two statistics are the same number, or both unknown."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.allclose(a.cpu(), b.to("cpu", a.dtype), rtol=1e-6, equal_nan=True)
