"""A request as a value: `solver=, steps=, rtol= ...` of every verb, checked once and turned into a Plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import one_of, whole
from ..core.errors import InvalidInputError, warn
from ..models.base import ScoreModel
from ..models.coordinates import Coordinates
from ..processes import once
from ..solvers import Solver, choose
from ..solvers.advice import advise
from ..solvers.grids import check_span, count_or_times, grid_along
from ..solvers.multistep.gaussian_start import begins_at_the_mean
from ..solvers.tolerance import Tolerance, check_tolerances, clamp_tolerance
from ..terms import Term
from .plan import Plan, check_save, check_times

_VIEWS = {"best": Coordinates.best_of, "lambda": Coordinates.even_of, "own": Coordinates.own_of}


@dataclass(frozen=True)
class How:
    """How to solve, in the words of `sample`, `encode`, `log_prob` and `solve`, where they are documented.

    Attributes:
        spares: whether few steps may go without evaluations at the ends, see `Advice.few`.
    """

    solver: Any = "auto"
    steps: Any = None
    rtol: float | None = None
    atol: float | None = None
    t_span: Any = None
    max_steps: int = 10_000
    on_failure: str = "raise"
    save: Any = "last"
    spares: bool = True

    def plan(self, term: Term, dtype: torch.dtype, *, span: tuple[float, float] | None = None) -> Plan:
        """Check everything that can be checked without evaluating the term, and say where the steps are.

        Args:
            term: the equation, in the model's own time.
            dtype: of the state, which bounds what a tolerance can mean.
            span: a verb's (from, to): its default and its direction, on which it lays the solver's grid in the solver's
                coordinates. None, for `solve`: the term's own times and equal steps in them.

        Raises:
            InvalidInputError: what cannot be meant, or not solved by this solver.
        """
        self._check_options()
        adaptive = self.rtol is not None or self.atol is not None
        ends = span if self.t_span is None or span is None else check_span(self.t_span)
        solver = choose(self.solver, term, steps=self.steps, adaptive=adaptive, span=ends)
        solver.check(term)
        noisy = term.stochastic or solver.kind == "SDE"
        tolerance = self._tolerance(solver, dtype, noisy)
        if tolerance is not None:
            _check_error_control(term.model)
        times, denoise, kind, rests = self._times(term, solver, tolerance, span)
        if len(times) - 1 - rests > self.max_steps:
            raise InvalidInputError(
                f"{len(times) - 1 - rests} steps are more than max_steps={self.max_steps}: raise it, or ask for fewer"
            )
        return Plan(
            solver=solver,
            times=times,
            tolerance=tolerance,
            denoise=denoise,
            save=check_save(self.save, times, denoise, nodes_only=noisy),
            max_steps=self.max_steps,
            noisy=noisy,
            grid=kind,
            view=None if span is None else _VIEWS[solver.coordinates](term.model),
            rests=rests,
        )

    def _check_options(self) -> None:
        if self.steps is not None and (self.rtol is not None or self.atol is not None):
            raise InvalidInputError(
                "both steps= and a tolerance: steps asks for a fixed grid, rtol/atol for error control; give one of "
                "them"
            )
        whole(self.max_steps, "max_steps", least=1)
        one_of(self.on_failure, "on_failure", ("raise", "mark"))

    def _tolerance(self, solver: Solver, dtype: torch.dtype, noisy: bool) -> Tolerance | None:
        if self.rtol is None and self.atol is None:
            if self.steps is not None or not solver.adaptive or noisy:
                return None
            default = clamp_tolerance(1e-3, dtype)
            return Tolerance(default, default)
        if not solver.adaptive:
            raise InvalidInputError(
                f"rtol/atol need a solver with an error estimate, {solver.name!r} has none: use 'adams' or 'dopri5', "
                "or pass steps=50"
            )
        asked = check_tolerances(self.rtol, self.atol)
        clamped = Tolerance(clamp_tolerance(asked.rtol, dtype), clamp_tolerance(asked.atol, dtype))
        if clamped != asked:
            warn(
                f"rtol={asked.rtol:g}, atol={asked.atol:g} are below what {dtype} resolves: using {clamped.rtol:g}, "
                f"{clamped.atol:g}; pass x in float64 for less"
            )
        return clamped

    def _times(
        self, term: Term, solver: Solver, tolerance: Tolerance | None, span: tuple[float, float] | None
    ) -> tuple[Tensor, bool, str, bool]:
        """The grid, or the ends under error control; whether the final denoising follows; the kind of grid laid;
        whether no evaluation is made for its first step."""
        given = count_or_times(self.steps, solver.least_times)
        if isinstance(given, Tensor) and self.t_span is not None:
            raise InvalidInputError(
                "t_span= and a list of times in steps=: the times say where to start and end; give one of them"
            )
        if isinstance(given, Tensor):
            times, denoise = check_times(term, given)
        else:
            ends = check_span(self.t_span) if self.t_span is not None else span or _own_span(term)
            times, denoise = _ends(term, ends)
        if span is not None:
            _check_direction(times, span)
        if tolerance is not None or isinstance(given, Tensor):
            return times, denoise, "", False
        count = advise(solver, term).steps if given is None else given
        if span is None:
            n = count - denoise  # the final denoising is one of the steps
            return (_equal_steps(times, n) if n and len(times) > 1 else times[:1]), denoise, "", False
        if len(times) == 1:
            return times, denoise, "", False
        ends = (float(times[0]), 0.0 if denoise else float(times[-1]))
        own = solver.lay(term.model, count, ends)
        if own is not None:
            return own, False, solver.name, len(own) - 1 > count
        return self._own_grid(term, solver, count, ends, denoise)

    def _own_grid(
        self, term: Term, solver: Solver, count: int, ends: tuple[float, float], denoise: bool
    ) -> tuple[Tensor, bool, str, bool]:
        """The solver's own grid of so many evaluations, in the words of `_times`."""
        model: ScoreModel = term.model  # type: ignore[assignment]
        advice, data = advise(solver, term, steps=count), model.data
        few = advice.few and self.spares
        from_t_max = ends[1] < ends[0] and ends[0] >= term.t_max * (1 - 1e-6)
        lands, rests = denoise and few, few and from_t_max and begins_at_the_mean(model, term.cond)
        count += rests
        leap = None if data.std is None and solver.kind == "SDE" else advice.leap

        def laid() -> tuple[Tensor, bool]:
            if not lands:
                return check_times(term, _laid(model, advice.grid, leap, count, ends))
            grid = _laid(model, advice.grid, leap, count, (ends[0], model.sde.t_min))
            grid[-1] = 0.0
            return grid, False

        asked = ("grid", advice.grid, leap, count, *ends, lands, data.scale, data.turning)
        return *once(model.sde, asked, laid), advice.grid, rests


