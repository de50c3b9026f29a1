"""What was seen of a sample: y = A(x0) + std z, for masks, linear maps, averages and other functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import number, whole
from ...core.errors import InvalidInputError
from ...core.kinds import kind_of, take, told
from ...core.shapes import flat
from ...core.show import Shown
from .gradients import pulled_back

Map = Callable[[Tensor], Tensor]
_MOST = 2048  # numbers of y whose A A^T is made and decomposed


_TENSOR = kind_of(Tensor)


class Observation(Shown, ABC):
    """A measurement of a sample x0: y = A(x0) + std z, z standard normal.

    Make one by `Observation.mask`, `.linear`, `.average` or `.function`. It holds A and std, which all samples share;
    the measured values y are a condition, with one row for each sample.

    Attributes:
        std: the noise's standard deviation.
        curved: whether A is not linear.
    """

    curved = False
    door: str  # the function that makes it

    def __init__(self, std: Any, *, least: str = "at least 0") -> None:
        self.std = number(std, "std", f"the standard deviation of y's noise, {least}", least=0.0)

    def _title(self):
        return f"Observation.{self.door}"

    def _facts(self):
        return {"std": self.std}

    @staticmethod
    def mask(mask: Any, *, std: float = 0.0) -> Observation:
        """The numbers of an event where a mask is true (inpainting); y is event-shaped, its other numbers unused, or
        (B, m) the seen numbers alone, in order.

        Args:
            mask: event-shaped, bools or zeros and ones.
            std: of the noise.
        """
        return _Mask(mask, std)

    @staticmethod
    def linear(A: Any, *, std: float) -> Observation:
        """A linear map of the flattened event.

        Args:
            A: (m, d), or (f, adjoint): f(x0) (B, *event) -> (B, ...), and its transpose, y's shape -> (B, *event).
            std: of the noise.
        """
        return _Functions(A, std) if isinstance(A, tuple) and any(map(callable, A)) else _Matrix(A, std)

    @staticmethod
    def average(k: int, *, std: float = 0.0) -> Observation:
        """Means over blocks of k by k numbers of the last two axes (super-resolution), of k numbers where there is one
        axis; y is (B, ..., H/k, W/k) or flat.

        Args:
            k: the blocks' side, which divides the axes.
            std: of the noise.
        """
        return _Average(k, std)

    @staticmethod
    def function(f: Map, *, std: float) -> Observation:
        """Any differentiable function, linearised at E[x0 | x].

        Args:
            f: (B, *event) -> (B, ...).
            std: of the noise, above 0.
        """
        return _Function(f, std)

    @abstractmethod
    def measure(self, x0: Tensor) -> Tensor:
        """A(x0), (B, m)."""

    @abstractmethod
    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        """A^T v for v (B, m), shaped as a batch of events."""

    def linearised(self, x0: Tensor, *, graph: bool) -> tuple[Tensor, Map, Map]:
        """A(x0), and the derivative of A at x0 with its transpose."""
        return self.measure(x0), self.measure, lambda v: self.adjoint(v, x0)

    def spectrum(self, like: Tensor) -> Tensor:
        """The eigenvalues of A A^T, (m,) float64, for a batch of events; all the same where the rows of A are
        orthogonal and of one length, as those of masks and averages are.

        Raises:
            InvalidInputError: not linear, or unequal eigenvalues of more than 2048 numbers.
        """
        if self.curved:
            raise InvalidInputError("got a function that is not linear, expected a mask, an average or a linear map")
        one = torch.zeros(1, *like.shape[1:], dtype=torch.float64, device=like.device)
        m = math.prod(self._shape_of(tuple(like.shape[1:])))
        probe = (1.0 + torch.arange(m, dtype=torch.float64, device=like.device)).sin()[None]
        image = self.measure(self.adjoint(probe, one))
        size = (probe * image).sum() / probe.square().sum()
        if bool((image - size * probe).norm() <= 1e-6 * image.norm()):
            return size.expand(m)
        if m > _MOST:
            raise InvalidInputError(
                f"got {m} numbers of y that A mixes, expected at most {_MOST} where A A^T is needed"
            )
        unit = torch.eye(m, dtype=torch.float64, device=like.device)
        return torch.linalg.eigvalsh(self.measure(self.adjoint(unit, one.expand(m, *one.shape[1:])))).clamp_min(0)

    def known(self, x0: Tensor, y: Tensor) -> Tensor:
        """x0, where y (B, m) is without noise with its numbers put in exactly."""
        return x0

    def check_event(self, event: tuple[int, ...]) -> None:  # noqa: B027 (a function takes what it takes)
        """Raise unless events of this shape can be observed so."""

    def values(self, y: Tensor, like: Tensor) -> Tensor:
        """y as (B, m), in the dtype of a batch of events."""
        expected = self._shape_of(tuple(like.shape[1:]))
        y = flat(_rows(y, like))
        if y.shape[1:] != (math.prod(expected),):
            raise InvalidInputError(f"got y of {y.shape[1]} numbers a sample, expected shape (B, {_comma(expected)})")
        return y.to(like)

    @abstractmethod
    def _shape_of(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's y."""

    def in_data_units(self, y: Tensor, like: Tensor, mean: Any) -> Tensor | None:
        """A(x0 - mean) for y where it is measured in the data's own units, else None."""
        return None


