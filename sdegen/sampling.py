"""The verbs that run a model: sample, encode, grid; what "auto" and better coordinates mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidInputError
from .model import Centred, ScoreModel
from .noise import PRIOR, Noise, check_seed
from .sde import SDE, TrigSDE
from .shapes import check_state, expand
from .solution import ARRIVED, Solution, describe, judged
from .solve import solve
from .solvers import Solver, choose
from .steps import formula_grid
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

    From t_max to t_min, then the final denoising (one evaluation at t_min, returning x0), unless `t_span` or the times in `steps` end elsewhere.

    Args:
        model: a ScoreModel.
        shape: (B, *event), or B alone where the model knows its event shape.
        solver: a name from `solvers()`, a Solver, or "auto".
        steps: a number of steps, the final denoising included, or the times themselves, falling.
        rtol, atol: error control per sample instead (one alone sets both), in data units at the end. Neither: the solver's default.
        t_span: (from, to); default (t_max, 0). `to = t_min` gives the state there as it is.
        max_steps: most steps per sample under error control.
        on_failure: "raise", or "mark": return all samples with a status each.
        batch_size: solve so many at a time; the result does not depend on it.
        progress: a progress bar on stderr; None: where stderr is a terminal.
        eta: the noise level, 0 the flow, 1 the reverse SDE (see ReverseSDE; for "ddim" the DDIM paper's). None: the solver's own.
        seed: sample i's noise depends on (seed, its number) alone. None: a fresh one, told in `.seed`.
        index: the samples' numbers, default 0..B-1.
        save: "last", "all", or times (see `solve`).
        x_init: (B, *event), the state at the first time instead of a draw from N(0, sigma(t)^2): decoding, editing from a middle time.
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
        raise InvalidInputError("return_log_prob is not available yet: encode the samples and use the prior's log-density")
    seed = check_seed(seed)
    shape = _shape(model, shape, x_init)
    if index is not None and len(index) != shape[0]:
        raise InvalidInputError(f"index names {len(index)} samples, but shape asks for {shape[0]}: pass one number per sample")
    numbers = torch.arange(shape[0]) if index is None else torch.as_tensor(index, dtype=torch.int64)
    dtype, device = _place(model, dtype, x_init)

    def term_of(chosen: ScoreModel, cond: dict[str, Any]) -> Term:
        level = _eta(solver, eta, steps, rtol, atol)
        return ProbabilityFlow(chosen, **cond) if level == 0 else ReverseSDE(chosen, eta=level, **cond)

    def start(rows: Tensor, t: float) -> Tensor:
        if x_init is not None:
            return x_init[rows.to(x_init.device)]
        z = Noise(seed, index=numbers[rows]).normal((len(rows), *shape[1:]), PRIOR, dtype=dtype, device=device)
        return z * model.sde.sigma(t)

    span = (model.sde.t_max, 0.0) if t_span is None else t_span
    how = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    run = _Run(model, term_of, start, span, how, save, seed, numbers, cond)
    return run(shape[0], batch_size, progress, on_failure)


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

    def term_of(chosen: ScoreModel, cond: dict[str, Any]) -> Term:
        return ProbabilityFlow(chosen, **cond)

    span = (model.sde.t_min, model.sde.t_max) if t_span is None else t_span
    how = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    run = _Run(model, term_of, lambda rows, t: x[rows.to(x.device)], span, how, save, 0, torch.arange(x.shape[0]), cond)
    return run(x.shape[0], batch_size, progress, on_failure)


def grid(model: ScoreModel, n: int, *, kind: str, t_span: tuple[float, float] | None = None) -> Tensor:
    """n + 1 times for `steps=`: n steps of a sampler, from t_max to t_min in n - 1 steps and then to 0, the final denoising.

    Args:
        model: a ScoreModel, or an SDE.
        n: how many steps.
        kind: what they are equally spaced in: "uniform" t, "sqrt-time" sqrt of linear-VP time, "lambda" log(alpha/sigma),
            "theta" atan(sigma/alpha/s)^(1/1.6) with s the data's standard deviation, "karras" (sigma/alpha)^(1/7).
        t_span: (from, to), default (t_max, 0); from t_min to t_max for encoding.

    Returns:
        (n + 1,) float64 times in the order they are visited.

    Raises:
        InvalidInputError: an unknown kind, n < 1.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 5; Lu et al. 2022 (arXiv 2206.00927); Song et al. 2020 (arXiv 2010.02502) appendix D.2.
    """
    sde = model.sde if isinstance(model, ScoreModel) else model
    if not isinstance(sde, SDE):
        raise InvalidInputError(f"grid takes a ScoreModel or an SDE, not {type(model).__name__}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidInputError(f"n={n!r}: wanted a number of steps, at least 1")
    s = model.sigma_data if isinstance(model, ScoreModel) else 1.0
    start, stop = (sde.t_max, 0.0) if t_span is None else (float(t) for t in t_span)
    for t in (start, stop):
        if t != 0 and not sde.t_min * (1 - 1e-6) <= t <= sde.t_max * (1 + 1e-6):
            raise InvalidInputError(f"time {t:g} is outside [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}]; to end with clean data go to exactly 0")
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

    The state x at time t of the model's own process is, at the time t' of equal sigma/alpha, x' = alpha' (x/alpha - centre).
    """

    own: SDE
    model: ScoreModel
    centre: Tensor | None

    @classmethod
    def chosen(cls, model: ScoreModel, solver: Solver) -> _Coordinates:
        """The model's own, or the circular path of the data's scale around the data's mean where the solver is better there."""
        own = model.sde
        if solver.coordinates == "own":
            return cls(own, model, None)
        centre = model.data_mean
        if centre is not None and bool((centre == 0).all()):
            centre = None
        inner = model if centre is None else Centred(model, centre)
        high, low = torch.exp(-own.half_log_snr(torch.tensor([own.t_max, own.t_min], dtype=torch.float64))).tolist()
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
        hat = x / self.own.alpha(t)
        return (hat if self.centre is None else hat - self.centre.to(x)) * self.model.sde.alpha(self.there(t))

    def state_back(self, x: Tensor, t: Tensor) -> Tensor:
        """A state at time t (scalar or per sample) of these coordinates, as the own process has it."""
        if self.same:
            return x
        ratio = torch.where(t == 0, 1.0, self.own.alpha(self.back(t)) / self.model.sde.alpha(t))
        shift = torch.where(t == 0, 1.0, self.own.alpha(self.back(t)))
        x = x * expand(ratio, x)
        return x if self.centre is None else x + expand(shift, x) * self.centre.to(x)


