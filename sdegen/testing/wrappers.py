"""The law of models made of models: what a wrapper does not change, it passes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, SdegenError
from ..core.kinds import checked
from ..inference.likelihood import log_prob
from ..inference.sampling import sample
from ..models.base import ScoreModel, Wrapped
from ..models.facts import DataFacts
from ..models.prediction import Prediction
from ..training.losses import dsm_loss
from .checks import STATES, LawError, label, normals

_MISSPELT = "no_condition_of_this_name"
_HOWS: tuple[dict[str, Any], ...] = ({"steps": 6}, {"rtol": 3e-2}, {"steps": 6, "eta": 1.0})


@checked
def check_wrapper(
    outer: ScoreModel, inner: ScoreModel, *, event_shape: Sequence[int] | None = None, seed: int = 0, **cond: Any
) -> None:
    """Prove that a model made of another one passes on what it does not change.

    - `outer.data` is `inner.data`, but for what a `Wrapped` says it changes;
    - the conditions it takes contain those of the model inside, where its `forward` takes **cond;
    - a condition that nobody takes raises before the network is called, through any number of wrappers;
    - where it answers as the model inside does (a pass-through), samples on a fixed grid, by tolerance and by the
      reverse SDE, log-densities, the counts of evaluations and the loss it is trained by are the same to the bit
      (without the solvers fitted to the model inside: they are its own).

    Args:
        outer: the wrapper.
        inner: the model inside it.
        event_shape: the shape of one sample, where the models do not say.
        seed: of the samples.
        **cond: conditions that both take; tensors are per sample and set the batch size.

    Raises:
        LawError: a law fails.

    Example:
        >>> import sdegen as sg
        >>> class Half(sg.Wrapped):  # half of the score
        ...     def forward(self, x, t, **cond):
        ...         return sg.Prediction.from_score(x, self.model(x, t, **cond).score / 2, self.sde, t)
        >>> inner = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.3), sg.VPSDE())
        >>> sg.testing.check_wrapper(Half(inner), inner)
    """
    _check_facts(outer, inner)
    names, inner_names = outer.condition_names(), inner.condition_names()
    if names is not None and inner_names is not None and names and not names >= inner_names:
        raise LawError(f"{label(outer)}: it takes {sorted(names)}, but the model inside takes {sorted(inner_names)}")
    event = inner.event_shape if event_shape is None else tuple(event_shape)
    if event is None:
        raise InvalidInputError("this model does not know its event shape: pass event_shape=, such as (2,)")
    sizes = [v.shape[0] for v in cond.values() if isinstance(v, Tensor)]
    shape = (sizes[0] if sizes else 4, *event)
    if inner_names is not None:
        _check_misspelt(outer, shape)
    if not _passes_through(outer, inner, shape, seed, cond):
        return
    fitted, inner.solvers = inner.solvers, ()
    try:
        _check_results(outer, inner, shape, seed, cond)
    finally:
        inner.solvers = fitted


def pass_through(model: ScoreModel) -> Wrapped:
    """A wrapper that changes nothing."""
    return _PassThrough(model)


class _PassThrough(Wrapped):
    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        return self.model(x, t, **cond)


def _check_facts(outer: ScoreModel, inner: ScoreModel) -> None:
    changed = {name.removeprefix("data_") for name in getattr(outer, "_changed_facts", ())}
    for name in (f.name for f in fields(DataFacts) if f.name not in changed):
        got, expected = getattr(outer.data, name), getattr(inner.data, name)
        both = isinstance(got, Tensor) and isinstance(expected, Tensor)
        if not (torch.equal(got.cpu(), expected.cpu()) if both else got is expected or got == expected):
            raise LawError(
                f"{label(outer)}: {name} of the data is passed on, fails: got {got}, expected {expected}; subclass "
                "Wrapped, and say what changes in super().__init__"
            )


def _check_misspelt(outer: ScoreModel, shape: tuple[int, ...]) -> None:
    cond: dict[str, Any] = {_MISSPELT: 1}
    try:
        sample(outer, shape, steps=2, seed=0, progress=False, **cond)
    except InvalidInputError as error:
        if _MISSPELT in str(error):
            return
    except (SdegenError, TypeError):
        pass
    raise LawError(f"{label(outer)}: a misspelt condition raises InvalidInputError before the first call, fails")


def _passes_through(outer: ScoreModel, inner: ScoreModel, shape: tuple[int, ...], seed: int, cond: Any) -> bool:
    if outer.sde is not inner.sde:
        return False
    x = normals(shape, STATES, seed).to(next(inner.parameters(), torch.zeros(())))
    t = (inner.sde.t_min + inner.sde.t_max) / 2
    with torch.no_grad():
        ours, theirs = outer(x, t, **cond), inner(x, t, **cond)
    return torch.equal(ours.x0, theirs.x0) and torch.equal(ours.noise, theirs.noise)


def _check_results(outer: ScoreModel, inner: ScoreModel, shape: tuple[int, ...], seed: int, cond: Any) -> None:
    x = sample(inner, shape, steps=6, seed=seed, progress=False, **cond).x
    calls: dict[str, Callable[[ScoreModel], Any]] = {
        str(how): lambda m, how=how: sample(m, shape, seed=seed, progress=False, **how, **cond) for how in _HOWS
    }
    calls["log_prob"] = lambda m: log_prob(m, x, rtol=3e-2, divergence="rademacher", seed=seed, progress=False, **cond)
    for what, call in calls.items():
        got, expected = call(outer), call(inner)
        for name in ("x", "nats", "nfe", "accepted", "rejected"):
            ours, theirs = getattr(got, name, None), getattr(expected, name, None)
            if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and not torch.equal(ours, theirs):
                raise LawError(
                    f"{label(outer)}: a pass-through is the model inside to the bit, fails for {what}: {name} differs "
                    f"(solver {got.solver}, inside {expected.solver})"
                )
    with torch.no_grad():
        ours, theirs = (dsm_loss(m, x, seed=seed, **cond) for m in (outer, inner))
    if not torch.equal(ours, theirs):
        raise LawError(f"{label(outer)}: a pass-through is the model inside to the bit, fails for dsm_loss")


def wrapping(model: ScoreModel, *, event_shape: Sequence[int] | None = None, seed: int = 0, **cond: Any) -> None:
    """Wrapped once and twice, a model is the same to the bit."""
    once = pass_through(model)
    check_wrapper(once, model, event_shape=event_shape, seed=seed, **cond)
    check_wrapper(pass_through(once), model, event_shape=event_shape, seed=seed, **cond)
