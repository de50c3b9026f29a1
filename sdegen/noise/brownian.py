"""Brownian paths that can be asked again: a virtual tree, addressed by (seed, sample number, time), and a path that
remembers what it told about the times ahead.

Source: the tree is Jelincic, Foster & Kidger 2024 (arXiv 2405.06464), after Gaines & Lyons 1997; the law of a path and
its integral over the halves of an interval is Foster, Lyons & Oberhauser 2020 (arXiv 1904.06998). No code was taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.cache import Recent
from ..core.errors import InvalidInputError
from ..core.shapes import as_time, expand, factor, flat, plus, scaled
from .purposes import Purpose
from .white import Noise

_SNAP = 2.0**-20  # of a finest interval: times this close to a dyadic one are that one
_AT_ONCE = 2**16  # so many normals are drawn in one call


def path_and_mean(noise: Noise, t: Tensor, t_next: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(dW, I) over a step: the increment and, I = dZ/|h|, the mean of W - W(t); see `space_time_increment`."""
    h = (t_next - t).abs()
    if isinstance(noise, BrownianTree | RefinablePath):
        dw, dz = noise.space_time(t, t_next, x)
        return dw, dz / expand(h, x)
    dw = scaled(factor(h**0.5, x), noise.standard(t, t_next, x))
    area = noise.normal(x.shape, Purpose.AREA, t, t_next, dtype=x.dtype, device=x.device)
    return dw, plus(scaled(0.5, dw), factor((h / 12) ** 0.5, x), area)


