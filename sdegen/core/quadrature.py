"""Gauss-Legendre quadrature in float64, and antiderivatives of user functions to near machine precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from .errors import InvalidInputError

_NODES = 16
_MOST_HALVINGS = 200
_MOST_PANELS = 20_000


@cache
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the n-point rule on [0, 1], float64: exact for polynomials of degree 2n - 1."""
    x, w = legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


@cache
def _to_coefficients() -> np.ndarray:
    """Matrix from values at the nodes to the Legendre coefficients of their interpolant on [-1, 1]."""
    x, w = legendre.leggauss(_NODES)
    degrees = np.arange(_NODES)
    return (2 * degrees[:, None] + 1) / 2 * legendre.legvander(x, _NODES - 1).T * w


@cache
def _to_halves() -> np.ndarray:
    """Matrix from values at the nodes to the interpolant's values at the nodes of the two halves."""
    x, _ = legendre.leggauss(_NODES)
    return legendre.legvander(np.concatenate([x - 1, x + 1]) / 2, _NODES - 1) @ _to_coefficients()


@cache
def _to_antiderivative() -> np.ndarray:
    """Matrix from values at the nodes to the Legendre coefficients of the antiderivative on [-1, 1] (zero at -1)."""
    return np.stack([legendre.legint(column, lbnd=-1) for column in _to_coefficients().T], axis=1)


class Antiderivative:
    """F(t) = integral from a to t of f, as piecewise polynomials of degree 16 on adaptively halved panels.

    A panel [l, r] is halved until its interpolant gives f at the nodes of its two halves: the largest miss times the
    width is at most `rtol` times the integral of |f| from a to r. So F is accurate between the ends of panels too (the
    integral over a panel is a far weaker test: Gauss' rule has twice the interpolant's order), and relatively accurate
    near a, where it starts from 0. Calling it is a table look-up and a polynomial: cheap, any shape of t,
    differentiable in t (its derivative is the interpolant of f).

    Args:
        f: function of a float64 tensor of times, elementwise; called at interior points of [a, b] only. Jumps, kinks
            and integrable singularities are found, at a cost of some forty panels each.
        a, b: the interval.
        name: what messages call f.
        rtol: relative accuracy; 1e-9 is accepted of an f that is itself no smoother.

    Raises:
        InvalidInputError: f is not finite, too rough, or too singular.
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], a: float, b: float, *, name: str = "f", rtol: float = 1e-12
    ) -> None:
        panels = _resolved(partial(_at_nodes, f, name), a, b, name, rtol)
        width = panels.right - panels.left
        coefficients = panels.values @ _to_antiderivative().T * width[:, None] / 2
        coefficients[:, 0] += np.concatenate([[0.0], np.cumsum(width * (panels.values @ _weights()))[:-1]])
        self._left, self._right = torch.from_numpy(panels.left), torch.from_numpy(panels.right)
        self._coefficients = torch.from_numpy(coefficients)

    def __call__(self, t: Tensor) -> Tensor:
        """F(t), of t's shape, dtype and device."""
        left, right = self._left.to(t.device), self._right.to(t.device)
        u = t.to(torch.float64)
        panel = (torch.searchsorted(left, u.detach().contiguous(), right=True) - 1).clamp(0, len(left) - 1)
        z = (2 * u - left[panel] - right[panel]) / (right - left)[panel]
        c = self._coefficients.to(t.device)[panel]
        # Clenshaw's recurrence for a Legendre series
        b1 = b2 = torch.zeros_like(z)
        for k in range(c.shape[-1] - 1, 0, -1):
            b1, b2 = c[..., k] + (2 * k + 1) / (k + 1) * z * b1 - (k + 1) / (k + 2) * b2, b1
        return (c[..., 0] + z * b1 - b2 / 2).to(t.dtype)


