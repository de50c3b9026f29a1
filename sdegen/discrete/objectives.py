"""The simple losses of the papers: denoising score matching at the nodes of a table."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.kinds import checked, told
from ..core.shapes import as_time, check_state
from ..models.base import ScoreModel
from ..noise.purposes import Purpose
from ..noise.white import Noise, noise_of
from ..training.losses import dsm_loss
from .tables import nodes

Seed = int | Noise | None


@checked
def ddpm_loss(
    model: ScoreModel | nn.Module,
    x0: Tensor,
    *,
    t: int | float | Tensor | None = None,
    noise: Tensor | None = None,
    weight: Any = None,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """DDPM's simple loss: ||noise - eps_theta(sqrt(alpha_bar_i) x0 + sqrt(1 - alpha_bar_i) noise, i)||^2 / d.

    It is `dsm_loss` with weight "simple" at times t = i/N, i uniform on 1..N.

    Args:
        model: a ScoreModel on a process with a table.
        x0: clean samples (B, *event).
        t: (B,) node numbers 1..N as integers, or times; None: drawn.
        noise: standard normals like x0; None: drawn.
        weight: as `dsm_loss`; None: "simple".
        seed: as `dsm_loss`.
        **cond: conditions, passed to the model by name.

    Returns:
        (B,), a mean over the event.

    Raises:
        InvalidInputError: no table, node numbers outside 1..N, and as `dsm_loss`.

    Source: Ho et al. 2020 (arXiv 2006.11239) eq. 14, which sums over the event.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("cosine", 50))
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16), sde, parametrization="noise")
        >>> history = sg.fit(model, torch.randn(64, 2), steps=2, loss=sg.discrete.ddpm_loss, seed=0, progress=False)
        >>> tuple(sg.discrete.ddpm_loss(model, torch.randn(5, 2), seed=0).shape)
        (5,)
    """
    weight = "simple" if weight is None else weight
    return dsm_loss(model, x0, t=node_times(model, x0, t, seed), noise=noise, weight=weight, seed=seed, **cond)


@checked
def ncsn_loss(
    model: ScoreModel | nn.Module,
    x0: Tensor,
    *,
    t: int | float | Tensor | None = None,
    noise: Tensor | None = None,
    weight: Any = None,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """NCSN's loss: sigma_i^2 ||s_theta(x0 + sigma_i noise, sigma_i) + noise/sigma_i||^2 / d, i uniform on 1..N.

    `dsm_loss` at the levels of a table, with weight "simple", that is sigma^2. The paper's is half of it and sums over
    the event.

    Args:
        model: a ScoreModel on a process with a table, such as `TabulatedVESDE`.
        x0, t, noise, weight, seed, **cond: as `ddpm_loss`.

    Returns:
        (B,), a mean over the event.

    Raises:
        InvalidInputError: as `ddpm_loss`.

    Source: Song & Ermon 2019 (arXiv 1907.05600) eq. 5 and 6 with lambda(sigma) = sigma^2.

    Example:
        >>> import torch, sdegen as sg
        >>> sde = sg.TabulatedVESDE(sg.discrete.sigmas(10, sigma_max=1.0))
        >>> model = sg.Denoiser(sg.nets.MLP(2, hidden=16), sde, parametrization="score")
        >>> tuple(sg.discrete.ncsn_loss(model, torch.randn(5, 2), seed=0).shape)
        (5,)
    """
    return ddpm_loss(model, x0, t=t, noise=noise, weight=weight, seed=seed, **cond)


def node_times(model: Any, x0: Tensor, t: float | Tensor | None, seed: Seed) -> Tensor:
    """(B,) times of nodes: those given, as numbers or times, or uniform ones."""
    n = len(nodes(model))
    check_state(x0, name="x0", finite=False)
    if t is None:
        if seed is None:
            u = torch.rand(len(x0), dtype=torch.float64, device=x0.device)
        else:
            u = noise_of(seed).uniform((len(x0),), Purpose.NODE, dtype=torch.float64, device=x0.device)
        return (1 + torch.floor(n * u).clamp_max(n - 1)) / n
    if isinstance(t, bool | str) or not isinstance(t, Tensor | Real) or getattr(t, "dtype", None) == torch.bool:
        raise InvalidInputError(f"got t={t!r}, expected (B,) node numbers 1 to {n} as integers, or their times i/{n}")
    given = torch.as_tensor(t)
    if given.is_floating_point():
        given = torch.round(given.double() * n)
        if not bool(((given - as_time(t) * n).abs() < 1e-3).all()):
            raise InvalidInputError(f"got t={told(t)}, expected times i/{n} of nodes of the table, or integers i")
    if given.shape not in ((), (1,), (len(x0),)):
        raise InvalidInputError(f"t has shape {tuple(given.shape)}: expected one node for each sample, ({len(x0)},)")
    if not bool(((given >= 1) & (given <= n)).all()):
        raise InvalidInputError(
            f"t: node numbers from {int(given.min())} to {int(given.max())}: expected 1 to {n} as integers, or times "
            f"i/{n}; nodes count from 1, DDPM's code from 0"
        )
    return (given.to(x0.device, torch.float64) / n).expand(len(x0))
