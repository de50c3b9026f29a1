"""The divergence of a field by automatic differentiation: exact, or estimated with random probes."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arguments import one_of, whole
from ..core.errors import InvalidInputError
from ..core.shapes import flat
from ..noise.purposes import Purpose
from ..noise.white import Noise

DIVERGENCES = ("auto", "exact", "rademacher", "gaussian", "hutch++")
EXACT_UP_TO = 64  # dimensions: "auto" is exact up to here
_MOST = 2**22  # numbers in one batch of one-hot vectors or probes
_WORTH_BATCHING = 4  # below, one product after the other is faster


def choose_divergence(kind: str, dim: int, probes: int) -> str:
    """The method meant by `divergence=`: "auto" is exact up to 64 dimensions, Rademacher probes beyond.

    Raises:
        InvalidInputError: an unknown method, or a number of probes below 1.
    """
    one_of(kind, "divergence", (*DIVERGENCES, "hutchinson"))
    if kind == "hutchinson":
        kind = "rademacher"
    whole(probes, "probes", least=1, most=2**20)
    if kind == "hutch++" and probes < 3:
        raise InvalidInputError(f"probes={probes}: 'hutch++' needs at least 3 of them, or use 'rademacher'")
    if kind == "auto":
        return "exact" if dim <= EXACT_UP_TO else "rademacher"
    return kind


@dataclass(frozen=True)
class Probes:
    """Random vectors of mean 0 and covariance I, those of one sample in one row.

    Args:
        vectors: (B, n, *event).
        sketch: the first so many span the subspace in which the trace is taken exactly ("hutch++").
    """

    vectors: Tensor
    sketch: int = 0

    @property
    def columns(self) -> int:
        """How many estimates they make."""
        return self.vectors.shape[1] - self.sketch

    def select(self, keep: Tensor) -> Probes:
        """Those of some of the samples."""
        return Probes(self.vectors[keep.to(self.vectors.device)], self.sketch)


def draw_probes(kind: str, x: Tensor, probes: int, noise: Noise) -> Probes | None:
    """The random vectors of `kind` for `probes` products with the Jacobian an evaluation; None where it is "exact".

    Those of sample i depend on the seed and its number alone.
    """
    if kind == "exact":
        return None
    sketch = probes // 3 if kind == "hutch++" else 0
    drawn = torch.stack(
        [noise.normal(x.shape, Purpose.PROBE, k, dtype=x.dtype, device=x.device) for k in range(probes - sketch)], 1
    )
    return Probes(drawn if kind == "gaussian" else torch.where(drawn < 0, -1.0, 1.0).to(x), sketch)


def divergence(h: Tensor, x: Tensor, probes: Probes | None = None, *, create_graph: bool = False) -> Tensor:
    """div h = sum_i dh_i/dx_i of each sample, or estimates whose mean is div h.

    Exactly, by d products of the Jacobian J = dh/dx with one-hot vectors; or v'Jv for each probe v. With A the
    symmetric part of J, v'Av has the variance 2 (|A|^2 - sum_i A_ii^2) for Rademacher probes and 2 |A|^2 for Gaussian
    ones, |A| the Frobenius norm. With a sketch S, c = tr(S'JS)/|S|^2 and Q an orthonormal basis of (J - c)'S,

        c d + tr(Q'(J - c)Q) + w'(J - c)w,    w = (1 - QQ')v:

    the trace inside the subspace exactly, outside by the other probes, and the common level c left out of both, since
    for images J is near a multiple of 1 plus a matrix of low rank.

    Args:
        h: (B, *event), a function of x whose samples do not mix.
        x: (B, *event), part of h's graph.
        probes: None: exactly.
        create_graph: whether the result can be differentiated (a sketch counts as a constant).

    Returns:
        (B, 1) exactly, else (B, columns).

    Source: Hutchinson 1989; Grathwohl et al. 2019 (arXiv 1810.01367); Meyer et al. 2021 (arXiv 2010.09649) algorithm 1.
    """
    if not h.requires_grad:
        return x.new_zeros(x.shape[0], 1 if probes is None else probes.columns)
    jacobian = _Jacobian(h, x, create_graph)
    if probes is None:
        return jacobian.trace()
    vectors = flat(probes.vectors.transpose(0, 1).flatten(0, 1)).reshape(-1, *flat(x).shape)  # (n, B, d)
    if not probes.sketch:
        return jacobian.forms(vectors).T
    s, v = vectors[: probes.sketch], vectors[probes.sketch :]
    image = jacobian.products(s, False).detach()
    c = (s * image).sum((0, 2)) / (s * s).sum((0, 2))  # (B,)
    q = torch.linalg.qr((image - c[:, None] * s).permute(1, 2, 0))[0].permute(2, 0, 1)  # (m, B, d)
    w = v - torch.einsum("mbd,mbe,kbe->kbd", q, q, v)
    inside, outside = (jacobian.forms(u) - c * (u * u).sum(2) for u in (q, w))  # (m, B), (k, B)
    return (c * x[0].numel() + inside.sum(0) + outside).T


class _Jacobian:
    """J = dh/dx of each sample, known by its products with vectors of the flattened event, (k, B, d).

    Args:
        h, x, create_graph: as in `divergence`.
    """

    def __init__(self, h: Tensor, x: Tensor, create_graph: bool) -> None:
        self.h, self.x, self.create_graph = h, x, create_graph
        self.size = max(1, _MOST // max(x.numel(), 1))  # vectors in one batch

    def trace(self) -> Tensor:
        """(B, 1), by one-hot vectors."""
        b, d = flat(self.x).shape
        total = self.x.new_zeros(b)
        for rows in torch.arange(d, device=self.x.device).split(self.size):
            e = torch.nn.functional.one_hot(rows, d).to(self.x)[:, None].expand(-1, b, -1)
            total = total + self.forms(e).sum(0)
        return total[:, None]

    def forms(self, vectors: Tensor) -> Tensor:
        """v'Jv, (k, B)."""
        return (vectors * self.products(vectors, self.create_graph)).sum(2)

    def products(self, vectors: Tensor, create_graph: bool) -> Tensor:
        """J'v, (k, B, d)."""
        parts = [self._batch(v.reshape(-1, *self.x.shape), create_graph) for v in vectors.split(self.size)]
        return torch.cat(parts).reshape(vectors.shape)

    def _batch(self, vectors: Tensor, create_graph: bool) -> Tensor:
        """J'v of (k, B, *event), in one go unless they are few or the network has no batched backward pass."""

        def product(v: Tensor, batched: bool) -> Tensor:
            (g,) = torch.autograd.grad(
                self.h,
                self.x,
                v,
                retain_graph=True,
                create_graph=create_graph,
                is_grads_batched=batched,
                materialize_grads=True,
            )
            return g

        if len(vectors) >= _WORTH_BATCHING:
            # where this fails, go on in the way that asks nothing of the network
            with suppress(RuntimeError, NotImplementedError), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*batching rule.*")
                return product(vectors, True)
        return torch.stack([product(v, False) for v in vectors])
