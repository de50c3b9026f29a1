"""The papers' samplers, each one call of `sample` or `encode`: a table, an eta, a solver and its nodes.

Every recipe passes what it does not take itself (seed, index, x_init, save, batch_size, conditions ...) to the verb.
As in the papers, samples start from N(0, sigma^2), whatever is known of the data, and nothing is drawn in the last
step, to clean data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from ..inference.checks import check_model, full_shape, placed, sample_numbers
from ..inference.sampling import encode, sample
from ..loop.solution import Solution
from ..models.base import ScoreModel
from ..noise.white import Noise, check_seed
from ..solvers import make_solver
from .tables import nodes, spaced

Steps = int | Sequence[float] | Tensor | None

_VARIANCES = {"small": "sde", "large": "ddpm-large", "learned": "ddpm-learned"}


@checked
def ddpm(
    model: ScoreModel,
    shape: int | Sequence[int],
    *,
    steps: Steps = None,
    spacing: str = "leading",
    variance: str = "small",
    **how: Any,
) -> Solution:
    """Ancestral sampling: x' ~ N(mean of q(x' | x, x0 = D), Sigma) from node to node, D = E[x0 | x] by the model.

    From a node with alpha_bar = alpha^2 to one with alpha_bar' the variance Sigma is

        "small"    beta_tilde = (1 - alpha_bar')/(1 - alpha_bar) beta
        "large"    beta = 1 - alpha_bar/alpha_bar'
        "learned"  exp(v log beta + (1 - v) log beta_tilde), v from a `LearnedVariance`

    Args:
        model: a ScoreModel on a process with a table.
        shape: (B, *event), or B alone where the model knows its event shape.
        steps: None: all N nodes. A number: so many of them, see `spaced`. Or falling times.
        spacing: which nodes a number of steps takes, see `spaced`.
        variance: one of these.
        **how: as `sample`.

    Returns:
        Solution.

    Raises:
        InvalidInputError: a process without a table, another `variance`, `solver=` or `eta=`; what `sample` refuses.

    Source: Ho et al. 2020 (arXiv 2006.11239) algorithm 2; Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 15 and
    section 4 for sub-sequences.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> mixture = sg.GaussianMixture([[-1.0], [1.0]], std=0.2)
        >>> model = sg.MixtureModel(mixture, sde)
        >>> found = sg.discrete.ddpm(model, 500, seed=0)  # all 100 nodes
        >>> 0.9 < float(found.x.abs().mean()) < 1.1
        True
    """
    if variance not in _VARIANCES:
        raise InvalidInputError(f"got variance={variance!r}, expected {', '.join(map(repr, _VARIANCES))}")
    _check_words("ddpm", how, "solver", "eta")
    solver = make_solver("ancestral", noise=_VARIANCES[variance])
    return _from_noise(model, shape, _times(model, steps, spacing), how, solver=solver)


@checked
def ddim(
    model: ScoreModel,
    shape: int | Sequence[int],
    *,
    steps: Steps = None,
    spacing: str = "leading",
    eta: float = 0.0,
    **how: Any,
) -> Solution:
    """DDIM: x' = alpha' D + sqrt(sigma'^2 - s^2) eps + s z, s = eta sigma'/sigma sqrt(1 - alpha_bar/alpha_bar').

    D = E[x0 | x] and eps = (x - alpha D)/sigma are the model's, z is standard normal, alpha_bar = alpha^2.
    eta = 0 is deterministic and decodes what `ddim_encode` encoded, through x_init; eta = 1 is `ddpm`.

    Args:
        model: a ScoreModel on a process with a table.
        shape: (B, *event), or B alone where the model knows its event shape.
        steps: None: all N nodes. A number: so many of them, see `spaced`. Or falling times.
        spacing: which nodes a number of steps takes, see `spaced`.
        eta: from 0 to 1.
        **how: as `sample`.

    Returns:
        Solution.

    Raises:
        InvalidInputError: a process without a table, `solver=`; what `sample` refuses.

    Source: Song et al. 2020 (arXiv 2010.02502) eq. 12 and 16.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> mixture = sg.GaussianMixture([[-1.0], [1.0]], std=0.2)
        >>> model = sg.MixtureModel(mixture, sde)
        >>> found = sg.discrete.ddim(model, 500, steps=20, seed=0)
        >>> found.calls, 0.9 < float(found.x.abs().mean()) < 1.1
        (20, True)
    """
    _check_words("ddim", how, "solver")
    return _from_noise(model, shape, _times(model, steps, spacing), how, solver="ddim", eta=eta)


@checked
def ddim_encode(model: ScoreModel, x: Tensor, *, steps: Steps = None, spacing: str = "leading", **how: Any) -> Solution:
    """Data to latent: DDIM's step with eta = 0, taken upward from the first node.

    Args:
        model: a ScoreModel on a process with a table.
        x: (B, *event), data, taken for states at the first node.
        steps: None: all N nodes. A number: so many of them, see `spaced`. Or rising times.
        spacing: which nodes a number of steps takes, see `spaced`.
        **how: as `encode`.

    Returns:
        Solution.

    Raises:
        InvalidInputError: a process without a table, `solver=` or `eta=`; what `encode` refuses.

    Source: Song et al. 2020 (arXiv 2010.02502) section 4.3.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> mixture = sg.GaussianMixture([[-1.0], [1.0]], std=0.2)
        >>> model = sg.MixtureModel(mixture, sde)
        >>> x = mixture.sample(5, seed=0)
        >>> latent = sg.discrete.ddim_encode(model, x)
        >>> back = sg.discrete.ddim(model, x.shape, x_init=latent.x)
        >>> bool((back.x - x).abs().max() < 0.2)
        True
    """
    _check_words("ddim_encode", how, "solver", "eta")
    if steps is None or isinstance(steps, int):
        down = _times(model, steps, spacing)[:-1]  # without the step to clean data
        steps = torch.unique(torch.cat([nodes(model)[:1], down]))
    steps = _times(model, steps, spacing)
    return encode(model, x, solver="ddim", steps=steps, **how)


@checked
def annealed_langevin(
    model: ScoreModel,
    shape: int | Sequence[int],
    *,
    epsilon: float | None = None,
    steps_per_level: int = 100,
    denoise: bool = True,
    **how: Any,
) -> Solution:
    """Annealed Langevin dynamics: at each sigma_i, from the largest to the smallest, K steps of

    x <- x + a score(x, t_i) + sqrt(2a) z,    a = epsilon (sigma_i/sigma_min)^2,    z standard normal.

    Args:
        model: a ScoreModel on a process with a table.
        shape: (B, *event), or B alone where the model knows its event shape.
        epsilon: the step at the smallest level (half of what the paper of 2019 calls so); None: 0.1 sigma_min^2.
        steps_per_level: K, how many steps at each sigma_i.
        denoise: end with x + sigma_min^2 score, without noise.
        **how: as `sample`.

    Returns:
        Solution.

    Raises:
        InvalidInputError: a process without a table, `solver=`, `eta=` or `steps=`; what `sample` refuses.

    Source: Song & Ermon 2019 (arXiv 1907.05600) algorithm 1; 2020 (arXiv 2006.09011) for this convention of the step
    and for the denoising.

    Example:
        >>> import sdegen as sg
        >>> sde = sg.TabulatedVESDE(sg.discrete.sigmas(10, sigma_min=0.05, sigma_max=5.0))
        >>> model = sg.MixtureModel(sg.GaussianMixture([[-1.0], [1.0]], std=0.2), sde)
        >>> found = sg.discrete.annealed_langevin(model, 500, steps_per_level=20, seed=0)
        >>> 0.8 < float(found.x.abs().mean()) < 1.2
        True
    """
    _check_words("annealed_langevin", how, "solver", "eta", "steps")
    solver = make_solver("langevin", epsilon=epsilon, corrections=steps_per_level)
    down = _times(model, None, "leading")
    return _from_noise(model, shape, down if denoise else down[:-1], how, solver=solver)


@checked
def langevin(
    model: ScoreModel, shape: int | Sequence[int], *, t: float, step: float, n: int, denoise: bool = False, **how: Any
) -> Solution:
    """Langevin dynamics at one noise level: n steps x <- x + a score(x, t) + sqrt(2a) z, whose limit is p_t.

    Args:
        model: a ScoreModel on any process.
        shape: (B, *event), or B alone where the model knows its event shape.
        t: the time of the noise level.
        step: a.
        n: how many steps.
        denoise: end with E[x0 | x], one evaluation more.
        **how: as `sample`; `x_init` is where it starts.

    Returns:
        Solution.

    Raises:
        InvalidInputError: a step that is not positive, a time outside the process, `solver=`, `eta=` or `steps=`; what
            `sample` refuses.

    Source: Song & Ermon 2019 (arXiv 1907.05600) section 2.2 (there a/2 and sqrt(a)).

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[2.0]], std=1.0), sg.EDMSDE())
        >>> found = sg.discrete.langevin(model, 1000, t=0.1, step=0.1, n=100, x_init=torch.zeros(1000, 1), seed=0)
        >>> abs(float(found.x.mean()) - 2) < 0.2
        True
    """
    _check_words("langevin", how, "solver", "eta", "steps")
    check_model(model)
    if isinstance(step, bool) or not isinstance(step, Real) or not 0 < step < math.inf:
        raise InvalidInputError(f"got step={step!r}, expected a positive number")
    if isinstance(t, bool) or not isinstance(t, Real | Tensor) or not model.sde.t_min <= float(t) <= model.sde.t_max:
        raise InvalidInputError(f"got t={t!r}, expected one time in [{model.sde.t_min:g}, {model.sde.t_max:g}]")
    least = model.sde.at(model.sde.t_min)
    at = model.sde.at(t)
    epsilon = step * (least.sigma / least.alpha / at.sigma) ** 2
    solver = make_solver("langevin", epsilon=epsilon, corrections=n)
    return sample(model, shape, solver=solver, steps=[t, 0.0] if denoise else [t], **how)


def _from_noise(model: ScoreModel, shape: Any, times: Any, how: dict[str, Any], **solver: Any) -> Solution:
    """`sample` from the papers' start, N(0, sigma(t)^2) at the first of the times."""
    if how.get("x_init") is not None:
        return sample(model, shape, steps=times, **solver, **how)
    check_model(model)
    full, seed = full_shape(model, shape, None), check_seed(how.get("seed"))
    dtype, device = placed(model, how.get("dtype"), None)
    noise = Noise(seed, index=sample_numbers(how.get("index"), full[0]))
    z = noise.initial(full, dtype=dtype, device=device)
    first = float(torch.as_tensor(times, dtype=torch.float64, device="cpu").flatten()[0])
    how = {**how, "x_init": z * model.sde.sigma(first), "seed": seed}
    return replace(sample(model, full, steps=times, **solver, **how), seed=seed)


def _times(model: ScoreModel, steps: Steps, spacing: str) -> Any:
    """Times for `steps=`: of so many nodes, or those given."""
    n = len(nodes(model))
    if steps is None or isinstance(steps, int):
        return spaced(model, steps, spacing=spacing)
    times = (
        torch.as_tensor(steps, dtype=torch.float64, device="cpu")
        if isinstance(steps, Sequence | Tensor)
        else torch.zeros(0)
    )
    if times.ndim != 1 or not len(times):
        raise InvalidInputError(
            f"got steps={told(steps)}, expected how many nodes, or their times in the order of visits"
        )
    if float(times.max()) > 1 and bool((times == times.round()).all()):
        raise InvalidInputError(
            f"steps: {times.tolist()[:3]}... are node numbers or a network's timesteps; expected times: node i of {n} "
            f"is at i/{n}, and clean data at 0"
        )
    return steps


def _check_words(recipe: str, how: dict[str, Any], *taken: str) -> None:
    for word in taken:
        if word in how:
            raise InvalidInputError(f"{word}= is {recipe}'s own to choose: for another, use sample() or encode()")
