"""The laws of solvers: one named function each, and `check_solver`, which tries them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NonFiniteError
from ..core.kinds import checked
from ..loop.run import solve
from ..noise.white import Noise
from ..solvers import OutsideSolver, Solver
from ..terms import ProbabilityFlow
from .accuracy import check_counts, gaussian_flow, order, output_law, seeds, tolerance
from .checks import STATES, broken, check_equal, normals
from .doubles import NormalModel, WatchedModel
from .problems import GRID, PROCESS, SPAN, by_tolerance, equation, settings, smooth_problems, uneven_times, wide_problem


@checked
def check_solver(solver: Solver) -> None:
    """Prove that a solver is what it says it is.

    Of a flow (kind "ODE" or "any"), with exact scores in float64:

    - the slope of error against step lies in [p - 0.15, p + 0.3], p its order (or that of its start), on an uneven grid
      and an even one, down and up; Gaussian data are carried to where they belong;
    - under error control the error falls with the tolerance, and samples that are done leave the batch.

    Of an SDE (kind "SDE" or "any"):

    - the output's mean and variance on Gaussian data tend to the exact ones, found without sampling: a solver of this
      kind is affine in its state and its noise, so a few controlled inputs tell its whole law;
    - a sample depends on the seed and its own number alone.

    Of both: nfe and calls are those made, at times inside the span; a sample does not depend on its batch mates, nor a
    solve on the one before; saving changes nothing; a NaN harms nobody else; any event shape, dtype and stride.

    Args:
        solver: an instance.

    Raises:
        LawError: a law fails.
    """
    for _, law in solver_laws(solver):
        law()


# What solvers of other libraries are excused from, and why.
OUTSIDE: dict[str, str] = {
    "saving-changes-nothing": "some of these libraries take other steps when more times are asked for",
    "batch-mates-by-tolerance": "these libraries step the batch together",
    "nan-by-tolerance": "these libraries step the batch together",
    "finished-samples": "these libraries step the batch together",
}


@checked
def solver_laws(solver: Solver) -> list[tuple[str, Callable[[], None]]]:
    """The laws that a solver has to keep, one by one, each with its name, for tests that report them apart.

    Args:
        solver: an instance.

    Returns:
        (name, law) pairs; `law()` raises `LawError` where the law fails.

    Raises:
        InvalidInputError: `solver` is not an instance of a solver.

    Example:
        >>> import sdegen as sg
        >>> names = [name for name, law in sg.testing.solver_laws(sg.make_solver("heun"))]
        >>> len(names) > 5
        True
    """
    laws = dict(LAWS)
    if solver.kind != "SDE":
        laws |= LAWS_OF_FLOWS
    if solver.kind != "ODE":
        laws |= LAWS_OF_NOISE
    if solver.adaptive:
        laws |= LAWS_OF_TOLERANCES
    excused = OUTSIDE if isinstance(solver, OutsideSolver) else {}
    return [(name, partial(_run, law, solver)) for name, law in laws.items() if name not in excused]


@torch.no_grad()
def _run(law: Callable[[Solver], None], solver: Solver) -> None:
    law(solver)


def counts(solver: Solver) -> None:
    """nfe, calls and accepted are those made, at times inside the range, with and without the final denoising."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    whole: dict[str, Any] = {"steps": uneven_times((PROCESS.t_max, PROCESS.t_min), 12)}
    for how in settings(solver):
        for run in (how, _to_zero(how), whole):
            watched = WatchedModel(model)
            solution = solve(equation(solver, watched), x, solver=solver, noise=3, **run)
            check_counts(solver, solution, watched)
            if "steps" in run:
                n = len(run["steps"]) - 1
                if solution.accepted.unique().tolist() != [n] or bool(solution.rejected.any()):
                    raise broken(solver, "accepted counts the steps of a grid", solution.accepted.tolist(), n)