# ---- running in chunks


@dataclass
class _Run:
    """One call of a verb: chunk by chunk, in the solver's coordinates, into one Solution."""

    model: ScoreModel
    term_of: Callable[[ScoreModel, dict[str, Any]], Term]
    start: Callable[[Tensor, float], Tensor]
    span: tuple[float, float]
    how: dict[str, Any]
    save: Any
    seed: int
    numbers: Tensor
    cond: dict[str, Any]

    def __call__(self, batch: int, batch_size: int | None, progress: bool | None, on_failure: str) -> Solution:
        if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
            raise InvalidInputError(f"batch_size={batch_size!r}: wanted a positive integer, or None for all at once")
        if on_failure not in ("raise", "mark"):
            raise InvalidInputError(f"on_failure={on_failure!r}: wanted 'raise' or 'mark'")
        self.model.check_conditions(self.cond, batch)
        with _quiet(self.model), bar(progress) as report:
            size = batch_size or max(batch, 1)
            chunks = [torch.arange(i, min(i + size, batch)) for i in range(0, max(batch, 1), size)]
            done = [
                self._chunk(rows, lambda fraction, k=k: report((k + fraction) / len(chunks))) for k, rows in enumerate(chunks)
            ]
        return judged(done[0] if len(done) == 1 else joined(done), on_failure)

    def _chunk(self, rows: Tensor, report: Callable[[float], None]) -> Solution:
        steps, has_tolerance = self.how["steps"], self.how["rtol"] is not None or self.how["atol"] is not None
        cond = {k: v[rows.to(v.device)] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        solver = choose(self.how["solver"], self.term_of(self.model, {}), steps=steps, adaptive=has_tolerance)
        view = _Coordinates.chosen(self.model, solver)
        how = {**self.how, "solver": solver}
        times = self._times(solver, has_tolerance)
        first = float(times[0]) if len(times) else self.model.sde.t_max
        x = self.start(rows, min(first, self.model.sde.t_max))
        if has_tolerance or (steps is None and solver.adaptive):
            how |= {"steps": None, "t_span": tuple(view.there(times).tolist())}
        else:
            how |= {"steps": view.there(times)}
        save = self.save if isinstance(self.save, str) else view.there(self.save)
        noise = Noise(self.seed, index=self.numbers[rows])
        solution = solve(
            self.term_of(view.model, cond),
            view.state_there(x, torch.tensor(min(first, self.model.sde.t_max), dtype=torch.float64)),
            noise=noise,
            save=save,
            report=report,
            on_failure="mark",
            **how,
        )
        return self._back(solution, view)

    def _times(self, solver: Solver, has_tolerance: bool) -> Tensor:
        """The ends of the span, or the grid, in the own process's time."""
        steps = self.how["steps"]
        count = isinstance(steps, int) and not isinstance(steps, bool)
        if steps is not None and not count:
            return torch.as_tensor(steps, dtype=torch.float64).detach().cpu().flatten()
        if steps is None and (has_tolerance or solver.adaptive):
            return torch.tensor(self.span, dtype=torch.float64)
        return grid(self.model, steps if count else solver.default_steps, kind=solver.grid, t_span=self.span)

    def _back(self, solution: Solution, view: _Coordinates) -> Solution:
        """The solution as the own process has it."""
        if view.same:
            return solution
        device = solution.x.device
        xs = torch.stack([view.state_back(x, t.to(device)) for t, x in zip(solution.ts, solution.xs, strict=True)])
        own = {**solution.__dict__, "ts": view.back(solution.ts), "xs": xs}
        end = view.there(self.span[1]) if self.how["steps"] is None or isinstance(self.how["steps"], int) else view.there(self.how["steps"][-1])
        own["x"] = view.state_back(solution.x, end.to(device))
        return Solution(**own)


def joined(parts: Sequence[Solution]) -> Solution:
    """The Solution of all chunks, in order."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])

    longest = max(len(p.ts) for p in parts)

    def padded(values: Tensor) -> Tensor:  # short paths repeat their end
        return torch.cat([values, values[-1:].expand(longest - len(values), *values.shape[1:])])

    own_times = parts[0].ts.ndim == 2
    ts = torch.cat([padded(p.ts) for p in parts], 1) if own_times else parts[0].ts
    status = cat("status")
    where = next((p.message.split(":")[0] for p in parts if bool((p.status != ARRIVED).any())), "")
    return Solution(
        x=cat("x"),
        ts=ts,
        xs=torch.cat([padded(p.xs) for p in parts], 1),
        nfe=cat("nfe"),
        calls=sum(p.calls for p in parts),
        accepted=cat("accepted"),
        rejected=cat("rejected"),
        status=status,
        message=describe(status, where),
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
            f"model is {type(model).__name__}: wrap a network as Denoiser(net, sde, parametrization=...), or use MixtureModel(mixture, sde)"
        )


def _shape(model: ScoreModel, shape: int | Sequence[int], x_init: Tensor | None) -> tuple[int, ...]:
    if isinstance(shape, int) and not isinstance(shape, bool):
        event = model.event_shape if x_init is None else tuple(x_init.shape[1:])
        if event is None:
            raise InvalidInputError(f"shape={shape}: this model does not know its event shape, pass all of (B, *event), such as ({shape}, 2)")
        full = (shape, *event)
    else:
        try:
            full = tuple(int(n) for n in shape)  # type: ignore[union-attr]
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"shape={shape!r}: wanted (B, *event), or B alone") from error
    if not full or any(n < 0 for n in full):
        raise InvalidInputError(f"shape={shape!r}: wanted (B, *event) with B at least 0")
    if model.event_shape is not None and full[1:] != model.event_shape:
        raise InvalidInputError(f"shape={full}: the model works on events of shape {model.event_shape}, wanted ({full[0]}, {', '.join(map(str, model.event_shape))})")
    if x_init is not None:
        check_state(x_init, name="x_init")
        if tuple(x_init.shape) != full:
            raise InvalidInputError(f"x_init has shape {tuple(x_init.shape)}, but shape asks for {full}")
    return full


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
        return float(eta)
    if solver == "auto":
        return 0.0
    return choose(solver, _ANY, steps=steps, adaptive=rtol is not None or atol is not None).default_eta


class _Any(Term):
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return x


_ANY = _Any()
