"""What a solver is: how one step of a term is made from t to t_next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import told
from ..core.returned import check_returned
from ..models.base import ScoreModel
from ..noise.white import Noise
from ..terms import Term
from .tolerance import Controller, Tolerance

# What a solver carries from step to step: None, or a dataclass (or a dict) of its own. Under error control its tensors
# have the batch first, so that rows can be chosen (`Solver.select`) and taken back (`merge`).
State = Any


@dataclass(slots=True, eq=False)
class ControlState:
    """What the default controller carries; the state of a solver with an error estimate adds its fields to it.

    Attributes:
        ratio: (B,) error over tolerance of the last accepted step, None before the first.
    """

    ratio: Tensor | None = None


@dataclass(slots=True, eq=False)
class Step:
    """One step's outcome.

    Attributes:
        x: the state at t_next, (B, *event).
        state: what the solver carries on.
        error: the local error estimate, like x; None for a solver without one, and on a fixed grid, where it is not
            used.
        slope: dx/dt at t (known, or a function that gives it), for interpolation inside the step; None: linear.
        slope_next: dx/dt at t_next where the step knows it.
    """

    x: Tensor
    state: State = None
    error: Tensor | None = None
    slope: Tensor | Callable[[], Tensor] | None = None
    slope_next: Tensor | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """The beginning of a run under error control.

    Attributes:
        x, t: state and time of each sample, (B, *event) and (B,).
        state: what the solver carries into the first step.
        h: the first step of each sample, (B,), where that is longer than advised; None: as advised.
    """

    x: Tensor
    t: Tensor
    state: State
    h: Tensor | None = None


class Solver(ABC):
    """One step of a term, with an error estimate if it has one.

    Subclass it for your own: set `name` and `order`, write `step`. `sdegen.testing.check_solver(solver)` proves it.
    The grid, the number and the sizes of steps that suit a solver are listed in `advice.advise`.

    Attributes:
        name: as in the table of solvers.
        order: the global order of convergence (strong order for SDE solvers).
        uneven_order: the order where neighbouring steps differ in length; None: the same.
        start_order: the order that a whole run has, where a start of low order caps it; None: the same.
        evaluations: network evaluations a step.
        kind: "ODE" (deterministic terms), "SDE" (takes noise), "any".
        adaptive: whether `step` returns an error estimate at times of shape (B,), so that rtol and atol can be used.
        error_order: the order in the step size of that estimate, for the step-size controller.
        needs_model: whether it works on the model's prediction rather than on the drift.
        leaps: whether its first step is the closed form for Gaussian data, without an evaluation.
        refills: whether samples may take places in a batch that is under way (`replace`).
        least_times: how few times a list in `steps=` may hold: 1 for a solver whose work is done at a time.
        coordinates: those it works best in: "own" (the model's process, about a mean that is far from 0), "best" (the
            circular path of the data's scale) or "lambda" (a process whose time is log(alpha/sigma)); the verbs change
            to them.
        grid: the kind of grid it works best on, which the verbs lay for `steps=N`.
        source: paper and equation.
    """

    name: str = "solver"
    _expected = "a Solver such as make_solver('heun')"
    order: float = 1
    uneven_order: float | None = None
    start_order: float | None = None
    evaluations: int = 1
    kind: str = "ODE"
    adaptive: bool = False
    error_order: int = 1
    needs_model: bool = False
    leaps: bool = False
    refills: bool = False
    least_times: int = 2
    coordinates: str = "own"
    grid: str = "lambda"
    source: str = ""
    controller: Controller = Controller()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_returned(cls, "step", _check_step)

    @property
    def default_eta(self) -> float:
        """The noise level of the reverse SDE where the user names none: 0 for a solver of flows, else 1."""
        return 0.0 if self.kind == "ODE" else 1.0

    def stepper(self, *, controlled: bool) -> Solver:
        """The solver that makes the steps of one call, by a tolerance (`controlled`) or on a grid."""
        return self

    def check(self, term: Term) -> None:
        """Raise where this solver cannot solve this term."""
        if self.kind == "ODE" and term.stochastic:
            raise InvalidInputError(
                f"{self.name!r} solves equations without noise, but this one has noise: use eta=0 or "
                "ProbabilityFlow(model), or a solver of SDEs such as 'ancestral' or 'euler-maruyama'"
            )
        if self.needs_model and term.model is None:
            raise InvalidInputError(
                f"{self.name!r} works on a model's prediction, but {type(term).__name__} has no model: use a solver of "
                "plain drifts such as 'rk4' or 'euler-maruyama'"
            )

    def check_run(self, term: Term, steps: Any, span: tuple[float, float] | None) -> None:  # noqa: B027
        """Raise where this solver is not for so many steps of this term over a span (None: the term's own)."""

    def lay(self, model: ScoreModel, steps: int, ends: tuple[float, float]) -> Tensor | None:
        """The grid of a solver with nodes of its own, steps + 1 times of the model's process, the last one `ends[1]`,
        which may be 0; None: what is advised."""
        return None

    def begin(self, term: Term, x: Tensor, grid: Tensor, *, ahead: int = 0, rests: bool = False) -> State:
        """What the solver carries into the first step of a fixed grid, after which so many evaluations are `ahead`:
        those of the grids that follow where the drift jumps, and of the final denoising. `rests`: the slope at the
        first step is known to be 0, see `Advice.few`."""
        return self.start(term, x, grid[0], grid)

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        """What the solver carries into the first step; `grid` holds all times of a fixed grid, None under error
        control."""
        return None

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise, *, end: float) -> Entry:
        """The first state and time of each sample under error control: x and t (B,) themselves, or those after a first
        step that needs no estimate."""
        return Entry(x, t, self.start(term, x, t))

    def restart(self, term: Term, x: Tensor, t: Tensor, state: State, rows: Tensor) -> tuple[State, Tensor | None]:
        """What to carry on where the drift of the samples `rows` has jumped at their t, under error control, and the
        factors on their steps, None: as they are."""
        fresh = self.start(_Part(term, rows), x[rows], t[rows])
        if fresh is None:
            return state, None
        kept = _each(lambda new, old: new if old is None else old.index_copy(0, rows, new), fresh, state)
        return _with_ratio(kept, ratio) if (ratio := _ratio(state)) is not None else kept, None

    @abstractmethod
    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        """One step from (x, t) to t_next; times are float64 scalars, or (B,) under error control."""

    def finish(self, term: Term, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """The state that is returned for x, the one after the last step of a fixed grid, at the same time."""
        return x

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        """(accept, factor on the step size, state to carry on), for a batch of steps under error control.

        accept and factor are (B,); a step that is not finite is a rejection; the state is the step's where accepted,
        else `state`.
        """
        if step.error is None:
            raise InvalidInputError(f"{self.name!r} has no error estimate")
        ratio = tolerance.ratio(step.error, x, step.x)
        accept, factor = self.controller.propose(ratio, _ratio(state), self.error_order)
        remembered = ratio.nan_to_num(1.0, posinf=1.0)  # a step that failed says nothing about the next
        return accept, factor, merge(accept, _with_ratio(step.state, remembered), state)

    def select(self, state: State, keep: Tensor, x: Tensor) -> State:
        """The state of the samples at the positions `keep`, under error control; x is the batch's."""
        return selected(state, keep)

    def replace(self, state: State, at: Tensor, other: State, x: Tensor) -> State:
        """The solver's state once the samples at positions `at` of the batch x gave their places to those whose state
        is `other`, under error control."""
        return replaced(state, other, at, len(x))

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options().items())
        return f"{self.name}({options})" if options else self.name

    def options(self) -> dict[str, Any]:
        """The options it was made with."""
        return {}


def _check_step(solver: Solver, step: Any, term: Term, x: Tensor, *_: Any) -> None:
    """Raise unless it is what `step` has to return for a state x."""
    if not isinstance(step, Step) or not isinstance(step.x, Tensor) or step.x.shape != x.shape:
        got = f"a Step to {told(step.x)}" if isinstance(step, Step) else told(step)
        raise InvalidInputError(f"{solver.name!r}: step returned {got}, expected a Step to x, {tuple(x.shape)}")


class GridOrTolerance(Solver):
    """One name for two methods: one for fixed grids and one for error control.

    Args:
        on_grid, by_tolerance: the two.
    """

    def __init__(self, on_grid: Solver, by_tolerance: Solver) -> None:
        self.on_grid, self.by_tolerance = on_grid, by_tolerance
        self.refills = by_tolerance.refills

    def stepper(self, *, controlled: bool) -> Solver:
        return self.by_tolerance if controlled else self.on_grid

    def begin(self, term: Term, x: Tensor, grid: Tensor, *, ahead: int = 0, rests: bool = False) -> State:
        return self.on_grid.begin(term, x, grid, ahead=ahead, rests=rests)

    def start(self, term: Term, x: Tensor, t: Tensor, grid: Tensor | None = None) -> State:
        return self.stepper(controlled=grid is None).start(term, x, t, grid)

    def enter(self, term: Term, x: Tensor, t: Tensor, tolerance: Tolerance, noise: Noise, *, end: float) -> Entry:
        return self.by_tolerance.enter(term, x, t, tolerance, noise, end=end)

    def step(self, term: Term, x: Tensor, t: Tensor, t_next: Tensor, state: State, noise: Noise) -> Step:
        return self.stepper(controlled=t.ndim > 0).step(term, x, t, t_next, state, noise)

    def judge(self, step: Step, x: Tensor, state: State, tolerance: Tolerance) -> tuple[Tensor, Tensor, State]:
        return self.by_tolerance.judge(step, x, state, tolerance)

    def select(self, state: State, keep: Tensor, x: Tensor) -> State:
        return self.by_tolerance.select(state, keep, x)

    def replace(self, state: State, at: Tensor, other: State, x: Tensor) -> State:
        return self.by_tolerance.replace(state, at, other, x)


class _Part(Term):
    """The drift of some samples of a batch, where it is counted."""

    def __init__(self, term: Term, rows: Tensor) -> None:
        self._whole, self._rows = term, rows
        self.model, self.sde, self.stochastic = term.model, term.sde, term.stochastic

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self._whole.drift_of(self._rows, x, t)


# ---- states of samples that step for themselves


def _ratio(state: State) -> Tensor | None:
    """The last error over tolerance that a state remembers."""
    if isinstance(state, dict):
        return state.get("ratio")
    return state.ratio if isinstance(state, ControlState) else None


def _with_ratio(state: State, ratio: Tensor) -> State:
    if state is None:
        return ControlState(ratio)
    if isinstance(state, dict):
        return {**state, "ratio": ratio}
    if not isinstance(state, ControlState):
        raise InvalidInputError(
            f"got a {type(state).__name__} as the state of a solver with an error estimate, expected None, a dict, or "
            "a dataclass that inherits ControlState"
        )
    return replace(state, ratio=ratio)


def selected(state: State, keep: Tensor) -> State:
    """The rows `keep` of all tensors of a state."""
    return _each(lambda new, _: new[keep], state, None)


def replaced(one: State, other: State, at: Tensor, n: int) -> State:
    """A state of n samples with the rows of another one at positions `at`; numbers that one of them does not have yet
    are NaN."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        like = one if isinstance(one, Tensor) else other
        one, other = (
            like.new_full((k, *like.shape[1:]), math.nan) if part is None else part
            for part, k in ((one, n), (other, len(at)))
        )
        return one.index_copy(0, at, other)
    some = other if one is None else one
    if isinstance(some, dict):
        return {name: replaced((one or {}).get(name), (other or {}).get(name), at, n) for name in some}
    if is_dataclass(some) and not isinstance(some, type):
        pairs = {f.name: (getattr(one, f.name, None), getattr(other, f.name, None)) for f in fields(some)}
        return replace(some, **{name: replaced(*pair, at, n) for name, pair in pairs.items()})
    return some


def merge(accept: Tensor, new: State, old: State) -> State:
    """Carry `new` where a step was accepted and `old` elsewhere (what `old` does not have, or NaN, is taken from
    `new`)."""
    refused = (~accept).nonzero().flatten()
    if not len(refused):
        return new

    def kept(v: Tensor, w: Tensor | None) -> Tensor:
        return v if w is None else reverted(v, torch.where(w.isnan(), v, w), refused)

    return _each(kept, new, old)


def _each(f: Callable[[Tensor, Tensor | None], Tensor], new: State, old: State) -> State:
    """`new` with f(its tensor, that of `old` by the same name or None) for each of its tensors."""
    if isinstance(new, Tensor):
        return f(new, old)
    if isinstance(new, dict):
        return {name: _each(f, value, (old or {}).get(name)) for name, value in new.items()}
    if is_dataclass(new) and not isinstance(new, type):
        names = [field.name for field in fields(new)]
        return replace(new, **{name: _each(f, getattr(new, name), getattr(old, name, None)) for name in names})
    return new  # what all samples share


def reverted(new: Tensor, old: Tensor, refused: Tensor) -> Tensor:
    """`new` with the rows `refused` as they were: few, so that a choice between whole tensors would cost more."""
    return new.index_copy(0, refused, old.index_select(0, refused)) if refused.shape[0] else new
