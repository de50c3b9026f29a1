"""What the methods of `sample_posterior` are given, and the Solution they give back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.conditions import rows_of
from ...core.errors import InvalidInputError
from ...core.shapes import finite_rows
from ...loop.solution import ARRIVED, NON_FINITE, Solution, describe
from ...models.base import ScoreModel
from ...models.guided.observation import Observation
from ...noise.white import Noise
from ...processes import Level


@dataclass(frozen=True)
class Request:
    """A checked call of `sample_posterior`: what all samples share.

    Attributes:
        model, observation: whose data, and what was seen of them.
        method: its name.
        steps, rtol: as the user gave them.
        times: (S,) float64, falling, down to t_min: the fixed grid.
        particles, passes: how many.
        rows: the most rows that a network is asked about at once; None: any number.
        event: one sample's shape.
        dtype, device: of the state.
    """

    model: ScoreModel
    observation: Observation
    method: str
    steps: Any
    rtol: float
    times: Tensor
    particles: int
    passes: int
    rows: int | None
    event: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def like(self, batch: int) -> Tensor:
        """Zeros as a batch of events."""
        return torch.zeros(batch, *self.event, dtype=self.dtype, device=self.device)

    def level(self, t: float | Tensor) -> Level:
        """The process at one time."""
        return self.model.sde.at(float(t))

    def parts(self, batch: int) -> Iterator[Tensor]:
        """The rows of a batch, as many at a time as a network may be asked about."""
        size = self.rows or max(batch, 1)
        return (torch.arange(i, min(i + size, batch), device=self.device) for i in range(0, max(batch, 1), size))


@dataclass(frozen=True)
class Group:
    """Some of the samples: each is drawn by a group of particles, which share what was seen.

    Attributes:
        size: how many samples.
        y: (size, m), in the state's dtype.
        cond: the model's conditions.
        noise: of the samples.
        report: takes the fraction done.
        x_init: (size, *event), where sweeps begin, or None.
    """

    size: int
    y: Tensor
    cond: dict[str, Any]
    noise: Noise
    report: Callable[[float], None]
    x_init: Tensor | None = None

    def repeated(self, times: int) -> tuple[Tensor, dict[str, Any]]:
        """y and the conditions with each row so many times, one after the other."""
        rows = torch.arange(self.size, device=self.y.device).repeat_interleave(times)
        return self.y[rows], rows_of(self.cond, rows)


@dataclass(frozen=True)
class Weighed:
    """Draws with what they count: `log_weights` (B,), `ess` (B,), both float64."""

    log_weights: Tensor
    ess: Tensor


def answer(
    request: Request, x: Tensor, *, evaluations: int, calls: int, seed: int | None, weighed: Weighed | None = None
) -> Solution:
    """The Solution of draws x at t = 0, each of which took so many evaluations."""
    b, steps = len(x), len(request.times)
    good = finite_rows(x).cpu()
    if weighed is not None:
        good = good & torch.isfinite(weighed.log_weights).cpu()
    status = torch.where(good, ARRIVED, NON_FINITE)
    whole = torch.full((b,), steps, dtype=torch.int64, device="cpu")
    t = torch.where(good, 0.0, float(request.times[-1])).double()
    words = [f"{request.particles} particles" if weighed is not None else f"{request.passes} passes"]
    words += [f"rtol={request.rtol:g}" if request.method == "weighted" else f"{steps} steps"]
    return Solution(
        x=x,
        ts=torch.zeros(1, dtype=torch.float64, device="cpu"),
        xs=x[None],
        nfe=torch.full_like(whole, evaluations),
        calls=calls,
        accepted=whole,
        rejected=torch.zeros_like(whole),
        t=t,
        status=status,
        message=describe(status, t, whole),
        solver=", ".join([request.method, *words]),
        seed=seed,
        log_weights=None if weighed is None else weighed.log_weights,
        ess=None if weighed is None else weighed.ess,
        log_evidence=None if weighed is None else weighed.log_weights,
    )


def uniform_size(request: Request) -> float:
    """The one eigenvalue of A A^T.

    Raises:
        InvalidInputError: A is not linear, or its rows are not orthogonal and of one length.
    """
    if not request.observation.curved:
        spectrum = request.observation.spectrum(request.like(1))
        if bool(spectrum.min() > spectrum.max() * (1 - 1e-6)):
            return float(spectrum.max())
    raise InvalidInputError(
        f"got method={request.method!r} of {request.observation!r}, expected a mask, an average, or a matrix with "
        'orthogonal rows of one length: use "twisted"'
    )


def with_seen(x: Tensor, values: Tensor, observation: Observation, size: float) -> Tensor:
    """x with what A sees of it replaced: x + A^T (values - A x)/size, where A A^T = size."""
    return x + observation.adjoint((values - observation.measure(x)) / size, x)
