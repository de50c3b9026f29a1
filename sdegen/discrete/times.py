"""Which nodes to train on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from ..core.shapes import check_size
from ..core.show import Shown
from ..models.base import ScoreModel
from ..noise.purposes import Purpose
from ..noise.white import noise_of
from .objectives import Seed
from .tables import nodes


def _counts(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1


class LossAware(Shown):
    """A loss over nodes that draws node i with probability p_i proportional to the root mean square of its last losses.

    The result is divided by N p_i, so its mean stays that of uniform nodes; for the bound, whose terms differ by orders
    of magnitude, its variance falls. Uniform until every node has been seen `history` times.

    Args:
        loss: called as loss(model, x0, t=node numbers, noise=, seed=, **cond) -> (B,), such as `vlb_term`.
        n: N, the number of nodes.
        history: how many of its last losses each node keeps.
        uniform: the share of p that stays uniform.

    Attributes:
        probabilities: (N,) p, float64.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 18.
    """

    @checked
    def __init__(self, loss: Callable[..., Tensor], n: int, *, history: int = 10, uniform: float = 1e-3) -> None:
        if not callable(loss):
            raise InvalidInputError(f"loss is {type(loss).__name__}: expected a function such as discrete.vlb_term")
        if not (_counts(n) and _counts(history) and 0 <= uniform <= 1):
            raise InvalidInputError(
                f"got n={n!r}, history={history!r}, uniform={uniform!r}, expected whole numbers of at least 1, and a "
                "share from 0 to 1"
            )
        self.loss, self.n, self.history, self.uniform = loss, int(n), int(history), float(uniform)
        self._last = torch.zeros(self.n, self.history, dtype=torch.float64, device="cpu")
        self._seen = torch.zeros(self.n, dtype=torch.int64, device="cpu")

    def _facts(self):
        seen = int((self._seen >= self.history).sum())
        return {"loss": self.loss, "n": self.n, "history": self.history, "uniform": self.uniform, "nodes_known": seen}

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        weight: Any = None,
        seed: Seed = None,
        **cond: Any,
    ) -> Tensor:
        """(B,) losses; at given nodes plainly, and then nothing is learned about them."""
        words = cond if weight is None else {**cond, "weight": weight}
        if t is not None:
            return self.loss(model, x0, t=t, noise=noise, seed=seed, **words)
        if isinstance(model, ScoreModel) and len(nodes(model)) != self.n:
            raise InvalidInputError(f"this LossAware is of {self.n} nodes, the model's table has {len(nodes(model))}")
        p = self.probabilities
        at = self.draw(len(x0), seed=seed)
        values = self.loss(model, x0, t=at.to(x0.device), noise=noise, seed=seed, **words)
        self.update(at, values.detach())
        return values / (self.n * p[at - 1]).to(values)

    @property
    def probabilities(self) -> Tensor:
        if bool((self._seen < self.history).any()):
            return torch.full((self.n,), 1 / self.n, dtype=torch.float64, device="cpu")
        p = self._last.square().mean(1).sqrt()
        total = p.sum()
        p = p / total if total > 0 else torch.full_like(p, 1 / self.n)
        return (1 - self.uniform) * p + self.uniform / self.n

    @checked
    def draw(self, batch: int, *, seed: Seed = None) -> Tensor:
        """Node numbers by p.

        Args:
            batch: how many.
            seed: as `dsm_loss`.

        Returns:
            (batch,) of 1..N.
        """
        check_size((whole(batch, "batch", least=0),))
        if seed is None:
            u = torch.rand(batch, dtype=torch.float64)
        else:
            u = noise_of(seed).uniform((batch,), Purpose.NODE, dtype=torch.float64, device="cpu")
        return 1 + torch.searchsorted(self.probabilities.cumsum(0), u, right=True).clamp_max(self.n - 1)

    @checked
    def update(self, at: Tensor, losses: Tensor) -> None:
        """Note the losses of some nodes, from which p follows.

        Args:
            at: (B,) node numbers 1..N, whole numbers.
            losses: (B,), at these nodes; those that are not finite are left out.

        Raises:
            InvalidInputError: other shapes, node numbers outside 1..N.
        """
        if at.ndim != 1 or losses.shape != at.shape or at.is_floating_point() or at.dtype == torch.bool:
            raise InvalidInputError(
                f"got at={told(at)} and losses={told(losses)}, expected node numbers and losses, (B,)"
            )
        if len(at) and not 1 <= int(at.min()) <= int(at.max()) <= self.n:
            raise InvalidInputError(f"got nodes {int(at.min())} to {int(at.max())}, expected them in 1 .. {self.n}")
        for i, value in zip((at.cpu() - 1).tolist(), losses.double().cpu().tolist(), strict=True):
            if math.isfinite(value):
                self._last[i, int(self._seen[i]) % self.history] = value
                self._seen[i] += 1
