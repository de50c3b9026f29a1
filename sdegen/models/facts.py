"""The Gaussians that a model's statistics describe."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..distributions.gaussian import Gaussian, _flat_mean
from .base import ScoreModel


def reference(model: ScoreModel) -> Gaussian:
    """The data's mean with its covariance or, where that is unknown, its standard deviation (1 at worst)."""
    if model.data_covariance is not None:
        return replace(_decomposed(model.data_covariance), mean=_flat_mean(model.data_mean))
    return Gaussian.of_variances(torch.tensor(model.sigma_data**2, dtype=torch.float64), model.data_mean)


def known(model: ScoreModel) -> Gaussian:
    """The data's mean with its covariance or, where that is unknown, the variance of each coordinate (1 at worst)."""
    if model.data_covariance is not None or model.data_std is None:
        return reference(model)
    return Gaussian.of_variances(model.data_std.double() ** 2, model.data_mean)


_KNOWN = WeakTensorKeyDictionary()  # covariance -> (its version, its Gaussian), for as long as the tensor lives


def prior(model: ScoreModel) -> Gaussian:
    """The data's law as it is taken at t_max: N(mean, C) as far as the model knows them, else a point (at worst 0)."""
    if model.data_std is None:
        mean = torch.zeros((), dtype=torch.float64) if model.data_mean is None else model.data_mean
        return Gaussian.of_variances(torch.zeros((), dtype=torch.float64), mean)
    return known(model)


def _decomposed(covariance: Tensor) -> Gaussian:
    """Gaussian.of_covariance, computed once for each tensor: models and their views share it."""
    found = _KNOWN.get(covariance)
    if found is None or found[0] != covariance._version:
        found = _KNOWN[covariance] = (covariance._version, Gaussian.of_covariance(covariance))
    return found[1]
