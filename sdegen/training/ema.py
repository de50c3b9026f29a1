"""The running average of the weights: what a model samples best with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Exponential average of parameters: a <- d a + (1 - d) p after step n = 0, 1, ..., d = min(decay, (1+n)/(10+n)).

    The warm-up of d forgets the first weights soon: after n steps the average looks back over about n/9 of them, in the
    end over 1/(1 - decay).

    Args:
        parameters: what is averaged.
        decay: in [0, 1); 0 keeps the last weights.

    Source: Polyak & Juditsky 1992; the warm-up as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.values: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the parameters after step n."""
        torch._foreach_lerp_(self.values, self.parameters, 1 - min(self.decay, (1 + n) / (10 + n)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand in the model; its own weights wait outside."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the averages in the model."""
        torch._foreach_copy_(self.parameters, self.values)

    def _exchange(self) -> None:
        for i, p in enumerate(self.parameters):
            p.data, self.values[i] = self.values[i], p.data
