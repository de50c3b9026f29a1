"""Which equation is integrated: the forward SDE, the reverse SDE, the probability flow."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .core.arguments import check_eta
from .core.conditions import merged, rows_of, tensors_of
from .core.errors import InvalidInputError
from .core.kinds import checked, told
from .core.returned import check_returned
from .core.shapes import factor, plus
from .core.show import Shown
from .models.base import ScoreModel
from .models.coordinates import Coordinates
from .models.guided.gradients import products_made
from .models.prediction import Prediction, some_noise
from .processes import SDE


def _check_drift(term: Any, drift: Any, x: Tensor, *_: Any) -> None:
    """Raise unless it is what `drift` has to return for a state x."""
    if not isinstance(drift, Tensor) or drift.shape != x.shape:
        raise InvalidInputError(
            f"{type(term).__name__}.drift returned {told(drift)}, expected a tensor like x, {tuple(x.shape)}"
        )


class Term(Shown, ABC):
    """An equation dx = drift(x, t) dt + diffusion(t) dw to integrate.

    Subclass it for your own equation: `drift`, and `diffusion` where there is noise.

    Attributes:
        t_min, t_max: the times the drift may be asked for.
        upward, downward: the directions it may be integrated in (t growing, t falling).
        stochastic: whether `diffusion` is not zero.
        event_shape: the shape of one sample, None: any.
        model, sde, eta, cond: what the term is made of, where it is made of them; the conditions of the model.
    """

    t_min: float = 0.0
    t_max: float = float("inf")
    _expected = "a Term: ForwardSDE(sde), ReverseSDE(model), ProbabilityFlow(model) or your own"
    upward: bool = True
    downward: bool = True
    stochastic: bool = False
    event_shape: tuple[int, ...] | None = None
    cond: Any = MappingProxyType({})
    model: Any = None
    sde: Any = None
    eta: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_returned(cls, "drift", _check_drift)

    def _facts(self):
        return {"model": self.model, "sde": self.sde if self.model is None else None, "eta": self.eta or None}

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, *event) at t, a scalar or (B,)."""

    def moved(self, x: Tensor, t: Tensor, h: float | Tensor) -> Tensor:
        """x + h drift(x, t): Euler's step."""
        return plus(x, factor(h, x), self.drift(x, t))

    def diffusion(self, t: Tensor) -> Any:
        """The coefficient of dw at t: a float, or a tensor of t's shape."""
        return 0.0

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        """The belief at (x, t), for solvers that work on it; only terms made of a model have one."""
        raise InvalidInputError(
            f"this solver works on a model's prediction, but {type(self).__name__} has none: use ReverseSDE(model), "
            "ProbabilityFlow(model), or a solver of plain drifts such as 'rk4' or 'euler-maruyama'"
        )

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """What the final denoising makes of the state at the last time: E[x0 | x]."""
        return self.predict(x, t).x0

    def evaluations(self, t: Tensor) -> int | Tensor:
        """How many evaluations of networks the drift at t is, for each sample: a number, or (B,) where t is."""
        return 1

    @property
    def asks_once(self) -> bool:
        """Whether the drift is one evaluation at all times."""
        return type(self).evaluations is Term.evaluations

    def breaks(self) -> tuple[float, ...]:
        """The noise levels sigma/alpha at which the drift jumps (`ScoreModel.breaks`)."""
        return ()

    def measured(self, x: Tensor) -> Tensor:
        """The part of a state that is data, on whose scale a tolerance is measured: all of it, unless numbers of
        another kind travel beside the data."""
        return x

    def check(self, x: Tensor) -> None:  # noqa: B027 (most terms have nothing to check)
        """Raise before any work where this state cannot be meant."""

    def select(self, keep: Tensor) -> Term:
        """The same equation for some of the samples, by position in the batch."""
        return self

    def drift_of(self, rows: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The drift of the samples at positions `rows` of the batch only, x and t theirs."""
        return self.select(rows).drift(x, t)

    def warm(self, ts: Tensor) -> None:  # noqa: B027 (nor to remember)
        """Compute coefficients for all of these times in one go."""


class ForwardSDE(Term):
    """dx = f x dt + g dw: what noise does to data, t growing.

    Args:
        sde: the process, whose f and g these are.

    Raises:
        InvalidInputError: `sde` is no process.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 5.
    """

    downward = False
    stochastic = True

    @checked
    def __init__(self, sde: SDE) -> None:
        self.sde = sde
        self.t_max = sde.t_max

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self.sde.drift(x, t)

    def diffusion(self, t: Tensor) -> Any:
        return self.sde.diffusion(t)


class _OfModel(Term):
    """What the reverse SDE and the flow share: the model, its conditions and the noise level eta.

    drift = f x - (1 + eta^2)/2 g^2 score = velocity + eta^2 g^2/(2 sigma) noise, one combination of (x0, noise).
    """

    def __init__(self, model: ScoreModel, eta: float, cond: dict[str, Any]) -> None:
        self._eta = eta
        self._take(model, merged(cond))

    def _take(self, model: ScoreModel, cond: dict[str, Any]) -> None:
        self.model, self.sde, self.cond, self.event_shape = model, model.sde, cond, model.event_shape
        self.t_min, self.t_max = self.sde.t_min, self.sde.t_max
        self._fits: int | None = None  # for how many samples the conditions were found right, since the last run

    @property
    def eta(self) -> float:
        """The noise's scale, 0: none."""
        return self._eta

    @eta.setter
    def eta(self, value: Any) -> None:
        kind = type(self).__name__
        raise InvalidInputError(f"eta of a {kind} cannot be assigned: make another, such as ReverseSDE(model, eta=)")

    def _check_process(self) -> None:
        if self.model.sde is not self.sde:
            kind, now = type(self).__name__, self.model.sde
            raise InvalidInputError(
                f"the model is along {now}, but this {kind} was made along {self.sde}: make another"
            )

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        prediction = self.model(x, t, **self.cond)
        if prediction.sde is not self.sde:
            self._check_process()
        return prediction

    def evaluations(self, t: Tensor) -> int | Tensor:
        return self.model.evaluations(t)

    def breaks(self) -> tuple[float, ...]:
        return self.model.breaks()

    @property
    def asks_once(self) -> bool:
        return type(self).evaluations is _OfModel.evaluations and self.model.asks_once

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.sde.at(t)
        d_alpha, d_sigma = self._rates(level) if self._eta else level.rates
        return self.predict(x, t).combine(d_alpha, d_sigma)

    def moved(self, x: Tensor, t: Tensor, h: float | Tensor) -> Tensor:
        """Since x = alpha x0 + sigma noise, one combination of the two."""
        if type(self).drift is not _OfModel.drift:  # a subclass with a drift of its own
            return super().moved(x, t, h)
        level = self.sde.at(t)
        d_alpha, d_sigma = self._rates(level) if self._eta else level.rates
        return self.predict(x, t).combine(level.alpha + h * d_alpha, level.sigma + h * d_sigma)

    def _rates(self, level: Any) -> tuple[Any, Any]:
        d_alpha, d_sigma = level.rates
        return d_alpha, d_sigma + self._eta**2 * level.g**2 / (2 * some_noise(level.sigma))

    def diffusion(self, t: Tensor) -> Any:
        return self._eta * self.sde.at(t).g

    def check_conditions(self, batch: int) -> None:
        """Raise unless the model takes these conditions, of so many samples; the next `check` need not do it again."""
        self.model.check_conditions(self.cond, batch)
        self._fits = batch

    def check(self, x: Tensor) -> None:
        self._check_process()
        if self._fits != x.shape[0]:
            self.model.check_conditions(self.cond, x.shape[0])
        self._fits = None
        first = next(self.model.parameters(), None)
        places = [] if first is None else [("the model", first)]
        for name, value in self.cond.items():
            places += [(f"condition {words}", tensor) for words, tensor in tensors_of(value, repr(name))]
        for name, tensor in places:
            if tensor.device != x.device:
                raise InvalidInputError(f"x is on {x.device}, {name} on {tensor.device}: move one of them with .to()")

    def select(self, keep: Tensor) -> Term:
        return self._with(self.model, rows_of(self.cond, keep)) if self.cond else self

    def on(self, sde: SDE) -> Term:
        """The same equation along another process (see `ScoreModel.on`)."""
        return self.along(self.model.on(sde))

    def along(self, model: ScoreModel) -> Self:
        """The same equation of another model, with the same conditions."""
        return self._with(model, self.cond)

    def _with(self, model: ScoreModel, cond: dict[str, Any]) -> Self:
        changed = copy.copy(self)
        changed._take(model, cond)
        return changed

    def warm(self, ts: Tensor) -> None:
        self.model.warm(ts)


class ReverseSDE(_OfModel):
    """dx = (f x - (1 + eta^2)/2 g^2 score) dt + eta g dw-bar, t falling from t_max to t_min.

    eta = 1 is Anderson's reverse SDE, eta = 0 the probability flow; every eta has the same marginals. "ancestral"
    solvers read eta as this one, "ddim" as the DDIM paper's (they agree at 0 and 1).

    Args:
        model: a ScoreModel.
        eta: the noise's scale, at least 0.
        **cond: conditions, passed to the model by name; a dict `cond={...}` may hold any of them.

    Source: Anderson 1982; Song et al. 2021 (arXiv 2011.13456) eq. 6; Zhang & Chen 2021 (arXiv 2106.10410) for eta.
    """

    upward = False

    @checked
    def __init__(self, model: ScoreModel, *, eta: float = 1.0, **cond: Any) -> None:
        eta = check_eta(eta)
        super().__init__(model, eta, cond)
        self.stochastic, self.upward = eta > 0, eta == 0


class ProbabilityFlow(_OfModel):
    """dx/dt = f x - g^2/2 score, either direction: the same marginals as the SDE without its noise.

    Args:
        model: a ScoreModel.
        **cond: conditions, passed to the model by name; a dict `cond={...}` may hold any of them.

    Source: Song et al. 2021 (arXiv 2011.13456) eq. 13.
    """

    @checked
    def __init__(self, model: ScoreModel, **cond: Any) -> None:
        super().__init__(model, 0.0, cond)

    def as_ode(self, t_span: tuple[float, float] | None = None, *, like: Tensor | None = None) -> ODE:
        """This flow for a solver of any other library, in the coordinates that cost it least.

            rhs, span, into, out = ProbabilityFlow(model).as_ode()
            x0 = out(odeint(rhs, into(x), torch.tensor(span), rtol=1e-4, atol=1e-4)[-1])

        They are those of `sample`: the circular path of the data's scale around the data's mean, where Gaussian data of
        that scale are solved exactly and the state keeps the data's units. Times that a solver asks for beyond the span
        are moved onto its ends.

        Args:
            t_span: (from, to), times of the model's process; default (t_max, t_min).
            like: a batch (B, *event); then rhs, into and out work on flat float64 numpy arrays of its numbers, as
                scipy.integrate.solve_ivp wants them.

        Returns:
            ODE(rhs, span, into, out).

        Raises:
            InvalidInputError: times outside [t_min, t_max].

        Source: Karras et al. 2022 (arXiv 2206.00364) for the preconditioning; Lu & Song 2024 (arXiv 2410.11081).
        """
        try:
            start, stop = (self.t_max, self.t_min) if t_span is None else (float(t) for t in t_span)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"got t_span={t_span!r}, expected (from, to), two times") from error
        if not all(self.t_min * (1 - 1e-6) <= t <= self.t_max * (1 + 1e-6) for t in (start, stop)) or start == stop:
            raise InvalidInputError(
                f"got t_span={t_span}, expected two times in [t_min, t_max] = [{self.t_min:g}, {self.t_max:g}]"
            )
        return in_best_coordinates(lambda model: self._with(model, self.cond), self.model, (start, stop), like)