def _to_zero(how: dict[str, Any]) -> dict[str, Any]:
    """The same run with the final denoising."""
    if "steps" in how:
        return {"steps": torch.cat([how["steps"], torch.zeros(1, dtype=torch.float64)])}
    return {**how, "t_span": (SPAN[0], 0.0)}


def saving_changes_nothing(solver: Solver) -> None:
    """Saving states changes neither x nor the counts, to the bit."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    for how in settings(solver):
        last = solve(equation(solver, model), x, solver=solver, noise=3, **how)
        for save in ("all", SPAN[::-1]):
            other = solve(equation(solver, model), x, solver=solver, noise=3, save=save, **how)
            same = torch.equal(other.x, last.x) and torch.equal(other.nfe, last.nfe) and other.calls == last.calls
            if not same:
                raise broken(solver, "saving changes neither x nor the counts", "another result", "the same")


def saved_states(solver: Solver) -> None:
    """The states saved are those at the times saved, the first and the last among them."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    for how in settings(solver):
        last = solve(equation(solver, model), x, solver=solver, noise=3, **how)
        path = solve(equation(solver, model), x, solver=solver, noise=3, save="all", **how)
        other = solve(equation(solver, model), x, solver=solver, noise=3, save=SPAN[::-1], **how)
        for got in (path, other):
            check_equal(solver, "saving does not change x", got.x, last.x, 1e-12 if "steps" in how else 1e-4)
        check_equal(solver, "the last saved state is x", path.xs[-1], path.x)
        check_equal(solver, "the first saved state is where it starts", path.xs[0], x)
        check_equal(solver, "states are saved at the times asked for", other.xs, torch.stack([other.x, x]))
        ts = path.ts if path.ts.ndim == 1 else path.ts[:, 0]
        if not (float(ts[0]), float(ts[-1])) == SPAN or not bool((ts.diff() <= 0).all()):
            raise broken(solver, "saved times go from the first to the last", ts.tolist(), SPAN)


def repeated(solver: Solver) -> None:
    """A solve does not depend on the one before."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    for how in settings(solver):
        first = solve(equation(solver, model), x, solver=solver, noise=3, **how).x
        solve(equation(solver, model), x.flip(0)[:7] + 1, solver=solver, noise=4, steps=uneven_times(SPAN, 5))
        again = solve(equation(solver, model), x, solver=solver, noise=3, **how).x
        if not torch.equal(first, again):
            raise broken(solver, "a solve does not depend on the one before", "another result", "the same")


def batch_mates(solver: Solver, how: dict[str, Any] = GRID) -> None:
    """A sample and its evaluations do not depend on its batch mates."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    whole = solve(equation(solver, model), x, solver=solver, noise=3, **how)
    for size in (1, 2, 5, 8, 16):
        for rows in (torch.arange(size), torch.arange(len(x) - size, len(x)).flip(0)):
            part = solve(equation(solver, model), x[rows], solver=solver, noise=Noise(3, index=rows), **how)
            law = f"a sample does not depend on its batch mates (batch of {size})"
            check_equal(solver, law, part.x, whole.x[rows])
            if not torch.equal(part.nfe, whole.nfe[rows]):
                raise broken(solver, "nor do its evaluations", part.nfe.tolist(), whole.nfe[rows].tolist())


def batch_mates_by_tolerance(solver: Solver) -> None:
    """The same under error control."""
    batch_mates(solver, by_tolerance(solver))


