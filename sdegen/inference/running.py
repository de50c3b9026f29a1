"""What the verbs share: grids of times, chunks, modes, progress, and one Solution out of it all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..loop.modes import bar, quiet
from ..loop.solution import Solution, describe, judged
from ..loop.solve import check_how, check_save, check_times, solve
from ..models.base import ScoreModel
from ..models.coordinates import Coordinates
from ..noise.white import Noise
from ..processes import SDE
from ..solvers import Solver, choose
from ..solvers.grids import check_span, count_or_times, formula_grid
from ..terms import Term


def grid(model: ScoreModel, n: int, *, kind: str, t_span: tuple[float, float] | None = None) -> Tensor:
    """The grids that a formula gives; see `sampling.grid`."""
    sde = model.sde if isinstance(model, ScoreModel) else model
    if not isinstance(sde, SDE):
        raise InvalidInputError(f"grid takes a ScoreModel or an SDE, not {type(model).__name__}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidInputError(f"n={n!r}: wanted a number of steps, at least 1")
    s = model.sigma_data if isinstance(model, ScoreModel) else 1.0
    start, stop = (sde.t_max, 0.0) if t_span is None else check_span(t_span)
    for t, zero in ((start, False), (stop, True)):
        if not (zero and t == 0) and not sde.t_min * (1 - 1e-6) <= t <= sde.t_max * (1 + 1e-6):
            raise InvalidInputError(
                f"time {t:g} is outside [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}]; to end with clean data go to "
                "exactly 0"
            )
    if start == stop:
        raise InvalidInputError(f"t_span={t_span}: wanted two different times")
    if stop != 0:
        return formula_grid(sde, n, kind=kind, start=start, stop=stop, sigma_data=s)
    zero = torch.zeros(1, dtype=torch.float64)
    if n == 1:
        return torch.cat([torch.tensor([start], dtype=torch.float64), zero])
    return torch.cat([formula_grid(sde, n - 1, kind=kind, start=start, stop=sde.t_min, sigma_data=s), zero])


class Trip(ABC):
    """One chunk of a run with something that travels beside the state: what is solved, and how it is read in the end.

    Attributes:
        term, x, solver: the equation, the state at the first time and the solver.
    """

    term: Term
    x: Tensor
    solver: Solver

    @abstractmethod
    def arrive(self, solution: Solution) -> Solution:
        """The Solution of the state alone, in the same coordinates, from that of both."""


@dataclass
class Run:
    """One call of a verb: checked in the model's own time, run by chunks in the solver's coordinates, and joined."""

    model: ScoreModel
    term_of: Callable[[ScoreModel, dict[str, Any]], Term]
    start: Callable[[Tensor, float], Tensor]
    t_span: Any
    default_span: tuple[float, float]  # its direction is the verb's
    how: dict[str, Any]
    save: Any
    seed: int
    numbers: Tensor
    cond: dict[str, Any]
    board: Callable[[Term, Tensor, Plan, Tensor], Trip] | None = None  # (term, x, plan, rows) -> what travels along
    grad: bool = False

    def __call__(self, batch: int, batch_size: int | None, progress: bool | None, on_failure: str) -> Solution:
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise InvalidInputError(f"batch_size={batch_size!r}: wanted a positive integer, or None for all at once")
        check_how(self.how["steps"], self.how["rtol"], self.how["atol"], self.how["max_steps"], on_failure)
        self.model.check_conditions(self.cond, batch)
        plan = self._plan()
        with quiet(self.model, grad=self.grad), bar(progress) as report:
            size = batch_size or max(batch, 1)
            chunks = [torch.arange(i, min(i + size, batch)) for i in range(0, max(batch, 1), size)]
            done = [
                self._chunk(rows, plan, lambda fraction, k=k: report((k + fraction) / len(chunks)))
                for k, rows in enumerate(chunks)
            ]
        return judged(done[0] if len(done) == 1 else joined(done), on_failure)

    def _plan(self) -> Plan:
        """Solver, times and coordinates, the same for all chunks."""
        steps, tolerant = self.how["steps"], self.how["rtol"] is not None or self.how["atol"] is not None
        term = self.term_of(self.model, {})
        solver = choose(self.how["solver"], term, steps=steps, adaptive=tolerant)
        solver.check(term)
        given = count_or_times(steps, solver.least_times)
        if isinstance(given, Tensor) and self.t_span is not None:
            raise InvalidInputError(
                "t_span= and a list of times in steps=: the times say where to start and end; give one of them"
            )
        span = self.default_span if self.t_span is None else check_span(self.t_span)
        nodes, denoise = check_times(term, given if isinstance(given, Tensor) else span)
        self._check_direction(nodes)
        noisy = term.stochastic or solver.kind == "SDE"
        controlled, laid = tolerant or (given is None and solver.adaptive and not noisy), ""
        if not controlled and not isinstance(given, Tensor) and len(nodes) > 1:
            ends = (float(nodes[0]), 0.0 if denoise else float(nodes[-1]))
            count = solver.default_steps if given is None else given
            laid = solver.grid_of(self.model, count)
            nodes, denoise = check_times(term, self._laid(solver, laid, count, ends))
        ends = (float(nodes[0]), float(nodes[-1]))
        known = nodes if noisy and not controlled else torch.tensor(ends, dtype=torch.float64) if noisy else None
        save = check_save(self.save, ends, denoise, known)
        views = {"best": Coordinates.best_of, "lambda": Coordinates.even_of, "own": Coordinates.own_of}
        return Plan(solver, views[solver.coordinates](self.model), nodes, denoise, controlled, save, laid)

    def _laid(self, solver: Solver, kind: str, count: int, ends: tuple[float, float]) -> Tensor:
        """The solver's grid of `count` evaluations; before it the leap of a solver that makes one."""
        level, sde = solver.landing(count), self.model.sde
        if level is not None and (self.model.data_std is not None or solver.kind != "SDE"):
            landing = float(sde.time(torch.tensor(-math.log(level * self.model.sigma_data), dtype=torch.float64)))
            if max(ends[1], sde.t_min) < landing < ends[0]:
                after = grid(self.model, count, kind=kind, t_span=(landing, ends[1]))
                return torch.cat([torch.tensor(ends[:1], dtype=torch.float64), after])
        return grid(self.model, count, kind=kind, t_span=ends)

    def _check_direction(self, nodes: Tensor) -> None:
        first, last = float(nodes[0]), float(nodes[-1])
        if self.default_span[0] > self.default_span[1] and first < last:
            raise InvalidInputError(
                f"times rise from {first:g} to {last:g}: sample goes from noise to data, t falling; swap them, or use "
                "encode"
            )
        if self.default_span[0] < self.default_span[1] and first > last:
            raise InvalidInputError(
                f"times fall from {first:g} to {last:g}: encode goes from data to noise, t rising; swap them, or use "
                "sample"
            )

    def _chunk(self, rows: Tensor, plan: Plan, report: Callable[[float], None]) -> Solution:
        view, nodes = plan.view, plan.nodes
        cond = {k: v[rows.to(v.device)] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        there = view.there(nodes)
        if plan.denoise:
            there = torch.cat([there, torch.zeros(1, dtype=torch.float64)])
        how = {**self.how, "solver": plan.solver, "steps": None if plan.controlled else there}
        if plan.controlled:
            how["t_span"] = (float(there[0]), float(there[-1]))
        term, x = self.term_of(view.model, cond), view.state_there(self.start(rows, float(nodes[0])), nodes[0])
        trip = None if self.board is None else self.board(term, x, plan, rows)
        if trip is not None:
            term, x, how["solver"] = trip.term, trip.x, trip.solver
        solution = solve(
            term,
            x,
            noise=Noise(self.seed, index=self.numbers[rows]),
            save=plan.save if isinstance(plan.save, str) else view.there(plan.save),
            report=report,
            on_failure="mark",
            **how,
        )
        if trip is not None:
            solution = trip.arrive(solution)
        if plan.laid:
            solution = replace(solution, solver=f"{solution.solver}, grid {plan.laid!r}")
        return solution if view.same else self._back(solution, plan)

    def _back(self, solution: Solution, plan: Plan) -> Solution:
        """The solution as the own process has it."""
        view, device = plan.view, solution.x.device
        t = view.back(solution.t)
        return replace(
            solution,
            x=view.state_back(solution.x, solution.t.to(device)),
            ts=view.back(solution.ts) if isinstance(plan.save, str) else plan.save,
            xs=torch.stack([view.state_back(x, t.to(device)) for t, x in zip(solution.ts, solution.xs, strict=True)]),
            t=t,
            message=describe(solution.status, t, solution.accepted),
        )


@dataclass(frozen=True)
class Plan:
    """What the chunks of a run share; times are the model's own."""

    solver: Solver
    view: Coordinates
    nodes: Tensor  # the grid, or the ends under error control
    denoise: bool
    controlled: bool
    save: str | Tensor
    laid: str = ""  # the kind of grid, where the run laid it


def joined(parts: Sequence[Solution]) -> Solution:
    """The Solution of all chunks, in order."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])

    longest = max(len(p.ts) for p in parts)

    def padded(values: Tensor) -> Tensor:  # short paths repeat their end
        return torch.cat([values, values[-1:].expand(longest - len(values), *values.shape[1:])])

    own_times = parts[0].ts.ndim == 2
    ts = torch.cat([padded(p.ts) for p in parts], 1) if own_times else parts[0].ts
    status, t, accepted = cat("status"), cat("t"), cat("accepted")
    return Solution(
        x=cat("x"),
        ts=ts,
        xs=torch.cat([padded(p.xs) for p in parts], 1),
        nfe=cat("nfe"),
        calls=sum(p.calls for p in parts),
        accepted=accepted,
        rejected=cat("rejected"),
        t=t,
        status=status,
        message=describe(status, t, accepted),
        solver=parts[0].solver,
        seed=parts[0].seed,
        log_prob=None if parts[0].log_prob is None else cat("log_prob"),
    )


def check_model(model: ScoreModel) -> None:
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(
            f"model is {type(model).__name__}: wrap a network as Denoiser(net, sde, parametrization=...), or use "
            "MixtureModel(mixture, sde)"
        )


def sample_numbers(index: Sequence[int] | Tensor | None, batch: int) -> Tensor:
    """`index=` as (B,) sample numbers."""
    if index is None:
        return torch.arange(batch)
    named = Noise(0, index=index).index
    if named is None or len(named) != batch:
        raise InvalidInputError(
            f"index names {0 if named is None else len(named)} samples, but shape asks for {batch}: pass one number "
            "per sample"
        )
    return named
