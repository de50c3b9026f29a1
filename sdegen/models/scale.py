"""Are the data of a size that a process resolves? Told once, with numbers and the cure."""

from __future__ import annotations

from ..core.errors import warn
from ..processes import SDE
from .facts import DataFacts

_FINE, _WIDE, _OFF = 3.0, 0.3, 1.0  # std over the least noise; std, and |mean|, over the noise at t_max
_FAR = 10.0  # |mean| over std, which a network's outputs are as large as where there is much noise
_BYTES = 30.0  # a mean and a standard deviation above it are those of pictures in grey levels 0 .. 255


def out_of_scale(facts: DataFacts, sde: SDE, *, trained: bool = False) -> list[str]:
    """What is wrong with the scale of the data, in words; empty where nothing is, or where the scale is not known.

    With s the data's standard deviation and m the largest of their mean:

    - s < 3 sigma/alpha at t_min: the noise left at the end of sampling hides the data;
    - alpha s > 0.3 sigma at t_max: sampling starts from noise that still holds the data;
    - alpha m > sigma at t_max: the start is shifted by more than the noise;
    - m > 10 s, where a network is to be `trained` on them: it has to learn the mean more than the data.
    """
    told: list[str] = []
    if facts.std is None:
        return told
    s, mean = facts.scale, 0.0 if facts.mean is None else float(facts.mean.abs().max())
    clean, noisy = sde.at(sde.t_min), sde.at(sde.t_max)
    least, alpha, sigma = clean.sigma / clean.alpha, noisy.alpha, noisy.sigma
    if min(s, mean) > _BYTES and len(facts.event_shape or ()) >= 2:
        told.append(
            f"the data look like bytes (mean {mean:.3g}, standard deviation {s:.3g}): scale pictures to [-1, 1], as "
            "x / 127.5 - 1 or sdegen.data.load_images does"
        )
    if s < _FINE * least:
        told.append(
            f"the data's standard deviation is {s:.3g}, and the least noise, sigma/alpha = {least:.3g} at t_min = "
            f"{sde.t_min:g}, is {least / s:.3g} of that: what is finer than the noise is lost; scale the data up, or "
            "take a smaller t_min or sigma_min"
        )
    if alpha * s > _WIDE * sigma:
        told.append(
            f"the data's standard deviation is {s:.3g}, {alpha * s / sigma:.2g} of the noise at t_max = {sde.t_max:g}: "
            "sampling starts where the data are not forgotten; scale them down, or take a larger sigma_max or beta_max"
        )
    if alpha * mean > _OFF * sigma:
        told.append(
            f"the data's mean reaches {mean:.3g}, {alpha * mean / sigma:.2g} of the noise at t_max = {sde.t_max:g}: "
            "subtract the mean, which networks learn badly at high noise"
        )
    elif trained and mean > _FAR * s:
        told.append(
            f"the data's mean reaches {mean:.3g}, {mean / s:.3g} of their standard deviations: subtract the mean, "
            "which networks learn badly at high noise"
        )
    return told


def warn_out_of_scale(facts: DataFacts, sde: SDE, *, trained: bool = False) -> None:
    """Warn of each of these, once for a place in the user's code."""
    for words in out_of_scale(facts, sde, trained=trained):
        warn(words)
