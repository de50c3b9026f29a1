"""The loop: a term, a solver and its steps, from one time to another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import check_state, flat
from ..noise.brownian import Remembered
from ..noise.white import Noise, check_seed
from ..processes import TrigSDE
from ..solvers import Outcome, OutsideSolver, Solver, Step, choose
from ..solvers.base import State, reverted
from ..solvers.grids import check_span, count_or_times
from ..solvers.tolerance import Tolerance, check_tolerances, clamp_tolerance, resolution, share_of
from ..terms import Counted, Term
from .record import NEAR, OwnPath, SharedPath
from .solution import ARRIVED, MAX_STEPS, NON_FINITE, UNDERFLOW, Solution, code_of, describe, judged


@dataclass
class _Problem:
    """A checked call of `solve`."""

    term: Counted
    x: Tensor
    solver: Solver
    grid: Tensor | None  # fixed steps, without a final 0
    tolerance: Tolerance | None
    span: tuple[float, float]  # both ends inside the term's range
    denoise: bool  # one more evaluation at the end, giving x0
    max_steps: int
    noise: Noise
    noisy: bool  # whether it is used
    save: str | Tensor
    report: Callable[[float], None]


def solve(
    term: Term,
    x: Tensor,
    *,
    solver: str | Solver = "auto",
    steps: int | Sequence[float] | Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    t_span: tuple[float, float] | None = None,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    noise: Noise | int | None = None,
    save: str | Sequence[float] | Tensor = "last",
    report: Callable[[float], None] | None = None,
) -> Solution:
    """Integrate a term from x, in the term's own time.

    Args:
        term: ForwardSDE, ReverseSDE, ProbabilityFlow or your own Term.
        x: (B, *event), the state at the first time.
        solver: a name from `solvers()`, a Solver, or "auto".
        steps: a number of equal steps in the term's time, or the times themselves in the order they are visited.
        rtol, atol: error control per sample instead (one alone sets both): each sample has its own steps and leaves the
            batch when done. The local error estimate is kept below atol + rtol |x|, root mean squares over the event.
            Neither steps nor a tolerance: the solver's `default_steps`, or rtol = 1e-3 where the solver is adaptive and
            there is no noise.
        t_span: (from, to). Default: t_max to t_min, upward terms t_min to t_max. `to = 0` of a model's term ends with
            the final denoising: one evaluation at t_min that returns x0.
        max_steps: most steps per sample, rejected ones included.
        on_failure: "raise", or "mark": return all samples with a status each.
        noise: a Noise or a seed, for SDEs; None: a fresh seed, told in `.seed`.
        save: "last", "all", or times inside the span (solvers of SDEs: nodes of the grid).
        report: called with the fraction done, for progress bars.

    Returns:
        Solution.

    Raises:
        InvalidInputError: before the first evaluation: shapes, times, options that cannot work.
        NonFiniteError, MaxStepsError, StepSizeUnderflowError: with the partial Solution as `.partial`, unless
            on_failure="mark".
    """
    problem = _check(term, x, solver, steps, rtol, atol, t_span, max_steps, on_failure, noise, save, report)
    if x.shape[0] == 0:
        solution = _nothing(problem)
    elif isinstance(problem.solver, OutsideSolver):
        solution = _Outside(problem, problem.solver).run()
    elif problem.grid is None:
        solution = _Adaptive(problem).run()
    else:
        solution = _fixed(problem, problem.grid)
    problem.report(1.0)
    return judged(solution, on_failure)


# ---- checks


def _check(term, x, solver, steps, rtol, atol, t_span, max_steps, on_failure, noise, save, report) -> _Problem:
    if not isinstance(term, Term):
        raise InvalidInputError(
            f"term is {type(term).__name__}: pass ForwardSDE(sde), ReverseSDE(model) or ProbabilityFlow(model)"
        )
    check_state(x, event_shape=term.event_shape)
    check_how(steps, rtol, atol, max_steps, on_failure)
    chosen = choose(solver, term, steps=steps, adaptive=rtol is not None or atol is not None)
    chosen.check(term)
    term.check(x)
    noisy = term.stochastic or chosen.kind == "SDE"
    tolerance = _tolerance(chosen, steps, rtol, atol, x.dtype, noisy)
    grid, span, denoise = _times(term, chosen, steps, t_span, tolerance, max_steps)
    seeded = noise if isinstance(noise, Noise) else Noise(check_seed(noise) if noisy or noise is not None else 0)
    if seeded.index is not None and len(seeded.index) != x.shape[0]:
        raise InvalidInputError(
            f"noise names {len(seeded.index)} samples, but x has {x.shape[0]}: give Noise(seed, index=...) one number "
            "per sample"
        )
    known = grid if grid is not None else torch.tensor(span, dtype=torch.float64)
    wanted = check_save(save, span, denoise, known if noisy else None)
    return _Problem(
        Counted(term),
        x,
        chosen,
        grid,
        tolerance,
        span,
        denoise,
        max_steps,
        seeded,
        noisy,
        wanted,
        report or (lambda fraction: None),
    )


def check_how(steps: Any, rtol: float | None, atol: float | None, max_steps: Any, on_failure: Any) -> None:
    """Raise where these cannot be meant, whatever the term and the solver."""
    if steps is not None and (rtol is not None or atol is not None):
        raise InvalidInputError(
            "both steps= and a tolerance: steps asks for a fixed grid, rtol/atol for error control; give one of them"
        )
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InvalidInputError(f"max_steps={max_steps!r}: wanted a positive integer")
    if on_failure not in ("raise", "mark"):
        raise InvalidInputError(f"on_failure={on_failure!r}: wanted 'raise' or 'mark'")


def _tolerance(
    solver: Solver, steps: Any, rtol: float | None, atol: float | None, dtype: torch.dtype, noisy: bool
) -> Tolerance | None:
    if rtol is None and atol is None:
        if steps is not None or not solver.adaptive or noisy:
            return None
        default = clamp_tolerance(1e-3, dtype)
        return Tolerance(default, default)
    if not solver.adaptive:
        raise InvalidInputError(
            f"rtol/atol need a solver with an error estimate, {solver.name!r} has none: use 'adams' or 'dopri5', or "
            "pass steps=50"
        )
    tolerance = check_tolerances(rtol, atol)
    clamped = Tolerance(*(clamp_tolerance(v, dtype) if v > 0 else v for v in (tolerance.rtol, tolerance.atol)))
    if clamped != tolerance:
        warnings.warn(
            f"rtol={tolerance.rtol:g}, atol={tolerance.atol:g} are below what {dtype} resolves: using "
            f"{clamped.rtol:g}, {clamped.atol:g}; "
            "pass x in float64 for less",
            stacklevel=4,
        )
    return clamped


def _times(
    term: Term,
    solver: Solver,
    steps: Any,
    t_span: tuple[float, float] | None,
    tolerance: Tolerance | None,
    max_steps: int,
) -> tuple[Tensor | None, tuple[float, float], bool]:
    """The grid (None under error control), the span inside the term's range, whether the final denoising follows."""
    given = count_or_times(steps, solver.least_times)
    if isinstance(given, Tensor):
        if t_span is not None:
            raise InvalidInputError(
                "t_span= and a list of times in steps=: the times say where to start and end; give one of them"
            )
        nodes, denoise = check_times(term, given)
    else:
        nodes, denoise = check_times(term, _default_span(term) if t_span is None else check_span(t_span))
        if tolerance is not None:
            return None, (float(nodes[0]), float(nodes[-1])), denoise
        n = (solver.default_steps if given is None else given) - denoise  # the final denoising is one of the steps
        nodes = _equal_steps(nodes, n) if n and len(nodes) > 1 else nodes[:1]
    if len(nodes) - 1 > max_steps:
        raise InvalidInputError(
            f"{len(nodes) - 1} steps are more than max_steps={max_steps}: raise it, or ask for fewer"
        )
    return nodes, (float(nodes[0]), float(nodes[-1])), denoise


