"""The table of solvers: names at the front door, objects behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.cache import Recent
from ..core.errors import InvalidInputError, shortened
from ..core.table import Rows
from ..terms import Term
from .base import ControlState, Solver, State, Step
from .elsewhere import meant
from .external import TABLE as EXTERNAL
from .external.common import Outcome, OutsideSolver
from .multistep.adams import Adams
from .multistep.exponential import Multistep
from .multistep.fitted import Fitted
from .runge_kutta import Euler, bosh3, dopri5, heun, rk4
from .stochastic.adams import StochasticAdams
from .stochastic.euler import EulerMaruyama, ReverseDiffusion, StochasticHeun
from .stochastic.karras import KarrasSDE
from .stochastic.langevin import Langevin, PredictorCorrector
from .stochastic.sra import SRA1

__all__ = [
    "Adams",
    "ControlState",
    "Fitted",
    "Outcome",
    "OutsideSolver",
    "Row",
    "Solver",
    "State",
    "Step",
    "choose",
    "fitted_to",
    "is_auto",
    "make_solver",
    "named",
    "solvers",
]


def _setting(name: str, **fixed: Any) -> Callable[..., Solver]:
    """A named setting of the multistep machine; its options can still be changed."""

    def build(**options: Any) -> Solver:
        return Multistep(name, **{"grid": "sqrt-time", **fixed, **options})

    build.builds = Multistep  # type: ignore[attr-defined]
    return build


_TABLE: dict[str, Callable[..., Solver]] = {
    "euler": Euler,
    "heun": heun,
    "rk4": rk4,
    "bosh3": bosh3,
    "dopri5": dopri5,
    "ddim": _setting("ddim", order=1, noise="ddim", source="arXiv 2010.02502 eq. 12"),
    "dpm-solver2m": _setting(
        "dpm-solver2m", gauge="noise", order=2, rule="mean", lower_order_final=15, source="arXiv 2206.00927"
    ),
    "dpm-solver3m": _setting(
        "dpm-solver3m", gauge="noise", order=3, rule="half-curvature", lower_order_final=15, source="arXiv 2206.00927"
    ),
    "dpm++2m": _setting("dpm++2m", order=2, rule="mean", lower_order_final=15, source="arXiv 2211.01095 alg. 2"),
    "dpm++3m": _setting("dpm++3m", order=3, rule="half-curvature", lower_order_final=15, source="arXiv 2211.01095"),
    "deis3": _setting("deis3", gauge="noise", order=3, lower_order_final=15, source="arXiv 2204.13902"),
    "deis-tab3": _setting("deis-tab3", gauge="noise", variable="time", order=3, source="arXiv 2204.13902 tAB-DEIS"),
    "lms4": _setting("lms4", gauge="noise", variable="sigma", order=4, source="k-diffusion LMS"),
    "ipndm4": _setting(
        "ipndm4", gauge="noise", variable="sigma", order=4, rule="constant", source="arXiv 2202.09778; 2204.13902"
    ),
    "unipc2": _setting(
        "unipc2", order=2, corrector=2, rule="mean", lower_order_final=True, source="arXiv 2302.04867 (bh2)"
    ),
    "unipc3": _setting(
        "unipc3", order=3, corrector=3, rule="mean", lower_order_final=True, source="arXiv 2302.04867 (bh2)"
    ),
    "v-adams3": _setting(
        "v-adams3", gauge="v", variable="theta", order=3, corrector=3, source="this package, docs/decisions.md"
    ),
    "adams": Adams,
    "ancestral": _setting(
        "ancestral", order=1, stochastic=True, source="arXiv 2006.11239 alg. 2; D held over the step for any eta"
    ),
    "dpm++2m-sde": _setting(
        "dpm++2m-sde",
        order=2,
        rule="mean",
        stochastic=True,
        lower_order_final=15,
        grid="lambda",
        source="arXiv 2211.01095; k-diffusion",
    ),
    "sa-solver3": _setting(
        "sa-solver3",
        order=3,
        corrector=3,
        rule="end",
        stochastic=True,
        lower_order_final=True,
        grid="lambda",
        source="arXiv 2309.05019",
    ),
    "er-sde2": _setting(
        "er-sde2", variable="sigma", order=2, noise="er", stochastic=True, source="arXiv 2309.06169 (ER-SDE-5)"
    ),
    "er-sde3": _setting(
        "er-sde3", variable="sigma", order=3, noise="er", stochastic=True, source="arXiv 2309.06169, exact weights"
    ),
    "d-adams2-sde": StochasticAdams,
    "euler-maruyama": EulerMaruyama,
    "heun-sde": StochasticHeun,
    "reverse-diffusion": ReverseDiffusion,
    "predictor-corrector": PredictorCorrector,
    "langevin": Langevin,
    "sra1": SRA1,
    "karras-sde": KarrasSDE,
    **EXTERNAL,
}


@dataclass(frozen=True)
class Row:
    """One line of the table of solvers; `start_order` is what a multistep method's low-order start caps `order` at."""

    name: str
    order: float
    evaluations: int
    kind: str
    adaptive: bool
    source: str
    start_order: float