def nan(solver: Solver, how: dict[str, Any] = GRID) -> None:
    """NaN from the network marks its samples with the time, harms no other, and raises with the partial solution."""
    model, problems = smooth_problems()
    x = problems["down"][0]
    spoiled = torch.zeros(len(x), dtype=torch.bool)
    spoiled[[3, 11]] = True
    good = solve(equation(solver, model), x, solver=solver, noise=3, **how)
    term = equation(solver, WatchedModel(model, below=0.55), spoiled=spoiled)
    got = solve(term, x, solver=solver, noise=3, on_failure="mark", **how)
    if not torch.equal(got.status, spoiled.long()):
        raise broken(solver, "NaN from the network marks its samples", got.status.tolist(), spoiled.long().tolist())
    check_equal(solver, "NaN in one sample harms no other", got.x[~spoiled], good.x[~spoiled])
    reached = got.t[spoiled]
    if not bool(((reached > 0.5) & (reached < 0.6)).all()):  # it begins at 0.55, steps are up to 0.05 long
        raise broken(solver, "the message has the time of a failure", reached.tolist(), "the last node above 0.55")
    try:
        solve(term, x, solver=solver, noise=3, **how)
    except NonFiniteError as error:
        if error.partial is None or not torch.equal(error.partial.status, got.status):
            raise broken(solver, "a failure carries the partial solution", error.partial, "the marked one") from error
    else:
        raise broken(solver, "NaN from the network raises", "a result", "NonFiniteError")


def nan_by_tolerance(solver: Solver) -> None:
    """The same under error control."""
    nan(solver, by_tolerance(solver))


def finished_samples(solver: Solver) -> None:
    """Under error control, samples that are done leave the batch."""
    model, x, _ = wide_problem()
    for tol in (1e-3, 1e-4, 1e-5):
        watched = WatchedModel(model)
        solve(ProbabilityFlow(watched), x, solver=solver, t_span=(PROCESS.t_max, PROCESS.t_min), rtol=tol)
        if watched.rows >= watched.calls * len(x):
            expected = f"fewer than {watched.calls * len(x)}"
            raise broken(solver, "samples that are done leave the batch", watched.rows, expected)


def events(solver: Solver) -> None:
    """Any event shape, stride and dtype; an empty batch gives an empty result."""
    model = NormalModel(PROCESS, 0.3, 0.8)
    steps = uneven_times(SPAN, 6)

    def run(x: Tensor) -> Tensor:
        return solve(equation(solver, model), x, solver=solver, steps=steps, noise=3).x

    x = normals((5, 6), STATES)
    flat_result = run(x)
    for event in ((6,), (1, 2, 3)):
        shaped = x.reshape(5, *event)
        check_equal(solver, f"an event of shape {event} is its elements", run(shaped).reshape(5, 6), flat_result)
        strided = torch.stack([shaped, shaped + 1], dim=-1)[..., 0]
        check_equal(solver, "a strided state is as a contiguous one", run(strided), run(shaped))
        empty = run(shaped[:0])
        if empty.shape != (0, *event):
            raise broken(solver, "an empty batch gives an empty result", tuple(empty.shape), (0, *event))
    check_equal(solver, "scalar events work as others", run(x[:, 0]), run(x[:, :1])[:, 0])
    moved = float((run(x + 1e-10) - flat_result).abs().max())
    if not 0 < moved < 1e-8:
        raise broken(solver, "float64 in means float64 throughout: x + 1e-10", f"moved by {moved:.1e}", "about 1e-10")
    low = run(x.float())
    if low.dtype != torch.float32:
        raise broken(solver, "float32 in, float32 out", low.dtype, torch.float32)
    check_equal(solver, "float32 is close to float64", low.double(), flat_result, 1e-3)


LAWS: dict[str, Callable[[Solver], None]] = {
    "counts": counts,
    "repeated": repeated,
    "saving-changes-nothing": saving_changes_nothing,
    "saved-states": saved_states,
    "batch-mates": batch_mates,
    "nan": nan,
    "events": events,
}
LAWS_OF_FLOWS: dict[str, Callable[[Solver], None]] = {"order": order, "gaussian-flow": gaussian_flow}
LAWS_OF_NOISE: dict[str, Callable[[Solver], None]] = {"seeds": seeds, "output-law": output_law}
LAWS_OF_TOLERANCES: dict[str, Callable[[Solver], None]] = {
    "batch-mates-by-tolerance": batch_mates_by_tolerance,
    "nan-by-tolerance": nan_by_tolerance,
    "tolerance": tolerance,
    "finished-samples": finished_samples,
}
