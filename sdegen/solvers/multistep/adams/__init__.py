"""Adams' method: predict with past slopes, evaluate, correct; on a fixed grid and by a tolerance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....core.arguments import number, whole
from ....core.errors import InvalidInputError
from ....core.kinds import checked
from ....distributions.gaussian import Gaussian
from ....terms import Term
from ...base import GridOrTolerance
from .grid import AdamsGrid
from .method import AdamsMethod
from .tolerance import AdamsTolerance

_ACCEPT, _ACCEPT_ROUGH = 10.0, 2.0  # the largest accepted E, for smooth models and for others


def _orders(order: Any) -> tuple[int, int]:
    """`order=` as (values of the predictor, values of the corrector)."""
    if not isinstance(order, tuple | list) or len(order) != 2:
        raise InvalidInputError(
            f"got order={order!r}, expected (values of the predictor, 1 to 8, values of the corrector, 1 to 9)"
        )
    return whole(order[0], "order[0]", least=1, most=8), whole(order[1], "order[1]", least=1, most=9)


class Adams(GridOrTolerance, AdamsMethod):
    """Predictor-corrector Adams of variable order, in the term's time; error control per sample, or a fixed grid.

    In `sample` and `encode` it runs on the circular path of the data's scale (`TrigSDE`), where Gaussian data are
    solved exactly and a tolerance means the same all the way. 1 evaluation a step; order up to max_order + 1.

    Control: with E_j the error estimate of order j (`AdamsTolerance`), in units of the tolerance,

        E_j = rms(h g_{j+1} phi'_{j+1})/scale,

    steps are accepted up to E_k = `accept` at the order k they were made with, and aimed at E_k = `aim`; the corrected
    state is one order better than the estimate, which is why a step above 1 need not be thrown away. The next order is
    the j with the largest (aim/E_j)^(1/(j+1)). A smooth model that says the known mean at t_max has a past slope there
    without an evaluation (see `slope_above`), so that the first step is of order 2. A network is rougher in time than
    any such estimate can see, and the estimate of the first step compares no more than two values. So where the model
    is not `smooth` (see `ScoreModel`), steps are accepted up to E_k = 2, and the first step is shortened (see
    `advice.advise`); and where it is known at which noise level it turns, it is asked first below t_max, and the way
    down to there is one step by that slope (see `first.quiet_time`).

    Args:
        max_order: most past values used, up to 8.
        accept, aim: thresholds of E; accept=None: 10, and 2 for models that are not smooth.
        order: on a fixed grid, (values of the predictor, values of the corrector, the new one included); None: by the
            number of steps and by whether the model is smooth (see `ScoreModel`).
        start: "point", or "gaussian": leap from t_max by the closed form of the data's Gaussian (see `GaussianStart`),
            sampling only. A sample for which the leap is not good enough for the tolerance begins at t_max after all,
            one evaluation lost; on a fixed grid the leap is the first step, without an evaluation.
        covariance: for that start, of the data: (d, d), or a `Gaussian` such as `Gaussian.of_data(x0, rank=32)` or
            `Gaussian.of_variances(v)`; None: what the model knows (its `data_covariance`, else its `data_std`, which is
            not enough for images: their covariance is far from round).

    Raises:
        InvalidInputError: options that cannot be meant; for the Gaussian start a run that is not of a model's flow
            downward along a circular path, as in `sample`.

    Source: Shampine & Gordon 1975, chapter 5; Krogh 1974. The thresholds: docs/decisions.md.
    """

    @checked
    def __init__(
        self,
        *,
        max_order: int = 7,
        accept: float | None = None,
        aim: float = 0.45,
        order: tuple[int, int] | None = None,
        start: str = "point",
        covariance: Tensor | Gaussian | None = None,
    ) -> None:
        max_order = whole(max_order, "max_order", least=1, most=8)
        aim = number(aim, "aim", "a number above 0")
        least = _ACCEPT_ROUGH if accept is None else number(accept, "accept", "a number above aim, or None")
        if not 0 < aim < least:
            raise InvalidInputError(f"got aim={aim}, accept={least}, expected 0 < aim < accept")
        if order is not None:
            order = _orders(order)
        if start not in ("point", "gaussian"):
            raise InvalidInputError(f"got start={start!r}, expected 'point' or 'gaussian'")
        if covariance is not None and start == "point":
            raise InvalidInputError("covariance= is what start='gaussian' works with: pass that too")
        law = (
            covariance if covariance is None or isinstance(covariance, Gaussian) else Gaussian.of_covariance(covariance)
        )
        how: dict[str, Any] = {"leaps": start == "gaussian", "law": law}
        accepts = (_ACCEPT if accept is None else least, least)
        self.orders = order
        AdamsMethod.__init__(self, **how)
        GridOrTolerance.__init__(self, AdamsGrid(order, **how), AdamsTolerance(max_order, aim, accepts, **how))

    def options(self) -> dict[str, Any]:
        return self.on_grid.options()

    def check(self, term: Term) -> None:
        self.on_grid.check(term)
