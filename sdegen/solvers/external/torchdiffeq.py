"""The methods of torchdiffeq, by its own loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError, StepSizeUnderflowError
from ..tolerance import Tolerance
from .common import OutsideSolver, Progress, Request, RightHandSide, Stopped
from .scipy import check_jacobian, noting


@dataclass(frozen=True)
class Method:
    """One method: order, evaluations a step, what kind of loop it has, source."""

    order: int
    evaluations: int
    loop: str  # "adaptive", "fixed", "adams" (fixed, equal steps only) or "scipy"
    source: str


METHODS = {
    "dopri8": Method(8, 13, "adaptive", "Prince & Dormand 1981"),
    "dopri5": Method(5, 6, "adaptive", "Dormand & Prince 1980"),
    "bosh3": Method(3, 3, "adaptive", "Bogacki & Shampine 1989"),
    "fehlberg2": Method(2, 2, "adaptive", "Fehlberg 1969"),
    "adaptive_heun": Method(2, 1, "adaptive", "Heun 1900"),
    "euler": Method(1, 1, "fixed", "Euler 1768"),
    "midpoint": Method(2, 2, "fixed", "Runge 1895"),
    "heun2": Method(2, 2, "fixed", "Heun 1900"),
    "heun3": Method(3, 3, "fixed", "Heun 1900"),
    "rk4": Method(4, 4, "fixed", "Kutta 1901, the 3/8 rule"),
    "explicit_adams": Method(4, 1, "adams", "Bashforth & Adams 1883"),
    "implicit_adams": Method(5, 2, "adams", "Moulton 1926"),
    "fixed_adams": Method(5, 2, "adams", "implicit_adams by its older name"),
    "scipy_solver": Method(5, 1, "scipy", "scipy's LSODA, or option solver=, on arrays"),
}

_OPTIONS = {
    "adaptive": ("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "step_t", "jump_t", "norm"),
    "fixed": ("perturb",),
    "adams": ("perturb", "max_order"),
    "scipy": ("solver", "min_step", "max_step"),
}
_CORRECTED = ("implicit_adams", "fixed_adams")


class Torchdiffeq(OutsideSolver):
    """A method of torchdiffeq.

    With steps: one step of the method between neighbouring times, also by the adaptive ones, whose error estimate is
    then not looked at. With rtol/atol: torchdiffeq's own control, one step size for the whole batch with the error's
    root mean square over all of it, so that samples depend on their batch mates within the tolerance. It lands on the
    last time instead of stepping past it. Gradients pass through the states, not through the sizes of steps.

    The Adams methods have the weights of equal steps and refuse others. They use up to 4 earlier slopes here; the
    library's own 11, which are unstable at nearly every step size, come back with max_order=12. The implicit one makes
    one correction, since the library's test of convergence looks at the whole batch; rtol, atol and max_iters bring
    that back.

    Args:
        method: one of METHODS.
        **options: the library's, see `_OPTIONS`.

    Raises:
        InvalidInputError: an option that the method does not take; steps that are not equal, for Adams methods.

    Source: Chen 2018, torchdiffeq.
    """

    def __init__(self, method: str, **options: Any) -> None:
        row = METHODS[method]
        self.loop = row.loop
        known = _OPTIONS[row.loop] + (("rtol", "atol", "max_iters") if method in _CORRECTED else ())
        super().__init__("torchdiffeq", method, options, known)
        self.order, self.evaluations, self.source = row.order, row.evaluations, row.source
        self.adaptive = row.loop in ("adaptive", "scipy")
        self.coordinates = "own" if row.loop == "adams" or method == "euler" else "best"
        self.grid = "uniform" if row.loop == "adams" else "theta"

    def check_steps(self, x: Tensor, ts: Tensor, tolerance: Tolerance | None) -> None:
        if self.loop == "adams":
            h = ts.diff().abs()
            if float(h.max()) > float(h.min()) * (1 + 1e-6):
                raise InvalidInputError(
                    f"{self.name!r} has the weights of equal steps, these go from {float(h.min()):g} to "
                    f"{float(h.max()):g}: pass a number of steps, or use 'adams' or 'torchdiffeq:rk4' for these times"
                )
        if self.loop == "scipy":
            if tolerance is None:
                raise InvalidInputError(f"{self.name!r} chooses its own steps: pass rtol=1e-3 instead of steps")
            check_jacobian(self._options.get("solver", "LSODA"), x, blocks=False)

    def run(self, asked: Request) -> Tensor:
        from torchdiffeq import odeint

        x, ts, tolerance = asked.x, asked.ts, asked.tolerance
        limit = asked.max_steps * (20 + x.numel()) if self.loop == "scipy" else None
        rhs = RightHandSide(asked.term, ts, strict=self.loop != "fixed", limit=limit, dtype=x.dtype)
        function = _SEEN[self.loop](rhs, asked.progress)
        how = {"rtol": 1e-3, "atol": 1e-3} if tolerance is None else {"rtol": tolerance.rtol, "atol": tolerance.atol}
        options = dict(self._options)
        if self.loop == "adaptive":
            options = self._forced(ts, x) if tolerance is None else self._ending(ts, x)
            options["norm"] = _constant(self._options.get("norm", _root_mean_square))
        elif self.loop == "adams":
            options.setdefault("max_order", 5)
            how = {name: options.pop(name, 1e30) for name in ("rtol", "atol")}
        elif self.loop == "scipy":
            sign = 1.0 if ts[-1] > ts[0] else -1.0
            options["solver"] = noting(options.get("solver", "LSODA"), asked.progress, x, sign)
        xs: Any = odeint(function, x, ts.to(x.device), method=self.method, options=options, **how)
        if len(xs) < len(ts):  # scipy gave up
            raise Stopped(StepSizeUnderflowError)
        return xs

    def _ending(self, ts: Tensor, x: Tensor) -> dict[str, Any]:
        """The user's options, and the last time as one to step on."""
        ends = ts[-1:].to(x.device)
        given = self._options.get("step_t")
        if given is not None:
            ends = torch.unique(torch.cat([torch.as_tensor(given, dtype=ends.dtype, device=ends.device), ends]))
        return {**self._options, "step_t": ends}

    def _forced(self, ts: Tensor, x: Tensor) -> dict[str, Any]:
        """Steps below the least step are accepted whatever their error, and end at the next time to step on."""
        least = 2 * float(ts.diff().abs().max())
        return {"first_step": least, "min_step": least, "step_t": ts[1:].to(x.device)}


def _root_mean_square(x: Tensor) -> Tensor:
    return x.abs().square().mean().sqrt()


def _constant(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A norm whose value is a constant, so that gradients do not pass through the sizes of steps."""
    return lambda x: norm(x.detach())


class _Function:
    """The right-hand side as torchdiffeq calls it."""

    def __init__(self, rhs: RightHandSide, progress: Progress) -> None:
        self.rhs, self.progress = rhs, progress

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.rhs(float(t), x)


class _Stepping(_Function):
    """The same with the callback before a step."""

    def callback_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.progress.accepted += float(t) != self.progress.t
        self.progress.moved(float(t), x)


class _Adapting(_Function):
    """The same with the callbacks of an adaptive loop, which looks at its own step size only in asserts."""

    def callback_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.progress.moved(float(t), x)
        self.progress.attempt()
        if not abs(float(t)) + float(dt) > abs(float(t)):
            raise Stopped(StepSizeUnderflowError)

    def callback_accept_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.progress.accepted += 1

    def callback_reject_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.progress.rejected += 1


_SEEN = {"adaptive": _Adapting, "fixed": _Stepping, "adams": _Stepping, "scipy": _Function}
