"""What the loops of other libraries have in common: how they see a term, and how they are stopped."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError, MaxStepsError, NonFiniteError, SolverError
from ...core.shapes import finite_rows
from ...noise.white import Noise
from ...terms import Term
from ..base import Solver, State, Step
from ..tolerance import Tolerance


class Stopped(Exception):
    """Ends a library's loop from inside the right-hand side or a callback.

    Args:
        failure: the kind of error that it is.
        failed: (B,) the samples to blame, None: all.
    """

    def __init__(self, failure: type[SolverError], failed: Tensor | None = None) -> None:
        super().__init__(failure.__name__)
        self.failure, self.failed = failure, failed


class RightHandSide:
    """A term's drift as a library may call it: at times inside the span, finite, and no more often than is allowed.

    Args:
        term: whose drift.
        ts: times of the span, in order.
        strict: whether to stop at a drift that is not finite (a library that steps the batch together would take it for
            everyone's), or to hand it on.
        limit: most evaluations, None: any number.
        dtype: the one that the library keeps time in.

    Attributes:
        inside: whether the term is being evaluated, so that an error that passes by now is the term's own.
    """

    def __init__(
        self, term: Term, ts: Tensor, *, strict: bool, limit: int | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        self.term, self.strict, self.limit, self.inside = term, strict, limit, False
        self.low, self.high = float(ts.min()), float(ts.max())
        self._nodes = dict(zip(ts.to(dtype).tolist(), ts.tolist(), strict=True))

    def __call__(self, t: float, x: Tensor) -> Tensor:
        if self.limit is not None:
            if self.limit <= 0:
                raise Stopped(MaxStepsError)
            self.limit -= 1
        t = min(max(self._nodes.get(t, t), self.low), self.high)
        self.inside = True
        drift = self.term.drift(x, torch.tensor(t, dtype=torch.float64, device="cpu"))
        self.inside = False
        if self.strict:
            failed = ~finite_rows(drift)
            if bool(failed.any()):
                raise Stopped(NonFiniteError, failed.cpu())
        return drift


@dataclass(frozen=True)
class Outcome:
    """The result of another library's loop.

    Attributes:
        ts: (S,) the times of `xs`.
        xs: (S, B, *event), the first of them the start; beyond where the loop stopped, the last state that it reached.
        t: the time it reached.
        accepted, rejected: steps.
        failure: None where it arrived, else the kind of SolverError.
        failed: (B,) the samples to blame for it, None: all.
    """

    ts: Tensor
    xs: Tensor
    t: float
    accepted: int = 0
    rejected: int = 0
    failure: type[SolverError] | None = None
    failed: Tensor | None = None


class Progress:
    """How far a library's loop is: the states it went through, its steps, and when it has taken too many.

    Args:
        ts: (S,) the times to report, in order.
        x: the state at the first.
        max_steps: most steps, rejected ones included.
        every: whether to keep all states that it steps on.
    """

    def __init__(self, ts: Tensor, x: Tensor, *, max_steps: int, every: bool) -> None:
        self._times, self._sign = ts.tolist(), 1.0 if ts[-1] > ts[0] else -1.0
        self._max_steps = max_steps
        self._reached = [x]
        self._nodes = [(float(ts[0]), x)] if every else None
        self.t, self.x = float(ts[0]), x
        self.accepted = self.rejected = 0

    def attempt(self) -> None:
        """Before a step."""
        if self.accepted + self.rejected >= self._max_steps:
            raise Stopped(MaxStepsError)

    def moved(self, t: float, x: Tensor) -> None:
        """A state that the loop has accepted; the times passed since the last one are put on a straight line."""
        if self._sign * (t - self.t) <= 0:
            return
        while len(self._reached) < len(self._times) and self._sign * (t - self._times[len(self._reached)]) >= 0:
            u = (self._times[len(self._reached)] - self.t) / (t - self.t)
            self._reached.append(self.x + u * (x - self.x))
        self.t, self.x = t, x
        if self._nodes is not None:
            self._nodes.append((t, x))

    def outcome(self, xs: Tensor | None = None, stopped: Stopped | None = None) -> Outcome:
        """The result: the library's own report `xs` at the times asked for, or what is known where it stopped."""
        if xs is not None:
            self.moved(self._times[-1], xs[-1])
        times, states = self._times, self._reached + [self.x] * (len(self._times) - len(self._reached))
        if self._nodes is not None:
            times, states = [t for t, _ in self._nodes], [x for _, x in self._nodes]
            if xs is not None:
                states[-1], xs = xs[-1], None
        failure, failed = (None, None) if stopped is None else (stopped.failure, stopped.failed)
        return Outcome(
            ts=torch.tensor(times, dtype=torch.float64, device="cpu"),
            xs=torch.stack(states) if xs is None else xs,
            accepted=self.accepted,
            rejected=self.rejected,
            t=self.t,
            failure=failure,
            failed=failed,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a library's loop is asked for.

    Attributes:
        term, x: the equation, and the state at the first time in float32 or float64.
        ts: (S,) times to report, in order; without a tolerance the grid itself.
        tolerance: rtol and atol, or None for one step between neighbours in `ts`.
        noise: where an SDE's noise comes from.
        max_steps: most steps, rejected ones included.
        progress: where the loop notes how far it is.
    """

    term: Term
    x: Tensor
    ts: Tensor
    tolerance: Tolerance | None
    noise: Noise
    max_steps: int
    progress: Progress


class OutsideSolver(Solver):
    """A method of another library, run by its own loop, which steps the whole batch together.

    Args:
        library, method: what it is.
        options: passed to the library.
        known: the options that can be meant.
    """

    def __init__(self, library: str, method: str, options: dict[str, Any], known: Sequence[str]) -> None:
        self.name, self.method = f"{library}:{method}", method
        self._options = options
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InvalidInputError(
                f"solver {self.name!r} does not take the option {unknown[0]!r}: "
                + (f"it takes {', '.join(known)}" if known else "it takes none")
                + "; steps, rtol and atol are arguments of the call that solves"
            )

    def options(self) -> dict[str, Any]:
        return self._options

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        """Two times are a grid too."""
        return Step(self.integrate(term, x, torch.stack([t, t_next]), tolerance=None, noise=noise, max_steps=1).xs[-1])

    def integrate(
        self,
        term: Term,
        x: Tensor,
        ts: Tensor,
        *,
        tolerance: Tolerance | None,
        noise: Noise,
        max_steps: int,
        every: bool = False,
    ) -> Outcome:
        """The states at `ts` (S,), in the order they are visited; the first is x.

        A failure is reported, not raised; samples that became NaN on a fixed grid may also just be left so.

        Args:
            ts: with a tolerance the times to report (the library steps as it likes between them), else the grid itself.
            tolerance: rtol and atol, or None for one step of the method between neighbours in `ts`.
            noise: where an SDE's noise comes from.
            max_steps: most steps, rejected ones included; never a hang.
            every: with a tolerance, report the library's own steps instead of `ts`, where they are known.
        """
        ts = ts.to("cpu", torch.float64)
        self.check_steps(x, ts, tolerance)
        if not x.numel():
            return Outcome(ts, x[None].expand(len(ts), *x.shape), t=float(ts[-1]))
        full = x if x.dtype in (torch.float32, torch.float64) else x.float()
        progress = Progress(ts, full, max_steps=max_steps, every=every and tolerance is not None)
        try:
            xs = self.run(Request(term, full, ts, tolerance, noise, max_steps, progress))
        except Stopped as stopped:
            outcome = progress.outcome(stopped=stopped)
        else:
            if tolerance is None:
                progress.accepted = len(ts) - 1
            outcome = progress.outcome(xs)
        return outcome if full is x else replace(outcome, xs=outcome.xs.to(x.dtype))

    def check_steps(self, x: Tensor, ts: Tensor, tolerance: Tolerance | None) -> None:
        """Raise, before the first evaluation, where the method cannot take these steps."""

    @abstractmethod
    def run(self, asked: Request) -> Tensor:
        """The states at the times asked for, (S, B, *event), noting on `progress` how far it is; or Stopped."""