class _Mask(Observation):
    door = "mask"

    def __init__(self, mask: Any, std: Any) -> None:
        super().__init__(std)
        try:
            tensor = take(torch.as_tensor(mask), "mask", _TENSOR).cpu()
        except InvalidInputError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"got mask={told(mask)}, expected a tensor of bools, event-shaped") from error
        seen = tensor != 0
        if not bool((tensor == seen.to(tensor.dtype)).all()) or not tensor.ndim or not bool(seen.any()):
            raise InvalidInputError(
                f"got a mask of shape {tuple(tensor.shape)} with {int(seen.sum())} numbers that are not 0, expected "
                "bools, or zeros and ones, of the event's shape and not all 0"
            )
        self.event, self.index = tuple(seen.shape), seen.flatten().nonzero().flatten()

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != self.event:
            raise InvalidInputError(f"got a mask of shape {self.event}, expected the event shape {event}")

    def measure(self, x0: Tensor) -> Tensor:
        return flat(x0)[:, self.index.to(x0.device)]

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        none = v.new_zeros(len(v), math.prod(self.event))
        return none.index_copy(1, self.index.to(v.device), v).reshape(like.shape)

    def known(self, x0: Tensor, y: Tensor) -> Tensor:
        return x0 if self.std else flat(x0).index_copy(1, self.index.to(x0.device), y.to(x0)).reshape(x0.shape)

    def values(self, y: Tensor, like: Tensor) -> Tensor:
        whole = tuple(_rows(y, like).shape[1:]) == self.event
        return super().values(self.measure(y) if whole else y, like)

    def _shape_of(self, event: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.index),)

    def in_data_units(self, y: Tensor, like: Tensor, mean: Any) -> Tensor:
        return y - self.measure(torch.zeros_like(like) + mean)


class _Matrix(Observation):
    door = "linear"

    def __init__(self, A: Any, std: Any) -> None:
        super().__init__(std)
        try:
            self.a = take(torch.as_tensor(A, dtype=torch.float64), "A", _TENSOR).detach()
        except InvalidInputError:
            raise
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InvalidInputError(f"got A={told(A)}, expected (m, d) numbers, or (f, adjoint)") from error
        if self.a.ndim != 2 or not self.a.numel() or not bool(torch.isfinite(self.a).all()):
            raise InvalidInputError(f"got A of shape {tuple(self.a.shape)}, expected (m, d), finite numbers")

    def check_event(self, event: tuple[int, ...]) -> None:
        if math.prod(event) != self.a.shape[1]:
            raise InvalidInputError(
                f"got A of shape {tuple(self.a.shape)}, expected (m, {math.prod(event)}) for events of shape {event}"
            )

    def measure(self, x0: Tensor) -> Tensor:
        return flat(x0) @ self.a.to(x0).mT

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        return (v @ self.a.to(v)).reshape(like.shape)

    def _shape_of(self, event: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.a),)