def _default_span(term: Term) -> tuple[float, float]:
    if term.t_max == float("inf"):
        raise InvalidInputError(
            f"{_name(term)} has no last time of its own: give t_span=(from, to), or its class a t_max"
        )
    return (term.t_max, term.t_min) if term.downward else (term.t_min, term.t_max)


def _equal_steps(ends: Tensor, n: int) -> Tensor:
    nodes = torch.linspace(float(ends[0]), float(ends[-1]), n + 1, dtype=torch.float64)
    nodes[0], nodes[-1] = ends[0], ends[-1]
    return nodes


def check_times(term: Term, times: tuple[float, float] | Tensor) -> tuple[Tensor, bool]:
    """The nodes that a span (from, to) or a list of times means, and whether the final denoising follows them.

    A model's times may end at 0: then the last node is where the denoising looks from, t_min for a span, else the last
    time before 0.
    Nodes that rounding put outside [t_min, t_max] are moved onto its ends.

    Raises:
        InvalidInputError: times outside the term's range, out of order, or in a direction that the term does not run.
    """
    has_model = getattr(term, "model", None) is not None
    nodes = torch.as_tensor(times, dtype=torch.float64)
    denoise = has_model and len(nodes) > 1 and float(nodes[-1]) == 0.0
    if denoise:
        nodes = nodes[:-1] if isinstance(times, Tensor) else torch.tensor([times[0], term.t_min], dtype=torch.float64)
    slack = 1e-6 * term.t_max if term.t_max < float("inf") else 0.0
    outside = (nodes < term.t_min - min(slack, 1e-3 * term.t_min)) | (nodes > term.t_max + slack)
    if bool(outside.any()):
        time, falls = float(nodes[outside][0]), len(nodes) > 1 and bool(nodes[0] > nodes[-1])
        raise InvalidInputError(
            f"time {time:g} is outside [t_min, t_max] = [{term.t_min:g}, {term.t_max:g}]"
            + ("; to end with clean data go to exactly 0" if has_model and falls and time < term.t_min else "")
        )
    nodes = nodes.clamp(term.t_min, term.t_max)
    if denoise and len(nodes) == 2 and nodes[0] == nodes[1]:  # from t_min to 0: nothing to solve
        nodes = nodes[:1]
    rise = nodes.diff()
    if not (bool((rise > 0).all()) or bool((rise < 0).all())):
        raise InvalidInputError(
            f"times must rise or fall throughout, without repeats: came {[round(t, 6) for t in nodes.tolist()[:6]]}..."
        )
    upward = len(rise) > 0 and float(rise[0]) > 0
    first, last = float(nodes[0]), float(nodes[-1])
    if upward and denoise:
        raise InvalidInputError(
            f"times rise from {first:g} to {last:g} and end at 0: sampling goes down, from t_max to 0"
        )
    if upward and not term.upward:
        raise InvalidInputError(
            f"{_name(term)} runs from noise to data, t falling: came {first:g} to {last:g}; swap t_span"
        )
    if len(rise) and not upward and not term.downward:
        raise InvalidInputError(
            f"{_name(term)} runs from data to noise, t rising: came {first:g} to {last:g}; swap t_span"
        )
    return nodes, denoise


