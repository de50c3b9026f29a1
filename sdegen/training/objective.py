"""A loss as `fit` calls it: conditions that have the names of its options are told apart from these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..core.errors import InvalidInputError
from .draws import takes_seed

_OPTIONS = {"t", "noise", "weight", "seed"}  # of every loss like dsm_loss


class Objective:
    """A function of (model, x0, **cond), one number per sample.

    Conditions reach it by name. Those whose names are options, or other arguments of its own, reach it in `cond={...}`,
    as `dsm_loss` takes them. A loss that has all of dsm_loss's options is one like it: all its arguments are options.
    An argument without a default asks for the condition of that name.

    Attributes:
        loss: the function.
        seeds: whether it takes a seed that nobody has set.
        for_scores: whether it is like dsm_loss, for models of scores.
        conditions: the names of those that it takes by an argument of its own.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss, self.seeds = loss, takes_seed(loss)
        try:
            arguments = list(inspect.signature(loss).parameters.values())
        except (TypeError, ValueError):
            arguments = []
        self._names = {p.name for p in arguments if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        self._takes_any = not arguments or any(p.kind is p.VAR_KEYWORD for p in arguments)
        self.for_scores = like_ours = self._names >= _OPTIONS
        first_two = {p.name for p in arguments[:2]} | {"model", "x0"}
        asked_for = {p.name for p in arguments[2:] if p.default is p.empty}
        self.options = (_OPTIONS | first_two | {"cond"} | (self._names if like_ours else set())) - asked_for

    @property
    def conditions(self) -> set[str]:
        return self._names - self.options

    def __call__(self, model: nn.Module, x0: Tensor, cond: Mapping[str, Any], seed: Any = None) -> Any:
        """The losses; a seed goes to a loss that takes one."""
        words: dict[str, Any] = {name: value for name, value in cond.items() if not self._is_apart(name)}
        if len(words) < len(cond):
            words["cond"] = {name: value for name, value in cond.items() if self._is_apart(name)}
        if self.seeds:
            words["seed"] = seed
        return self.loss(model, x0, **words)

    def check_names(self, by_keyword: Iterable[str], known: set[str] | None) -> None:
        """Raise on a keyword of `fit` that may be meant as an option of the loss, and not known to be a condition."""
        for name in by_keyword:
            if name in self.options - {"cond"} - (known or set()):
                raise InvalidInputError(
                    f"{name}= is an option of the loss: pass loss=functools.partial(dsm_loss, {name}=...); a condition "
                    f"that is called {name} goes in cond={{{name!r}: ...}}"
                )

    def check(self, cond: Mapping[str, Any]) -> None:
        """Raise unless the loss takes these conditions."""
        for name in cond:
            taken = name in self._names and name not in self.options
            if not (self._takes_any or taken or name in self._names & _OPTIONS - {"seed"}):
                raise InvalidInputError(
                    f"condition {name!r} is unknown to the loss: give it **cond, for the model, or an argument {name}"
                )

    def _is_apart(self, name: str) -> bool:
        return self._takes_any and name in self.options
