"""Sets that give many samples at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import rows_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked, told


class Batched(ABC):
    """A set of N samples that gives any of them as one batch, in one call of `batch`; `fit` takes such sets.

    Subclass it for your own: `len(data)` and `batch`. What `batch` draws from the global generators is decided by the
    seed and the step of a run.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @checked
    def check_numbers(self, numbers: Tensor) -> None:
        """Refuse what `batch` cannot be asked for.

        Args:
            numbers: (B,) integers, 0 .. len - 1.

        Raises:
            InvalidInputError: another shape or kind, numbers that the set has not.
        """
        expected = f"expected (B,) integers in 0 .. {len(self) - 1}"
        if numbers.ndim != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise InvalidInputError(f"got numbers={told(numbers)}, {expected}")
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise InvalidInputError(f"got numbers from {int(numbers.min())} to {int(numbers.max())}, {expected}")

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