def check_save(save: Any, span: tuple[float, float], denoise: bool, nodes: Tensor | None) -> str | Tensor:
    """`save=` as "last", "all" or (S,) times inside the span; among `nodes` (or 0, denoised) if these are given."""
    if isinstance(save, str):
        if save not in ("last", "all"):
            raise InvalidInputError(f"save={save!r}: wanted 'last', 'all' or a list of times")
        return save
    try:
        times = torch.as_tensor(save, dtype=torch.float64).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"save={save!r}: wanted 'last', 'all' or a list of times") from error
    first, last = span[0], 0.0 if denoise else span[1]
    low, high = min(first, last), max(first, last)
    near = NEAR * high
    if not len(times) or not bool(((times >= low - near) & (times <= high + near)).all()):
        raise InvalidInputError(f"save={times.tolist()}: wanted times inside the span, between {first:g} and {last:g}")
    if nodes is not None:
        nodes = torch.cat([nodes, torch.zeros(int(denoise), dtype=torch.float64)])
        if bool(((times[:, None] - nodes).abs().amin(1) > near).any()):
            raise InvalidInputError(
                f"save={times.tolist()}: a solver of SDEs saves nodes of its grid only; pass save='all', or steps= "
                "with these times among them"
            )
    return times.clamp(low, high)


