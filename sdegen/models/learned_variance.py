"""Beliefs that also say how wide DDPM's reverse step is: networks with a learned variance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.errors import InvalidInputError
from .denoiser import Denoiser
from .prediction import Prediction


class VariancePrediction(Prediction):
    """A Prediction with `fraction`, like x: where log Sigma lies, from the posterior's (0) to the forward kernel's."""

    __slots__ = ("fraction",)
    fraction: Tensor


def fraction_of(prediction: Prediction) -> Tensor:
    """Where log Sigma lies, of a prediction that says it.

    Raises:
        InvalidInputError: a prediction without a variance.
    """
    if not isinstance(prediction, VariancePrediction):
        raise InvalidInputError(
            "got a prediction without a variance, expected a model that learned it: discrete.LearnedVariance(net, "
            "sde), with a network of twice the channels"
        )
    return prediction.fraction


class LearnedVariance(Denoiser):
    """A Denoiser whose network has twice the channels: the second half tells the variance of DDPM's reverse step.

    log Sigma = v log beta + (1 - v) log beta_tilde, element by element, with v = (raw + 1)/2 of the raw second half,
    beta the variance of the forward kernel between the two times and beta_tilde that of the posterior. It samples with
    `discrete.ddpm(..., variance="learned")` and trains with `discrete.hybrid_loss`; all else sees the first half.

    Args:
        net: net(x, t, **cond) -> (B, 2 C, ...) for x (B, C, ...).
        The rest: as `Denoiser`.

    Raises:
        InvalidInputError: at the call, an output of another shape.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 15.
    """

    def _belief(self, x: Tensor, t: Tensor, output: Any, x0: Any, noise: Any) -> VariancePrediction:
        expected = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else None
        if not isinstance(output, Tensor) or output.shape != expected:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InvalidInputError(
                f"the network returned {got} for an input of shape {tuple(x.shape)}: expected {expected}"
            )
        first, second = output.to(x.dtype).chunk(2, 1)
        prediction = VariancePrediction.spanned(x, first, x0, noise, self.sde, t)
        prediction.fraction = (second + 1) / 2
        return prediction
