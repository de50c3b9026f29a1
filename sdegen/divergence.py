"""The divergence of a field by automatic differentiation: exact, or estimated with random probes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import InvalidInputError
from .noise import PROBE, Noise
from .shapes import flat

DIVERGENCES = ("auto", "exact", "rademacher", "gaussian")
EXACT_UP_TO = 64  # dimensions: "auto" is exact up to here
_MOST = 2**22  # numbers in one batch of one-hot vectors or probes
_WORTH_BATCHING = 4  # below, one product after the other is faster


def choose_divergence(kind: str, dim: int, probes: int) -> str:
    """The method meant by `divergence=`: "auto" is exact up to 64 dimensions, Rademacher probes beyond.

    Raises:
        InvalidInputError: an unknown method, or a number of probes below 1.
    """
    if kind == "hutchinson":
        kind = "rademacher"
    if kind not in DIVERGENCES:
        raise InvalidInputError(f"divergence={kind!r}: wanted one of {', '.join(map(repr, DIVERGENCES))}")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise InvalidInputError(f"probes={probes!r}: wanted a number of random vectors, at least 1")
    if kind == "auto":
        return "exact" if dim <= EXACT_UP_TO else "rademacher"
    return kind


def draw_probes(kind: str, x: Tensor, probes: int, noise: Noise) -> Tensor | None:
    """(B, n, *event) random vectors of mean 0 and covariance I, one set per sample; None where `kind` is "exact".

    Those of sample i depend on the seed and its number alone, the first k of n probes on nothing else either.
    """
    if kind == "exact":
        return None
    drawn = torch.stack([noise.normal(x.shape, PROBE, k, dtype=x.dtype, device=x.device) for k in range(probes)], 1)
    return drawn if kind == "gaussian" else torch.where(drawn < 0, -1.0, 1.0).to(x)


def divergence(h: Tensor, x: Tensor, probes: Tensor | None, *, create_graph: bool = False) -> Tensor:
    """div h = sum_i dh_i/dx_i of each sample, or v'(dh/dx)v of each probe v: their mean over probes is div h.

    With A the symmetric part of dh/dx, v'Av has the variance 2 (|A|^2 - sum_i A_ii^2) for Rademacher probes and 2 |A|^2
    for Gaussian ones, |A| the Frobenius norm.

    Args:
        h: (B, *event), a function of x whose samples do not mix.
        x: (B, *event), part of h's graph.
        probes: (B, n, *event), or None: exactly, by d products with one-hot vectors.
        create_graph: whether the result can be differentiated.

    Returns:
        (B, 1) exactly, else (B, n).

    Source: Hutchinson 1989; Grathwohl et al. 2019 (arXiv 1810.01367); Song et al. 2021 (arXiv 2011.13456) section D.2.
    """
    if not h.requires_grad:
        return x.new_zeros(x.shape[0], 1 if probes is None else probes.shape[1])
    b, d = flat(x).shape
    size = max(1, _MOST // max(b * d, 1))
    parts = []
    for vectors in _one_hots(x, size) if probes is None else probes.transpose(0, 1).split(size):
        products = _products(h, x, vectors.contiguous(), create_graph)
        parts.append((vectors * products).reshape(len(vectors), b, d).sum(2))
    values = torch.cat(parts).T
    return values.sum(1, keepdim=True) if probes is None else values


def _one_hots(x: Tensor, size: int) -> Iterator[Tensor]:
    """All d one-hot vectors for every sample, `size` at a time: (k, B, *event)."""
    b, d = flat(x).shape
    for rows in torch.arange(d, device=x.device).split(size):
        eye = torch.nn.functional.one_hot(rows, d).to(x)
        yield eye[:, None].expand(-1, b, -1).reshape(len(rows), *x.shape)


def _products(h: Tensor, x: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
    """v' dh/dx of every v in `vectors` (k, B, *event), in one batch unless they are few or it cannot be batched."""

    def product(v: Tensor, batched: bool) -> Tensor:
        (g,) = torch.autograd.grad(
            h, x, v, retain_graph=True, create_graph=create_graph, is_grads_batched=batched, materialize_grads=True
        )
        return g

    if len(vectors) >= _WORTH_BATCHING:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*batching rule.*")
                return product(vectors, True)
        except (RuntimeError, NotImplementedError):  # once more, in the way that asks nothing of the network
            pass
    return torch.stack([product(v, False) for v in vectors])