def _name(term: Term) -> str:
    return type(term.term if isinstance(term, Counted) else term).__name__


# ---- fixed grids


def _fixed(p: _Problem, ts: Tensor) -> Solution:
    term, solver, x = p.term, p.solver, p.x
    times = list(ts)
    n = len(times) - 1 + p.denoise  # the final denoising is a step
    term.warm(ts)
    path, watch = SharedPath(p.save, times[0], x), _Watch(x)
    state = solver.start(term, x, times[0], ts) if len(times) > 1 else {}
    for k, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        step = solver.step(term, x, t, t_next, state, p.noise)
        path.add(t, t_next, x, step)
        x, state = step.x, step.state
        watch.add(x)
        p.report((k + 1) / n)
    settled = solver.finish(term, x, times[-1], p.noise)
    if settled is not x:
        x = settled
        path.end_at(x)
        watch.add(x)
    return _ended(p, x, ts, path, watch)


def _ended(p: _Problem, x: Tensor, ts: Tensor, path: SharedPath, watch: _Watch) -> Solution:
    """The Solution of samples that took the same steps, from x at the last of the times `ts`."""
    times, t_last = ts, ts[-1]
    if p.denoise:
        x0 = p.term.predict(x, t_last).x0
        end = torch.zeros_like(t_last)
        path.add(t_last, end, x, Step(x0))
        times, x = torch.cat([ts, end[None]]), x0
        watch.add(x)
    n = len(times) - 1
    bad = watch.first_bad()  # the step in which a sample stopped being finite, or -1
    failed = bad >= 0
    t = torch.where(failed, ts[bad.clamp(0, len(ts) - 1)], times[-1])
    accepted = torch.where(failed, bad.clamp_max(n), n)
    nfe = torch.full_like(accepted, p.term.calls)
    return _solution(p, x, *path.saved(), nfe, accepted, torch.zeros_like(nfe), t, failed.long() * NON_FINITE)


def _finite(step: Step) -> Tensor | None:
    """(B,) which samples' steps are finite; None on the CPU where a look at the whole batch, the cheapest, says all."""
    parts = [step.x.detach()]
    if step.error is not None:  # a NaN at the step's very end is in its estimate alone
        parts.append(step.error.detach())
    if step.x.device.type == "cpu" and all(math.isfinite(float(part.sum())) for part in parts):
        return None
    return torch.stack([torch.isfinite(flat(part).sum(1)) for part in parts]).all(0)


class _Watch:
    """Notes the first step at which each sample stopped being finite, without waiting for a device at every step."""

    def __init__(self, x: Tensor) -> None:
        self._bad = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
        self._at_hand = x.device.type == "cpu"  # then a look at the whole batch is the cheapest there is
        self._sums: list[Tensor] = []
        self._steps = 0

    def add(self, x: Tensor) -> None:
        x = x.detach() if x.requires_grad else x
        if self._at_hand and math.isfinite(float(x.sum())):
            self._steps += 1
            return
        self._sums.append(flat(x).sum(1))
        if self._at_hand or len(self._sums) == 64:
            self._flush()

    def _flush(self) -> None:
        if self._sums:
            bad = ~torch.isfinite(torch.stack(self._sums))
            step = torch.where(bad.any(0), bad.int().argmax(0) + self._steps, -1)
            self._bad = torch.where(self._bad >= 0, self._bad, step)
            self._steps += len(self._sums)
            self._sums = []

    def first_bad(self) -> Tensor:
        """(B,) on the CPU: the first bad step, or -1."""
        self._flush()
        return self._bad.cpu()


# ---- error control


def _widest(term: Term, x: Tensor) -> float | None:
    """The variance of a model's data in the directions that hold most of it, as known or feared; None: as in all.

    |C|^2/tr C, C the covariance: the mean of its eigenvalues weighted by themselves.
    """
    model = term.model
    if model is None or not isinstance(term.sde, TrigSDE):
        return None
    variance = term.sde.sigma_data**2
    if model.data_covariance is not None:
        covariance = model.data_covariance.double()
        total = covariance.trace().clamp_min(torch.finfo(torch.float64).tiny)  # of a single point it is 0
        return max(float(covariance.square().sum() / total), variance)
    return None if model.smooth else flat(x).shape[1] * variance