class _Panels(NamedTuple):
    """Intervals [left, right] (P,) and the integrand's values at the nodes of each, (P, 16)."""

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray

    def __getitem__(self, mask: np.ndarray) -> _Panels:  # type: ignore[override]
        return _Panels(*(part[mask] for part in (self.left, self.right, self.values)))

    @staticmethod
    def joined(panels: list[_Panels]) -> _Panels:
        """All of them, from left to right."""
        left, right, values = (np.concatenate(parts) for parts in zip(*panels, strict=True))
        order = np.argsort(left)
        return _Panels(left[order], right[order], values[order])


def _weights() -> np.ndarray:
    return gauss_legendre(_NODES)[1].numpy()


def _at_nodes(f: Callable[[Tensor], Tensor], name: str, left: np.ndarray, right: np.ndarray) -> _Panels:
    """Panels with f's values, which must be finite."""
    nodes = gauss_legendre(_NODES)[0].numpy()
    t = torch.from_numpy(left[:, None] + (right - left)[:, None] * nodes)
    v = torch.as_tensor(f(t), dtype=torch.float64, device="cpu").detach().expand(t.shape).numpy()
    if not np.isfinite(v).all():
        where = float(t.numpy()[~np.isfinite(v)][0])
        raise InvalidInputError(f"{name}(t) is not finite at t = {where:g}: give an interval on which it is")
    return _Panels(left, right, v)


def _resolved(
    at_nodes: Callable[[np.ndarray, np.ndarray], _Panels], a: float, b: float, name: str, rtol: float
) -> _Panels:
    """Panels on which the interpolant is the integrand, from halving those where it is not."""
    # They shrink towards a: F starts there from 0, and small values need small panels.
    edges = a + (b - a) * np.unique(np.concatenate([[0.0], 2.0 ** np.arange(-40, -3), np.linspace(0, 1, 9)[1:]]))
    open_, done = at_nodes(edges[:-1], edges[1:]), []
    done_left, done_mass = np.empty(0), np.empty(0)
    for _ in range(_MOST_HALVINGS):
        middle = (open_.left + open_.right) / 2
        halves = at_nodes(open_.left, middle), at_nodes(middle, open_.right)
        width, here = open_.right - open_.left, np.concatenate([halves[0].values, halves[1].values], 1)
        miss = width * np.abs(open_.values @ _to_halves().T - here).max(1)
        mass = width / 2 * (np.abs(halves[0].values) @ _weights() + np.abs(halves[1].values) @ _weights())
        reached = _cumulative(np.concatenate([done_left, open_.left]), np.concatenate([done_mass, mass]), open_.left)
        good = miss <= rtol * reached + 1e-20 * (done_mass.sum() + mass.sum())
        if 2 * (~good).sum() > _MOST_PANELS:  # accept what is less accurate, if anything
            good = miss <= 1e-9 * reached
            _raise_if_rough(open_.left[~good], a, b, name)
        # A panel as narrow as numbers allow is what is left of an interior singularity.
        narrow = width <= 8 * np.spacing(np.maximum(np.abs(open_.left), np.abs(open_.right)))
        good |= narrow & (mass <= 1e-9 * reached)
        if (narrow & ~good).any():
            break
        done.append(open_[good])
        done_left, done_mass = np.concatenate([done_left, open_.left[good]]), np.concatenate([done_mass, mass[good]])
        if good.all():
            return _Panels.joined(done)
        open_ = _Panels(*map(np.concatenate, zip(*(half[~good] for half in halves), strict=True)))
    raise InvalidInputError(
        f"{name}(t) cannot be integrated across t = {float(open_.left[0]):g}: give an interval without that point"
    )


def _raise_if_rough(left: np.ndarray, a: float, b: float, name: str) -> None:
    if len(left):
        raise InvalidInputError(
            f"{name}(t) is too rough to integrate on [{a:g}, {b:g}], for example near t = {float(left[0]):g}: give a "
            "smoother function"
        )


def _cumulative(left: np.ndarray, mass: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The mass of all panels up to and including the one that starts at each of `at`."""
    order = np.argsort(left)
    return np.cumsum(mass[order])[np.searchsorted(left[order], at, side="right") - 1]
