"""Gauss-Legendre quadrature in float64, and antiderivatives of user functions to near machine precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

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
        nodes, weights = (part.numpy() for part in gauss_legendre(_NODES))

        def values(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            t = torch.from_numpy(left[:, None] + (right - left)[:, None] * nodes)
            v = torch.as_tensor(f(t), dtype=torch.float64, device="cpu").detach().expand(t.shape).numpy()
            if not np.isfinite(v).all():
                where = float(t.numpy()[~np.isfinite(v)][0])
                raise InvalidInputError(f"{name}(t) is not finite at t = {where:g}: give an interval on which it is")
            return v

        # Panels that shrink towards a: F starts there from 0, and small values need small panels.
        edges = a + (b - a) * np.unique(np.concatenate([[0.0], 2.0 ** np.arange(-40, -3), np.linspace(0, 1, 9)[1:]]))
        left, right = edges[:-1], edges[1:]
        v = values(left, right)
        done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        done_left, done_mass = np.empty(0), np.empty(0)
        for _ in range(_MOST_HALVINGS):
            middle = (left + right) / 2
            v_left, v_right = values(left, middle), values(middle, right)
            miss = (right - left) * np.abs(v @ _to_halves().T - np.concatenate([v_left, v_right], 1)).max(1)
            mass = (right - left) / 2 * ((np.abs(v_left) + np.abs(v_right)) @ weights)
            reached = _cumulative(np.concatenate([done_left, left]), np.concatenate([done_mass, mass]), left)
            floor = 1e-20 * (done_mass.sum() + mass.sum())
            good = miss <= rtol * reached + floor
            if 2 * (~good).sum() > _MOST_PANELS:
                good = miss <= 1e-9 * reached
                if not good.all():
                    raise InvalidInputError(
                        f"{name}(t) is too rough to integrate on [{a:g}, {b:g}], for example near t = "
                        f"{float(left[~good][0]):g}: give a smoother function"
                    )
            # A panel as narrow as numbers allow is what is left of an interior singularity.
            narrow = right - left <= 8 * np.spacing(np.maximum(np.abs(left), np.abs(right)))
            good |= narrow & (mass <= 1e-9 * reached)
            if (narrow & ~good).any():
                break
            done.append((left[good], right[good], v[good]))
            done_left, done_mass = np.concatenate([done_left, left[good]]), np.concatenate([done_mass, mass[good]])
            bad = ~good
            left, right, v = (
                np.concatenate([left[bad], middle[bad]]),
                np.concatenate([middle[bad], right[bad]]),
                np.concatenate([v_left[bad], v_right[bad]]),
            )
            if not len(left):
                break
        if len(left):
            raise InvalidInputError(
                f"{name}(t) cannot be integrated across t = {float(left[0]):g}: give an interval without that point"
            )
        left, right, v = (np.concatenate(parts) for parts in zip(*done, strict=True))
        order = np.argsort(left)
        left, right, v = left[order], right[order], v[order]
        coefficients = v @ _to_antiderivative().T * (right - left)[:, None] / 2
        coefficients[:, 0] += np.concatenate([[0.0], np.cumsum((right - left) * (v @ weights))[:-1]])
        self._left, self._right = torch.from_numpy(left), torch.from_numpy(right)
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


def _cumulative(left: np.ndarray, mass: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The mass of all panels up to and including the one that starts at each of `at`."""
    order = np.argsort(left)
    return np.cumsum(mass[order])[np.searchsorted(left[order], at, side="right") - 1]
