"""A DDPM or NCSN table as a process whose nodes are exact: node i of 1..N is at t = i/N."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from .exploding import VarianceExploding
from .functions import Time
from .preserving import VariancePreserving
from .rates import TableRate, cell


class TabulatedVPSDE(VariancePreserving, checked=False):
    """A DDPM table as a process: node i of 1..N at t = i/N, node 0 clean data.

    The rate on ((i-1)/N, i/N] is the constant -N log(1 - beta_i). Then alpha^2 at node i is exactly
    prod_{j<=i} (1 - beta_j), and the kernel between neighbours has variance beta_i. Where the last beta is 1 (zero
    terminal signal-to-noise ratio) no constant rate does that: there alpha falls to 0 linearly in t.

    Args:
        betas: (N,), N >= 2, with 0 < beta_i < 1; the last may be 1.

    Attributes:
        betas: the table, float64.
        nodes: (N,), the times i/N, i = 1..N.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 2-4.
    """

    _rate: TableRate

    @checked
    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        self.betas = _table(betas, "betas")
        if bool(((self.betas <= 0) | (self.betas > 1)).any()) or bool((self.betas[:-1] == 1).any()):
            raise InvalidInputError("betas: expected 0 < beta < 1 at every node (the last may be 1)")
        n = len(self.betas)
        self.nodes = _nodes(n)
        steps = -torch.log1p(-self.betas)
        super().__init__(TableRate(steps), t_min=1 / n, t_max=1.0)
        self.config = {"betas": self.betas.tolist()}

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        _, start, step, to_zero = self._rate.parts(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        straight = torch.exp(-start / 2).to(t.dtype)  # finite at alpha = 0
        d_alpha = -len(self.betas) * torch.where(to_zero, straight, alpha * step.to(t.dtype) / 2)
        return d_alpha, -alpha * d_alpha / sigma


class TabulatedVESDE(VarianceExploding, checked=False):
    """An NCSN table as a process: node i of 1..N at t = i/N.

    sigma(0) = 0, sigma^2 is linear in t up to node 1 and log(sigma) linear between nodes after that.

    Args:
        sigmas: (N,), N >= 2, positive and increasing (noise grows with time), in the data's units.

    Attributes:
        sigmas: the table, float64.
        nodes: (N,), the times i/N, i = 1..N.

    Source: Song & Ermon 2019 (arXiv 1907.05600); Song et al. 2021 (arXiv 2011.13456) section 3.4.
    """

    @checked
    def __init__(self, sigmas: Sequence[float] | Tensor) -> None:
        self.sigmas = _table(sigmas, "sigmas")
        if bool((self.sigmas <= 0).any()) or bool((self.sigmas.diff() <= 0).any()):
            raise InvalidInputError(
                "sigmas: expected positive and increasing values (a table from large to small must be flipped)"
            )
        n = len(self.sigmas)
        self.nodes = _nodes(n)
        self._logs = torch.log(self.sigmas)
        super().__init__(t_min=1 / n, t_max=1.0)
        self.config = {"sigmas": self.sigmas.tolist()}

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether t is in the first cell, where in its cell, log(sigma) at the left node, its rise in the cell."""
        i, fraction = cell(t, len(self.sigmas))
        logs = self._logs.to(t.device)
        left = logs[(i - 1).clamp_min(0)]
        return i == 0, fraction, left, logs[i] - left

    def sigma(self, t: Time) -> Tensor:
        first, fraction, left, rise = self._parts(t)
        root = self.sigmas[0].to(t.device) * torch.sqrt(torch.where(first, fraction, 1.0))
        return torch.where(first, root, torch.exp(left + rise * fraction)).to(t.dtype)

    def diffusion(self, t: Time) -> Tensor:
        n = len(self.sigmas)
        first, _, _, rise = self._parts(t)
        root = self.sigmas[0].to(t.device) * math.sqrt(n)
        return torch.where(first, root, self.sigma(t) * torch.sqrt(2 * n * rise)).to(t.dtype)

    def time(self, half_log_snr: Time) -> Tensor:
        log_sigma = -half_log_snr
        logs, n = self._logs.to(half_log_snr.device), len(self.sigmas)
        i = torch.searchsorted(logs, log_sigma.detach().to(torch.float64).contiguous()).clamp(0, n - 1)
        left, right = logs[(i - 1).clamp_min(0)], logs[i]
        later = i + (log_sigma - left) / (right - left).clamp_min(1e-300)
        first = torch.exp(2 * (log_sigma - logs[0]))
        return (torch.where(i == 0, first, later) / n).to(half_log_snr.dtype)


def _nodes(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / n


def _table(values: Sequence[float] | Tensor, name: str) -> Tensor:
    try:
        table = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name} could not be read as a list of numbers ({error})") from error
    if table.ndim != 1 or len(table) < 2:
        raise InvalidInputError(f"{name} has shape {tuple(table.shape)}: expected (N,), one number per node, N >= 2")
    if not bool(torch.isfinite(table).all()):
        raise InvalidInputError(f"{name} holds NaN or infinity: expected finite numbers, one per node")
    return table
