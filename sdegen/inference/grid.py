"""Grids of times for `steps=`: by a formula, or from a pilot run."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.arguments import one_of
from ..core.conditions import merged
from ..core.errors import InvalidInputError
from ..models.base import ScoreModel
from ..processes import SDE
from ..solvers import Adams
from ..solvers.advice import advise
from ..solvers.grids import GRIDS, grid_along
from .sampling import sample


def grid(
    model: ScoreModel | SDE,
    n: int,
    *,
    kind: str,
    t_span: tuple[float, float] | None = None,
    samples: int = 64,
    seed: int = 0,
    **cond: Any,
) -> Tensor:
    """n + 1 times for `steps=`: from t_max to t_min in n - 1 steps, and then to 0, the final denoising.

    Args:
        model: a ScoreModel; an SDE will do for all kinds but "pilot".
        n: how many steps.
        kind: the variable in which the times are equally spaced, s being the data's standard deviation and r the level
            sigma/alpha at which half of the data's variance is explained (`model.data_turn`):

            - "uniform": t
            - "sqrt-time": the square root of linear-VP time
            - "lambda": log(alpha/sigma)
            - "theta": atan(sigma/alpha/s)^(1/1.6)
            - "blend": three parts atan(sigma/alpha/s)^(1/1.3), one part lambda
            - "turn": "blend" with 0.4 r for s (0.5 r up to nine steps); "blend" itself where r is unknown
            - "turn-time": lambda is nine parts that of "blend" with 0.7 r for s, one part that of "sqrt-time"
            - "karras": (sigma/alpha)^(1/7)
            - "pilot": half as "adams" spaces them for the model ("turn", for networks "turn-time"), half as its steps
              under error control are spaced, on the average of some samples, at a tolerance that takes about n
              evaluations
        t_span: (from, to), default (t_max, 0); from t_min to t_max for encoding. A pilot goes to t_min or 0.
        samples, seed, cond: of the pilot. Nothing is remembered: ask again when the weights have changed.

    Returns:
        (n + 1,) float64 times in the order they are visited.

    Raises:
        InvalidInputError: an unknown kind, n < 1; a pilot without a model, or with one that does not know its event
            shape.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 5; Lu et al. 2022 (arXiv 2206.00927); Song et al. 2020 (arXiv
    2010.02502) appendix D.2.

    Example:
        >>> import sdegen as sg
        >>> sg.grid(sg.EDMSDE(), 4, kind="karras").tolist()[0]
        80.0
        >>> times = sg.grid(sg.VPSDE(), 10, kind="lambda")  # for steps= of sample
        >>> len(times), float(times[-1])
        (11, 0.0)
    """
    one_of(kind, "kind", (*GRIDS, "pilot"))
    if kind != "pilot":
        if cond:
            raise InvalidInputError(f"{', '.join(cond)}: only kind='pilot' runs the model and takes conditions")
        return grid_along(model, n, kind=kind, t_span=t_span)
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(
            f"got a {type(model).__name__}, expected a ScoreModel: kind='pilot' draws samples of it"
        )
    cond = merged(cond, grid, model.condition_names)
    ends = grid_along(model, n, kind="uniform", t_span=t_span)[[0, -1]].tolist()  # checks n and the span
    if model.event_shape is None:
        raise InvalidInputError("kind='pilot' draws samples, but this model does not know its event_shape: set it")
    if ends[0] < ends[1]:
        raise InvalidInputError(f"t_span={t_span}: a pilot samples, t falling; flip its times for encoding")
    inner = n - 1 if ends[1] == 0 else n
    if inner == 0:
        return torch.tensor(ends, dtype=torch.float64, device="cpu")
    stop = model.sde.t_min if ends[1] == 0 else ends[1]
    rtol = next((tol for most, tol in _PILOTS if n <= most), 1e-7)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rtol=.* below what")  # as tight as the network's precision allows
        how = {"solver": "adams", "rtol": rtol, "t_span": (ends[0], stop), "save": "all", "progress": False}
        run = sample(model, samples, seed=seed, **how, cond=cond)
    even = grid_along(model, 200, kind=advise(Adams(), model, steps=n).grid, t_span=(ends[0], stop))
    times = _quantiles(model, run.ts.cpu(), inner, even)
    times[0], times[-1] = ends[0], stop
    return times if ends[1] != 0 else torch.cat([times, torch.zeros(1, dtype=torch.float64, device="cpu")])


# the tolerance at which "adams" takes about so many evaluations, on random mixtures (docs/decisions.md)
_PILOTS = ((12, 1e-2), (22, 1e-3), (35, 1e-4), (70, 1e-6))


def _quantiles(model: ScoreModel, ts: Tensor, n: int, even: Tensor) -> Tensor:
    """n + 1 times that cut into equal parts the steps of the samples, (S, B) times, and those of the grid `even`, with
    the weight of all samples: no step becomes longer than twice what it is there."""
    angle = lambda t: torch.atan(torch.exp(-model.sde.half_log_snr(t)) / model.sigma_data)
    fine = torch.linspace(float(angle(ts[0, 0])), float(angle(ts[-1, 0])), 2048, dtype=torch.float64, device="cpu")

    def behind(nodes: Tensor) -> Tensor:  # the fraction of steps behind each angle
        fraction = numpy.linspace(0, 1, len(nodes))
        return torch.from_numpy(numpy.interp(fine.numpy(), angle(nodes).numpy()[::-1], fraction[::-1]))

    own = [behind(path[: int((path.diff() != 0).sum()) + 1]) for path in ts.T]  # short paths repeat their end
    done = (sum(own) / len(own) + behind(even)) / 2
    wanted = numpy.interp(numpy.linspace(0, 1, n + 1), done.numpy(), fine.numpy())
    return model.sde.time(-torch.log(model.sigma_data * torch.tan(torch.from_numpy(wanted))))
