"""Fitted solvers on disk: tensors and JSON beside the model that they were fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import IncompatibleCheckpointError, InvalidInputError, made_of_description, shortened
from ..models.base import ScoreModel
from ..models.identity import changed, weights_of
from ..solvers import Fitted
from ..solvers.multistep.bands import Bands
from ..solvers.multistep.fitted import Fit, FittedTo

_MOST_STEPS = 1000


def solvers_to_keep(model: nn.Module, solvers: Fitted | Sequence[Fitted] | None) -> tuple[Fitted, ...]:
    """Those to write with a model: the ones given, else those that it carries and that are still its own.

    Raises:
        InvalidInputError: what is no fitted solver, or was fitted to other weights.
    """
    if not isinstance(model, ScoreModel):
        if solvers:
            raise InvalidInputError(
                f"solvers: got some for a {type(model).__name__}, expected a model of scores: leave them out"
            )
        return ()
    own = weights_of(model) if solvers or model.solvers else {}
    if solvers is None:
        return tuple(s for s in model.solvers if not changed(s.to.weights, own))
    given = tuple(solvers) if isinstance(solvers, Sequence) else (solvers,)
    for solver in given:
        if not isinstance(solver, Fitted):
            raise InvalidInputError(f"got solvers={shortened(solver)}, expected what fit_solver returned")
        if words := changed(solver.to.weights, own):
            raise InvalidInputError(f"{solver!r} was not fitted to this model, {words}: fit it anew")
    return given


def described_solvers(solvers: Sequence[Fitted]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """(tensors by name, everything else as JSON)."""
    tensors: dict[str, Tensor] = {}
    described = []
    for i, solver in enumerate(solvers):
        tensors |= {f"{i}.rows.{k}": rows for k, rows in enumerate(solver.bands.rows)}
        tensors[f"{i}.band"] = solver.bands.band
        for n, fit in solver.fits.items():
            tensors |= {f"{i}.{n}.angles": fit.angles, f"{i}.{n}.weights": fit.weights}
        to = {name: getattr(solver.to, name) for name in ("weights", "wrappers", "conditions", "levels", "scale")}
        fits = {str(n): {name: getattr(fit, name) for name in _NUMBERS} for n, fit in solver.fits.items()}
        described.append({**to, "bands": solver.bands.count, "fits": fits})
    return tensors, described


_NUMBERS = {"error": float, "unfitted": float, "evaluations": int, "better": bool}


def rebuilt_solvers(state: Any, tensors: Mapping[str, Tensor], model: ScoreModel) -> tuple[Fitted, ...]:
    """What `described_solvers` was given, for the model that stands beside it.

    Raises:
        IncompatibleCheckpointError: solvers of other weights, or what is no description of solvers.
    """
    with made_of_description("solvers"):
        solvers = tuple(_rebuilt(i, kept, tensors) for i, kept in enumerate(state))
        own = weights_of(model) if solvers else {}
        for solver in solvers:
            if words := changed(solver.to.weights, own):
                raise IncompatibleCheckpointError(f"the checkpoint's solvers are not those of its model, {words}")
    return solvers


def _rebuilt(i: int, kept: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fitted:
    low, high = kept["levels"]
    to = FittedTo(
        {str(name): str(value) for name, value in kept["weights"].items()},
        [dict(wrapper) for wrapper in kept["wrappers"]],
        tuple(str(name) for name in kept["conditions"]),
        (float(low), float(high)),
        float(kept["scale"]),
    )
    count, band = int(kept["bands"]), tensors[f"{i}.band"]
    rows = tuple(tensors[name] for k in range(2) if (name := f"{i}.rows.{k}") in tensors)
    _check(count >= 1 and (count == 1) == (not rows), "bands", count)
    _check(all(q.ndim == 2 and q.shape[0] == q.shape[1] for q in rows), "directions", [q.shape for q in rows])
    _check(count == 1 or (len(band) > 0 and 0 <= int(band.min()) <= int(band.max()) < count), "bands", count)
    fits = {}
    for word, numbers in kept["fits"].items():
        n = int(word)
        angles, weights = tensors[f"{i}.{n}.angles"], tensors[f"{i}.{n}.weights"]
        _check(0 < n <= _MOST_STEPS and angles.shape == (n + 1,), "angles", tuple(angles.shape))
        _check(bool((angles.diff() < 0).all()), "angles", angles.tolist())
        good = weights.shape == (n + 1, count, n) and bool(torch.isfinite(weights).all())
        _check(good, "weights", tuple(weights.shape))
        fits[n] = Fit(angles, weights, **{name: kind(numbers[name]) for name, kind in _NUMBERS.items()})
    return Fitted(to, fits, Bands(count, rows, band))


def _check(good: bool, name: str, value: Any) -> None:
    if not good:
        raise IncompatibleCheckpointError(f"{name}: got {shortened(value)}, which no fitted solver has")
