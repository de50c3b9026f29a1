"""The verbs that run a model: sample and encode."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy
import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.shapes import check_state
from ..loop.modes import bar
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..noise.white import PRIOR, Noise, check_seed
from ..solvers import Adams, Solver, choose
from ..terms import ProbabilityFlow, ReverseSDE, Term
from .likelihood import journeys
from .running import Run, check_model, joined, sample_numbers
from .running import grid as formula

__all__ = ["bar", "encode", "grid", "joined", "sample"]


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
        return_log_prob: also the log-density of each sample in nats, `.log_prob`: that of its state at the last time
            before the final denoising, t_min (at 0 there is none to speak of), with the divergence that `log_prob`
            takes by default. Solvers of the flow only, from t_max; under error control they take more steps.
        **cond: conditions for the model: tensors are per sample, anything else is passed as it is.

    Returns:
        Solution.

    Raises:
        InvalidInputError: before the first evaluation.
        SolverError: its kinds, with the partial Solution as `.partial`, unless on_failure="mark".
    """
    check_model(model)
    seed = check_seed(seed)
    shape = _shape(model, shape, x_init)
    numbers = sample_numbers(index, shape[0])
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
    run = Run(model, term_of, start, t_span, (model.sde.t_max, 0.0), how, save, seed, numbers, cond)
    if return_log_prob:
        run.board = journeys(model, level, seed, numbers)
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
    check_model(model)
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
    run = Run(
        model, term_of, lambda rows, t: x[rows.to(x.device)], t_span, span, how, save, 0, torch.arange(x.shape[0]), cond
    )
    return run(x.shape[0], batch_size, progress, on_failure)


def grid(
    model: ScoreModel,
    n: int,
    *,
    kind: str,
    t_span: tuple[float, float] | None = None,
    samples: int = 64,
    seed: int = 0,
    **cond: Any,
) -> Tensor:
    """n + 1 times for `steps=`: from t_max to t_min in n - 1 steps, and then to 0, the final denoising.

    Args:
        model: a ScoreModel; an SDE will do for all kinds but "pilot".
        n: how many steps.
        kind: what they are equally spaced in: "uniform" t, "sqrt-time" sqrt of linear-VP time,
            "lambda" log(alpha/sigma), "theta" atan(sigma/alpha/s)^(1/1.6) with s the data's standard deviation,
            "blend" three parts atan(sigma/alpha/s)^(1/1.3) and one part lambda, "karras" (sigma/alpha)^(1/7); or
            "pilot": half as "adams" lays them for the model ("blend", for networks from 10 steps on "sqrt-time"),
            half as its steps under error control are, on the average of some samples, at a tolerance that takes about n
            evaluations.
        t_span: (from, to), default (t_max, 0); from t_min to t_max for encoding. A pilot goes to t_min or 0.
        samples, seed, cond: of the pilot. Nothing is remembered: ask again when the weights have changed.

    Returns:
        (n + 1,) float64 times in the order they are visited.

    Raises:
        InvalidInputError: an unknown kind, n < 1; a pilot without a model, or with one that does not know its event
            shape.

    Source: Karras et al. 2022 (arXiv 2206.00364) eq. 5; Lu et al. 2022 (arXiv 2206.00927); Song et al. 2020 (arXiv
    2010.02502) appendix D.2.
    """
    if kind != "pilot":
        if cond:
            raise InvalidInputError(f"{', '.join(cond)}: only kind='pilot' runs the model and takes conditions")
        return formula(model, n, kind=kind, t_span=t_span)
    check_model(model)
    ends = formula(model, n, kind="uniform", t_span=t_span)[[0, -1]].tolist()  # checks n and the span
    if model.event_shape is None:
        raise InvalidInputError("kind='pilot' draws samples, but this model does not know its event_shape: set it")
    if ends[0] < ends[1]:
        raise InvalidInputError(f"t_span={t_span}: a pilot samples, t falling; flip its times for encoding")
    inner = n - 1 if ends[1] == 0 else n
    if inner == 0:
        return torch.tensor(ends, dtype=torch.float64)
    stop = model.sde.t_min if ends[1] == 0 else ends[1]
    rtol = next((tol for most, tol in _PILOTS if n <= most), 1e-7)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rtol=.* below what")  # as tight as the network's precision allows
        how = {"solver": "adams", "rtol": rtol, "t_span": (ends[0], stop), "save": "all", "progress": False}
        run = sample(model, samples, seed=seed, **how, **cond)
    even = formula(model, 200, kind=Adams().grid_of(model, n), t_span=(ends[0], stop))
    times = _quantiles(model, run.ts.cpu(), run.accepted.cpu(), inner, even)
    times[0], times[-1] = ends[0], stop
    return times if ends[1] != 0 else torch.cat([times, torch.zeros(1, dtype=torch.float64)])


# the tolerance at which "adams" takes about so many evaluations, on random mixtures (docs/decisions.md)
_PILOTS = ((12, 1e-2), (22, 1e-3), (35, 1e-4), (70, 1e-6))


def _quantiles(model: ScoreModel, ts: Tensor, accepted: Tensor, n: int, even: Tensor) -> Tensor:
    """n + 1 times that cut into equal parts the steps of the samples, (S, B) times, and those of the grid `even`, with
    the weight of all samples: no step becomes longer than twice what it is there."""
    angle = lambda t: torch.atan(torch.exp(-model.sde.half_log_snr(t)) / model.sigma_data)
    fine = torch.linspace(float(angle(ts[0, 0])), float(angle(ts[-1, 0])), 2048, dtype=torch.float64)

    def behind(nodes: Tensor) -> Tensor:  # the fraction of steps behind each angle
        fraction = numpy.linspace(0, 1, len(nodes))
        return torch.from_numpy(numpy.interp(fine.numpy(), angle(nodes).numpy()[::-1], fraction[::-1]))

    own = [behind(ts[: count + 1, k]) for k, count in enumerate(accepted.tolist())]
    done = (sum(own) / len(own) + behind(even)) / 2
    wanted = numpy.interp(numpy.linspace(0, 1, n + 1), done.numpy(), fine.numpy())
    return model.sde.time(-torch.log(model.sigma_data * torch.tan(torch.from_numpy(wanted))))


# ---- checks


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
