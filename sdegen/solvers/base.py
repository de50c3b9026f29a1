"""What a solver is: how one step of a term is made from t to t_next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, SolverError
from ..models.base import ScoreModel
from ..noise.white import Noise
from ..terms import Term
from .tolerance import Controller, Tolerance

State = dict[str, Any]  # what a solver carries from step to step; under error control tensors with the batch first


@dataclass(slots=True, eq=False)
class Step:
    """One step's outcome.

    Attributes:
        x: the state at t_next, (B, *event).
        state: what the solver carries on.
        error: the local error estimate, like x; None for a solver that has none, or where all samples share their
            times, since nobody asks for it there.
        slope: dx/dt at t (known, or a function that gives it), for interpolation inside the step; None: linear.
        slope_next: dx/dt at t_next where the step knows it.
    """

    x: Tensor
    state: State = field(default_factory=dict)
    error: Tensor | None = None
    slope: Tensor | Callable[[], Tensor] | None = None
    slope_next: Tensor | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """Where error control begins.

    Attributes:
        x, t: state and time of each sample, (B, *event) and (B,).
        state: what the solver carries into the first step.
        absent: (B,) how many of the calls made so far each sample had no part in.
    """

    x: Tensor
    t: Tensor
    state: State
    absent: Tensor | int = 0


class Solver(ABC):
    """One step of a term, with an error estimate if it has one.

    Subclass it for your own: set the attributes, write `step`. `sdegen.testing.check_solver(solver)` proves it.

    Attributes:
        name: as in the table of solvers.
        order: the global order of convergence (strong order for SDE solvers).
        uneven_order: the order where neighbouring steps differ in length; None: the same.
        start_order: the order that a whole run has, where a start of low order caps it; None: the same.
        evaluations: network evaluations a step.
        kind: "ODE" (deterministic terms), "SDE" (takes noise), "any".
        adaptive: whether `step` returns an error estimate at times of shape (B,), so that rtol and atol can be used.
        error_order: the order in the step size of that estimate, for the step-size controller.
        first_step, largest_step: under error control, in fractions of the span. The cap is there because at high noise
            the right-hand
            side is flat and any error estimate blind: without it a solver can step over all that matters.
        coordinates: "own" (the model's process, as it is), "best" (the verbs may change to the circular path of the
            data's scale) or "lambda" (to a process whose time is log(alpha/sigma)).
        needs_model: whether it works on the model's prediction rather than on the drift.
        grid: the kind of grid that the verbs lay for `steps=N`.
        least_times: how few times a list in `steps=` may hold: 1 for a solver whose work is done at a time.
        default_steps: that N, where neither steps nor a tolerance is given.
        source: paper and equation.
    """

    name: str = "solver"
    order: float = 1
    uneven_order: float | None = None
    start_order: float | None = None
    evaluations: int = 1
    kind: str = "ODE"
    adaptive: bool = False
    error_order: int = 1
    first_step: float = 1 / 20
    largest_step: float = 1 / 4
    coordinates: str = "own"
    needs_model: bool = False
    grid: str = "lambda"
    least_times: int = 2
    default_steps: int = 100
    source: str = ""

    @property
    def default_eta(self) -> float:
        """The noise level of the reverse SDE where the user names none: 0 for a solver of flows, else 1."""
        return 0.0 if self.kind == "ODE" else 1.0

    def suited(self, term: Term) -> Solver:
        """This solver, with what it leaves open settled for a term."""
        return self

    def first(self, tolerance: Tolerance) -> float:
        """The first step under error control, in fractions of the span."""
        return self.first_step

    def check(self, term: Term) -> None:
        """Raise where this solver cannot solve this term."""
        if self.kind == "ODE" and term.stochastic:
            raise InvalidInputError(
                f"{self.name!r} solves equations without noise, but this one has noise: use eta=0 or "
                "ProbabilityFlow(model), or a solver of SDEs such as 'ancestral' or 'euler-maruyama'"
            )
        if self.needs_model and getattr(term, "model", None) is None:
            raise InvalidInputError(
                f"{self.name!r} works on a model's prediction, but {type(term).__name__} has no model: use a solver of "
                "plain drifts such as 'rk4' or 'euler-maruyama'"
            )

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        """What the solver carries into the first step; `grid` holds all times of a fixed grid, None under error
        control."""
        return {}

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise) -> Entry:
        """Where error control begins, asked to begin at x and t (B,)."""
        return Entry(x, t, self.start(term, x, t))

    def landing(self, n: int) -> float | None:
        """For a solver whose first step is a leap: where it ends on a grid of n evaluations, as sigma/alpha over the
        data's standard deviation. None: no such step."""
        return None

    @abstractmethod
    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        """One step from (x, t) to t_next; times are float64 scalars, or (B,) under error control."""

    def finish(self, term: Term, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """What is left to do at the last time of a fixed grid."""
        return x

    controller: Controller = Controller()

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        """(accept, factor on the step size, state to carry on), for a batch of steps under error control.

        accept and factor are (B,); a step that is not finite is a rejection; the state is the step's where accepted,
        else `state`.
        """
        if step.error is None:
            raise InvalidInputError(f"{self.name!r} has no error estimate")
        ratio = tolerance.ratio(step.error, x, step.x)
        accept, factor = self.controller.propose(ratio, state.get("ratio"), self.error_order)
        remembered = ratio.nan_to_num(1.0, posinf=1.0)  # a step that failed says nothing about the next
        return accept, factor, merge(accept, {**step.state, "ratio": remembered}, state)

    def select(self, state: State, keep: Tensor, x: Tensor) -> State:
        """The state of the samples at the positions `keep`, under error control; x is the batch's."""
        return {name: value[keep] for name, value in state.items()}

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options().items())
        return f"{self.name}({options})" if options else self.name

    def options(self) -> dict[str, Any]:
        """The options it was made with."""
        return {}

    def choices(self, steps: int, term: Term) -> dict[str, Any]:
        """What it chooses itself for a term on a grid of so many steps, where it was not told."""
        return {}

    def grid_of(self, model: ScoreModel, steps: int) -> str:
        """The kind of grid that the verbs lay for a model and a number of steps."""
        return self.grid


def merge(accept: Tensor, new: State, old: State) -> State:
    """Carry `new` where a step was accepted and `old` elsewhere (names that are not in `old` are taken from `new`)."""
    refused = (~accept).nonzero().flatten()
    if not len(refused):
        return new
    return {name: v if name not in old else reverted(v, old[name], refused) for name, v in new.items()}


def reverted(new: Tensor, old: Tensor, refused: Tensor) -> Tensor:
    """`new` with the rows `refused` as they were: few, so that a choice between whole tensors would cost more."""
    return new.index_copy(0, refused, old.index_select(0, refused)) if len(refused) else new


@dataclass(frozen=True)
class Outcome:
    """What came of another library's loop.

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


class OutsideSolver(Solver):
    """A method of another library, which brings its own loop: it steps the whole batch together."""

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        """Two times are a grid too."""
        return Step(self.integrate(term, x, torch.stack([t, t_next]), tolerance=None, noise=noise, max_steps=1).xs[-1])

    @abstractmethod
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

        A failure is told, not raised; samples that became NaN on a fixed grid may also just be left so.

        Args:
            ts: with a tolerance the times to report (the library steps as it likes between them), else the grid itself.
            tolerance: rtol and atol, or None for one step of the method between neighbours in `ts`.
            noise: where an SDE's noise comes from.
            max_steps: most steps, rejected ones included; never a hang.
            every: with a tolerance, report the library's own steps instead of `ts`, where they are known.
        """
