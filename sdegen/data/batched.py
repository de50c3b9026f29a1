"""Sets that give many samples at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import rows_of


class Batched(ABC):
    """N samples, any of which can be asked for together: what `fit` takes a batch of in one call.

    Subclass it for your own: `len(data)` and `batch`. What `batch` draws from the global generators is decided by the
    seed and the step of a run.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, numbers: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Some samples.

        Args:
            numbers: (B,) integers, 0 .. len - 1.

        Returns:
            x0 (B, *event), and its conditions by name, {} where there are none.
        """

    def __getitem__(self, i: int) -> Any:
        """x0, or (x0, conditions) where there are some."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        x0, cond = self.batch(torch.tensor([i % len(self)], device="cpu"))
        return (x0[0], rows_of(cond, 0)) if cond else x0[0]
