"""A belief tilted by a potential: classifier guidance, and any other function that says how much a sample is liked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import number
from ...core.errors import InvalidInputError
from ...core.kinds import checked
from ...core.shapes import as_time, check_time
from ..base import ScoreModel, Wrapped
from ..prediction import Prediction
from .gradients import check_signal, check_words, differentiable, pulled_back, taken, with_score


class Tilted(Wrapped):
    """A model's belief tilted by a potential f:

        score + scale grad_x log f.

    With at="xt" f is a function of the noisy state and its time, as a classifier trained on noisy data is; where
    f(x, t) = E[f(x0) | x_t = x] the result is the score of the density proportional to p(x0) f(x0), exactly. With
    at="x0" f is evaluated at the denoised E[x0 | x], and its gradient goes through the network: f may be any function
    of clean data, but the spread of x0 given x is neglected.

    Args:
        model: the belief.
        log_potential: log f, -> (B,): log_potential(x0, **cond) or log_potential(x, t, **cond), t a scalar or (B,). It
            gets the conditions that it names, the model those that the model takes.
        scale: a number.
        at: "x0" or "xt".

    Raises:
        InvalidInputError: a scale that is no number, another `at`; before the first call, a condition that is missing;
            at the call, a potential of another shape or without a gradient, alpha = 0.

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233) section 4 for at="xt"; Chung et al. 2023 (arXiv 2209.14687) for
    at="x0".

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], std=1.0), sg.VPSDE())
        >>> tilted = sg.Tilted(model, lambda x0: 3.0 * x0[:, 0])  # N(0, 1) times e^(3 x) is N(3, 1)
        >>> found = sg.sample(tilted, 500, rtol=1e-3, seed=0)
        >>> abs(float(found.x[:, 0].mean()) - 3) < 0.2
        True
    """

    @checked
    def __init__(
        self, model: ScoreModel, log_potential: Callable[..., Tensor], *, scale: float = 1.0, at: str = "x0"
    ) -> None:
        super().__init__(model, smooth=False, covariance=None)
        if not callable(log_potential):
            raise InvalidInputError(f"got log_potential={log_potential!r}, expected a function of {at}, -> (B,)")
        if at not in ("x0", "xt"):
            raise InvalidInputError(f'got at={at!r}, expected "x0" or "xt"')
        self.log_potential, self.at = log_potential, at
        self.scale = number(scale, "scale", "a number")

    conditioned = True  # type: ignore[assignment]

    def settled(self, x0: Tensor, /, **cond: Any) -> Tensor:
        return self.model.settled(x0, **taken(self.model, cond))

    def _facts(self):
        return {**super()._facts(), "log_potential": self.log_potential, "scale": self.scale, "at": self.at}

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        check_words(self, cond)
        t = as_time(t)
        check_time(t, x)
        level = self.sde.at(t)
        check_signal(self.sde, level, "Tilted")
        graph = torch.is_grad_enabled()
        liked = {name: cond[name] for name in self._words()[0] & set(cond)} if not self._words()[2] else cond
        with differentiable(x) as state:
            belief = self.model(state if self.at == "x0" else x, t, **taken(self.model, cond))
            asked = (belief.x0,) if self.at == "x0" else (state, t)
            value = self.log_potential(*asked, **liked)
            if not isinstance(value, Tensor) or value.shape != (len(x),):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InvalidInputError(f"log_potential gave {got}, expected a number for each sample, ({len(x)},)")
            gradient = pulled_back(value, state, torch.ones_like(value), graph=graph)
        return with_score(belief, self.scale * gradient, level, graph=graph)

    def _signature(self) -> list[inspect.Parameter] | None:
        """Those of the potential; None: it does not say."""
        function = self.log_potential
        try:
            return list(inspect.signature(getattr(function, "forward", function)).parameters.values())
        except (TypeError, ValueError):
            return None

    def _words(self) -> tuple[set[str], set[str], bool]:
        """The conditions the potential names, those it cannot do without, and whether it takes any others."""
        parameters = self._signature()
        if parameters is None:
            return set(), set(), True
        own = [p for p in parameters[1 if self.at == "x0" else 2 :] if p.kind is not p.VAR_POSITIONAL]
        named = [p for p in own if p.kind is not p.VAR_KEYWORD]
        needed = {p.name for p in named if p.default is p.empty}
        return {p.name for p in named}, needed, len(named) < len(own)

    def condition_names(self) -> set[str] | None:
        inner, (named, _, any_more) = self.model.condition_names(), self._words()
        return None if inner is None or any_more else inner | named

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        super().check_conditions(cond, batch)
        self.model.check_conditions(taken(self.model, cond), batch)
        places = (self._signature() or [])[: 1 if self.at == "x0" else 2]
        clash = [p.name for p in places if p.name in cond and p.kind is p.POSITIONAL_OR_KEYWORD]
        if clash and self._words()[2]:
            raise InvalidInputError(
                f"condition {clash[0]!r} has the name of an argument of log_potential: expected another name of that, "
                "or a / after it, as in def f(x0, /, **cond)"
            )
        missing = self._words()[1] - set(cond)
        if missing:
            raise InvalidInputError(f"got no {sorted(missing)[0]}=, expected the condition that log_potential takes")
