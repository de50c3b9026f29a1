"""(A V A^T + std^2)^-1, dense for a few numbers, by conjugate gradients for many."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .observation import Map

DENSE = 32  # numbers seen; up to it S is made and decomposed, above it conjugate gradients solve for S^-1
_TOLERANCE, _MOST = 1e-3, 100  # of conjugate gradients: the residual, relative, and a limit


class Solved(NamedTuple):
    """S^-1 rest, (B, m), and log det S, (B,), which conjugate gradients do not know: None."""

    value: Tensor
    log_det: Tensor | None


def solve_spread(spread: Map, rest: Tensor, noise: float) -> Solved:
    """S^-1 rest for S = A V A^T + noise, every sample by itself.

    Args:
        spread: v -> A V A^T v; of a learned belief it need be neither symmetric nor positive.
        rest: (B, m).
        noise: std^2.
    """
    if rest.shape[1] <= DENSE:
        return _by_cholesky(spread, rest, noise)
    return Solved(_by_gradients(spread, rest, noise), None)


def _by_cholesky(spread: Map, rest: Tensor, noise: float) -> Solved:
    """In float64, of the symmetric part, no eigenvalue of which counts as less than std^2."""
    m = rest.shape[1]
    unit = torch.eye(m, dtype=rest.dtype, device=rest.device)
    s = torch.stack([spread(row.expand_as(rest)) for row in unit], 2).double()
    identity = unit.double()
    s = (s + s.mT) / 2 + noise * identity
    good = torch.isfinite(s.detach()).all(2).all(1)[:, None]  # a sample that is not finite stays so, and stops no other
    s = torch.where(good[:, :, None], s, identity)
    least = (1e-12 * s.detach().diagonal(dim1=1, dim2=2).abs().amax(1)).clamp_min(max(noise, 1e-300))
    lowest = torch.linalg.eigvalsh(s.detach())[:, 0]
    lift = torch.where(lowest < least / 2, least - lowest, 0.0)
    root = torch.linalg.cholesky(s + lift[:, None, None] * identity)
    value = torch.cholesky_solve(rest.double()[:, :, None], root)[:, :, 0].to(rest)
    value = torch.where(good, value, torch.nan)
    return Solved(value, 2 * root.diagonal(dim1=1, dim2=2).log().sum(1))


def _by_gradients(spread: Map, rest: Tensor, noise: float) -> Tensor:
    """Conjugate gradients until each sample's residual is 1e-3 of what it was; a sample that is done stays put."""
    found, residual, direction = torch.zeros_like(rest), rest, rest
    size = residual.square().sum(1, keepdim=True)
    goal = _TOLERANCE**2 * size.detach()
    for _ in range(min(rest.shape[1], _MOST)):
        image = spread(direction) + noise * direction
        curvature = (direction * image).sum(1, keepdim=True)
        going = (size > goal) & (curvature > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        found, residual = found + step * direction, residual - step * image
        smaller = residual.square().sum(1, keepdim=True)
        turn = torch.where(going, smaller / torch.where(going, size, 1.0), 0.0)
        direction, size = torch.where(going, residual + turn * direction, direction), torch.where(going, smaller, size)
    return found