class _Average(Observation):
    door = "average"

    def __init__(self, k: Any, std: Any) -> None:
        super().__init__(std)
        self.k = whole(k, "k", least=1)

    def check_event(self, event: tuple[int, ...]) -> None:
        if not event or any(n % self.k for n in event[-2:]):
            raise InvalidInputError(
                f"got blocks of k={self.k}, expected a divisor of {event[-2:]}, events being {event}"
            )

    def measure(self, x0: Tensor) -> Tensor:
        axes = range(max(1, x0.ndim - 2), x0.ndim)
        for axis in axes:
            x0 = x0.unflatten(axis, (-1, self.k)).mean(axis + 1)
        return flat(x0)

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        v = v.reshape(len(v), *self._shape_of(tuple(like.shape[1:])))
        for axis in range(max(1, v.ndim - 2), v.ndim):
            v = v.repeat_interleave(self.k, axis) / self.k
        return v

    def _shape_of(self, event: tuple[int, ...]) -> tuple[int, ...]:
        return (*event[:-2], *(n // self.k for n in event[-2:]))

    def in_data_units(self, y: Tensor, like: Tensor, mean: Any) -> Tensor:
        return y - self.measure(torch.zeros_like(like) + mean)


class _Functions(Observation):
    """A linear map given as two functions."""

    door = "linear"
    f: Any
    transpose: Any

    def __init__(self, functions: tuple[Any, ...], std: Any) -> None:
        super().__init__(std)
        if len(functions) != 2 or not all(map(callable, functions)):
            raise InvalidInputError(f"got A={functions!r}, expected two functions, A and its transpose")
        self.f, self.transpose = functions

    def measure(self, x0: Tensor) -> Tensor:
        return flat(self.f(x0))

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        shape = self._shape_of(tuple(like.shape[1:]), like)
        return self.transpose(v.reshape(len(v), *shape)).reshape(like.shape)

    def _shape_of(self, event: tuple[int, ...], like: Tensor | None = None) -> tuple[int, ...]:
        with torch.no_grad():
            one = torch.zeros(1, *event) if like is None else like.new_zeros(1, *event)
            return tuple(self.f(one).shape[1:])


class _Function(Observation):
    curved, door = True, "function"
    f: Any

    def __init__(self, f: Any, std: Any) -> None:
        super().__init__(std, least="above 0")
        if not callable(f):
            raise InvalidInputError(f"got f={f!r}, expected a function of a batch of events")
        if self.std == 0:
            raise InvalidInputError("got std=0, expected more than 0 for a function that is not linear")
        self.f = f

    def measure(self, x0: Tensor) -> Tensor:
        return flat(self.f(x0))

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        raise InvalidInputError("a function that is not linear has no transpose but at a point")

    def linearised(self, x0: Tensor, *, graph: bool) -> tuple[Tensor, Map, Map]:
        seen, at = self.measure(x0), x0 if graph else x0.detach()
        return (
            seen,
            lambda u: torch.func.jvp(self.measure, (at,), (u,))[1],
            lambda v: pulled_back(seen, x0, v, graph=graph, counted=False),
        )

    def _shape_of(self, event: tuple[int, ...]) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(self.f(torch.zeros(1, *event)).shape[1:])


def _rows(y: Any, like: Tensor) -> Tensor:
    """y, once it is known to be a tensor with a row for each sample."""
    y = take(y, "y", _TENSOR)
    if not y.ndim or len(y) != len(like):
        raise InvalidInputError(f"got y of shape {tuple(y.shape)}, expected a row for each of {len(like)} samples")
    return y


def _comma(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