def _own_span(term: Term) -> tuple[float, float]:
    if term.t_max == math.inf:
        raise InvalidInputError(
            f"{type(term).__name__} has no last time of its own: give t_span=(from, to), or its class a t_max"
        )
    return (term.t_max, term.t_min) if term.downward else (term.t_min, term.t_max)


def _ends(term: Term, ends: tuple[float, float]) -> tuple[Tensor, bool]:
    """`check_times` of a span, made once for a process."""
    if term.sde is None:
        return check_times(term, ends)
    asked = ("ends", *ends, term.t_min, term.t_max, term.model is None, term.upward, term.downward)
    return once(term.sde, asked, lambda: check_times(term, ends))


def _equal_steps(ends: Tensor, n: int) -> Tensor:
    times = torch.linspace(float(ends[0]), float(ends[-1]), n + 1, dtype=torch.float64, device="cpu")
    times[0], times[-1] = ends[0], ends[-1]
    return times


def _laid(model: ScoreModel, kind: str, level: float | None, count: int, ends: tuple[float, float]) -> Tensor:
    """A grid of `count` evaluations; before it the closed-form step, to this level, of a solver that makes one."""
    sde = model.sde
    if level is not None:
        stop = float(sde.time(torch.tensor(-math.log(level * model.sigma_data), dtype=torch.float64, device="cpu")))
        if max(ends[1], sde.t_min) < stop < ends[0]:
            after = grid_along(model, count, kind=kind, t_span=(stop, ends[1]))
            return torch.cat([torch.tensor(ends[:1], dtype=torch.float64, device="cpu"), after])
    return grid_along(model, count, kind=kind, t_span=ends)


def _check_direction(times: Tensor, span: tuple[float, float]) -> None:
    first, last = float(times[0]), float(times[-1])
    if span[0] > span[1] and first < last:
        raise InvalidInputError(
            f"times rise from {first:g} to {last:g}: sample goes from noise to data, t falling; swap them, or use "
            "encode"
        )
    if span[0] < span[1] and first > last:
        raise InvalidInputError(
            f"times fall from {first:g} to {last:g}: encode goes from data to noise, t rising; swap them, or use sample"
        )


def _check_error_control(model: ScoreModel | None) -> None:
    if model is not None and model.needs_grid:
        raise InvalidInputError(f"got error control, by a tolerance or by default, but {model.needs_grid}")
