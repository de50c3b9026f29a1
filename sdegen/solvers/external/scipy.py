"""The methods of scipy.integrate, step by step as `solve_ivp` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InvalidInputError, StepSizeUnderflowError
from ..tolerance import Tolerance
from .common import OutsideSolver, Progress, Request, RightHandSide, Stopped


@dataclass(frozen=True)
class Method:
    """One method: order, fewest evaluations a step, whether it solves linear systems, source."""

    order: int
    evaluations: int
    implicit: bool
    source: str


METHODS = {
    "RK23": Method(3, 3, False, "Bogacki & Shampine 1989"),
    "RK45": Method(5, 6, False, "Dormand & Prince 1980"),
    "DOP853": Method(8, 12, False, "Hairer, Norsett & Wanner 1993"),
    "Radau": Method(5, 4, True, "Hairer & Wanner 1996, Radau IIA"),
    "BDF": Method(5, 1, True, "Shampine & Reichelt 1997, orders 1 to 5"),
    "LSODA": Method(12, 1, True, "Petzold 1983, Adams to 12 and BDF to 5"),
}

_OPTIONS = {
    **{name: ("first_step", "max_step") for name in ("RK23", "RK45", "DOP853")},
    **{name: ("first_step", "max_step", "jac", "jac_sparsity") for name in ("Radau", "BDF")},
    "LSODA": ("first_step", "min_step", "max_step", "jac", "lband", "uband"),
}
_MOST_BLOCKS = 5 * 10**7  # entries of a Jacobian
_MOST_WORK = 2**31 - 1  # numbers that LSODA can address


class Scipy(OutsideSolver):
    """A method of scipy.integrate.

    The state is one float64 vector on the CPU; step sizes and error norms are of the whole batch, so that samples
    depend on their batch mates within the tolerance. No gradients. Saved times are read off an interpolant.

    Radau, BDF and LSODA take finite differences of the drift; they are told that samples do not depend on each other,
    which takes as many evaluations as an event has elements (LSODA: twice that), not as the batch has. They are for
    events of few elements. Their rejected steps are not known and count as none.

    Args:
        method: one of METHODS.
        **options: the library's, see `_OPTIONS`.

    Raises:
        InvalidInputError: an option that the method does not take, a grid of steps, a Jacobian that would not fit.

    Source: Virtanen et al. 2020, scipy.
    """

    adaptive = True
    coordinates = "best"

    def __init__(self, method: str, **options: Any) -> None:
        super().__init__("scipy", method, options, _OPTIONS[method])
        row = METHODS[method]
        self.order, self.evaluations, self.source, self.implicit = row.order, row.evaluations, row.source, row.implicit

    def check_steps(self, x: Tensor, ts: Tensor, tolerance: Tolerance | None) -> None:
        if tolerance is None:
            raise InvalidInputError(
                f"{self.name!r} chooses its own steps: pass rtol=1e-3 instead of steps, or use 'rk4' or "
                "'torchdiffeq:dopri5'"
            )
        check_jacobian(self.method, x, blocks="jac_sparsity" not in self._options)

    def run(self, asked: Request) -> Tensor:
        x, ts, tolerance = asked.x, asked.ts, asked.tolerance
        if tolerance is None:
            raise InvalidInputError(f"{self.name!r} needs rtol or atol")
        size = x[0].numel()
        limit = asked.max_steps * (20 + 2 * size if self.implicit else self.evaluations) + 2
        rhs = RightHandSide(asked.term, ts, strict=True, limit=limit)
        how = {"rtol": tolerance.rtol, "atol": tolerance.atol, **self._structure(x), **self._options}
        try:
            with np.errstate(all="ignore"):
                return torch.stack(self._stepped(rhs, asked, how))
        except (ValueError, RuntimeError, ArithmeticError, np.linalg.LinAlgError) as error:
            if rhs.inside:
                raise
            raise Stopped(StepSizeUnderflowError) from error  # matrices that became singular or infinite
        except MemoryError as error:
            raise InvalidInputError(
                f"{self.name!r} has no room for the Jacobian of {x.numel()} numbers: use 'adams' or 'scipy:RK45', or a "
                "smaller batch_size"
            ) from error

    def _stepped(self, rhs: RightHandSide, asked: Request, how: dict[str, Any]) -> list[Tensor]:
        """The states at the times asked for, step by step of the library's solver with options `how`."""
        import scipy.integrate

        x, ts, progress = asked.x, asked.ts.tolist(), asked.progress

        def function(t: float, y: np.ndarray) -> np.ndarray:
            drift = rhs(float(t), _state(y, x))
            return drift.detach().cpu().double().numpy().reshape(-1)

        method = getattr(scipy.integrate, self.method)
        solver = method(function, ts[0], x.detach().cpu().double().numpy().reshape(-1), ts[-1], **how)
        xs, nodes = [x], [(solver.t, solver.y, getattr(solver, "f", None))]
        while solver.status == "running":
            self._attempt(solver, progress)
            nodes = [*nodes[-3:], (solver.t, solver.y, getattr(solver, "f", None))]
            while len(xs) < len(ts) and solver.direction * (solver.t - ts[len(xs)]) >= 0:
                xs.append(_state(self._between(solver, nodes, ts[len(xs)]), x))
            progress.moved(float(solver.t), _state(solver.y, x))
        return xs

    def _attempt(self, solver: Any, progress: Progress) -> None:
        """One step, counted."""
        progress.attempt()
        evaluations = solver.nfev
        try:
            solver.step()
            if solver.status == "failed":
                raise Stopped(StepSizeUnderflowError)
            progress.accepted, progress.rejected = progress.accepted + 1, progress.rejected - 1
        finally:  # the attempts of a step are told by its evaluations
            progress.rejected += 1 if self.implicit else (solver.nfev - evaluations) // self.evaluations

    def _structure(self, x: Tensor) -> dict[str, Any]:
        """What is known of the Jacobian: one block for each sample."""
        batch, size = x.shape[0], x[0].numel()
        if self.method == "LSODA":
            return {"lband": size - 1, "uband": size - 1} if batch > 1 and "jac" not in self._options else {}
        if self.implicit and batch > 1 and "jac" not in self._options:
            from scipy.sparse import eye_array, kron

            return {"jac_sparsity": kron(eye_array(batch), np.ones((size, size)), format="csc")}
        return {}

    def _between(self, solver: Any, nodes: list, t: float) -> np.ndarray:
        """The state at a time of the last step."""
        if t == solver.t:
            return solver.y
        if self.method != "DOP853":
            return solver.dense_output()(t)
        # Its own interpolant evaluates three times more; this one has the values and slopes of the last four nodes.
        from scipy.interpolate import KroghInterpolator

        times = np.repeat([node[0] for node in nodes], 2)
        values = np.stack([part for node in nodes for part in node[1:]])
        return KroghInterpolator(times, values)(t)


