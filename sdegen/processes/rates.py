"""Rates of noising beta(t), with what a process needs of them: the integral I(t) = int_0^t beta, and its inverse."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import as_number


class Rate(Protocol):
    """beta(t), its integral I(t) from 0, and the time at which the integral has a value; elementwise."""

    def beta(self, t: Tensor) -> Tensor: ...

    def integral(self, t: Tensor) -> Tensor: ...

    def time(self, integral: Tensor) -> Tensor: ...


class _Fixed:
    """A rate whose numbers are given once: a process remembers what follows from them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            kind = type(self).__name__
            raise InvalidInputError(f"{name} of a {kind} cannot be assigned: make another process")
        super().__setattr__(name, value)


class LinearRate(_Fixed):
    """beta(t) = beta_min + t (beta_max - beta_min)."""

    def __init__(self, beta_min: float, beta_max: float) -> None:
        beta_min, beta_max = as_number(beta_min, "beta_min"), as_number(beta_max, "beta_max")
        if not 0 <= beta_min < beta_max < math.inf:
            raise InvalidInputError(
                f"got beta_min={beta_min}, beta_max={beta_max}, expected 0 <= beta_min < beta_max, both finite"
            )
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Tensor) -> Tensor:
        return t * (t * ((self.beta_max - self.beta_min) / 2) + self.beta_min)

    def time(self, integral: Tensor) -> Tensor:
        half, slope = self.beta_min / 2, self.beta_max - self.beta_min
        root = (integral * (slope / 2) + half**2).sqrt() + half
        if not half:  # 0 at 0, where it leaves a root of 0
            root = root.clamp_min(torch.finfo(root.dtype).tiny)
        return integral / root


class CosineRate(_Fixed):
    """beta(t) = pi/(1 + s) tan(phi), phi = (pi/2)(t + s)/(1 + s): then exp(-I/2) = cos(phi)/cos(phi_0)."""

    def __init__(self, s: float) -> None:
        s = as_number(s, "s")
        if not 0 < s < math.inf:
            raise InvalidInputError(f"got s={s}, expected a positive offset")
        self.s = s
        self.phase = math.pi / 2 * self.s / (1 + self.s)  # phi_0

    def integral(self, t: Tensor) -> Tensor:
        # -2 log(cos(phi)/cos(phi_0)) through cos(phi_0) - cos(phi) = 2 sin((phi + phi_0)/2) sin((phi - phi_0)/2)
        step, phi_0 = t * (math.pi / 2 / (1 + self.s)), self.phase
        return -2 * torch.log1p(-2 * torch.sin(step / 2 + phi_0) * torch.sin(step / 2) / math.cos(phi_0))

    def beta(self, t: Tensor) -> Tensor:
        return math.pi / (1 + self.s) * torch.tan((t + self.s) * (math.pi / 2 / (1 + self.s)))

    def time(self, integral: Tensor) -> Tensor:
        # sin(phi - phi_0) = (cos^2(phi_0) - cos^2(phi))/(sin(phi) cos(phi_0) + cos(phi) sin(phi_0)), where
        # cos(phi) = cos(phi_0) alpha: phi itself would cancel against phi_0 near t = 0
        sin_0, cos_0 = math.sin(self.phase), math.cos(self.phase)
        fallen = -(cos_0**2) * torch.expm1(-integral)
        sin, cos = torch.sqrt(sin_0**2 + fallen), cos_0 * torch.exp(-integral / 2)
        step = torch.atan2(fallen / (sin * cos_0 + cos * sin_0), cos * cos_0 + sin * sin_0)
        return step * (2 * (1 + self.s) / math.pi)


class TableRate(_Fixed):
    """Constant on each ((i - 1)/N, i/N]: N steps_i, so that I rises by steps_i = -log(1 - beta_i) up to node i.

    Where steps_i is infinite (beta_i = 1, the last) exp(-I/2) falls to 0 linearly in t instead.
    """

    def __init__(self, steps: Tensor) -> None:
        self.n = len(steps)
        zero = torch.zeros(1, dtype=torch.float64, device="cpu")
        self._at_nodes = torch.cat([zero, steps.cumsum(0)])  # the integral
        self._to_zero = torch.isinf(steps)
        self._steps = torch.where(self._to_zero, 1.0, steps)

    def parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where in its cell t is, the integral at the cell's start, its rise over the cell, whether alpha ends at 0."""
        i, fraction = cell(t, self.n)
        start, step, to_zero = (table.to(t.device)[i] for table in (self._at_nodes, self._steps, self._to_zero))
        return fraction, start, step, to_zero

    def integral(self, t: Tensor) -> Tensor:
        fraction, start, step, to_zero = self.parts(t)
        falling = -2 * torch.log1p(-torch.where(to_zero, fraction, 0.0))  # alpha proportional to 1 - fraction
        return (start + torch.where(to_zero, falling, fraction * step)).to(t.dtype)

    def beta(self, t: Tensor) -> Tensor:
        fraction, _, step, to_zero = self.parts(t)
        rate = torch.where(to_zero, 2 / (1 - torch.where(to_zero, fraction, 0.0)), step)
        return (self.n * rate).to(t.dtype)

    def time(self, integral: Tensor) -> Tensor:
        known, n = self._at_nodes.to(integral.device), self.n
        i = (torch.searchsorted(known, integral.detach().to(torch.float64).contiguous()) - 1).clamp(0, n - 1)
        rise = integral - known[i]
        to_zero = self._to_zero.to(integral.device)[i]
        steady = torch.where(to_zero, 0.0, rise) / self._steps.to(integral.device)[i]
        fraction = torch.where(to_zero, -torch.expm1(-torch.where(to_zero, rise, 0.0) / 2), steady)
        return ((i + fraction) / n).to(integral.dtype)


def cell(t: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Which of the cells (i/n, (i+1)/n], i = 0..n-1, holds t, and where in it, in (0, 1], float64.

    A node that rounding moved counts as the node: it keeps the cell below it, of which it is the end.
    """
    u = t.to(torch.float64) * n
    slack = min(4 * n * torch.finfo(t.dtype).eps, 0.25)
    i = (torch.ceil(u.detach() - slack).to(torch.int64) - 1).clamp(0, n - 1)
    fraction = u - i
    return i, fraction - (fraction.detach() - 1).clamp(0, slack)
