"""Work against precision: solvers, budgets and tolerances on one model, from the same noise."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import whole
from ..core.conditions import merged
from ..core.errors import InvalidInputError, SolverError
from ..core.kinds import checked
from ..core.shapes import check_state, flat
from ..core.table import Rows
from ..distributions.distances import sliced_wasserstein
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..noise.white import check_seed
from ..solvers import Solver, make_solver
from ..solvers.grids import count_or_times
from .checks import check_model, full_shape
from .sampling import sample

_REFERENCE_RTOL = 1e-7
SOLVERS = ("adams", "ddim", "dpm++2m", "unipc3", "heun", "dopri5")


@dataclass(frozen=True)
class Comparison:
    """One setting of one solver.

    Attributes:
        solver: its name.
        setting: "20 steps" or "rtol=0.001".
        nfe: evaluations a sample, the mean.
        error: root mean square distance of the samples to the reference from the same noise, in units of the data's
            standard deviation; NaN for
            a solver that draws noise on its way.
        distance: sliced Wasserstein-2 between the samples and the reference's, in the same units.
        seconds: for the whole batch, wall time.
        note: what went wrong, if anything did.
    """

    solver: str
    setting: str
    nfe: float
    error: float
    distance: float
    seconds: float
    note: str = ""


class Comparisons(Rows[Comparison]):
    """Rows that print as a table; `recommendation` says which setting to take."""

    floor: float = math.nan  # the distance between references of two seeds: what equally many exact samples score

    header = ("solver", "setting", "evaluations", "error", "distance", "seconds", "")

    def cells(self, row: Comparison) -> tuple[str, ...]:
        numbers = f"{row.nfe:.1f}", f"{row.error:.2e}", f"{row.distance:.2e}", f"{row.seconds:.2f}"
        return row.solver, row.setting, *numbers, row.note

    def note(self) -> str:
        floor = f"distance of equally many exact samples: {self.floor:.2e}\n" if math.isfinite(self.floor) else ""
        return f"{floor}{self.recommendation()}"

    def recommendation(self, error: float = 1e-2) -> str:
        """The cheapest setting whose error is at most `error` (in units of the data's standard deviation), in words."""
        good = [r for r in self if r.error <= error]
        if not good:
            known = [r for r in self if math.isfinite(r.error)]
            if not known:
                return "no deterministic setting was compared: nothing to recommend"
            best = min(known, key=lambda r: r.error)
            name = f"{best.solver} with {best.setting}"
            return f"no setting reached an error of {error:g}; the best was {name}: {best.error:.1e}"
        best = min(good, key=lambda r: r.nfe)
        return (
            f"for an error of {error:g} of the data's standard deviation: {best.solver} with {best.setting}, "
            f"{best.nfe:.1f} evaluations a sample (error {best.error:.1e})"
        )


@checked
def compare(
    model: ScoreModel,
    shape: int | Sequence[int],
    *,
    solvers: Sequence[str | Solver] = SOLVERS,
    steps: Sequence[int] = (5, 10, 20, 50),
    tolerances: Sequence[float] = (1e-1, 1e-2, 1e-3),
    reference: Tensor | Solution | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    **cond: Any,
) -> Comparisons:
    """Run every solver at every budget, and at every tolerance where it has an error estimate, and measure.

    Args:
        model: a ScoreModel, learned or exact.
        shape: (B, *event) or B.
        solvers: names or Solver objects.
        steps: budgets for fixed grids.
        tolerances: rtol for solvers with an error estimate.
        reference: the right answers for this seed, (B, *event). None: "adams" with rtol = 1e-7 in float64 (1e-5 for a
            float32 network, below which its own rounding dominates).
        seed: of the noise that all start from.
        batch_size: solve so many at a time.
        **cond: conditions.

    Returns:
        Comparisons, rows of `Comparison`.

    Raises:
        InvalidInputError: unknown solvers, empty lists; before the first call.

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0], [1.0]], std=0.2), sg.VPSDE())
        >>> table = sg.compare(model, 16, solvers=["euler", "adams"], steps=[5, 10], tolerances=[1e-2], seed=0)
        >>> [(row.solver, row.setting) for row in table][:2]
        [('euler', '5 steps'), ('euler', '10 steps')]
        >>> best = table.recommendation(error=0.1)
    """
    for n in steps:
        count_or_times(whole(n, "steps", least=1))
    chosen = [make_solver(s) if isinstance(s, str) else s for s in solvers]
    if not chosen or not (list(steps) or list(tolerances)):
        raise InvalidInputError("nothing to compare: give at least one solver, and steps= or tolerances=")
    check_model(model)
    seed, full = check_seed(seed), full_shape(model, shape, None)
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "dtype": torch.float64, "progress": False}
    common["cond"] = merged(cond, compare, model.condition_names)
    if reference is None:
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float64)
        rtol = _REFERENCE_RTOL if own == torch.float64 else 1e-5
        reference = sample(model, shape, solver="adams", rtol=rtol, **common)
    exact = (reference.x if isinstance(reference, Solution) else reference).double()
    check_state(exact, name="reference", event_shape=full[1:], finite=not isinstance(reference, Solution))
    if len(exact) != full[0]:
        raise InvalidInputError(f"got a reference of {len(exact)} samples, expected {full[0]}")
    table = Comparisons()
    if any(solver.default_eta for solver in chosen):
        other = sample(model, shape, solver="adams", rtol=1e-4, **{**common, "seed": seed + 1}).x
        table.floor = sliced_wasserstein(other, exact) / model.sigma_data
    for solver in chosen:
        hows: list[tuple[str, dict[str, Any]]] = [(f"{n} steps", {"steps": n}) for n in steps]
        if solver.adaptive:
            hows += [(f"rtol={tol:g}", {"rtol": tol}) for tol in tolerances]
        rows = (_measured(model, shape, solver, setting, how, exact=exact, common=common) for setting, how in hows)
        table += [row for row in rows if row is not None]
    return table


def _measured(
    model: ScoreModel, shape: Any, solver: Solver, setting: str, how: dict, *, exact: Tensor, common: dict
) -> Comparison | None:
    """One row; None for a grid that a solver with error control only refuses."""
    begun = time.perf_counter()
    try:
        solution, note = sample(model, shape, solver=solver, **how, **common), ""
    except InvalidInputError:
        if solver.adaptive and "steps" in how:
            return None
        raise
    except SolverError as error:
        return Comparison(
            solver.name, setting, math.nan, math.nan, math.nan, time.perf_counter() - begun, str(error)[:80]
        )
    seconds = time.perf_counter() - begun
    s = model.sigma_data
    noisy = solver.default_eta > 0
    error = math.nan if noisy else float(flat(solution.x - exact).square().mean().sqrt()) / s
    distance = float(sliced_wasserstein(solution.x, exact)) / s
    return Comparison(solver.name, setting, float(solution.nfe.double().mean()), error, distance, seconds, note)
