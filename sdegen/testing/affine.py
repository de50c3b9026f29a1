"""The law of a solver's output on Gaussian data, without sampling: most steps are affine in the state and the noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.kinds import checked
from ..loop.run import solve
from ..noise.white import Noise
from ..solvers import Solver
from ..terms import Term
from .checks import STATES, normals
from .doubles import RecordedNoise


@checked
def affine_law(solver: Solver, term: Term, steps: Tensor, mean: float, variance: float) -> tuple[float, float] | None:
    """Mean and variance of what a solver makes of N(mean, variance) on a grid, exactly; None where it is not affine.

    On a term with an affine drift such as that of Gaussian data, x' = A x + B + sum_k c_k z_k over the normals z_k it
    draws; a batch in which every row feeds it one input alone gives A, B and all c_k.

    Args:
        solver, term, steps: as for `solve`; one-dimensional events.
        mean, variance: of the state at the first time.

    Returns:
        (mean, variance) of the state at the last time, or None.
    """
    probe = _Probe()
    solve(term, torch.zeros(1, 1, dtype=torch.float64), solver=solver, steps=steps, noise=probe)
    x = torch.zeros(len(probe.known) + 2, 1, dtype=torch.float64)
    x[1] = 1.0
    got = solve(term, x, solver=solver, steps=steps, noise=probe).x[:, 0]
    b, a, c = got[0], got[1] - got[0], got[2:] - got[0]
    recorded = RecordedNoise(5)
    trial = normals((4, 1), STATES)
    real = solve(term, trial, solver=solver, steps=steps, noise=recorded).x
    z = torch.stack([recorded.known[address] for address in probe.known]) if len(c) else x.new_zeros(0, 4, 1)
    predicted = a * trial + b + torch.einsum("k,kbe->be", c, z)
    if not float((real - predicted).abs().max()) <= 1e-9 * (1 + float(predicted.abs().max())):
        return None
    return float(a * mean + b), float(a**2 * variance + c.square().sum())


class _Probe(Noise):
    """Noise under control: the k-th normal that a solve draws is 1 in row k + 2 of the batch and 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__(0)
        self.known: dict[tuple[float, ...], int] = {}

    def select(self, keep: Tensor) -> Noise:
        return self

    def normal(
        self, shape: Sequence[int], *address: int | float | Tensor, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        k = self.known.setdefault(tuple(float(part) for part in address), len(self.known))
        z = torch.zeros(tuple(shape), dtype=dtype, device=device)
        z[k + 2 : k + 3] = 1.0
        return z
