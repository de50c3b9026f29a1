"""The verbs that run a model: sample and encode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import flag
from ..core.conditions import gathered, merged, rows_of
from ..core.errors import InvalidInputError
from ..core.modes import computing
from ..core.shapes import check_state
from ..loop.how import How
from ..loop.modes import bar, quiet
from ..loop.run import run
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..models.scale import warn_out_of_scale
from ..noise.white import Noise, check_seed
from ..solvers import Solver, fitted_to, is_auto, named
from ..terms import ProbabilityFlow, ReverseSDE
from .checks import check_model, full_shape, noise_level, placed, sample_numbers
from .chunks import check_batch_size, chunks, joined
from .column import DensityColumn, check_density_along
from .precision import precision_of, told_apart


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
    precision: str | None = None,
    return_log_prob: bool = False,
    cond: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Solution:
    """Draw samples: solve the reverse SDE or the probability flow from the prior to the data.

    From t_max to t_min, then the final denoising (one evaluation at t_min, returning x0), unless `t_span` or the times
    in `steps` end elsewhere.

    Args:
        model: a ScoreModel.
        shape: (B, *event), or B alone where the model knows its event shape.
        solver: a name from `solvers()`, a Solver, or "auto".
        steps: a number of steps, the final denoising included, or the times themselves, falling. With up to 11 steps
            "auto" and "adams" spend no evaluation on the final denoising, the last step ending at 0, and none at t_max
            where the belief of the model is the data's mean, known and without conditions: the saved path then has one
            step more.
        rtol, atol: error control per sample instead (one alone sets both), in data units at the end. Neither: the
            solver's default.
        t_span: (from, to); default (t_max, 0). `to = t_min` gives the state there as it is.
        max_steps: most steps per sample, rejected ones included.
        on_failure: "raise", or "mark": return all samples with a status each.
        batch_size: solve so many at a time; the result does not depend on it. Under error control samples that wait
            take the places of those that are done.
        progress: a progress bar on stderr; None: where stderr is a terminal.
        eta: the noise level, 0 the flow, 1 the reverse SDE (see ReverseSDE; for "ddim" the DDIM paper's). None: the
            solver's own; that of "auto" is 0, but for new samples of a `Posterior` on a fixed grid, see there.
        seed: sample i's noise depends on (seed, its number) alone. None: a fresh one, told in `.seed`.
        index: the samples' numbers, default 0..B-1.
        save: "last", "all", or times (see `solve`).
        x_init: (B, *event), the state at the first time (decoding, editing from a middle time) instead of a draw from
            N(alpha mean, alpha^2 C + sigma^2), with what the model knows of the data's mean and covariance C (or their
            variances); N(0, sigma^2) where it knows nothing.
        dtype: of the state; default the network's, at least float32.
        precision: "bf16" or "fp16": the network computes under torch.autocast; state, times and coefficients stay as
            they are, and so do seeds and numbers of steps. None: nothing changes.
        return_log_prob: also the log-density of each sample in nats, `.log_prob`: that of the state at t_min, before
            the final denoising (at t = 0 data may have no density), with the divergence that `log_prob` takes by
            default. Solvers of the flow only, from t_max; under error control they take more steps.
        cond: conditions whose names are options, by name.
        **conditions: conditions for the model: tensors are per sample, also inside dicts and tuples, anything else is
            passed as it is.

    Returns:
        Solution.

    Raises:
        InvalidInputError: before the first evaluation.
        SolverError: its kinds, with the partial Solution as `.partial`, unless on_failure="mark".

    Example:
        >>> import sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2), sg.VPSDE())
        >>> found = sg.sample(model, 100, steps=8, seed=0)
        >>> tuple(found.x.shape), found.calls
        ((100, 2), 8)
        >>> by_tolerance = sg.sample(model, 100, rtol=1e-3, seed=0)  # each sample takes its own steps
        >>> bool((by_tolerance.nfe < 30).all())
        True
    """
    check_model(model)
    seed = check_seed(seed)
    shape = full_shape(model, shape, x_init)
    numbers = sample_numbers(index, shape[0])
    dtype, device = placed(model, dtype, x_init)
    check_batch_size(batch_size)
    computing_in = precision_of(precision, model)
    rtol, atol = told_apart(computing_in, rtol, atol)
    level = noise_level(eta, solver)
    given = merged(gathered(cond, conditions), sample, model.condition_names)
    term = _equation(model, level, given)
    if model.advised_eta and eta is None and is_auto(solver) and x_init is None and not return_log_prob:
        term = _as_advised(term, steps, t_span, save)
    term.check_conditions(shape[0])
    if (return_log_prob := bool(flag(return_log_prob, "return_log_prob"))) and is_auto(solver) and not level:
        solver = "adams"  # a fitted solver has no log-densities
    how = How(solver, steps, rtol, atol, t_span, max_steps, on_failure, save, not return_log_prob)
    plan = how.plan(term, dtype, span=(model.sde.t_max, 0.0))
    if return_log_prob:
        check_density_along(plan, model, level)
    warn_out_of_scale(model.data, model.sde)

    parts, drawn = [], x_init is None
    with quiet(model), computing(computing_in), bar(progress) as report:
        places = int(batch_size) if batch_size and plan.refills else None
        for rows, tell in chunks(shape[0], None if places else batch_size, report):
            whole = len(rows) == shape[0]
            of = numbers if whole else numbers[rows]
            noise = Noise(seed, index=of)
            if x_init is None:
                several = [noise]
                if batch_size and len(rows) > batch_size:
                    several = [Noise(seed, index=part) for part in of.split(int(batch_size))]
                starts = [_prior(model, plan.start, part, shape[1:], dtype, device) for part in several]
                x = starts[0] if len(starts) == 1 else torch.cat(starts)
            else:
                x = x_init[rows.to(x_init.device)].to(dtype)
            if return_log_prob:
                flow = ProbabilityFlow(model, cond=given if whole else rows_of(given, rows))
                column = DensityColumn(plan, flow, x, noise)
                way = run(column.inside, column.term, column.x, noise=noise, report=tell, places=places, drawn=drawn)
                parts.append(column.read(way))
            else:
                part = term if whole else term.select(rows)
                parts.append(run(plan, part, x, noise=noise, report=tell, places=places, drawn=drawn))
    solution = joined(parts).or_raise(on_failure)
    if plan.denoise or plan.end == 0:
        solution = _settled(solution, model, given)
    return solution


def _prior(model: ScoreModel, t: float, noise: Noise, event: Sequence[int], dtype: Any, device: Any) -> Tensor:
    """Where samples begin at t."""
    z = noise.initial((len(noise.index), *event), dtype=dtype, device=device)  # type: ignore[arg-type]
    level = model.sde.at(t)
    return model.data.prior.noisy(z, level.alpha, level.sigma)


def _settled(solution: Solution, model: ScoreModel, cond: dict[str, Any]) -> Solution:
    """The clean samples with what is known of them, in `.x` and where it was saved."""
    x = model.settled(solution.x, **cond)
    if x is solution.x:
        return solution
    at_0 = (solution.ts == 0).reshape(len(solution.ts), -1, *(1,) * (x.ndim - 1)).to(x.device)
    return replace(solution, x=x, xs=torch.where(at_0, x, solution.xs))


def _equation(model: ScoreModel, level: float, cond: dict[str, Any]) -> ReverseSDE | ProbabilityFlow:
    """The reverse SDE of this noise level, or the flow."""
    return ReverseSDE(model, eta=level, cond=cond) if level else ProbabilityFlow(model, cond=cond)


def _as_advised(flow: Any, steps: Any, t_span: Any, save: Any) -> Any:
    """The reverse SDE with the noise that the flow's model advises; the flow by a tolerance, for a solver fitted to it,
    and where it is saved between nodes."""
    span = (flow.t_max, 0.0) if t_span is None else t_span
    if steps is None or not isinstance(save, str) or fitted_to(flow, steps, span):
        return flow
    return ReverseSDE(flow.model, eta=flow.model.advised_eta, cond=flow.cond)


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
    precision: str | None = None,
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

    Example:
        >>> import sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2)
        >>> model = sg.MixtureModel(mixture, sg.EDMSDE())
        >>> x = mixture.sample(5, seed=0)
        >>> latent = sg.encode(model, x, rtol=1e-4)
        >>> back = sg.sample(model, x.shape, x_init=latent.x, rtol=1e-4)
        >>> bool((back.x - x).abs().max() < 0.01)
        True
    """
    check_model(model)
    check_state(x, event_shape=model.event_shape)
    check_batch_size(batch_size)
    computing_in = precision_of(precision, model)
    rtol, atol = told_apart(computing_in, rtol, atol)
    cond = merged(cond, encode, model.condition_names)
    model.check_conditions(cond, x.shape[0])
    if not is_auto(solver) and named(solver).kind == "SDE":
        raise InvalidInputError(
            f"encode follows the flow, but {named(solver).name!r} draws noise: use a flow solver such as 'dopri5' or "
            "'ddim'"
        )
    how = How(solver, steps, rtol, atol, t_span, max_steps, on_failure, save)
    plan = how.plan(ProbabilityFlow(model), x.dtype, span=(model.sde.t_min, model.sde.t_max))
    parts = []
    with quiet(model), computing(computing_in), bar(progress) as report:
        places = int(batch_size) if batch_size and plan.refills else None
        for rows, tell in chunks(x.shape[0], None if places else batch_size, report):
            term, start = ProbabilityFlow(model, cond=rows_of(cond, rows)), x[rows.to(x.device)]
            parts.append(run(plan, term, start, noise=Noise(0, index=rows), report=tell, places=places))
    return joined(parts).or_raise(on_failure)