class _Adaptive:
    """Every sample with its own time and step; it leaves the batch when it has arrived or failed."""

    def __init__(self, p: _Problem) -> None:
        self.p = p
        b, device = p.x.shape[0], p.x.device
        self.rows = torch.arange(b, device=device)  # which samples are still in the batch
        self.end = p.span[1]
        self.length = abs(self.end - p.span[0])
        self.sign = 1.0 if self.end > p.span[0] else -1.0
        self.x = p.x
        self.t = torch.full((b,), p.span[0], dtype=torch.float64, device=device)
        self.h = torch.full_like(self.t, self.length * p.solver.first(p.tolerance, p.term))  # type: ignore[arg-type]
        self.cap = self.length * p.solver.largest_step
        self.noise = Remembered.of(p.noise) if p.noisy else p.noise
        self.tried = 0  # steps, by all samples in the batch
        self.rejected = torch.zeros(b, dtype=torch.int64, device=device)
        # results, one row a sample
        self.out = p.x.clone()
        self.status = torch.full((b,), MAX_STEPS, dtype=torch.int64, device=device)
        self.stopped_at = self.t.clone()
        self.nfe = torch.zeros_like(self.rejected)
        self.absent = torch.zeros_like(self.rejected)  # calls that a sample had no part in
        self.taken = torch.zeros_like(self.rejected)
        self.refused = torch.zeros_like(self.rejected)
        self.path = OwnPath(p.save, self.t, p.x)
        self.whole = p.term.term
        self.widest = _widest(p.term, p.x) if self.sign < 0 else None

    def run(self) -> Solution:
        p = self.p
        if p.span[0] == p.span[1]:
            self.status.fill_(ARRIVED)  # from t_min to 0: only the final denoising is left
        else:
            entry = p.solver.enter(p.term, self.x, self.t, p.tolerance, self.noise)  # type: ignore[arg-type]
            self.x, self.t, state = entry.x, entry.t, entry.state
            self.absent = self.absent + entry.absent
            for _ in range(p.max_steps):
                state = self._advance(state)
                if not len(self.rows):
                    break
            self._leave(torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device), state, MAX_STEPS)
        x = self._denoised() if p.denoise else self.out
        return self._solution(x)

    def _advance(self, state: State) -> State:
        p = self.p
        left = (self.end - self.t).abs()
        h = self.h.clamp_max(self.cap)
        last = h >= left * (1 - 1e-9)
        h = torch.where(last, left, torch.minimum(h, left / 2))  # the last two steps are equal
        t_next = torch.where(last, self.end, self.t + self.sign * h)
        step = p.solver.step(p.term, self.x, self.t, t_next, state, self.noise)
        accept, factor, carried = p.solver.judge(step, self.x, state, self._tolerance(t_next))
        factor = factor.nan_to_num(0.1)
        finite = _finite(step)
        if finite is not None:
            accept, factor = accept & finite, torch.where(finite, factor, 0.1)
        self.path.add(self.rows, accept, self.t, t_next, self.x, step)
        refused = (~accept).nonzero().flatten()
        self.x, self.t = reverted(step.x, self.x, refused), reverted(t_next, self.t, refused)
        self.h, self.tried = h * factor, self.tried + 1
        done = accept & last
        if len(refused):
            self.rejected = self.rejected + ~accept
            done = done | ~accept & (self.h < resolution(self.t, self.length))
        if bool(done.any()):
            code = torch.where(accept, ARRIVED, UNDERFLOW)
            carried = self._leave(done, carried, code if finite is None else torch.where(finite, code, NON_FINITE))
        p.report(1 - len(self.rows) / len(self.out))
        return carried

    def _tolerance(self, t: Tensor) -> Tolerance:
        tolerance: Tolerance = self.p.tolerance  # type: ignore[assignment]
        if self.widest is None:
            return tolerance
        return replace(tolerance, share=share_of(self.p.term.sde, self.widest, t))

    def _leave(self, who: Tensor, state: State, code: Any) -> State:
        """Write down the samples that are done and go on with the others."""
        rows = self.rows[who]
        self.out[rows], self.stopped_at[rows] = self.x[who], self.t[who]
        self.status[rows] = code[who] if isinstance(code, Tensor) else code
        self.nfe[rows] = self.p.term.calls - self.absent[rows]
        self.taken[rows], self.refused[rows] = self.tried - self.rejected[who], self.rejected[who]
        keep = (~who).nonzero().flatten()
        state = self.p.solver.select(state, keep, self.x)
        self.rows, self.x, self.t, self.h = self.rows[keep], self.x[keep], self.t[keep], self.h[keep]
        self.rejected = self.rejected[keep]
        self.noise = self.noise.select(keep)
        self.p.term.restrict(keep)
        return state

    def _denoised(self) -> Tensor:
        """The final denoising of the samples that arrived, in one call."""
        there = (self.status == ARRIVED).nonzero().flatten()
        x = self.out.clone()
        if len(there):
            self.p.term.term = self.whole.select(there)
            x[there] = self.p.term.predict(self.out[there], torch.tensor(self.end, dtype=torch.float64)).x0
            self.nfe[there] += 1
            self.taken[there] += 1
            self.stopped_at[there] = 0.0
            bad = there[~torch.isfinite(flat(x[there].detach()).sum(1))]
            self.status[bad], self.stopped_at[bad] = NON_FINITE, self.end
        self.path.denoised(self.out, self.end, x)
        return x

    def _solution(self, x: Tensor) -> Solution:
        ts, xs = self.path.saved(0.0 if self.p.denoise else self.end, x)
        counts = (self.nfe.cpu(), self.taken.cpu(), self.refused.cpu())
        return _solution(self.p, x, ts, xs, *counts, self.stopped_at.cpu(), self.status.cpu())


