"""Weights of multistep formulas: integrals of a weight times Lagrange polynomials, by quadrature in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.quadrature import gauss_legendre
from ...processes import once
from ...terms import Term

_POINTS = 32
_LONG = 256  # times of a grid whose weights are not kept for the next run: they are a small part of it


def lagrange_weights(
    nodes: Tensor, start: Tensor, stop: Tensor, weight: Callable[[Tensor], Tensor], variable: Callable[[Tensor], Tensor]
) -> Tensor:
    """W_i = int_start^stop weight(u) l_i(variable(u)) du for the Lagrange polynomials l_i of each row of nodes.

    Args:
        nodes: (n, m), where past values were taken, in terms of the variable.
        start, stop: (n,), the steps, in terms of u.
        weight, variable: functions of u, (n, q) -> (n, q).

    Returns:
        (n, m): sum_i W_i v_i integrates the weight times the polynomial through the values v_i.
    """
    x, w = gauss_legendre(_POINTS)
    width = (stop - start)[:, None]
    u = start[:, None] + width * x
    gaps = variable(u)[:, None] - nodes[..., None]  # (n, m, q)
    one = torch.ones_like(gaps[:, :1])
    newer = torch.cat([one, gaps[:, :-1].cumprod(1)], 1)  # products over the nodes before each, and after it
    older = torch.cat([gaps[:, 1:].flip(1).cumprod(1).flip(1), one], 1)
    apart = nodes[:, :, None] - nodes[:, None] + torch.eye(nodes.shape[1], dtype=nodes.dtype, device="cpu")
    return (newer * older * (weight(u) * width * w)[:, None]).sum(2) / apart.prod(2)


def moments(start: Tensor, stop: Tensor, weight: Callable[[Tensor], Tensor], count: int) -> list[Tensor]:
    """w_j = int_start^stop weight(u) ((u - start)/(stop - start))^j du for j < count, (n,) each."""
    x, w = gauss_legendre(_POINTS)
    width = (stop - start)[:, None]
    factor = weight(start[:, None] + width * x) * width * w
    return [(factor * x**j).sum(1) for j in range(count)]


def made_of_grid(term: Term, grid: Tensor, asked: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What a method makes of a grid before its first step, and of nothing else but the term's process and what is
    `asked`: made once for the runs that follow."""
    if term.sde is None or len(grid) > _LONG:
        return make()
    return once(term.sde, (*asked, *grid.tolist()), make)


def summed(x: Tensor, weights: Sequence[float], values: Sequence[Tensor | None]) -> Tensor:
    """x + sum_i w_i v_i, a new tensor; as many terms as both have."""
    total = None
    for w, v in zip(weights, values, strict=False):
        if total is None:
            total = torch.add(x, v, alpha=w)  # type: ignore[arg-type]
        else:
            total.add_(v, alpha=w)  # type: ignore[arg-type]
    return x if total is None else total
