"""The loop: a term, a plan and noise, from one time to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import kind_of, take
from ..core.shapes import check_state
from ..noise.white import Noise, check_seed
from ..solvers import OutsideSolver, Solver
from ..terms import Counted, Term
from .adaptive import Adaptive
from .ending import finished, nothing
from .fixed import fixed
from .how import How
from .modes import silent
from .outside import Outside
from .plan import Plan
from .solution import Solution

_REPORT = kind_of(Callable[[float], None] | None)


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
            Neither steps nor a tolerance: rtol = 1e-3 where the solver is adaptive and there is no noise, else the
            solver's default number of steps.
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

    Example:
        >>> import math, torch, sdegen as sg
        >>> class Growth(sg.Term):
        ...     def drift(self, x, t):
        ...         return x
        >>> found = sg.solve(Growth(), torch.ones(1, 1), solver="rk4", steps=10, t_span=(0.0, 1.0))
        >>> abs(float(found.x) - math.e) < 1e-5
        True
    """
    take(term, "term", kind_of(Term))
    check_state(x, event_shape=term.event_shape)
    report = take(report, "report", _REPORT)
    plan = How(solver, steps, rtol, atol, t_span, max_steps, on_failure, save).plan(term, x.dtype)
    drawn = noise if isinstance(noise, Noise) else Noise(check_seed(noise) if plan.noisy or noise is not None else 0)
    return run(plan, term, x, noise=drawn, report=report).or_raise(on_failure)


def run(
    plan: Plan,
    term: Term,
    x: Tensor,
    *,
    noise: Noise,
    report: Callable[[float], None] | None = None,
    places: int | None = None,
    drawn: bool = False,
) -> Solution:
    """Carry out a plan from x at its first time, whatever becomes of the samples: their status says it.

    Args:
        plan: made for this term, by `How.plan`.
        term: the equation, in the model's own time.
        x: (B, *event), as the model's own process has it.
        noise: of these samples.
        report: called with the fraction done.
        places: how many samples the network is given at once, where the plan `refills`; None: all.
        drawn: whether x was drawn from this noise, so that the Solution tells its seed.
    """
    if noise.index is not None and len(noise.index) != x.shape[0]:
        raise InvalidInputError(
            f"noise names {len(noise.index)} samples, but x has {x.shape[0]}: give Noise(seed, index=...) one number "
            "per sample"
        )
    term.check(x)
    inside = plan.inside()
    if inside is not plan:
        term, x = term.along(plan.view.model), plan.view.state_there(x, plan.times[0])  # type: ignore[union-attr]
    counted, report = Counted(term, x.shape[0]), report or silent
    seed = noise.seed if plan.noisy or drawn else None
    if x.shape[0] == 0:
        solution = nothing(inside, counted, x, seed)
    else:
        if isinstance(plan.solver, OutsideSolver):
            reached = Outside(inside, counted, x, noise, plan.solver).run()
        elif plan.tolerance is not None:
            reached = Adaptive(inside, counted, x, noise, places).run(report)
        else:
            reached = fixed(inside, counted, x, noise, report)
        solution = finished(inside, counted, reached, seed, places)
    report(1.0)
    return plan.back(solution)
