"""What a solve gives back, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.errors import MaxStepsError, NonFiniteError, SolverError, StepSizeUnderflowError
from ..core.shapes import numbers
from ..core.show import Shown, picture_of, spread

ARRIVED, NON_FINITE, MAX_STEPS, UNDERFLOW = 0, 1, 2, 3  # whoever did not arrive has a status that is not 0

_ERRORS: dict[int, tuple[type[SolverError], str, str]] = {  # what was raised, what happened, the cure
    NON_FINITE: (
        NonFiniteError,
        "became NaN or infinite",
        "look at the network's output there, its inputs' scale and its precision",
    ),
    UNDERFLOW: (
        StepSizeUnderflowError,
        "needed steps below the resolution of time",
        "loosen rtol/atol, or look for a jump in the network",
    ),
    MAX_STEPS: (MaxStepsError, "did not arrive within max_steps", "loosen rtol/atol or raise max_steps"),
}


@dataclass(frozen=True, repr=False)
class Solution(Shown):
    """What a solve gives back.

    Attributes:
        x: (B, *event), the final states.
        ts: the saved times, (S,), or (S, B) where samples stepped on their own and everything was saved.
        xs: the saved states, (S, B, *event).
        nfe: (B,) evaluations of networks that each sample needed: a guided call counts two, outside its interval one.
        calls: network calls on a batch, or on a part of it.
        gradients: products with a network's Jacobian that guidance took, on a batch or on a part of it: each costs
            about two calls more.
        accepted, rejected: (B,) steps.
        t: (B,) the times they reached.
        status: (B,) 0 = arrived, 1 = not finite, 2 = out of steps, 3 = step size underflow.
        message: what happened, in words.
        solver: what ran.
        seed: the seed of the noise, None where there was none.
        log_prob: (B,) log-densities in nats, where asked for.
        log_weights, ess, log_evidence: (B,) of `sample_posterior`, where it has them.
    """

    x: Tensor
    ts: Tensor
    xs: Tensor
    nfe: Tensor
    calls: int
    accepted: Tensor
    rejected: Tensor
    t: Tensor
    status: Tensor
    message: str
    solver: str
    seed: int | None = None
    log_prob: Tensor | None = None
    log_weights: Tensor | None = None
    ess: Tensor | None = None
    log_evidence: Tensor | None = None
    gradients: int = 0

    def _facts(self):
        return {
            "x": self.x,
            "solver": self.solver,
            "evaluations": spread(self.nfe),
            "calls": self.calls,
            "gradients": self.gradients or None,
            "saved": len(self.xs) if len(self.xs) > 1 else None,
            "status": self.message,
            "seed": self.seed,
            **{n: None if (v := getattr(self, n)) is None else spread(v) for n in ("log_prob", "ess", "log_evidence")},
        }

    def _picture(self):
        return picture_of(self.x)

    def or_raise(self, on_failure: str = "raise") -> Solution:
        """This solution, or with "raise" the error that its worst status calls for, carrying it as `.partial`."""
        if on_failure == "raise" and bool(self.status.any()):
            error = _ERRORS[most_severe(self.status)][0]
            raise error(f"{self.solver}: {self.message}", partial=self)
        return self


def describe(status: Tensor, t: Tensor, steps: Tensor) -> str:
    """The message of a Solution: that all arrived, or what became of the samples that did not.

    Args:
        status: (B,), as in Solution.
        t, steps: (B,) the times that the samples reached, and how many accepted steps that took them.
    """
    if not bool(status.any()):
        return f"all {len(status)} samples arrived"
    code = most_severe(status)
    bad = (status == code).nonzero().flatten()
    first = bad[steps[bad].argmin()]
    _, what, cure = _ERRORS[code]
    return (
        f"{len(bad)} of {len(status)} samples (numbers {numbers(bad)}) {what}, "
        f"the first of them at t = {float(t[first]):g} "
        f"after {int(steps[first])} accepted steps; {cure}"
    )


def most_severe(status: Tensor) -> int:
    """The most severe status among these."""
    return next(code for code in _ERRORS if bool((status == code).any()))


def code_of(failure: type[SolverError]) -> int:
    """The status that a kind of error stands for."""
    return next(code for code, (kind, _, _) in _ERRORS.items() if issubclass(failure, kind))
