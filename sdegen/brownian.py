"""Brownian paths that can be asked for at any time: a virtual tree, addressed by (seed, sample number, time).

Source: the tree is Jelincic, Foster & Kidger 2024 (arXiv 2405.06464), after Gaines & Lyons 1997; the law of a path and
its integral over the halves of an interval is Foster, Lyons & Oberhauser 2020 (arXiv 1904.06998). No code was taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import InvalidInputError
from .noise import STEP, Noise
from .shapes import as_time, expand, flat

_ROOT, _SPLIT, _AREA = 21, 22, 23  # what a draw is for
_SNAP = 2.0**-20  # of a finest interval: times this close to a dyadic one are that one
_AT_ONCE = 2**16  # so many normals are drawn in one call


def space_time_increment(noise: Noise, t: Tensor, t_next: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(dW, dZ) over a step from t to t_next, like x.

    dW = W(t_next) - W(t), dZ the integral of W - W(t) over the time that passes. With h = |t_next - t| their covariance
    is [[h, h^2/2], [h^2/2, h^3/3]]. From a `BrownianTree` they belong to one path; from a plain `Noise` dW is its
    increment and dZ = h (dW/2 + H), H of variance h/12 drawn for this very interval, so that intervals may not overlap.

    Args:
        noise: where it comes from.
        t, t_next: scalars or (B,).
        x: (B, *event), for its shape, dtype and device.
    """
    if isinstance(noise, BrownianTree):
        return noise.space_time(t, t_next, x)
    h = (t_next - t).abs()
    dw = noise.increment(t, t_next, x)
    area = noise.normal(x.shape, _AREA, t, t_next, dtype=x.dtype, device=x.device) * expand((h / 12).sqrt(), x)
    return dw, expand(h, x) * (dw / 2 + area)


class _Interval(NamedTuple):
    """A dyadic part of unit time: the path and its integral at the left end, its increment and its space-time area.

    Over a length h, area = (1/h) int (W - W_left) ds - increment/2: of variance h/12, independent of the increment.
    """

    path: Tensor  # (B, d)
    integral: Tensor
    increment: Tensor
    area: Tensor

    def half(self, right: Any, h: float, z: Tensor, n: Tensor) -> _Interval:
        """One half of an interval of length h, made with two standard normals; `right` is a bool or (B,) of them.

        With Z of variance h/16 and N of variance h/48: increments w/2 +- (3/2 H + Z), areas H/4 - Z/2 +- N.
        """
        z, n = z * math.sqrt(h / 16), n * math.sqrt(h / 48)
        bend, rest = 1.5 * self.area + z, 0.25 * self.area - 0.5 * z
        left = self.increment / 2 + bend
        middle = self.path + left
        until = self.integral + h / 2 * (self.path + left / 2 + rest + n)
        if isinstance(right, bool):
            if right:
                return _Interval(middle, until, self.increment / 2 - bend, rest - n)
            return _Interval(self.path, self.integral, left, rest + n)
        side = right[:, None]
        return _Interval(
            torch.where(side, middle, self.path),
            torch.where(side, until, self.integral),
            torch.where(side, self.increment / 2 - bend, left),
            torch.where(side, rest - n, rest + n),
        )

    def inside(self, u: Any, h: float) -> tuple[Tensor, Tensor]:
        """(W, int W) at the fraction u, along the mean path given the increment and the area: a parabola."""
        path = self.path + u * self.increment + 6 * u * (1 - u) * self.area
        rise = u * u / 2 * self.increment + u * u * (3 - 2 * u) * self.area
        return path, self.integral + h * (u * self.path + rise)


