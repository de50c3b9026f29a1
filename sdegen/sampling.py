"""The verbs that run a model: sample, encode, grid; what "auto" and better coordinates mean."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidInputError
from .model import Centred, ScoreModel, rescaling
from .noise import PRIOR, Noise, check_seed
from .sde import SDE, TrigSDE
from .shapes import check_state, expand
from .solution import Solution, describe, judged
from .solve import check_how, check_save, check_times, solve
from .solvers import Solver, choose
from .steps import check_span, count_or_times, formula_grid
from .terms import ProbabilityFlow, ReverseSDE, Term


def sample(
    model: ScoreModel,
    shape: int | Sequence[int],
    *,
    solver: str | Solver = "auto",
    steps: int | Sequence[float] | Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    t_span: tuple[float, float] | None = None,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    batch_size: int | None = None,
    progress: bool | None = None,
    eta: float | None = None,
    seed: int | None = None,
    index: Sequence[int] | Tensor | None = None,
    save: str | Sequence[float] | Tensor = "last",
    x_init: Tensor | None = None,
    dtype: torch.dtype | None = None,
    return_log_prob: bool = False,
    **cond: Any,
) -> Solution:
    """Draw samples: solve the reverse SDE or the probability flow from the prior to the data.

    From t_max to t_min, then the final denoising (one evaluation at t_min, returning x0), unless `t_span` or the times
    in `steps` end elsewhere.

    Args:
        model: a ScoreModel.
        shape: (B, *event), or B alone where the model knows its event shape.
        solver: a name from `solvers()`, a Solver, or "auto".
        steps: a number of steps, the final denoising included, or the times themselves, falling.
        rtol, atol: error control per sample instead (one alone sets both), in data units at the end. Neither: the
            solver's default.
        t_span: (from, to); default (t_max, 0). `to = t_min` gives the state there as it is.
        max_steps: most steps per sample, rejected ones included.
        on_failure: "raise", or "mark": return all samples with a status each.
        batch_size: solve so many at a time; the result does not depend on it.
        progress: a progress bar on stderr; None: where stderr is a terminal.
        eta: the noise level, 0 the flow, 1 the reverse SDE (see ReverseSDE; for "ddim" the DDIM paper's). None: the
            solver's own.
        seed: sample i's noise depends on (seed, its number) alone. None: a fresh one, told in `.seed`.
        index: the samples' numbers, default 0..B-1.
        save: "last", "all", or times (see `solve`).
        x_init: (B, *event), the state at the first time instead of a draw from N(0, sigma(t)^2): decoding, editing from
            a middle time.
        dtype: of the state; default the network's, at least float32.
        **cond: conditions for the model: tensors are per sample, anything else is passed as it is.

    Returns:
        Solution.

    Raises:
        InvalidInputError: before the first evaluation.
        SolverError: its kinds, with the partial Solution as `.partial`, unless on_failure="mark".
    """
    _check_model(model)
    if return_log_prob:
        raise InvalidInputError(
            "return_log_prob is not available yet: encode the samples and use the prior's log-density"
        )
    seed = check_seed(seed)
    shape = _shape(model, shape, x_init)
    numbers = _numbers(index, shape[0])
    dtype, device = _place(model, dtype, x_init)
    level = _eta(solver, eta, steps, rtol, atol)

    def term_of(chosen: ScoreModel, cond: dict[str, Any]) -> Term:
        return ProbabilityFlow(chosen, **cond) if level == 0 else ReverseSDE(chosen, eta=level, **cond)

    def start(rows: Tensor, t: float) -> Tensor:
        if x_init is not None:
            return x_init[rows.to(x_init.device)].to(dtype)
        z = Noise(seed, index=numbers[rows]).normal((len(rows), *shape[1:]), PRIOR, dtype=dtype, device=device)
        return z * model.sde.sigma(t)

    how = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    run = _Run(model, term_of, start, t_span, (model.sde.t_max, 0.0), how, save, seed, numbers, cond)
    solution = run(shape[0], batch_size, progress, on_failure)
    return solution if x_init is not None else replace(solution, seed=seed)


def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    solver: str | Solver = "auto",
    steps: int | Sequence[float] | Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    t_span: tuple[float, float] | None = None,
    max_steps: int = 10_000,
    on_failure: str = "raise",
    batch_size: int | None = None,
    progress: bool | None = None,
    save: str | Sequence[float] | Tensor = "last",
    **cond: Any,
) -> Solution:
    """Data to latent along the probability flow, from t_min to t_max; `sample(..., x_init=latent)` comes back.

    Args:
        model: a ScoreModel.
        x: (B, *event), the state at t_min.
        The rest: as `sample`; t_span default (t_min, t_max), steps counts the steps.

    Returns:
        Solution, `.x` the latents: of the prior's law N(0, sigma(t_max)^2) where x has the data's.

    Raises:
        As `sample`.
    """
    _check_model(model)
    check_state(x, event_shape=model.event_shape)

    chosen = choose(solver, ProbabilityFlow(model), steps=steps, adaptive=rtol is not None or atol is not None)
    if chosen.kind == "SDE":
        raise InvalidInputError(
            f"encode follows the flow, but {chosen.name!r} draws noise: use a flow solver such as 'dopri5' or 'ddim'"
        )

    def term_of(chosen: ScoreModel, cond: dict[str, Any]) -> Term:
        return ProbabilityFlow(chosen, **cond)

    span = (model.sde.t_min, model.sde.t_max)
    how = {"solver": chosen, "steps": steps, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    run = _Run(
        model, term_of, lambda rows, t: x[rows.to(x.device)], t_span, span, how, save, 0, torch.arange(x.shape[0]), cond
    )
    return run(x.shape[0], batch_size, progress, on_failure)


def grid(model: ScoreModel, n: int, *, kind: str, t_span: tuple[float, float] | None = None) -> Tensor:
    """n + 1 times for `steps=`: from t_max to t_min in n - 1 steps, and then to 0, the final denoising.

    Args:
        model: a ScoreModel, or an SDE.
        n: how many steps.
        kind: what they are equally spaced in: "uniform" t, "sqrt-time" sqrt of linear-VP time,
            "lambda" log(alpha/sigma), "theta" atan(sigma/alpha/s)^(1/1.6) with s the data's standard deviation,
            "karras" (sigma/alpha)^(1/7).
        t_span: (from, to), default (t_max, 0); from t_min to t_max for encoding.

    Returns:
        (n + 1,) float64 times in the order they are visited.

    Raises:
        InvalidInputError: an unknown kind, n < 1.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 5; Lu et al. 2022 (arXiv 2206.00927); Song et al. 2020 (arXiv
    2010.02502) appendix D.2.
    """
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


# ---- better coordinates


@dataclass(frozen=True)
class _Coordinates:
    """A model as a solver sees it: possibly along another process, possibly centred.

    The state x at time t of the model's own process is, at the time t' of equal sigma/alpha,
    x' = alpha' (x/alpha - centre), or (sigma'/sigma) x - alpha' centre where alpha may be 0.
    """

    own: SDE
    model: ScoreModel
    centre: Tensor | None

    @classmethod
    def chosen(cls, model: ScoreModel, solver: Solver) -> _Coordinates:
        """The model's own or, for a solver that is better there, the circular path of the data's scale and mean."""
        own = model.sde
        if solver.coordinates == "own":
            return cls(own, model, None)
        high, low = torch.exp(-own.half_log_snr(torch.tensor([own.t_max, own.t_min], dtype=torch.float64))).tolist()
        centre = model.data_mean
        if centre is not None and bool((centre == 0).all()):
            centre = None
        inner = model if centre is None else Centred(model, centre)
        return cls(own, inner.on(TrigSDE(model.sigma_data, sigma_min=low, sigma_max=high)), centre)

    @property
    def same(self) -> bool:
        return self.model.sde is self.own

    def there(self, ts: Any) -> Tensor:
        """Times of the own process in these coordinates."""
        ts = torch.as_tensor(ts, dtype=torch.float64)
        if self.same:
            return ts
        sde = self.model.sde
        inner = ts.clamp(self.own.t_min, self.own.t_max)
        return torch.where(ts == 0, ts, sde.time(self.own.half_log_snr(inner)).clamp(sde.t_min, sde.t_max))

    def back(self, ts: Tensor) -> Tensor:
        """Times in these coordinates as times of the own process."""
        if self.same:
            return ts
        inner = self.own.time(self.model.sde.half_log_snr(ts.clamp_min(self.model.sde.t_min)))
        return torch.where(ts == 0, ts, inner.clamp(self.own.t_min, self.own.t_max))

    def state_there(self, x: Tensor, t: Tensor) -> Tensor:
        """A state at a scalar time t of the own process, in these coordinates."""
        if self.same:
            return x
        there = self.there(t)
        x = x * rescaling(self.own, t, self.model.sde, there)
        return x if self.centre is None else x - self.model.sde.alpha(there) * self.centre.to(x)

    def state_back(self, x: Tensor, t: Tensor) -> Tensor:
        """A state at time t (scalar or per sample) of these coordinates, as the own process has it."""
        if self.same:
            return x
        back = self.back(t)
        ratio = torch.where(t == 0, 1.0, rescaling(self.model.sde, t, self.own, back))
        shift = torch.where(t == 0, 1.0, self.own.alpha(back))
        x = x * expand(ratio, x)
        return x if self.centre is None else x + expand(shift, x) * self.centre.to(x)


# ---- running in chunks


@dataclass
class _Run:
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

    def __call__(self, batch: int, batch_size: int | None, progress: bool | None, on_failure: str) -> Solution:
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise InvalidInputError(f"batch_size={batch_size!r}: wanted a positive integer, or None for all at once")
        check_how(self.how["steps"], self.how["rtol"], self.how["atol"], self.how["max_steps"], on_failure)
        self.model.check_conditions(self.cond, batch)
        plan = self._plan()
        with _quiet(self.model), bar(progress) as report:
            size = batch_size or max(batch, 1)
            chunks = [torch.arange(i, min(i + size, batch)) for i in range(0, max(batch, 1), size)]
            done = [
                self._chunk(rows, plan, lambda fraction, k=k: report((k + fraction) / len(chunks)))
                for k, rows in enumerate(chunks)
            ]
        return judged(done[0] if len(done) == 1 else joined(done), on_failure)

    def _plan(self) -> _Plan:
        """Solver, times and coordinates, the same for all chunks."""
        steps, tolerant = self.how["steps"], self.how["rtol"] is not None or self.how["atol"] is not None
        term = self.term_of(self.model, {})
        solver = choose(self.how["solver"], term, steps=steps, adaptive=tolerant)
        solver.check(term)
        given = count_or_times(steps)
        if isinstance(given, Tensor) and self.t_span is not None:
            raise InvalidInputError(
                "t_span= and a list of times in steps=: the times say where to start and end; give one of them"
            )
        span = self.default_span if self.t_span is None else check_span(self.t_span)
        nodes, denoise = check_times(term, given if isinstance(given, Tensor) else span)
        self._check_direction(nodes)
        controlled = tolerant or (given is None and solver.adaptive)
        if not controlled and not isinstance(given, Tensor) and len(nodes) > 1:
            ends = (float(nodes[0]), 0.0 if denoise else float(nodes[-1]))
            count = solver.default_steps if given is None else given
            nodes, denoise = check_times(term, grid(self.model, count, kind=solver.grid, t_span=ends))
        noisy = term.stochastic or solver.kind == "SDE"
        save = check_save(
            self.save, (float(nodes[0]), float(nodes[-1])), denoise, nodes if noisy and not controlled else None
        )
        return _Plan(solver, _Coordinates.chosen(self.model, solver), nodes, denoise, controlled, save)

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

    def _chunk(self, rows: Tensor, plan: _Plan, report: Callable[[float], None]) -> Solution:
        view, nodes = plan.view, plan.nodes
        cond = {k: v[rows.to(v.device)] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        there = view.there(nodes)
        if plan.denoise:
            there = torch.cat([there, torch.zeros(1, dtype=torch.float64)])
        how = {**self.how, "solver": plan.solver, "steps": None if plan.controlled else there}
        if plan.controlled:
            how["t_span"] = (float(there[0]), float(there[-1]))
        solution = solve(
            self.term_of(view.model, cond),
            view.state_there(self.start(rows, float(nodes[0])), nodes[0]),
            noise=Noise(self.seed, index=self.numbers[rows]),
            save=plan.save if isinstance(plan.save, str) else view.there(plan.save),
            report=report,
            on_failure="mark",
            **how,
        )
        return solution if view.same else self._back(solution, plan)

    def _back(self, solution: Solution, plan: _Plan) -> Solution:
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
class _Plan:
    """What the chunks of a run share; times are the model's own."""

    solver: Solver
    view: _Coordinates
    nodes: Tensor  # the grid, or the ends under error control
    denoise: bool
    controlled: bool
    save: str | Tensor


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


@contextmanager
def _quiet(model: ScoreModel) -> Iterator[None]:
    """No gradients, eval mode; every module's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def bar(progress: bool | None, what: str = "") -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr that takes the fraction done."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda fraction: None
        return
    from tqdm import tqdm

    with tqdm(total=100, desc=what or None, bar_format="{l_bar}{bar}| {elapsed}<{remaining}", leave=False) as line:

        def report(fraction: float) -> None:
            line.update(100 * fraction - line.n)

        yield report


# ---- checks


def _check_model(model: ScoreModel) -> None:
    if not isinstance(model, ScoreModel):
        raise InvalidInputError(
            f"model is {type(model).__name__}: wrap a network as Denoiser(net, sde, parametrization=...), or use "
            "MixtureModel(mixture, sde)"
        )


def _shape(model: ScoreModel, shape: int | Sequence[int], x_init: Tensor | None) -> tuple[int, ...]:
    if x_init is not None:
        check_state(x_init, name="x_init", event_shape=model.event_shape)
    event = model.event_shape if x_init is None else tuple(x_init.shape[1:])
    try:
        full = tuple(operator.index(n) for n in ((shape,) if not isinstance(shape, Sequence) else shape))
    except TypeError as error:
        raise InvalidInputError(f"shape={shape!r}: wanted (B, *event), or B alone, as integers") from error
    if not full or any(n < 0 for n in full) or isinstance(shape, bool | str):
        raise InvalidInputError(f"shape={shape!r}: wanted (B, *event) with B at least 0")
    if not isinstance(shape, Sequence):
        if event is None:
            raise InvalidInputError(
                f"shape={shape}: this model does not know its event shape, pass all of (B, *event), "
                f"such as ({shape}, 2)"
            )
        full = (*full, *event)
    if model.event_shape is not None and full[1:] != tuple(model.event_shape):
        wanted = ", ".join(map(str, (full[0], *model.event_shape)))
        raise InvalidInputError(
            f"shape={full}: the model works on events of shape {tuple(model.event_shape)}, wanted ({wanted})"
        )
    if x_init is not None and tuple(x_init.shape) != full:
        raise InvalidInputError(
            f"x_init has shape {tuple(x_init.shape)}, but shape asks for {full}: they must be the same"
        )
    return full


def _numbers(index: Sequence[int] | Tensor | None, batch: int) -> Tensor:
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


def _place(model: ScoreModel, dtype: torch.dtype | None, x_init: Tensor | None) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of the state: the network's, at least float32."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidInputError(f"dtype={dtype!r}: wanted torch.float32 or torch.float64")
    if x_init is not None:
        return dtype or x_init.dtype, x_init.device
    tensor = next((p for p in model.parameters() if p.is_floating_point()), None)
    if tensor is None:
        return dtype or torch.get_default_dtype(), next((b.device for b in model.buffers()), torch.device("cpu"))
    return dtype or torch.promote_types(tensor.dtype, torch.float32), tensor.device


def _eta(solver: str | Solver, eta: float | None, steps: Any, rtol: float | None, atol: float | None) -> float:
    if eta is not None:
        if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta < math.inf:
            raise InvalidInputError(f"eta={eta!r}: wanted a number of at least 0 (0: the flow, 1: the reverse SDE)")
        return float(eta)
    if solver == "auto":
        return 0.0
    return choose(solver, _ANY, steps=steps, adaptive=rtol is not None or atol is not None).default_eta


class _Any(Term):
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return x


_ANY = _Any()