def _state(y: np.ndarray, x: Tensor) -> Tensor:
    """A flat vector as a state like x."""
    return torch.from_numpy(np.array(y, dtype=np.float64)).reshape(x.shape).to(dtype=x.dtype, device=x.device)


def check_jacobian(method: str, x: Tensor, *, blocks: bool) -> None:
    """Raise where an implicit method's matrices would not fit."""
    batch, size = x.shape[0], x[0].numel() if len(x) else 0
    n = batch * size
    if method == "LSODA":
        needed, most = (n * (3 * size + 10) if blocks else n * (n + 10)), _MOST_WORK
    elif method in ("Radau", "BDF"):
        needed, most = (n * size if blocks else n * n), _MOST_BLOCKS
    else:
        return
    if needed > most:
        raise InvalidInputError(
            f"the Jacobian that {method} needs for {batch} samples of {size} elements has {needed:.2g} entries, more "
            f"than {most:.2g}: use 'adams' or 'scipy:RK45', or a smaller batch_size"
        )


def noting(method: str, progress: Progress, x: Tensor, sign: float) -> type:
    """A class of scipy.integrate that notes its steps, for a library that hands it to `solve_ivp`.

    Args:
        method: its name.
        sign: of our time over the library's.
    """
    import scipy.integrate

    if method not in METHODS:
        raise InvalidInputError(f"solver={method!r} is not a method of scipy: it has {', '.join(METHODS)}")

    class Noting(getattr(scipy.integrate, method)):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if method != "LSODA":
                kwargs.pop("min_step", None)
            super().__init__(*args, **kwargs)

        def step(self) -> str | None:
            progress.attempt()
            message = super().step()
            if self.status != "failed":
                progress.accepted += 1
                progress.moved(sign * float(self.t), _state(self.y, x))
            return message

    return Noting