class BrownianTree(Noise):
    """One Brownian path per sample on [t0, t1]: W(t) is a function of (seed, sample number, t) and of nothing else.

    An interval's increment and area decide those of its halves up to two normals, which are drawn at the address
    (seed, sample, interval). So W(a, b) + W(b, c) = W(a, c) to rounding, and asking for more times changes nothing that
    was told before: what a solver that rejects steps needs. At the dyadic times t0 + k (t1 - t0) 2^-depth the law of
    the path and its integral is exact; between them it is the parabola of the finest interval's increment and area.

    A time costs one draw for each level down to it: `depth`, fewer at coarser dyadic times, and neighbouring times
    share most of them.

    Args:
        seed: any integer.
        t0, t1: the ends, in either order.
        index: (B,) sample numbers; None means 0..B-1.
        depth: levels of halving, 1 to 40.

    Raises:
        InvalidInputError: ends that are no interval, a depth that cannot be; at the call, a time outside.

    Source: Jelincic, Foster & Kidger 2024 (arXiv 2405.06464); Foster, Lyons & Oberhauser 2020 (arXiv 1904.06998).
    """

    def __init__(
        self, seed: int, t0: float, t1: float, *, index: Sequence[int] | Tensor | None = None, depth: int = 20
    ) -> None:
        super().__init__(seed, index=index)
        self.low, self.high = sorted((float(t0), float(t1)))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidInputError(f"a Brownian path from {t0} to {t1}: wanted two different finite times")
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 40:
            raise InvalidInputError(f"depth={depth!r}: wanted a number of halvings between 1 and 40")
        self.depth = depth
        self._forget(None)

    def _forget(self, batch: tuple[int, int, torch.device] | None) -> None:
        self._batch = batch
        self._bracket: list[tuple[Any, _Interval]] = []  # the intervals around the last time, the whole first
        self._points: list[tuple[Any, tuple[Tensor, Tensor]]] = []  # the last times asked for
        self._repeated: dict[int, Noise] = {}

    @property
    def resolution(self) -> float:
        """The length of the finest interval."""
        return (self.high - self.low) * 2.0**-self.depth

    def select(self, keep: Tensor) -> BrownianTree:
        """The paths of some of the samples, by position in the batch."""
        index = super().select(keep).index
        return BrownianTree(self.seed, self.low, self.high, index=index, depth=self.depth)

    def increment(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = STEP) -> Tensor:
        """W(t_next) - W(t), like x; t and t_next are scalars or (B,). Other purposes draw as `Noise` does."""
        if purpose != STEP:
            return super().increment(t, t_next, x, purpose=purpose)
        before, after = self._at(t, x)[0], self._at(t_next, x)[0]
        return ((after - before) * math.sqrt(self.high - self.low)).reshape(x.shape).to(x.dtype)

    def standard(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = STEP) -> Tensor:
        """The increment over the root of the interval's length."""
        if purpose != STEP:
            return super().standard(t, t_next, x, purpose=purpose)
        return self.increment(t, t_next, x) / expand((as_time(t_next) - as_time(t)).abs().sqrt(), x)

    def space_time(self, t: Tensor, t_next: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(dW, dZ), like x: the increment, and the integral of W - W(t) over the time that passes."""
        (before, integral), (after, integral_next) = self._at(t, x), self._at(t_next, x)
        span = self.high - self.low
        passed = (as_time(t_next) - as_time(t)).to(torch.float64) / span
        area = expand(passed.sign(), before) * (integral_next - integral) - expand(passed.abs(), before) * before
        dw, dz = (after - before) * math.sqrt(span), area * span**1.5
        return dw.reshape(x.shape).to(x.dtype), dz.reshape(x.shape).to(x.dtype)

    # ---- the descent, in unit time (t - low)/(high - low); a shared time is a float and its interval's number an
    # int, times per sample and their intervals' numbers are (B,) tensors

    def _at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(W, int W) at t, (B, d) float64."""
        batch = (x.shape[0], flat(x).shape[1], x.device)
        if batch != self._batch:
            self._forget(batch)
        t = as_time(t).detach()
        key = t.to(device=x.device, dtype=torch.float64) if t.ndim else float(t)
        for known, value in self._points:
            if _equal(known, key):
                return value
        value = self._own_times(key) if isinstance(key, Tensor) else self._shared_time(key)
        self._points = [(key, value), *self._points[:3]]
        return value

    def _shared_time(self, t: float) -> tuple[Tensor, Tensor]:
        place = float(self._place(torch.tensor(t, dtype=torch.float64)))
        number, level = int(place), self.depth
        u = place - number
        if number == 2**level:
            number, level, u = 0, 0, 1.0
        while u == 0 and level > 0 and number % 2 == 0:  # the left end of a larger interval too
            number, level = number // 2, level - 1
        return self._interval(number, level).inside(u, 2.0**-level)

    def _own_times(self, t: Tensor) -> tuple[Tensor, Tensor]:
        place = self._place(t)
        number = place.floor().clamp_max(2**self.depth - 1)
        u = (place - number)[:, None]
        return self._interval(number.to(torch.int64), self.depth).inside(u, 2.0**-self.depth)

    def _place(self, t: Tensor) -> Tensor:
        """Times counted in finest intervals, moved onto dyadic ones where rounding put them beside."""
        cells = 2**self.depth
        place = (t - self.low) / (self.high - self.low) * cells
        inside = (place >= -1e-6 * cells) & (place <= (1 + 1e-6) * cells)
        if not bool(inside.all()):
            raise InvalidInputError(
                f"time {float(t[~inside].flatten()[0]):g} is outside this Brownian path, "
                f"which runs over [{self.low:g}, {self.high:g}]"
            )
        nearest = place.round()
        return torch.where((place - nearest).abs() <= _SNAP + 1e-15 * cells, nearest, place).clamp(0, cells)

    def _interval(self, number: Any, level: int) -> _Interval:
        """The interval of a number at a level (0 is the whole), by way of those around it."""
        kept = 0
        for known, _ in self._bracket[: level + 1]:
            if not _equal(known, number >> (level - kept)):
                break
            kept += 1
        del self._bracket[kept:]
        if not kept:
            ((increment, area),) = self._draw(_ROOT, [0])
            start = torch.zeros_like(increment)
            self._bracket.append((number >> level, _Interval(start, start, increment, area * math.sqrt(1 / 12))))
        first = len(self._bracket)
        parents = [number >> (level + 1 - below) for below in range(first, level + 1)]
        normals = self._draw(_SPLIT, [(1 << below - 1) + parent for below, parent in enumerate(parents, first)])
        for below, (z, n) in enumerate(normals, first):
            here = number >> (level - below)
            half = self._bracket[-1][1].half(here % 2 == 1, 2.0 ** (1 - below), z, n)
            self._bracket.append((here, half))
        return self._bracket[level][1]

    def _draw(self, purpose: int, nodes: list[Any]) -> list[tuple[Tensor, Tensor]]:
        """Two (B, d) normals for each of these nodes of the tree; many nodes in one call where the batch is small."""
        if self._batch is None:
            raise InvalidInputError("a Brownian path has no batch before it is asked for a time")
        b, d, device = self._batch
        most = max(1, _AT_ONCE // max(2 * b * d, 1))
        pairs = []
        for start in range(0, len(nodes), most):
            some = nodes[start : start + most]
            address = torch.cat([torch.as_tensor(node, dtype=torch.int64, device=device).expand(b) for node in some])
            noise = self._repeated_noise(len(some), b, device)
            z = noise.normal((len(some) * b, 2, d), purpose, address, dtype=torch.float64, device=device)
            pairs += [(pair[:, 0], pair[:, 1]) for pair in z.reshape(len(some), b, 2, d)]
        return pairs

    def _repeated_noise(self, count: int, b: int, device: torch.device) -> Noise:
        """The noise of the batch repeated so many times."""
        if count not in self._repeated:
            index = torch.arange(b, device=device) if self.index is None else self.index.to(device)
            self._repeated[count] = Noise(self.seed, index=index.repeat(count))
        return self._repeated[count]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and (a is b or torch.equal(a, b))
    return a == b
