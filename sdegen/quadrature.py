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


@cache
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the n-point rule on [0, 1], float64: exact for polynomials of degree 2n - 1."""
    x, w = legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


@cache
def _to_antiderivative() -> np.ndarray:
    """Matrix from values at the nodes to the Legendre coefficients of the antiderivative on [-1, 1] (zero at -1)."""
    x, w = legendre.leggauss(_NODES)
    degrees = np.arange(_NODES)
    to_coefficients = (2 * degrees[:, None] + 1) / 2 * legendre.legvander(x, _NODES - 1).T * w
    return np.stack([legendre.legint(column, lbnd=-1) for column in to_coefficients.T], axis=1)


class Antiderivative:
    """F(t) = integral from a to t of f, as piecewise polynomials of degree 16 on adaptively halved panels.

    A panel is halved until its own integral and those of its two halves agree to `rtol` of the whole. Calling it is
    a table look-up and a polynomial: cheap, any shape of t, differentiable in t (its derivative is the interpolant of f).

    Args:
        f: function of a float64 tensor of times, elementwise; called at interior points of [a, b] only.
        a, b: the interval.
        rtol: relative accuracy of the integral over the whole interval.

    Raises:
        InvalidInputError: f is not finite, or no panel width resolves it.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], a: float, b: float, *, name: str = "f", rtol: float = 1e-13) -> None:
        nodes, weights = gauss_legendre(_NODES)

        def values(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            t = torch.from_numpy(left[:, None] + (right - left)[:, None] * nodes.numpy())
            v = torch.as_tensor(f(t), dtype=torch.float64).detach().expand(t.shape).numpy()
            if not np.isfinite(v).all():
                where = float(t.numpy()[~np.isfinite(v)][0])
                raise InvalidInputError(f"{name}(t) is not finite at t = {where:g}: give an interval on which it is")
            return v

        w = weights.numpy()
        edges = np.linspace(a, b, 9)
        left, right = edges[:-1], edges[1:]
        v = values(left, right)
        done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for _ in range(60):
            middle = (left + right) / 2
            v_left, v_right = values(left, middle), values(middle, right)
            whole = (right - left) * (v @ w)
            halves = (right - left) / 2 * ((v_left + v_right) @ w)
            scale = np.abs(whole).sum() + sum(float(np.abs((r - l) * (u @ w)).sum()) for l, r, u in done)
            good = (np.abs(whole - halves) <= rtol * np.abs(halves)) | (np.abs(whole - halves) <= 1e-2 * rtol * scale)
            done.append((left[good], right[good], v[good]))
            if good.all():
                break
            bad = ~good
            left, right, v = (
                np.concatenate([left[bad], middle[bad]]),
                np.concatenate([middle[bad], right[bad]]),
                np.concatenate([v_left[bad], v_right[bad]]),
            )
            if len(left) > 20_000:
                raise InvalidInputError(f"{name}(t) is too rough to integrate on [{a:g}, {b:g}]: give a smoother function")
        left, right, v = (np.concatenate(parts) for parts in zip(*done, strict=True))
        order = np.argsort(left)
        left, right, v = left[order], right[order], v[order]
        half = (right - left)[:, None] / 2
        coefficients = v @ _to_antiderivative().T * half
        start = np.concatenate([[0.0], np.cumsum((right - left) * (v @ w))[:-1]])
        coefficients[:, 0] += start
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
