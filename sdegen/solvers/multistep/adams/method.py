"""What Adams' method on a grid and by a tolerance have in common."""

from __future__ import annotations

from typing import Any

from ....core.errors import InvalidInputError
from ....distributions.gaussian import Gaussian
from ....terms import ProbabilityFlow, ReverseSDE, Term
from ...base import Solver


class AdamsMethod(Solver):
    """The facts of Adams' method, and whether it begins with the Gaussian start.

    Attributes:
        orders: (values of the predictor, values of the corrector) that it was told to use on a grid, None: none.

    Args:
        leaps: whether it does.
        law: of the data, for that start; None: what the model knows.
    """

    name = "adams"
    order = 3  # from the one-value start, where nothing is flat there
    kind = "ODE"
    adaptive = True
    coordinates = "best"
    grid = "turn"
    source = "Shampine & Gordon 1975"
    orders: tuple[int, int] | None = None

    def __init__(self, leaps: bool, law: Gaussian | None) -> None:
        self.leaps, self.law = leaps, law

    def options(self) -> dict[str, Any]:
        return {"start": "gaussian"} if self.leaps else {}

    def check(self, term: Term) -> None:
        super().check(term)
        if self.leaps and not isinstance(term, ProbabilityFlow | ReverseSDE):
            raise InvalidInputError(
                f"start='gaussian' is for the flow of a model in sample(), not {type(term).__name__}: use start='point'"
            )
        if self.leaps and self.law is None and term.model is not None and term.model.conditioned:
            raise InvalidInputError(
                "start='gaussian' begins at the law of the data before guidance or an observation, expected that of "
                "the samples: use start='point', or pass covariance="
            )