# ---- outside loops


class _Outside:
    """Another library's loop. It steps the batch together: samples that fail leave it, and the others start again."""

    def __init__(self, p: _Problem, solver: OutsideSolver) -> None:
        self.p, self.solver = p, solver
        b = p.x.shape[0]
        self.rows = torch.arange(b)  # which samples are in the batch
        self.whole, self.noise = p.term.term, p.noise
        self.parts: list[tuple[Tensor, Outcome]] = []  # what became of which samples
        self.status = torch.full((b,), ARRIVED, dtype=torch.int64)
        self.t = torch.full((b,), p.span[1], dtype=torch.float64)
        self.nfe, self.accepted, self.rejected = (torch.zeros(b, dtype=torch.int64) for _ in range(3))

    def run(self) -> Solution:
        p, ts = self.p, self._reported()
        if len(ts) == 1:  # from t_min to 0: only the final denoising is left
            return self._ended(ts, p.x[None])
        budget, x = p.max_steps, p.x
        while len(self.rows):
            outcome = self.solver.integrate(
                p.term,
                x,
                ts,
                tolerance=p.tolerance,
                noise=self.noise,
                max_steps=budget,
                every=isinstance(p.save, str) and p.save == "all",
            )
            self._note(outcome)
            if outcome.failure is None:
                break
            budget = max(1, budget - outcome.accepted - outcome.rejected)
            x = p.x[self.rows.to(x.device)]
        return self._ended(*self._joined())

    def _joined(self) -> tuple[Tensor, Tensor]:
        """The times of the last run, and the states of all samples there."""
        rows, last = self.parts[-1]
        if len(rows) == len(self.p.x):
            return last.ts, last.xs
        xs = self.p.x[None].repeat(len(last.ts), *(1,) * self.p.x.ndim)
        for rows, outcome in self.parts:
            same = torch.equal(outcome.ts, last.ts)
            part = outcome.xs if same else torch.cat([outcome.xs[:1], outcome.xs[-1:].expand_as(xs[1:, rows])])
            xs = xs.index_copy(1, rows.to(xs.device), part)
        return last.ts, xs

    def _reported(self) -> Tensor:
        """The grid, or under error control the ends and the times to save."""
        p = self.p
        if p.grid is not None:
            return p.grid
        low, high = sorted(p.span)
        wanted = p.save if isinstance(p.save, Tensor) else torch.empty(0, dtype=torch.float64)
        inner = wanted[(wanted > low) & (wanted < high)]
        ts = torch.unique(torch.cat([torch.tensor(sorted({low, high}), dtype=torch.float64), inner]))
        return ts.flip(0) if p.span[1] < p.span[0] else ts

    def _note(self, outcome: Outcome) -> None:
        """Write down what came of the samples in the batch, and go on with those that did not fail."""
        rows = self.rows
        self.nfe[rows] = self.p.term.calls
        self.accepted[rows], self.rejected[rows] = outcome.accepted, outcome.rejected
        self.parts.append((rows, outcome))
        if outcome.failure is None:
            finite = torch.isfinite(torch.stack([flat(x).sum(1) for x in outcome.xs.detach()])).cpu()
            node = (~finite).int().argmax(0)  # the first that is not
            failed = ~finite.all(0)
            self.status[rows[failed]] = NON_FINITE
            self.t[rows[failed]], self.accepted[rows[failed]] = outcome.ts[node[failed] - 1], node[failed] - 1
            return
        failed = torch.ones(len(rows), dtype=torch.bool) if outcome.failed is None else outcome.failed.cpu()
        self.status[rows[failed]] = code_of(outcome.failure)
        self.t[rows[failed]] = outcome.t
        keep = (~failed).nonzero().flatten()
        self.rows, self.noise = rows[keep], self.noise.select(keep)
        self.p.term.restrict(keep)

    def _ended(self, ts: Tensor, xs: Tensor) -> Solution:
        p, path, x = self.p, SharedPath(self.p.save, ts[0], self.p.x), xs[-1]
        for k in range(len(ts) - 1):
            path.add(ts[k], ts[k + 1], xs[k], Step(xs[k + 1]))
        there = (self.status == ARRIVED).nonzero().flatten()
        if p.denoise:
            before = x
            if len(there):
                p.term.term = self.whole.select(there) if len(there) < len(x) else self.whole
                x0 = p.term.predict(x[there.to(x.device)], ts[-1]).x0
                x = x.index_copy(0, there.to(x.device), x0)
                bad = there[~torch.isfinite(flat(x0.detach()).sum(1)).cpu()]
                self.nfe[there] = p.term.calls
                self.accepted[there] += 1
                self.t[there] = 0.0
                self.status[bad], self.t[bad] = NON_FINITE, ts[-1]
            path.add(ts[-1], torch.zeros_like(ts[-1]), before, Step(x))
        return _solution(p, x, *path.saved(), self.nfe, self.accepted, self.rejected, self.t, self.status)


