"""The verb that finds out whether a model is smooth in time."""

from __future__ import annotations

from typing import Any

from ..core.arguments import whole
from ..core.conditions import merged
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..loop.smoothness import smooth_in_time
from ..models.base import ScoreModel
from ..noise.white import check_seed
from .checks import check_model
from .fit_solver import prior_draws


@checked
def measure_smooth(model: ScoreModel, *, samples: int = 12, seed: int = 0, **cond: Any) -> bool:
    """Find out whether a model is smooth in time, and set `model.smooth`, which checkpoints keep.

    Some flows are solved by 50 and by 30 steps of "adams" with the orders and times that suit exact scores, and with
    those that suit networks, and all are compared with 120 steps of the latter: the model counts as smooth where the
    first have less than a third of the error of the second at 50 steps, and less at 30, too. At 50 exact scores of
    five mixtures have .01 to 1.2 of it, most below .3, and nine trained networks 1 to 290 times, one .3, which at
    30 has more. 280 evaluations a sample. `fit` does so at the end of long runs.

    Args:
        model: whose event shape is known. A network is presumed rough, which for an exact score in a Denoiser costs
            twice the error at 20 steps and ten times at 50.
        samples: how many flows.
        seed: of the noise they begin with.
        **cond: conditions, as in `sample`: one row for each sample.

    Returns:
        Whether it is. "auto" and "adams" choose by it from now on; `Solution.solver` says where that was for
        smooth=False.

    Raises:
        InvalidInputError: before the first evaluation.

    Example:
        >>> import sdegen as sg
        >>> exact = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2), sg.VPSDE())
        >>> view = exact.on(sg.EDMSDE())
        >>> view.smooth = False
        >>> sg.measure_smooth(view), view.smooth
        (True, True)
    """
    check_model(model)
    samples = whole(samples, "samples", least=2)
    cond = merged(cond, measure_smooth, model.condition_names)
    model.check_conditions(cond, samples)
    if model.event_shape is None:
        raise InvalidInputError("measure_smooth draws samples, but this model does not know its event_shape: set it")
    model.smooth = smooth_in_time(model, prior_draws(model, samples, check_seed(seed)), cond)
    return model.smooth