_SHARED = ("t_min", "t_max", "upward", "downward", "stochastic", "event_shape", "model", "sde", "eta", "cond")


class Counted(Term):
    """A term that counts the evaluations of networks made through it, by a batch that samples may leave.

    Args:
        term: the equation.
        batch: how many samples.

    Attributes:
        calls: evaluations of a batch, or of a part of it.
    """

    def __init__(self, term: Term, batch: int) -> None:
        self.whole = self.term = term
        self.calls, self._products = 0, products_made()
        self._batch = self._size = batch
        self._made: int | Tensor = 0  # at each place of the batch, (B,) once they differ
        self._before: int | Tensor = 0  # of these, those that were made before the sample there came
        self._once = term.asks_once
        for name in _SHARED:
            setattr(self, name, getattr(term, name))

    @property
    def gradients(self) -> int:
        """Products with a belief's Jacobian made so far, of a batch or of a part of it."""
        return products_made() - self._products

    def counts(self, like: Tensor, at: Tensor | None = None) -> Tensor:
        """How many evaluations each sample in the batch has had, or those at positions `at`, on the device of an
        integer tensor of as many."""
        made, before = (
            n if at is None or not isinstance(n, Tensor) else n[at.to(n.device)] for n in (self._made, self._before)
        )
        made = made - before
        return torch.zeros_like(like) + (made.to(like.device) if isinstance(made, Tensor) else made)

    def _count(self, t: Tensor, rows: Tensor | None = None) -> None:
        """Note the evaluations at t of the whole batch, or of the samples at positions `rows` of it."""
        if self._once and rows is None:
            self.calls += 1
            self._made = self._made + 1
            return
        n = self.term.evaluations(t)
        self.calls += n if isinstance(n, int) else int(n.max())
        if rows is not None:
            n = torch.zeros(self._batch, dtype=torch.int64, device=rows.device).index_add(
                0, rows, torch.zeros_like(rows) + n
            )
        self._made = self._made + n

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        self._count(t)
        return self.term.drift(x, t)

    def moved(self, x: Tensor, t: Tensor, h: float | Tensor) -> Tensor:
        self._count(t)
        return self.term.moved(x, t, h)

    def drift_of(self, rows: Tensor, x: Tensor, t: Tensor) -> Tensor:
        self._count(t, rows)
        return self.term.drift_of(rows, x, t)

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        self._count(t)
        return self.term.predict(x, t)

    def denoised(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """The final denoising of the whole batch, or of the samples `rows` of it, at a scalar t."""
        self.calls += self.evaluations(t)
        return (self.whole if rows is None else self.whole.select(rows)).denoised(x, t)

    def diffusion(self, t: Tensor) -> Any:
        return self.term.diffusion(t)

    def evaluations(self, t: Tensor) -> Any:
        return self.whole.evaluations(t)

    def breaks(self) -> tuple[float, ...]:
        return self.whole.breaks()

    def measured(self, x: Tensor) -> Tensor:
        return self.whole.measured(x)

    def warm(self, ts: Tensor) -> None:
        self.term.warm(ts)

    def part(self, rows: Tensor) -> Counted:
        """The term of some samples of the whole, which counts for itself."""
        return Counted(self._of(rows), len(rows))

    def restart(self, nfe: Tensor, rows: Tensor) -> None:
        """Begin anew with a batch of the samples `rows` of the whole, who have had `nfe` evaluations each."""
        self._made, self._before, self._batch = 0, -nfe, len(rows)
        self.term = self._of(rows)

    def replace(self, at: Tensor, nfe: Tensor, rows: Tensor) -> None:
        """Go on with other samples at the positions `at`, who have had `nfe` evaluations each.

        Args:
            at: positions in the batch.
            nfe: of the new ones.
            rows: of the whole, of all that are in the batch now.
        """
        made = self._made[at] if isinstance(self._made, Tensor) else self._made
        self._before = (torch.zeros_like(rows) + self._before).index_copy(0, at, made - nfe)
        self.term = self._of(rows)

    def _of(self, rows: Tensor) -> Term:
        return self.whole if len(rows) == self._size else self.whole.select(rows)

    def restrict(self, keep: Tensor) -> None:
        """Go on with some of the samples only."""
        self.term, self._batch = self.term.select(keep), len(keep)
        self._made, self._before = (
            n[keep.to(n.device)] if isinstance(n, Tensor) else n for n in (self._made, self._before)
        )


# ---- for other libraries' solvers


class ODE(NamedTuple):
    """dx/dt = rhs(t, x) over a span, and the way into and out of its coordinates.

    Attributes:
        rhs: (t, x) -> dx/dt, x (B, *event), t a number or a scalar tensor.
        span: (from, to), the times of rhs.
        into: the state at the span's beginning, as the model's own process has it -> x.
        out: x at the span's end -> the state there, as the model's own process has it.
    """

    rhs: Callable[[Any, Any], Any]
    span: tuple[float, float]
    into: Callable[[Any], Any]
    out: Callable[[Any], Any]


def in_best_coordinates(flow_of: Callable[..., Any], model: Any, span: tuple[float, float], like: Tensor | None) -> ODE:
    """The ODE of a flow of `model` in the coordinates that solvers find easiest, between times of its own process."""
    view = Coordinates.best_of(model)
    flow = flow_of(view.model)
    start, stop = (torch.tensor(t, dtype=torch.float64, device="cpu") for t in span)
    there = tuple(view.there(torch.stack([start, stop])).tolist())
    low, high = sorted(there)

    def rhs(t: Any, x: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64, device=t.device if isinstance(t, Tensor) else "cpu").clamp(
            low, high
        )  # some solvers overshoot
        return flow.drift(x, t)

    def into(x: Tensor) -> Tensor:
        return view.state_there(x, start)

    def out(x: Tensor) -> Tensor:
        return view.state_back(x, torch.tensor(there[1], dtype=torch.float64, device="cpu"))

    if like is None:
        return ODE(rhs, (there[0], there[1]), into, out)

    def tensor(y: Any) -> Tensor:
        return torch.as_tensor(y, dtype=like.dtype, device=like.device).reshape(like.shape)

    def array(x: Tensor) -> Any:
        return x.detach().cpu().double().numpy().ravel()

    def flat_rhs(t: float, y: Any) -> Any:
        with torch.no_grad():
            return array(rhs(t, tensor(y)))

    return ODE(flat_rhs, (there[0], there[1]), lambda x: array(into(x)), lambda y: out(tensor(y)))
