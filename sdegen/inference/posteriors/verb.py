"""The verb: draws of data given what was seen of them, right in the limit, where one pass of guidance is biased."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import one_of, whole
from ...core.conditions import gathered, merged, rows_of
from ...core.errors import InvalidInputError
from ...loop.how import How
from ...loop.modes import bar, quiet
from ...loop.solution import Solution
from ...models.base import ScoreModel
from ...models.guided.gradients import products_made
from ...models.guided.observation import Observation
from ...models.guided.posterior import Posterior
from ...models.scale import warn_out_of_scale
from ...noise.white import Noise, check_seed
from ...processes import without_signal
from ...solvers.grids import count_or_times, grid_along
from ...terms import ProbabilityFlow, ReverseSDE
from ..checks import check_model, full_shape, placed, sample_numbers
from ..chunks import check_batch_size, chunks, joined
from .gibbs import check_start, gibbs, level_of_seen
from .repaint import repaint
from .request import Group, Request, uniform_size
from .twisted import check_twist, twisted
from .weighted import check_small, weighted

_METHODS: dict[str, Callable[[Request, Group], Solution]] = {
    "twisted": twisted,
    "weighted": weighted,
    "gibbs": gibbs,
    "repaint": repaint,
}
_FEW = 25  # steps of particles up to which they are even in the angle down to 0; more go on to t_min
_GROUPS = ("twisted", "weighted")  # which draw a sample by a group of particles


def sample_posterior(
    model: ScoreModel,
    observation: Observation,
    shape: int | Sequence[int],
    *,
    y: Tensor,
    method: str = "twisted",
    particles: int = 8,
    steps: int | Sequence[float] | Tensor = 50,
    passes: int = 5,
    rtol: float = 1e-3,
    x_init: Tensor | None = None,
    seed: int | None = None,
    index: Sequence[int] | Tensor | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    on_failure: str = "raise",
    dtype: torch.dtype | None = None,
    cond: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Solution:
    """Draw samples given measurements of them, y = A(x0) + std z.

        "twisted"      a group of particles for each sample, guided, weighted and drawn anew on the way: right in the
                       limit of many particles, whatever the data. One of each group is returned.
        "weighted"     a group of draws of the guided flow for each sample, weighted by densities: right in the limit of
                       many, in few dimensions (64 at most; each evaluation takes as many products with a Jacobian).
        "gibbs"        sweeps, for masks and averages with std above 0: right within modes, not in their weights.
        "repaint"      replacement with resampling, for masks and averages: biased, and no gradients.

    `sample(Posterior(model, observation), ...)` costs one pass of guidance, and is biased unless the data are Gaussian.

    Args:
        model: a ScoreModel.
        observation: the measurement, such as `Observation.mask(mask, std=0.05)`.
        shape: (B, *event), or B alone where the model knows its event shape.
        y: (B, m), or of the observation's own shape: the measured values of each sample.
        method: one of the above.
        particles: how many in the group of each sample; "gibbs" and "repaint" have none.
        steps: how many, the final denoising included, of each particle or sweep; or the times, falling to 0. The steps
            of particles are even in the angle where the belief is an exact score (up to 25 of them down to 0, more to
            t_min), and as those of "ancestral" where it is a network's. Few evaluations are best spent on a small
            group: particles=4, steps=6 for 24.
        passes: how many sweeps, or how often "repaint" takes each step.
        rtol: the tolerance of the flows of "weighted", which go by error control and not by steps.
        x_init: (B, *event), clean samples at which sweeps begin; None: draws of the guided flow.
        seed: sample i's noise depends on (seed, its number) alone. None: a fresh one, told in `.seed`.
        index: the samples' numbers, default 0..B-1.
        batch_size: ask the network about so many particles at a time at most.
        progress: a progress bar on stderr; None: where stderr is a terminal.
        on_failure: "raise", or "mark": return all samples with a status each.
        dtype: of the state; default the network's, at least float32.
        cond: conditions whose names are options, by name.
        **conditions: conditions for the model, as `sample` takes them.

    Returns:
        Solution, `.nfe` the evaluations of a sample's whole group. Of "twisted" and "weighted" also `.log_weights`:
        exp(log_weights) is a sample's weight in averages with others of the same y, which corrects for a small group
        (particles=1: the weight of the draw itself); `.log_evidence`, the estimate of log p(y) from each group; and
        `.ess`, the effective share of each group, from 1/particles to 1, before one was chosen: near 1/particles means
        more are needed. The weights do not show modes that no particle has reached. Where numbers are seen without
        noise, in a mask, they are in the result to the bit.

    Raises:
        InvalidInputError: before the first evaluation.
        NonFiniteError: with the partial Solution as `.partial`, unless on_failure="mark".

    Source: Wu et al. 2023 (arXiv 2306.17775) for "twisted"; Song et al. 2021 (arXiv 2011.13456) for the densities in
    "weighted"; Wu et al. 2024 (arXiv 2405.18782) for "gibbs"; Lugmayr et al. 2022 (arXiv 2201.09865) for "repaint".

    Example:
        >>> import torch, sdegen as sg
        >>> mixture = sg.GaussianMixture([[-1.0, -1.0], [1.0, 1.0]], std=0.3)
        >>> seen = sg.Observation.linear([[1.0, 0.0]], std=0.5)
        >>> y = torch.full((50, 1), 0.1)
        >>> found = sg.sample_posterior(sg.MixtureModel(mixture, sg.VPSDE()), seen, 50, y=y, seed=0)
        >>> exact = sg.GaussianMixture([[-1.0], [1.0]], std=(0.3**2 + 0.5**2) ** 0.5).log_prob(y[:1].double())
        >>> abs(float(found.log_evidence.exp().mean().log() - exact)) < 0.2
        True
    """
    check_model(model)
    if not isinstance(observation, Observation):
        raise InvalidInputError(f"got observation={observation!r}, expected one such as Observation.mask(mask)")
    one_of(method, "method", _METHODS)
    one_of(on_failure, "on_failure", ("raise", "mark"))
    seed, shape = check_seed(seed), full_shape(model, shape, None)
    numbers = sample_numbers(index, shape[0])
    dtype, device = placed(model, dtype, None)
    check_batch_size(batch_size)
    How(rtol=rtol).plan(ProbabilityFlow(model), dtype)
    if "return_log_prob" in conditions:
        raise InvalidInputError(
            "got return_log_prob=, but these draws have no density along their way: use `.log_evidence`, or log_prob "
            "of a Posterior, which is that of its flow"
        )
    given = merged(gathered(cond, conditions), sample_posterior, model.condition_names)
    if "y" in given:
        raise InvalidInputError("got a condition y beside y=, what was seen: expected one of another name")
    Posterior(model, observation, likelihood="isotropic").check_conditions({**given, "y": y}, shape[0])
    request = Request(
        model=model,
        observation=observation,
        method=method,
        steps=steps,
        rtol=rtol,
        times=_times(model, steps, dtype, method),
        particles=whole(particles, "particles", least=1, most=2**24) if method in _GROUPS else 1,
        passes=whole(passes, "passes", least=1, most=2**24),
        rows=batch_size,
        event=shape[1:],
        dtype=dtype,
        device=device,
    )
    seen = observation.values(y, request.like(shape[0]))
    _check_method(request, seen, x_init)
    warn_out_of_scale(model.data, model.sde)
    return _run(request, seen, given, (seed, numbers), x_init, progress).or_raise(on_failure)


def _run(
    request: Request,
    y: Tensor,
    cond: dict[str, Any],
    address: tuple[int, Tensor],
    x_init: Tensor | None,
    progress: bool | None,
) -> Solution:
    """Group by group, as many at a time as `request.rows` allows."""
    seed, numbers = address
    size = None if request.rows is None else max(1, request.rows // request.particles)
    parts, before = [], products_made()
    with quiet(request.model), bar(progress) as report:
        for rows, tell in chunks(len(y), size, report):
            begin = None if x_init is None else x_init[rows.to(x_init.device)].to(request.like(0))
            noise, own = Noise(seed, index=numbers[rows]), rows_of(cond, rows)
            group = Group(len(rows), y[rows.to(y.device)], own, noise, tell, begin)
            parts.append(_METHODS[request.method](request, group))
    return replace(joined(parts), seed=seed, gradients=products_made() - before)


def _times(model: ScoreModel, steps: Any, dtype: torch.dtype, method: str) -> Tensor:
    """The grid of ancestral sampling, without its final 0."""
    if steps is None:
        raise InvalidInputError("got steps=None, expected how many steps, or times that fall to 0")
    count = count_or_times(steps)
    if method == "twisted" and model.smooth and isinstance(count, int):  # networks need more steps at high noise
        steps = even_in_angle(model, count) if count <= _FEW else grid_along(model, count, kind="theta")
    plan = How("ancestral", steps=steps).plan(ReverseSDE(model), dtype, span=(model.sde.t_max, 0.0))
    if not plan.denoise:
        raise InvalidInputError(f"got steps= that end at t = {plan.end:g}, expected times that fall to 0")
    if method != "repaint" and without_signal(model.sde.at(plan.start)):
        raise InvalidInputError(
            f"got a start at t = {plan.start:g}, where there is no signal (alpha = 0), expected an earlier one, by "
            "times in steps=, since a gradient says nothing about the data there"
        )
    return plan.times


def even_in_angle(model: ScoreModel, n: int) -> Tensor:
    """n + 1 times from t_max to 0, even in atan(sh/s), sh = sigma/alpha, s the data's std: with few steps
    none is spent far below s. The grid "theta" where the last of them but 0 would be below t_min."""
    sde, s = model.sde, model.data.scale
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu")
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    share = torch.linspace(1, 0, n + 1, dtype=torch.float64, device="cpu")[1:-1]
    level = s * torch.tan(share * torch.atan2(sigma[0], s * alpha[0]))
    if n > 1 and bool(level[-1] * alpha[1] <= sigma[1]):
        return grid_along(model, n, kind="theta")
    return torch.cat([ends[:1], sde.time(-level.log()), torch.zeros(1, dtype=torch.float64, device="cpu")])


def _check_method(request: Request, y: Tensor, x_init: Tensor | None) -> None:
    """Raise where a method cannot do what is asked, before any work."""
    check_start(request, x_init, len(y))
    if request.method == "gibbs":
        level_of_seen(request)
    elif request.method == "repaint":
        uniform_size(request)
    else:
        check_twist(request, y)
    if request.method == "weighted":
        check_small(request)
