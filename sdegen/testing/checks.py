"""What every law is stated with: the error of a broken law, comparisons that name it, and times and numbers to try.

Tolerances are relative and meant for float64: 1e-8 for identities between closed forms, 1e-7 where a derivative of an
interpolated function enters, and what float32 resolves for networks of that type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import SdegenError
from ..models.base import ScoreModel
from ..noise.purposes import Purpose
from ..noise.white import Noise
from ..processes import SDE
from ..solvers import Solver

EXACT = 1e-8  # identities between closed forms, float64
DERIVATIVE = 1e-7  # the same through a derivative of something interpolated
FRACTIONS = torch.arange(1, 12, dtype=torch.float64) / 12 + 0.0137  # fractions of a range, none a round number
STATES, NOISE = Purpose.TEST_STATES, Purpose.TEST_NOISE


class LawError(SdegenError, AssertionError):
    """A law that does not hold; the message names the law, the time, what was got and what was expected."""


def inner_times(sde: SDE) -> Tensor:
    """Times inside (t_min, t_max), dense near both ends, none of them a round number; increasing, float64."""
    width = sde.t_max - sde.t_min
    near = 10.0 ** -torch.arange(1.37, 5.0, 0.71, dtype=torch.float64)
    t = torch.cat([sde.t_min * (1 + 10 * near), sde.t_min + width * FRACTIONS, sde.t_max - width * near]).unique()
    t = t[(t > sde.t_min) & (t < sde.t_max)]
    return t[sde.alpha(t) > 0]


def normals(shape: Sequence[int], purpose: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64, the same on every call."""
    return Noise(seed).normal(shape, purpose, dtype=torch.float64, device="cpu")


def label(who: SDE | ScoreModel) -> str:
    """The process, or the model and its process, as an error message names them."""
    return str(who) if isinstance(who, SDE) else f"{type(who).__name__} on {who.sde}"


def check_kind(who: SDE | ScoreModel, law: str, got: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise LawError unless a value is a tensor of this shape and dtype."""
    if not isinstance(got, Tensor):
        raise LawError(f"{label(who)}: {law}, fails: got a {type(got).__name__}, expected a tensor")
    if tuple(got.shape) != tuple(shape) or got.dtype != dtype:
        raise LawError(
            f"{label(who)}: {law}, fails: got {tuple(got.shape)} {got.dtype}, expected {tuple(shape)} {dtype}"
        )


def check_finite(who: SDE | ScoreModel, name: str, got: Tensor, t: Tensor) -> None:
    """Raise LawError, with the time, unless all values are finite."""
    bad = (~torch.isfinite(got)).reshape(len(got), -1).any(1)
    if bool(bad.any()):
        raise LawError(f"{label(who)}: {name} is finite, fails at t = {float(t.expand(len(got))[bad][0]):g}")


def check_close(
    who: SDE | ScoreModel,
    law: str,
    got: Tensor,
    expected: Tensor,
    t: Tensor,
    *,
    rtol: float = EXACT,
    scale: Tensor | None = None,
    add: float = 0.0,
) -> None:
    """Raise LawError unless |got - expected| <= rtol (scale + add) throughout; scale is |expected| unless given.

    t is a scalar or has the first axis of the values: it names the time of the worst one.
    """
    if got.shape != expected.shape:
        raise LawError(f"{label(who)}: {law}, fails: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    if not got.numel():
        return
    got, expected = got.detach(), expected.detach()
    size = (expected.abs() if scale is None else scale.detach()) + add
    error = ((got - expected).abs() / size.clamp_min(1e-300)).expand(got.shape)
    bad = ~(error <= rtol)
    if not bool(bad.any()):
        return
    worst = int(torch.where(bad, error.nan_to_num(nan=math.inf), -1.0).flatten().argmax())
    row = worst // max(got[0].numel(), 1) if got.ndim else 0
    time = float(t) if t.ndim == 0 else float(t[row])
    left, right, miss = (float(values.flatten()[worst]) for values in (got, expected, error))
    raise LawError(
        f"{label(who)}: {law}, fails at t = {time:g}: got {left:.9g}, expected {right:.9g} (relative error {miss:.1e}, "
        f"allowed {rtol:.0e})"
    )


def broken(solver: Solver, law: str, got: Any, expected: Any) -> LawError:
    """The error of a solver that breaks a law."""
    return LawError(f"{solver!r}: {law}, fails: got {got}, expected {expected}")


def check_equal(solver: Solver, law: str, got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Raise LawError unless all values agree to a tolerance in units of the data."""
    if got.shape != expected.shape:
        raise broken(solver, law, f"shape {tuple(got.shape)}", tuple(expected.shape))
    error = float((got - expected).abs().max()) if got.numel() else 0.0
    if not error <= tolerance:
        raise broken(solver, law, f"a difference of {error:.2e}", f"at most {tolerance:.0e}")