# ---- what comes out


def _nothing(p: _Problem) -> Solution:
    """An empty batch gives an empty result."""
    zeros, t = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    if isinstance(p.save, Tensor):
        ts = p.save
    else:
        ends = torch.tensor([p.span[0], 0.0 if p.denoise else p.span[1]], dtype=torch.float64)
        ts = ends[1:] if p.save == "last" else ends
    return _solution(p, p.x, ts, p.x[None].expand(len(ts), *p.x.shape), zeros, zeros, zeros, t, zeros)


def _solution(
    p: _Problem,
    x: Tensor,
    ts: Tensor,
    xs: Tensor,
    nfe: Tensor,
    accepted: Tensor,
    rejected: Tensor,
    t: Tensor,
    status: Tensor,
) -> Solution:
    if p.grid is not None:
        made = (f"{name} {choice}" for name, choice in p.solver.choices(len(p.grid) - 1, p.term).items())
        how = ", ".join([f"{len(p.grid) - 1 + p.denoise} steps", *made])
    else:
        how = f"rtol={p.tolerance.rtol:g}, atol={p.tolerance.atol:g}" if p.tolerance is not None else ""
    return Solution(
        x=x,
        ts=ts,
        xs=xs,
        nfe=nfe,
        calls=p.term.calls,
        accepted=accepted,
        rejected=rejected,
        t=t,
        status=status,
        message=describe(status, t, accepted),
        solver=f"{p.solver!r}, {how}",
        seed=p.noise.seed if p.noisy else None,
    )