def space_time_increment(noise: Noise, t: Tensor, t_next: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(dW, dZ) over a step from t to t_next, like x.

    dW = W(t_next) - W(t) and dZ = integral of W - W(t) over the step have, with h = |t_next - t|, the covariance

        [[h, h^2/2], [h^2/2, h^3/3]].

    From a `BrownianTree` they belong to one path; from a plain `Noise` dW is its increment and dZ = h (dW/2 + H), H of
    variance h/12 drawn for this very interval, so that intervals may not overlap.

    Args:
        noise: where it comes from.
        t, t_next: scalars or (B,).
        x: (B, *event), for its shape, dtype and device.
    """
    if isinstance(noise, BrownianTree | RefinablePath):
        return noise.space_time(t, t_next, x)
    dw, mean = path_and_mean(noise, t, t_next, x)
    return dw, factor((t_next - t).abs(), x) * mean


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

    Example:
        >>> import torch, sdegen as sg
        >>> tree = sg.noise.BrownianTree(0, 0.0, 1.0)  # noise= of `solve`
        >>> x = torch.zeros(3, 2, dtype=torch.float64)
        >>> halves = tree.increment(0.0, 0.5, x) + tree.increment(0.5, 1.0, x)
        >>> torch.allclose(halves, tree.increment(0.0, 1.0, x))
        True
    """

    def __init__(
        self, seed: int, t0: float, t1: float, *, index: Sequence[int] | Tensor | None = None, depth: int = 20
    ) -> None:
        super().__init__(seed, index=index)
        self.low, self.high = sorted((float(t0), float(t1)))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidInputError(f"a Brownian path from {t0} to {t1}: expected two different finite times")
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 40:
            raise InvalidInputError(f"got depth={depth!r}, expected a number of halvings between 1 and 40")
        self.depth = depth
        self._forget(None)

    def _forget(self, batch: tuple[int, int, torch.device] | None) -> None:
        self._batch = batch
        self._bracket: list[tuple[Any, _Interval]] = []  # the intervals around the last time, the whole first
        self._points = Recent(4, _equal)  # at the last times asked for
        self._repeated: dict[int, Noise] = {}

    @property
    def resolution(self) -> float:
        """The length of the finest interval."""
        return (self.high - self.low) * 2.0**-self.depth

    def select(self, keep: Tensor) -> BrownianTree:
        """The paths of some of the samples, by position in the batch."""
        index = super().select(keep).index
        return BrownianTree(self.seed, self.low, self.high, index=index, depth=self.depth)

    def increment(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = Purpose.STEP) -> Tensor:
        """W(t_next) - W(t), like x; t and t_next are scalars or (B,). Other purposes draw as `Noise` does."""
        if purpose != Purpose.STEP:
            return super().increment(t, t_next, x, purpose=purpose)
        before, after = self._at(t, x)[0], self._at(t_next, x)[0]
        return ((after - before) * math.sqrt(self.high - self.low)).reshape(x.shape).to(x.dtype)

    def standard(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = Purpose.STEP) -> Tensor:
        """The increment over the root of the interval's length."""
        if purpose != Purpose.STEP:
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
        return self._points.of(key, lambda: self._own_times(key) if isinstance(key, Tensor) else self._shared_time(key))

    def _shared_time(self, t: float) -> tuple[Tensor, Tensor]:
        place = float(self._place(torch.tensor(t, dtype=torch.float64, device="cpu")))
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
            ((increment, area),) = self._draw(Purpose.TREE_ENDS, [0])
            start = torch.zeros_like(increment)
            self._bracket.append((number >> level, _Interval(start, start, increment, area * math.sqrt(1 / 12))))
        first = len(self._bracket)
        parents = [number >> (level + 1 - below) for below in range(first, level + 1)]
        normals = self._draw(
            Purpose.TREE_HALVES, [(1 << below - 1) + parent for below, parent in enumerate(parents, first)]
        )
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


class RefinablePath(Noise):
    """Brownian paths that can be refined after a rejected step, without a change to what they were ahead.

    Every sample walks one way. An interval that begins where the last one ended is drawn anew. One that begins earlier,
    after a rejected step, lies in an interval whose increment is known: it and the rest are drawn from their law given
    the whole (Brownian bridges, of the path and of its integral). So whatever decides about steps, be it the noise
    itself, the increments of the accepted steps are those of Brownian motion: the law of the solution does not change.

    The address of a draw is (seed, sample, how many draws the sample has made): times chosen by error control carry
    rounding that depends on the batch, and as an address the last bit of a time would be another time.

    An accepted step costs one draw, a rejected one a second.

    Args:
        seed: any integer.
        index: (B,) sample numbers; None means 0..B-1.

    Source: Gaines & Lyons 1997; Rackauckas & Nie 2017 (Discrete Contin. Dyn. Syst. B 22, "rejection sampling with
    memory"); the bridge of path and integral after Foster, Lyons & Oberhauser 2020 (arXiv 1904.06998).
    """

    def __init__(self, seed: int, *, index: Sequence[int] | Tensor | None = None) -> None:
        super().__init__(seed, index=index)
        self._ends: Tensor | None = None  # (B, K) where the known pieces end, in the order they come; inf: none
        self._drawn: Tensor | None = None  # (B,) how many draws each sample has made
        self._pieces = torch.empty(0, device="cpu")  # (B, K, 1 or 2, d) float64, increments and integrals over them

    @classmethod
    def of(cls, noise: Noise) -> Noise:
        """The same noise with a memory; what is a path already stays as it is."""
        return noise if type(noise) is not Noise else cls(noise.seed, index=noise.index)

    def select(self, keep: Tensor) -> RefinablePath:
        """The paths of some of the samples, by position in the batch."""
        chosen = RefinablePath(self.seed, index=super().select(keep).index)
        if self._ends is not None and self._drawn is not None:
            chosen._ends, chosen._pieces, chosen._drawn = self._ends[keep], self._pieces[keep], self._drawn[keep]
        return chosen

    def replace(self, at: Tensor, other: RefinablePath) -> RefinablePath:
        """The other's paths, which have not begun, at these positions; both with numbers of their own."""
        index: Tensor = self.index  # type: ignore[assignment]
        joined = RefinablePath(self.seed, index=index.index_copy(0, at.to(index.device), other.index.to(index.device)))  # type: ignore
        if self._ends is not None and self._drawn is not None:
            joined._ends = self._ends.index_fill(0, at, math.inf)
            joined._pieces = self._pieces.index_fill(0, at, 0.0)
            joined._drawn = self._drawn.index_fill(0, at, 0)
        return joined

    def increment(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = Purpose.STEP) -> Tensor:
        """W(t_next) - W(t), like x; t is where the sample stands. Other purposes draw as `Noise` does."""
        if purpose != Purpose.STEP:
            return super().increment(t, t_next, x, purpose=purpose)
        return self._ahead(t, t_next, x, 1)[0]

    def standard(self, t: Tensor, t_next: Tensor, x: Tensor, *, purpose: int = Purpose.STEP) -> Tensor:
        """The increment over the root of the interval's length."""
        if purpose != Purpose.STEP:
            return super().standard(t, t_next, x, purpose=purpose)
        return self.increment(t, t_next, x) / expand((as_time(t_next) - as_time(t)).abs().sqrt(), x)

    def space_time(self, t: Tensor, t_next: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(dW, dZ), like x: the increment, and the integral of W - W(t) over the time that passes."""
        dw, dz = self._ahead(t, t_next, x, 2)
        return dw, dz

    def _ahead(self, t: Tensor, t_next: Tensor, x: Tensor, parts: int) -> list[Tensor]:
        """The path's increment over [t, t_next] and, where two parts are asked for, its integral; like x."""
        t, t_next = (as_time(u).to(x.device, torch.float64).expand(x.shape[0]) for u in (t, t_next))
        if self._drawn is None or len(self._drawn) != len(t):
            self._drawn, self._ends = torch.zeros(len(t), dtype=torch.int64, device=x.device), None
        ends = self._known(t, t_next)
        self._drawn = self._drawn + 1
        if ends is None:
            told = self._fresh(t, t_next, x, parts)
            self._ends, self._pieces = t_next[:, None], told[:, None]
        else:
            told = self._within(ends, t, t_next, x, parts)
        return [told[:, k].reshape(x.shape).to(x.dtype) for k in range(parts)]

    def _known(self, t: Tensor, t_next: Tensor) -> Tensor | None:
        """How far ahead of t the known pieces end, (B, K) in order, those behind forgotten; None: nothing is known."""
        if self._ends is None:
            return None
        gone = (self._ends - t[:, None]) * (t_next - t).sign()[:, None]
        gone = torch.where(self._ends.isinf() | (gone <= 0), math.inf, gone)
        most = int(gone.isfinite().sum(1).max()) if gone.numel() else 0
        if not most:
            return None
        order = gone.argsort(1)[:, :most]
        self._ends, gone = self._ends.gather(1, order), gone.gather(1, order)
        self._ends = torch.where(gone.isinf(), math.inf, self._ends)
        self._pieces = self._pieces.gather(1, _like(order, self._pieces).expand(-1, -1, *self._pieces.shape[2:]))
        self._pieces = torch.where(_like(gone.isinf(), self._pieces), 0.0, self._pieces)
        return gone

    def _fresh(self, t: Tensor, t_next: Tensor, x: Tensor, parts: int) -> Tensor:
        """The law without a past, (B, parts, d)."""
        wide = flat(x).to(torch.float64)
        h = (t_next - t).abs()
        shape = (len(wide), parts, wide.shape[1])
        z = self.normal(shape, Purpose.PATH_AHEAD, self._drawn, dtype=torch.float64, device=x.device)  # type: ignore[arg-type]
        drawn = [expand(h.sqrt(), wide) * z[:, 0]]
        if parts == 2:
            drawn.append(expand(h, wide) * (drawn[0] / 2 + expand((h / 12).sqrt(), wide) * z[:, 1]))
        return torch.stack(drawn, 1)

    def _within(self, ends: Tensor, t: Tensor, t_next: Tensor, x: Tensor, parts: int) -> Tensor:
        """The interval from t to t_next where pieces ahead are known: one of them is split, or one put behind them."""
        reach = (t_next - t).abs()  # all in distances from t
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        count = ends.isfinite().sum(1)
        j = (ends < reach[:, None]).sum(1)  # the piece that reach lies in
        beyond, at = j >= count, j.clamp_max(ends.shape[1] - 1)[:, None]
        begin = torch.where(beyond, ends.masked_fill(ends.isinf(), 0.0).amax(1), starts.gather(1, at)[:, 0])
        close = torch.where(beyond, reach, ends.gather(1, at)[:, 0])
        whole = self._pieces.gather(1, _like(at, self._pieces).expand(-1, -1, *self._pieces.shape[2:]))[:, 0]
        sign = (t_next - t).sign()
        z = self.normal(whole.shape, Purpose.PATH_PIECE, self._drawn, dtype=torch.float64, device=x.device)  # type: ignore[arg-type]
        left, right = _bridge(whole, reach - begin, close - reach, z)
        inside = ~beyond & (reach < close)
        left = torch.where(_like(inside, left), left, whole)
        if bool(beyond.any()):
            left = torch.where(_like(beyond, left), self._fresh(t + sign * begin, t_next, x, parts), left)
        rest = torch.where(_like(inside, right), right, 0.0)
        # the piece that ended at `close` is now the rest; what ends at reach stands before it
        position = torch.arange(ends.shape[1], device=x.device) == j[:, None]
        split = position & inside[:, None]
        pieces = torch.where(_like(split, self._pieces), rest[:, None], self._pieces)
        new = torch.where(inside | beyond, reach, math.inf)
        here = torch.where(_like(inside | beyond, left), left, 0.0)
        self._ends = torch.cat([self._ends, torch.where(new.isinf(), math.inf, t_next)[:, None]], 1)  # type: ignore
        self._pieces = torch.cat([pieces, here[:, None]], 1)
        far = torch.cat([ends, new[:, None]], 1)
        order = far.argsort(1)
        far = far.gather(1, order)
        self._ends = self._ends.gather(1, order)
        self._pieces = self._pieces.gather(1, _like(order, self._pieces).expand(-1, -1, *self._pieces.shape[2:]))
        return _composed(self._pieces, far, far <= reach[:, None])


def _bridge(whole: Tensor, h_1: Tensor, h_2: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The first part, of length h_1, of an interval whose increment (and integral) is known, and the rest.

    With f = h_1/h, p = f (1 - f) and normals z_1, z_2: W_1 = f W + sqrt(h p) z_1 where only W is known; with Z, the
    integral of the path over the interval, too,

        W_1 = f (3 f - 2) W + 6 p Z/h + sqrt(3 h p) (1/2 - f) z_2 + sqrt(h p)/2 z_1
        Z_1 = -h f p W + f^2 (3 - 2 f) Z + sqrt(h^3 p^3/3) z_2

    Args:
        whole, z: (B, 1 or 2, d).
        h_1, h_2: (B,) lengths of the two parts.
    """
    h = (h_1 + h_2)[:, None]
    h_1, h_2 = h_1[:, None], h_2[:, None]
    f = h_1 / h
    p = f * (h_2 / h)
    w = whole[:, 0]
    if whole.shape[1] == 1:
        first = f * w + (h * p).sqrt() * z[:, 0]
        return first[:, None], (w - first)[:, None]
    area = whole[:, 1]
    w_1 = f * (3 * f - 2) * w + 6 * p / h * area
    w_1 = w_1 + (3 * h * p).sqrt() * (0.5 - f) * z[:, 1] + (h * p).sqrt() / 2 * z[:, 0]
    z_1 = -h * f * p * w + f**2 * (3 - 2 * f) * area + (h**3 * p**3 / 3).sqrt() * z[:, 1]
    return torch.stack([w_1, z_1], 1), torch.stack([w - w_1, area - z_1 - h_2 * w_1], 1)


def _composed(pieces: Tensor, ends: Tensor, used: Tensor) -> Tensor:
    """W and Z over consecutive pieces, (B, K, parts, d) -> (B, parts, d): Z = sum Z_k + h_k (W_1 + ... + W_(k-1))."""
    pieces = torch.where(_like(used, pieces), pieces, 0.0)
    total = pieces.sum(1)
    if pieces.shape[2] == 2:
        lengths = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
        lengths = torch.where(used, lengths, 0.0)[:, :, None]
        before = pieces[:, :, 0].cumsum(1) - pieces[:, :, 0]
        total[:, 1] += (lengths * before).sum(1)
    return total


def _like(t: Tensor, pieces: Tensor) -> Tensor:
    """(B, ...) with axes of length 1 put behind, to go with pieces."""
    return t.reshape(*t.shape, *(1,) * (pieces.ndim - t.ndim))