class Table(Rows[Row]):
    """Rows that print as a table."""

    header = ("name", "order", "evaluations", "kind", "rtol/atol", "source")

    def cells(self, row: Row) -> tuple[str, ...]:
        start = f" ({row.start_order:g} from its start)" * (row.start_order < row.order)
        adaptive = "yes" if row.adaptive else "-"
        return row.name, f"{row.order:g}{start}", str(row.evaluations), row.kind, adaptive, row.source


def solvers() -> Table:
    """All named solvers with order, evaluations a step, kind of equation, whether they take rtol/atol, and source.

    Returns:
        A list of rows that prints as a table.

    Example:
        >>> import sdegen as sg
        >>> [row.name for row in sg.solvers() if row.kind == "SDE" and row.adaptive and ":" not in row.name]
        ['d-adams2-sde']
    """
    rows = Table()
    for name in _TABLE:
        s = make_solver(name)
        kind = {"any": "ODE, SDE"}.get(s.kind, s.kind)
        rows.append(Row(name, s.order, s.evaluations, kind, s.adaptive, s.source, s.start_order or s.order))
    return rows


def make_solver(name: str, **options: Any) -> Solver:
    """The solver behind a name, with its options: `make_solver("predictor-corrector", snr=0.1)`.

    Args:
        name: one of those that `solvers()` lists.
        **options: of the solver of that name.

    Returns:
        The Solver, as `solver=` takes it.

    Raises:
        InvalidInputError: an unknown name (the message lists the known ones), or an option it does not take.

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0], [1.0]], std=0.2), sg.VPSDE())
        >>> solver = sg.make_solver("predictor-corrector", snr=0.1)
        >>> tuple(sg.sample(model, 10, solver=solver, steps=20, seed=0).x.shape)
        (10, 1)
    """
    if not isinstance(name, str) or name not in _TABLE:
        close = meant(str(name), _TABLE)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise InvalidInputError(f"got solver={shortened(name)}{hint}, expected one of {', '.join(_TABLE)}")
    build = _TABLE[name]
    parameters = inspect.signature(getattr(build, "builds", build)).parameters
    taken = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    unknown = [option for option in options if option not in taken or option == "name"]
    if unknown and len(taken) == len(parameters):
        known = ", ".join(option for option in taken if option not in ("name", "source")) or "no options"
        raise InvalidInputError(f"solver {name!r}: got {', '.join(unknown)}, expected {known}")
    try:
        return build(**options)
    except TypeError as error:
        raise InvalidInputError(f"solver {name!r} cannot take these options ({error})") from error


def choose(
    solver: str | Solver, term: Term, *, steps: Any, adaptive: bool, span: tuple[float, float] | None = None
) -> Solver:
    """The solver that makes the steps that `solver=` asks for: an object, a name from the table, or "auto" by equation
    and budget.

    Args:
        solver: as `solve` takes it.
        term: the equation.
        steps: as `solve` takes them.
        adaptive: whether a tolerance was given.
        span: (from, to), None where the term runs in its own time.
    """
    fitted = None if adaptive or steps is None or not is_auto(solver) else fitted_to(term, steps, span)
    chosen = fitted or named(_automatic(term, steps, adaptive) if is_auto(solver) else solver)
    chosen.check_run(term, steps, span)
    if isinstance(chosen, Fitted) and steps not in chosen.steps:  # the fit found nothing better
        chosen = named(_automatic(term, steps, adaptive))
    noisy = term.stochastic or chosen.kind == "SDE"
    return chosen.stepper(controlled=adaptive or (steps is None and chosen.adaptive and not noisy))


_NAMED = Recent(8)  # the solvers of a name without options: nothing is written into them


def is_auto(solver: Any) -> bool:
    """Whether `solver=` leaves the choice to the package."""
    return isinstance(solver, str) and solver == "auto"


def named(solver: str | Solver) -> Solver:
    """The solver meant by `solver=`, a name other than "auto" or an object."""
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise InvalidInputError(f"got solver={solver!r}, expected a name from solvers(), a Solver object, or 'auto'")
    return _NAMED.of(solver, lambda: make_solver(solver))


def fitted_to(term: Term, steps: Any, span: tuple[float, float] | None) -> Solver | None:
    """The solver that was fitted to the model and such a run of so many steps, None where there is none."""
    known = () if term.model is None else term.model.solvers
    return next((fitted for fitted in known if fitted.agrees(term, steps, span)), None)


def _automatic(term: Term, steps: Any, adaptive: bool) -> str:
    """The name that "auto" stands for."""
    if term.stochastic:
        if term.model is not None:
            return "d-adams2-sde"
        return "sra1" if adaptive else "euler-maruyama"
    return "adams" if adaptive or steps is None or term.model is not None else "rk4"
