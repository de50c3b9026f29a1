"""Tables of noise, and which of their nodes a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..models.base import ScoreModel
from ..processes import SDE, nodes_of


@checked
def betas(
    name: str = "linear",
    n: int = 1000,
    *,
    first: float | None = None,
    last: float | None = None,
    offset: float = 0.008,
    most: float = 0.999,
    zero_snr: bool = False,
) -> Tensor:
    """A table beta_1 .. beta_n for `TabulatedVPSDE`.

        "linear"         beta_i equally spaced
        "scaled-linear"  sqrt(beta_i) equally spaced
        "sigmoid"        beta_i = first + (last - first) sigmoid(u_i), u_i equally spaced in [-6, 6]
        "cosine"         beta_i = min(1 - c(i/n)/c((i-1)/n), most), c(t) = cos^2(pi/2 (t + offset)/(1 + offset))

    Args:
        name: one of these.
        n: how many nodes.
        first, last: beta_1 and beta_n of the first three. None: the papers' values at n = 1000, scaled by 1000/n so
            that the continuous process in the background is the same: 0.1/n to 20/n, "scaled-linear" 0.85/n to 12/n.
        offset, most: of "cosine".
        zero_snr: rescale to zero terminal signal-to-noise ratio (`zero_terminal_snr`).

    Returns:
        (n,) float64.

    Raises:
        InvalidInputError: an unknown name, or values outside (0, 1): "linear" needs n > 20, "scaled-linear" n > 12.

    Source: Ho et al. 2020 (arXiv 2006.11239) section 4; Rombach et al. 2022 (arXiv 2112.10752) for "scaled-linear";
    Xu et al. 2022 (arXiv 2203.02923) for "sigmoid"; Nichol & Dhariwal 2021 (arXiv 2102.09672) eq. 17 for "cosine".

    Example:
        >>> import sdegen as sg
        >>> table = sg.discrete.betas("linear", 1000)
        >>> [round(float(b), 4) for b in (table[0], table[-1])]
        [0.0001, 0.02]
        >>> sde = sg.TabulatedVPSDE(table)
    """
    n = _count(n, "n")
    for word, value in (("first", first), ("last", last), ("offset", offset), ("most", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise InvalidInputError(f"got {word}={value!r}, expected a number")
    if name == "cosine":
        if not (0 <= offset < math.inf and 0 < most <= 1):
            raise InvalidInputError(f"got offset={offset}, most={most}, expected offset >= 0 and most in (0, 1]")
        phase = (torch.arange(n + 1, dtype=torch.float64, device="cpu") / n + offset) * (math.pi / 2 / (1 + offset))
        c = torch.cos(phase) ** 2
        table = (1 - c[1:] / c[:-1]).clamp_max(most)
    elif name in _SHAPES:
        low, high, shape = _SHAPES[name]
        low, high = low / n if first is None else first, high / n if last is None else last
        if not (0 < low < 1 and 0 < high < 1):
            raise InvalidInputError(
                f"betas from {low:g} to {high:g}: expected them in (0, 1); with so few nodes pass first= and last="
            )
        table = shape(float(low), float(high), n)
    else:
        raise InvalidInputError(f"betas {name!r}: expected one of {', '.join(map(repr, (*_SHAPES, 'cosine')))}")
    return zero_terminal_snr(table) if zero_snr else table


def _equal(low: float, high: float, n: int) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64, device="cpu")


_SHAPES: dict[str, tuple[float, float, Callable[[float, float, int], Tensor]]] = {
    "linear": (0.1, 20.0, _equal),
    "scaled-linear": (0.85, 12.0, lambda low, high, n: _equal(math.sqrt(low), math.sqrt(high), n) ** 2),
    "sigmoid": (0.1, 20.0, lambda low, high, n: low + (high - low) * torch.sigmoid(_equal(-6.0, 6.0, n))),
}


@checked
def zero_terminal_snr(betas: Sequence[float] | Tensor) -> Tensor:
    """A table rescaled to zero signal at the last node: with a_i = sqrt(alpha_bar_i) the new ones are

    a_i' = (a_i - a_N) a_1/(a_1 - a_N),    so that a_1' = a_1 and a_N' = 0.

    Args:
        betas: (N,), the table, in (0, 1].

    Returns:
        (N,) float64, the new betas, the last of them exactly 1.

    Raises:
        InvalidInputError: fewer than two numbers, or numbers outside (0, 1].

    Source: Lin et al. 2024 (arXiv 2305.08891) algorithm 1.

    Example:
        >>> import sdegen as sg
        >>> table = sg.discrete.zero_terminal_snr(sg.discrete.betas("linear", 100))
        >>> float(table[-1])
        1.0
    """
    table = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
    if table.ndim != 1 or len(table) < 2 or not bool(((table > 0) & (table <= 1)).all()):
        raise InvalidInputError("betas: expected (N,) numbers in (0, 1], N >= 2")
    alpha = torch.cumprod(1 - table, 0).sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), alpha[:-1]])
    return 1 - (alpha / before) ** 2


@checked
def sigmas(n: int, *, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Tensor:
    """A geometric table for `TabulatedVESDE`: sigma_i = sigma_min (sigma_max/sigma_min)^((i - 1)/(n - 1)).

    Args:
        n: how many nodes.
        sigma_min, sigma_max: the first and the last, in the data's units.

    Returns:
        (n,) float64, rising.

    Raises:
        InvalidInputError: n below 2, or not 0 < sigma_min < sigma_max.

    Source: Song & Ermon 2019 (arXiv 1907.05600) section 4.1 (there 1 to 0.01 in 10 levels); 2020 (arXiv 2006.09011)
    for 50 to 0.01.

    Example:
        >>> import sdegen as sg
        >>> [round(float(s), 3) for s in sg.discrete.sigmas(3, sigma_min=0.01, sigma_max=1.0)]
        [0.01, 0.1, 1.0]
    """
    n = _count(n, "n")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise InvalidInputError(f"got sigma_min={sigma_min}, sigma_max={sigma_max}, expected 0 < sigma_min < sigma_max")
    table = torch.exp(_equal(math.log(sigma_min), math.log(sigma_max), n))
    table[0], table[-1] = sigma_min, sigma_max
    return table


@checked
def spaced(model: ScoreModel | SDE, steps: int | None = None, *, spacing: str = "leading", offset: int = 0) -> Tensor:
    """Times for `steps=`: so many of a table's N nodes, from noise to data, and then 0.

    With nodes counted from 1 and c = N/steps:

        "leading"   1 + offset + k floor(c), k = steps - 1 .. 0: ends at the first node, starts short of the last
        "trailing"  round(N - k c), k = 0 .. steps - 1: starts at the last node
        "linspace"  equally spaced from N to 1, rounded

    Args:
        model: a model or process with a table.
        steps: how many; None: all N.
        spacing: one of these.
        offset: of "leading", in nodes.

    Returns:
        (steps + 1,) float64.

    Raises:
        InvalidInputError: no table, more steps than nodes, an unknown spacing.

    Source: Lin et al. 2024 (arXiv 2305.08891) table 2; "leading" is the linear sub-sequence of Song et al. 2020
    (arXiv 2010.02502) appendix D.2.

    Example:
        >>> import sdegen as sg
        >>> sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 100))
        >>> [round(float(t), 2) for t in sg.discrete.spaced(sde, 4)]
        [0.76, 0.51, 0.26, 0.01, 0.0]
        >>> [round(float(t), 2) for t in sg.discrete.spaced(sde, 4, spacing="trailing")]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    n = len(nodes(model))
    s = n if steps is None else _count(steps, "steps")
    if s > n:
        raise InvalidInputError(f"steps={s}: the table has {n} nodes, expected at most as many")
    k = torch.arange(s, dtype=torch.float64, device="cpu")
    if spacing == "leading":
        at = 1 + offset + (s - 1 - k) * (n // s)
    elif spacing == "trailing":
        at = torch.round(n - k * (n / s))
    elif spacing == "linspace":
        at = 1 + torch.round(torch.linspace(0, n - 1, s, dtype=torch.float64, device="cpu")).flip(0)
    else:
        raise InvalidInputError(f"got spacing={spacing!r}, expected 'leading', 'trailing' or 'linspace'")
    if offset and (spacing != "leading" or not 1 <= at[-1] <= at[0] <= n):
        raise InvalidInputError(f"got offset={offset}, expected spacing='leading' and nodes from 1 to {n}")
    return torch.cat([at / n, torch.zeros(1, dtype=torch.float64, device="cpu")])


def nodes(model: Any) -> Tensor:
    """The times of a table's nodes, (N,), of a model or a process that has one."""
    return nodes_of(model.sde if isinstance(model, ScoreModel) else model)


def _count(n: Any, name: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidInputError(f"got {name}={n!r}, expected a positive integer")
    return n
