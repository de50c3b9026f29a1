"""Running averages of the weights: what a model samples best with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..core.shards import is_sharded, local

LARGEST_WIDTH = 12**-0.5  # of a power-function profile: that of the plain mean of all steps


class Average:
    """Running average of parameters: a <- d_n a + (1 - d_n) p after step n = 0, 1, ...

    Args:
        parameters: what is averaged.
        decay: d, a number in [0, 1) for the exponential average with its warm-up (`exponential`; 0 keeps the last
            weights), or a function of n.
        masters: what is averaged instead where parameters are its copies in half precision; the same tensors elsewhere.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        decay: float | Callable[[int], float],
        masters: Sequence[Tensor] | None = None,
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.masters = self.parameters if masters is None else list(masters)
        self.decay = decay if callable(decay) else partial(exponential, decay)
        self.values: list[Tensor] = [p.detach().clone() for p in self.masters]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the parameters after step n."""
        torch._foreach_lerp_(list(map(local, self.values)), list(map(local, self.masters)), 1 - self.decay(n))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand in the model; its own weights wait outside."""
        self._exchange(self.values)
        try:
            yield
        finally:
            self._exchange(self.masters)

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the averages in the model."""
        torch._foreach_copy_(list(map(local, self.parameters)), list(map(local, self.values)))

    @torch.no_grad()
    def _exchange(self, wanted: Sequence[Tensor]) -> None:
        for i, p in enumerate(self.parameters):
            if self.masters[i] is not p:
                local(p).copy_(local(wanted[i]))
            elif is_sharded(p):  # what is gathered from stays where it is
                own, average = local(p), local(self.values[i])
                kept = own.clone()
                own.copy_(average)
                average.copy_(kept)
            else:
                p.data, self.values[i] = self.values[i], p.data


def exponential(decay: float, n: int) -> float:
    """d_n = min(decay, (1 + n)/(10 + n)).

    The warm-up forgets the first weights soon: after n steps the average looks back over about n/9 of them, in the end
    over 1/(1 - decay).

    Source: Polyak & Juditsky 1992; the warm-up as in TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + n) / (10 + n))


def power_function(width: float, n: int) -> float:
    """d_n = (1 - 1/t)^(gamma + 1) at t = n + 1: the average weighs the weights after step s with (s/t)^gamma.

    Args:
        width: the profile's standard deviation in units of t, below 12^(-1/2); it decides gamma.
        n: the step, from 0.

    Source: Karras et al. 2024 (arXiv 2312.02696) eq. 127 and section 3.1.
    """
    return (1 - 1 / (n + 1)) ** (gamma(width) + 1)


def gamma(width: float) -> float:
    """The exponent of a profile of that width: width^2 = (gamma + 1)/((gamma + 2)^2 (gamma + 3)).

    Source: Karras et al. 2024 (arXiv 2312.02696) algorithm 2.
    """
    w = width**-2
    return float(np.roots([1, 7, 16 - w, 12 - w]).real.max())


def mixture_of(steps: Sequence[float], widths: Sequence[float], step: float, width: float) -> list[float]:
    """The weights that make the average of `width` at `step` out of others, best in the mean square of the profiles.

    Args:
        steps, widths: (K,) of the averages there are.
        step, width: of the one to make.

    Returns:
        (K,) weights; they need not be positive.

    Source: Karras et al. 2024 (arXiv 2312.02696) algorithm 3.
    """
    t, g = np.asarray(steps, float), np.array([gamma(w) for w in widths])
    gram = _overlap(t[:, None], g[:, None], t[None], g[None])
    target = _overlap(t, g, np.asarray(step, float), np.asarray(gamma(width)))
    return np.linalg.lstsq(gram, target, rcond=1e-14)[0].tolist()


def _overlap(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray, g_b: np.ndarray) -> np.ndarray:
    """int p_a p_b of two profiles p(s) = (g + 1) s^g/t^(g + 1) on [0, t]."""
    ratio = (t_a / t_b) ** np.where(t_a < t_b, g_b, -g_a)
    return (g_a + 1) * (g_b + 1) * ratio / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
