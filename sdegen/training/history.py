"""What a training run tells afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sde import SDE


@dataclass(frozen=True)
class History:
    """The losses of a run.

    Attributes:
        loss: (steps,) float64, the batch means; NaN where a step was skipped.
        loss_by_level: (bins,) the mean loss by noise level over the later half of the run, NaN where no sample fell.
        level_edges: (bins + 1,) the bins' edges in half log-SNR, rising: noise to the left, data to the right.
        skipped: the steps that were left out because loss or gradient was not finite.
        seed: what governed order, times and noise.
    """

    loss: Tensor
    loss_by_level: Tensor
    level_edges: Tensor
    skipped: tuple[int, ...]
    seed: int


class Levels:
    """Sums of losses by noise level, on the device, (bins,) each."""

    def __init__(self, sde: SDE, device: torch.device, bins: int = 16) -> None:
        ends = sde.half_log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
        low, high = float(ends[0].clamp_min(-12)), float(ends[1])  # no signal at all is level -12 and below
        self.sde, self.edges = sde, torch.linspace(low, high, bins + 1, dtype=torch.float64)
        self.sums = torch.zeros(2, bins, dtype=torch.float64, device=device)

    def add(self, t: Tensor, loss: Tensor) -> None:
        """Note losses (B,) at times () or (B,)."""
        level = self.sde.half_log_snr(t.detach().to(loss.device, torch.float64)).expand(loss.shape)
        edges = self.edges.to(loss.device)
        cell = (torch.searchsorted(edges, level.contiguous(), right=True) - 1).clamp(0, self.sums.shape[1] - 1)
        values = torch.stack([loss.detach().double(), torch.ones_like(loss, dtype=torch.float64)])
        self.sums.index_add_(1, cell, values)

    def means(self) -> Tensor:
        return (self.sums[0] / self.sums[1]).cpu()
