"""The methods of torchsde, by its own loop, on sdegen's noise."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import StepSizeUnderflowError
from ...noise.brownian import BrownianTree, space_time_increment
from ...noise.white import Noise
from ...terms import Term
from ..stochastic.explicit import check_signal, warn_of_long_steps
from ..tolerance import Tolerance
from .common import OutsideSolver, Progress, Request, RightHandSide, Stopped


@dataclass(frozen=True)
class Method:
    """One method: strong order for additive noise, evaluations a step, the calculus it is written in, source."""

    order: float
    evaluations: int
    calculus: str
    source: str


METHODS = {
    "euler": Method(1, 1, "ito", "Maruyama 1955"),
    "milstein": Method(1, 1, "ito", "Milstein 1974"),
    "srk": Method(1.5, 2, "ito", "Roessler 2010, SRA1"),
    "euler_heun": Method(1, 1, "stratonovich", "Kloeden & Platen 1992"),
    "heun": Method(1, 2, "stratonovich", "Burrage, Burrage & Tian 2004"),
    "midpoint": Method(1, 2, "stratonovich", "Kloeden & Platen 1992"),
    "log_ode": Method(1, 2, "stratonovich", "Lyons 1998; Foster 2020"),
    "reversible_heun": Method(1, 1, "stratonovich", "Kidger et al. 2021 (arXiv 2105.13493)"),
}

_REMEMBERED = 6  # evaluations that an attempt, its two halves and the next attempt can share


class Torchsde(OutsideSolver):
    """A method of torchsde, on noise that is addressed by (seed, sample).

    With steps: one step of the method between neighbouring times, with the increments that "euler-maruyama" has there,
    so that a sample does not depend on its batch mates. With rtol/atol: torchsde's own control (one full step against
    two halves, in the root mean square over the whole batch) along a `BrownianTree`, so that a rejected step is
    conditioned on and the law is not changed; step sizes then depend on the batch, the path of the noise does not. The
    tolerance is for the path, not for the law, and a time is resolved to 2^-depth of the span.

    The noise does not depend on the state, so that Ito and Stratonovich agree, and Milstein's method is Euler's. The
    library integrates upward only: for falling t it sees the time -t. What it evaluates twice is evaluated once.
    "adjoint_reversible_heun" is left out: it is the backward pass of another solve, not a method.

    Args:
        method: one of METHODS.
        dt, dt_min: under error control, the first step and the least one (where it is reached, the library accepts
            whatever error there is). Default: 1/100 of the span, and none.

    Raises:
        InvalidInputError: an option that the method does not take.

    Source: Li et al. 2020 (arXiv 2001.01328), torchsde.
    """

    kind = "SDE"
    adaptive = True

    def __init__(self, method: str, **options: Any) -> None:
        super().__init__("torchsde", method, options, ("dt", "dt_min"))
        row = METHODS[method]
        self.order, self.evaluations, self.source, self.calculus = row.order, row.evaluations, row.source, row.calculus

    def run(self, asked: Request) -> Tensor:
        x, ts = asked.x, asked.ts
        sign = 1.0 if ts[-1] > ts[0] else -1.0
        rhs = RightHandSide(asked.term, ts, strict=asked.tolerance is not None)
        kind = _Diagonal if self.method == "reversible_heun" else _Additive
        equation = kind(rhs, asked.term, x, sign, self.calculus)
        y, s = x.reshape(x.shape[0], -1), sign * ts
        check_signal(self.name, asked.term, ts)
        if asked.tolerance is None:
            warn_of_long_steps(self.name, asked.term, ts, 0.9 if self.evaluations == 1 else 0.75)
            states = self._on_grid(equation, y, s, _Path(asked.noise, y, sign))
        else:
            states = self._by_tolerance(equation, y, s, asked, asked.tolerance)
        return states.reshape(len(ts), *x.shape)

    def _on_grid(self, equation: _Equation, y: Tensor, s: Tensor, path: _Path) -> Tensor:
        """One step of the method between neighbours in s."""
        from torchsde import sdeint

        ys, extra = [y], None
        for a, b in zip(s, s[1:], strict=False):
            equation.begin(ys[-1], known=bool(extra))
            how: dict[str, Any] = {"bm": path, "method": self.method, "dt": 2 * float(b - a)}
            result: Any = sdeint(equation, ys[-1], torch.stack([a, b]), extra=True, extra_solver_state=extra, **how)
            ys.append(result[0][-1])
            extra = result[1]
        return torch.stack(ys)

    def _by_tolerance(self, equation: _Equation, y: Tensor, s: Tensor, asked: Request, tolerance: Tolerance) -> Tensor:
        from torchsde import sdeint

        ts, noise = asked.ts, asked.noise
        if not isinstance(noise, BrownianTree):
            noise = BrownianTree(noise.seed, float(ts[0]), float(ts[-1]), index=noise.index)
        path = _WatchedPath(noise, y, equation, asked.progress, float(s[-1]))
        equation.begin(y, known=False)
        how: dict[str, Any] = {"dt": abs(float(ts[-1] - ts[0])) / 100, "dt_min": 0.0, **self._options}
        how |= {"rtol": tolerance.rtol, "atol": tolerance.atol, "adaptive": True}
        states: Any = sdeint(equation, y, s, bm=path, method=self.method, **how)  # type: ignore[arg-type]
        asked.progress.accepted += 1
        return states


class _Equation:
    """A term as torchsde calls it: flat states, and a time s = t or -t that rises.

    It remembers its last evaluations by the state they were made at, since the library repeats some.
    """

    def __init__(self, rhs: RightHandSide, term: Term, x: Tensor, sign: float, calculus: str) -> None:
        self.rhs, self.term, self.shape, self.sign, self.sde_type = rhs, term, x.shape, sign, calculus
        self.started: tuple[float, Progress] | None = None  # the time at which a step begins
        self._last: deque[tuple[Tensor, float, Tensor]] = deque(maxlen=_REMEMBERED)
        self._only_asked_for_its_shape: Tensor | None = None

    def begin(self, y: Tensor, *, known: bool) -> None:
        """Before a call of the library, which looks at the shapes first; `known`: the drift at y is not needed."""
        self._only_asked_for_its_shape = y if known else None

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        if y is self._only_asked_for_its_shape:
            return y
        time = float(s)
        if self.started is not None and time == self.started[0]:
            self.started[1].moved(self.sign * time, y.reshape(self.shape))
            self.started = None
        for state, at, drift in self._last:
            if state is y and at == time:
                return drift
        drift = self.sign * self.rhs(self.sign * time, y.reshape(self.shape)).reshape(y.shape)
        self._last.append((y, time, drift))
        return drift

    def scale(self, s: Tensor) -> Any:
        """The diffusion at s, a number."""
        t = min(max(self.sign * float(s), self.rhs.low), self.rhs.high)
        return self.term.diffusion(torch.tensor(t, dtype=torch.float64))


class _Additive(_Equation):
    """Noise by its product with an increment; the library needs no matrix then."""

    noise_type = "additive"

    def begin(self, y: Tensor, *, known: bool) -> None:
        super().begin(y, known=known)
        self._generator = torch.default_generator if y.device.type == "cpu" else None
        if y.device.type == "cuda":
            self._generator = torch.cuda.default_generators[y.device.index or 0]
        self._drawn: Tensor | None = None
        self._fresh = True

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        drift = super().f(s, y)
        if self._fresh and self._generator is not None:
            self._drawn = self._generator.get_state()
        return drift

    def g_prod(self, s: Tensor, y: Tensor, v: Tensor) -> Tensor:
        if self._fresh and self._generator is not None and self._drawn is not None:
            self._generator.set_state(self._drawn)  # the library draws an increment to look at the shapes
        self._fresh = False
        return self.scale(s) * v


class _Diagonal(_Equation):
    """Noise by its coefficients, for the method that carries them from step to step."""

    noise_type = "diagonal"

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        return torch.as_tensor(self.scale(s), dtype=y.dtype, device=y.device).expand(y.shape)


class _Path:
    """sdegen's noise by the interface of a Brownian motion of torchsde."""

    levy_area_approximation = "foster"  # so that all methods take it; of additive noise none uses the area

    def __init__(self, noise: Noise, y: Tensor, sign: float) -> None:
        self.noise, self.y, self.sign = noise, y, sign
        self.shape, self.dtype, self.device = y.shape, y.dtype, y.device

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        t, t_next = (torch.as_tensor(self.sign * s, dtype=torch.float64, device="cpu") for s in (ta, tb))
        if not return_U:
            w = self.noise.increment(t, t_next, self.y)
            return (w, None) if return_A else w
        w, u = space_time_increment(self.noise, t, t_next, self.y)
        return (w, u, None) if return_A else (w, u)


class _WatchedPath(_Path):
    """The same along one path, counting the steps: an attempt asks for a whole step and then for its two halves."""

    def __init__(self, noise: BrownianTree, y: Tensor, equation: _Equation, progress: Progress, end: float) -> None:
        super().__init__(noise, y, equation.sign)
        self.progress, self.end, self.equation = progress, end, equation
        self.resolution = noise.resolution
        self._asked, self._from = 0, 0.0

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        a, b = float(ta), float(tb)
        if self._asked % 3 == 0:
            if self._asked and a > self._from:
                self.progress.accepted += 1
            elif self._asked:
                self.progress.rejected += 1
            self.progress.attempt()
            if b < self.end and b - a < 2 * self.resolution:
                raise Stopped(StepSizeUnderflowError)
            self._from, self.equation.started = a, (a, self.progress)
        self._asked += 1
        return super().__call__(ta, tb, return_U, return_A)
