"""Gaussian mixtures: a density known in closed form, which stays one under every linear process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import number
from ..core.errors import InvalidInputError
from ..core.kinds import checked, kind_of, take
from ..core.show import Shown, picture_of, spread
from ..core.unwritten import Unwritten
from ..noise.purposes import Purpose
from ..noise.white import Noise, check_seed
from .components import MEMORY, Components, components


class GaussianMixture(Shown):
    """p(x) = sum_k w_k N(x; m_k, C_k) in d dimensions.

    Args:
        means: (K, d), tensor or lists.
        std: a number or (K,): C_k = std_k^2 I.
        covariances: (d, d) or (K, d, d), symmetric and positive semidefinite. Give std or covariances, not both.
        weights: (K,), positive; normalised to sum 1. None: equal.

    Attributes:
        weights, log_weights: (K,), normalised. The logarithms are exact also where weights underflow to 0, as those of
            a posterior given y far from the data.

    Raises:
        InvalidInputError: shapes that do not fit, both or neither of std and covariances, a negative eigenvalue or
            weight; an attribute is assigned later; at a call, if one was written into.
    """

    _finished: bool = False
    _unwritten: Unwritten | None = None

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        *,
        std: float | Sequence[float] | Tensor | None = None,
        covariances: Sequence | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.means = _floats(means, "means")
        if self.means.ndim != 2 or not self.means.numel():
            raise InvalidInputError(
                f"means has shape {tuple(self.means.shape)}: expected (K, d), K components in d dimensions"
            )
        k, d = self.means.shape
        if (std is None) == (covariances is None):
            raise InvalidInputError(
                "a mixture needs exactly one of std= (a number or one per component) and covariances="
            )
        variances, axes = (_of_std(std, k, d), None) if std is not None else _of_covariances(covariances, k, d)
        if bool((variances == variances[:1]).all()) and (axes is None or len(axes) == 1):
            variances = variances[:1]
        self.variances = variances.expand(k, d).contiguous()  # (K, d) eigenvalues
        self.axes = None if axes is None else axes.expand(k, d, d)  # (K, d, d) eigenvectors in columns; None: I
        self._law = self.means, variances, axes
        self._summed: tuple[torch.device, Components] | None = None
        self._weigh(weights)
        self._finish()

    def _weigh(self, weights: Sequence[float] | Tensor | None) -> None:
        k = len(self.means)
        w = torch.ones(k, dtype=torch.float64, device="cpu") if weights is None else _floats(weights, "weights")
        if w.shape != (k,):
            raise InvalidInputError(f"weights has shape {tuple(w.shape)}: expected ({k},), one per component")
        if bool((w <= 0).any()):
            raise InvalidInputError(
                f"got weights = {w.tolist()}, expected all positive (leave out components of weight 0)"
            )
        self.weights = w / w.sum()
        self.log_weights = self.weights.log()

    def __setattr__(self, name: str, value: Any) -> None:
        if self._finished:
            raise InvalidInputError(f"{name} of a GaussianMixture cannot be assigned: make another GaussianMixture")
        super().__setattr__(name, value)

    def _finish(self) -> None:
        """From here on it does not change: much follows from its numbers, and is kept."""
        vars(self).update(_finished=True, _unwritten=Unwritten(vars(self).values()))

    def __getstate__(self):
        return {**vars(self), "_summed": None, "_unwritten": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self._finish()

    def _facts(self):
        return {"components": len(self.means), "dim": self.dim, "std": spread(self.variances.sqrt())}

    def _picture(self):
        return picture_of(self.sample(400, seed=0)) if self.dim == 2 else ""

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """The mean of the whole mixture, (d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance of the whole mixture, (d, d)."""
        centred = self.means - self.mean
        within = torch.einsum("k,kd->d", self.weights, self.variances).diag()
        if self.axes is not None:
            within = torch.einsum("k,kie,ke,kje->ij", self.weights, self.axes, self.variances, self.axes)
        return within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)

    @checked
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """n draws, (n, d); draw i depends on (seed, i) alone."""
        x, _ = self.sample_labelled(n, seed=seed)
        return x.to(dtype=dtype or torch.get_default_dtype(), device=device or "cpu")

    @checked
    def sample_labelled(self, n: int, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """n draws in float64 and the component of each, (n, d) and (n,)."""
        noise = Noise(check_seed(seed))
        u = noise.uniform((n,), Purpose.COMPONENT, dtype=torch.float64, device="cpu")
        label = torch.searchsorted(self.weights.cumsum(0), u).clamp_max(len(self.weights) - 1)
        z = (
            noise.normal((n, self.dim), Purpose.COMPONENT_NOISE, dtype=torch.float64, device="cpu")
            * self.variances[label].sqrt()
        )
        if self.axes is not None:
            z = torch.einsum("nij,nj->ni", self.axes[label], z)
        return self.means[label] + z, label

    @checked
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, d) -> (B,).

        Raises:
            InvalidInputError: a covariance is singular, so there is no density.
        """
        if bool((self.variances <= 1e-14 * self.variances.amax(1, keepdim=True)).any()):
            raise InvalidInputError(
                "this mixture has no density, for a covariance is singular: ask a MixtureModel for that of noisy data"
            )
        return self.denoise(x, 1.0, 0.0)[0]

    @checked
    def posterior(
        self, A: Sequence[Sequence[float]] | Tensor, y: Sequence[float] | Tensor, std: float
    ) -> GaussianMixture:
        """The law of x given y = A x + std z: a mixture again.

            m_k + K_k (y - A m_k),    (I - K_k A) C_k,    w_k N(y; A m_k, S_k) up to a constant,
            S_k = A C_k A^T + std^2 I,    K_k = C_k A^T S_k^-1.

        Args:
            A: (m, d), tensor or lists.
            y: (m,), one observation.
            std: the noise's standard deviation, at least 0.

        Raises:
            InvalidInputError: shapes that do not fit; std = 0 where some S_k is singular, so that y has no density.

        Source: Bishop 2006, Pattern Recognition and Machine Learning, eq. 2.116 and 2.117, component by component.
        """
        a, y = _floats(A, "A"), _floats(y, "y")
        if a.ndim != 2 or a.shape[1] != self.dim or not len(a):
            raise InvalidInputError(f"got A of shape {tuple(a.shape)}, expected (m, {self.dim})")
        if y.shape != a.shape[:1]:
            raise InvalidInputError(
                f"got y of shape {tuple(y.shape)}, expected ({len(a)},), a number for each row of A"
            )
        std = number(std, "std", "the standard deviation of y's noise, at least 0", least=0.0)
        # with C = L L^T and M = A L: S = M M^T + std^2, and C - K A C = L (I - M^T S^-1 M) L^T, symmetric as computed
        axes = torch.eye(self.dim, dtype=torch.float64) if self.axes is None else self.axes
        root = axes * self.variances.sqrt()[:, None]  # (K, d, d)
        seen = a @ root
        s, failed = torch.linalg.cholesky_ex(seen @ seen.mT + std * std * torch.eye(len(a), dtype=torch.float64))
        pivots = s.diagonal(dim1=1, dim2=2)
        if bool(failed.any()) or bool((pivots.square() <= 1e-14 * seen.square().sum(2).amax()).any()):
            raise InvalidInputError(
                f"got std={std:g}, expected more than 0: some of y is certain, so it has no density"
            )
        half = torch.linalg.solve_triangular(s, seen, upper=False)  # S^-1/2 M
        offset = torch.linalg.solve_triangular(s, (y - self.means @ a.mT)[:, :, None], upper=False)
        means = self.means + (root @ half.mT @ offset)[:, :, 0]
        left = torch.eye(self.dim, dtype=torch.float64) - half.mT @ half
        log_weights = self.log_weights - offset.square().sum((1, 2)) / 2 - pivots.log().sum(1)
        covariances = root @ left @ root.mT
        found = GaussianMixture(means, covariances=(covariances + covariances.mT) / 2)
        own = log_weights - log_weights.logsumexp(0)
        vars(found).update(log_weights=own, weights=own.exp())
        found._finish()
        return found

    def denoise(
        self,
        x: Tensor,
        alpha: Any,
        sigma: Any,
        log_weights: Tensor | None = None,
        *,
        which: Tensor | None = None,
        memory: int = MEMORY,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What x = alpha x0 + sigma z tells: (log p(x), E[x0 | x], E[z | x]), of shapes (B,), (B, d), (B, d).

        p = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I). Along an eigenvector of C_k with eigenvalue c,
        E[x0 | x, k] = m + alpha c/(alpha^2 c + sigma^2) (x - alpha m) and E[z | x, k] = sigma/(alpha^2 c + sigma^2)
        (x - alpha m), the second computed directly: x - alpha E[x0 | x] cancels at small sigma. Small mixtures are
        summed as it stands, larger ones in float64 by matrix products.

        Args:
            x: (B, d).
            alpha, sigma: numbers or (B,), not both 0.
            log_weights: (L, K); -inf leaves a component out. None: the mixture's.
            which: (B,), each sample's row of log_weights. None: the sample's own where L = B, the only one where L = 1.
            memory: bytes that arrays with a number for each pair of sample and component may take.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InvalidInputError(f"x has shape {tuple(x.shape)}: this mixture is over (B, {self.dim})")
        if log_weights is not None and which is None and len(log_weights) > 1:
            which = torch.arange(len(x), device=log_weights.device)
        own = self.log_weights[None] if log_weights is None else log_weights
        alpha, sigma = (torch.as_tensor(c, dtype=x.dtype, device=x.device).reshape(-1, 1) for c in (alpha, sigma))
        return self._parts(x.device).in_chunks(x, (alpha, sigma), own, which, memory)

    def _parts(self, device: torch.device) -> Components:
        """What its components are summed by, there."""
        if self._unwritten is not None and not self._unwritten():
            raise InvalidInputError(
                "GaussianMixture: one of its tensors was written into, expected one that does not change once it is "
                "made; make another GaussianMixture"
            )
        if self._summed is None or self._summed[0] != device:
            means, variances, axes = self._law
            axes = None if axes is None else axes.to(device)
            summed = device, components(means.to(device), variances.to(device), axes)
            vars(self)["_summed"] = summed
            return summed[1]
        return self._summed[1]


def _decomposed(c: Tensor) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues (n, d), and eigenvectors (n, d, d) unless all these matrices (n, d, d) are diagonal."""
    diagonal = c.diagonal(dim1=1, dim2=2)
    if torch.equal(c, torch.diag_embed(diagonal)):
        return diagonal, None
    variances, axes = torch.linalg.eigh(c)
    return variances, axes


def _of_std(std: Any, k: int, d: int) -> Tensor:
    """The variances of round components, (1 or K, d)."""
    stds = _floats(std, "std")
    if tuple(stds.shape) not in ((), (k,)) or bool((stds < 0).any()):
        raise InvalidInputError(f"std has shape {tuple(stds.shape)}: expected a number or ({k},), not negative")
    return (stds**2).reshape(-1, 1).expand(-1, d)


def _of_covariances(covariances: Any, k: int, d: int) -> tuple[Tensor, Tensor | None]:
    """The variances along the principal axes, (1 or K, d), and these in columns, (1 or K, d, d)."""
    c = _floats(covariances, "covariances")
    if tuple(c.shape) not in ((d, d), (k, d, d)):
        raise InvalidInputError(f"covariances has shape {tuple(c.shape)}: expected ({d}, {d}) or ({k}, {d}, {d})")
    if not torch.allclose(c, c.mT, rtol=1e-10, atol=1e-12):
        raise InvalidInputError("covariances are not symmetric: pass (C + C^T)/2")
    variances, axes = _decomposed(c.reshape(-1, d, d))
    if bool((variances < -1e-12 * variances.abs().max()).any()):
        raise InvalidInputError(
            f"covariances have a negative eigenvalue ({float(variances.min()):g}): expected positive semidefinite"
        )
    return variances.clamp_min(0), axes


def _floats(value: object, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(f"{name} could not be read as numbers ({error})") from error
    tensor = take(tensor, name, kind_of(Tensor))
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInputError(f"{name} holds NaN or infinity")
    return tensor
