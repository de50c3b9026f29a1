"""Directions of an event that have weights of their own: frequencies of an image, principal directions of a vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import flat


@dataclass(frozen=True, eq=False)
class Bands:
    """An orthonormal basis of events, cut into bands.

    Attributes:
        count: how many; 1: the event as it is.
        rows: matrices whose rows are the directions: one for the flattened event, or one for each of an image's last
            two axes; none for one band.
        band: (d,) the band of each direction, over the flattened event; empty for one band.
    """

    count: int = 1
    rows: tuple[Tensor, ...] = ()
    band: Tensor = torch.zeros(0, dtype=torch.int64, device="cpu")

    @classmethod
    def of(cls, count: int, ends: Tensor, covariance: Tensor | None = None) -> Bands:
        """Bands for events like these.

        Args:
            count: how many bands.
            ends: (B, *event), centred ends of the flow: for events of one axis their principal directions count, unless
                the covariance is known. Images have cosines (DCT-II), by the length of their wave vector.
            covariance: (d, d), None where unknown.
        """
        if count == 1:
            return cls()
        event = tuple(ends.shape[1:])
        most = math.prod(event[-2:]) if len(event) > 1 else math.prod(event)
        if count > most:
            raise InvalidInputError(f"got bands={count}, expected at most {most}, the directions of events {event}")
        if len(event) > 1:
            rows = tuple(_cosines(n) for n in event[-2:])
            waves = [torch.arange(n, dtype=torch.float64, device="cpu") / n for n in event[-2:]]
            rank = (waves[0][:, None] ** 2 + waves[1] ** 2).flatten().argsort(stable=True).argsort()
            band = torch.bucketize(rank, _edges(count, most), right=True)
            return cls(count, rows, band.repeat(math.prod(event[:-2])))
        x = flat(ends).double().cpu()
        c = x.T @ x if covariance is None else covariance.double().cpu()
        directions = torch.linalg.eigh(c).eigenvectors.flip(1).T.contiguous()  # the widest first
        ranks = torch.arange(most, device="cpu")
        return cls(count, (directions,), torch.bucketize(ranks, _edges(count, most), right=True))

    def into(self, x: Tensor) -> Tensor:
        """An event in this basis."""
        return self._turned(x, [q.to(x) for q in self.rows])

    def out(self, z: Tensor) -> Tensor:
        """The event of which this is `into`."""
        return self._turned(z, [q.T.to(z) for q in self.rows])

    def spread(self, weights: Tensor, like: Tensor) -> Tensor:
        """Weights (count,) of the bands as those of all directions, event-shaped."""
        return weights[self.band].reshape(like.shape[1:]).to(like)

    def _turned(self, x: Tensor, rows: list[Tensor]) -> Tensor:
        if len(rows) == 2:
            return rows[0] @ x @ rows[1].T
        return (flat(x) @ rows[0].T).reshape(x.shape) if rows else x


def _edges(count: int, most: int) -> Tensor:
    """The ranks where the bands after the first begin: in geometric proportion, every band holding some."""
    edges, last = [], 0
    for k in range(1, count):
        last = min(max(last + 1, round(most ** (k / count))), most - (count - k))
        edges.append(last)
    return torch.tensor(edges, dtype=torch.int64, device="cpu")


def _cosines(n: int) -> Tensor:
    """The orthonormal DCT-II, (n, n)."""
    i = torch.arange(n, dtype=torch.float64, device="cpu")
    rows = torch.cos(math.pi * (i + 0.5) * i[:, None] / n) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows
