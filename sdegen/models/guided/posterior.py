"""A belief that knows what was seen of its sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError
from ...core.shapes import as_time, check_time, expand
from ..base import ScoreModel, Wrapped
from ..prediction import Prediction
from .gradients import check_signal, differentiable, pulled_back, taken, with_score
from .observation import Map, Observation

_LIKELIHOODS = ("moments", "isotropic", "point", "project")
_DENSE = 32  # numbers seen; up to it S is made and decomposed, above it conjugate gradients solve for S^-1
_TOLERANCE, _MOST = 1e-3, 100  # of conjugate gradients: the residual, relative, and a limit
_FAR = 30.0  # standard deviations of the data: y farther away than this, all in all, is in other units


class Posterior(Wrapped):
    """A model's belief given y = A(x0) + std z: the score gains the gradient of log p(y | x), in which x0 given x is
    taken for Gaussian, N(x0hat, V), x0hat = E[x0 | x] and J = d x0hat/dx:

        grad log p(y | x) = J^T A^T S^-1 (y - A(x0hat)),    S = A V A^T + std^2.

        "moments"      V = sigma^2/alpha J, the covariance that the belief itself implies: exact for Gaussian data.
        "isotropic"    V = r^2 s^2/(r^2 + s^2), r = sigma/alpha, s the data's standard deviation: one gradient (PiGDM).
        "point"        V = 0, as if x0hat were x0: biased, and stiff where std is small (DPS).
        "project"      no gradient: what y says is put into x0hat, A^T (A A^T)^-1 (y - A x0hat), whatever std is
                       (replacement, DDNM).

    Where the data have several modes all four are biased in the modes' weights, and more steps do not help. A function
    that is not linear counts with its derivative at x0hat.

    Args:
        model: the belief before anything was seen.
        observation: what was seen, such as `Observation.mask(mask, std=0.05)`.
        likelihood: one of the above.

    The condition y, (B, m) or of the observation's own shape, is added to the model's.

    Raises:
        InvalidInputError: an observation that does not fit the events, "point" with std = 0, "project" of a function;
            before the first call, y missing, of another shape, not finite, or far from the data's units; at the call,
            alpha = 0.

    Source: Boys et al. 2023 (arXiv 2310.06721) and Rozet et al. 2024 (arXiv 2405.13712) for "moments"; Song et al. 2023
    (Pseudoinverse-guided diffusion models, ICLR) for "isotropic"; Chung et al. 2023 (arXiv 2209.14687) for "point";
    Wang et al. 2022 (arXiv 2212.00490) for "project".

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], covariances=[[1.0, 0.9], [0.9, 1.0]]), sg.VPSDE())
        >>> posterior = sg.Posterior(model, sg.Observation.mask([True, False], std=0.1))
        >>> found = sg.sample(posterior, 500, rtol=1e-3, seed=0, y=torch.full((500, 1), 2.0))
        >>> abs(float(found.x[:, 1].mean()) - 0.9 * 2 / 1.01) < 0.1
        True
    """

    def __init__(self, model: ScoreModel, observation: Observation, *, likelihood: str = "moments") -> None:
        super().__init__(model, covariance=None)
        if not isinstance(observation, Observation):
            raise InvalidInputError(f"got observation={observation!r}, expected one such as Observation.mask(mask)")
        if likelihood not in _LIKELIHOODS:
            raise InvalidInputError(f"got likelihood={likelihood!r}, expected one of {', '.join(_LIKELIHOODS)}")
        if likelihood == "project" and observation.curved:
            raise InvalidInputError('got likelihood="project" of a function, expected a linear one: use "moments"')
        if likelihood == "point" and observation.std == 0:
            raise InvalidInputError('got likelihood="point" with std=0, expected std above 0, or use "moments"')
        if likelihood == "point":
            warnings.warn(
                'likelihood="point" takes E[x0 | x] for x0: samples are biased, also of Gaussian data, and the flow '
                'is stiff where std is small; "moments" is exact for Gaussian data',
                stacklevel=2,
            )
        if model.event_shape is not None:
            observation.check_event(model.event_shape)
        self.observation, self.likelihood = observation, likelihood

    def _facts(self):
        return {**super()._facts(), "observation": self.observation, "likelihood": self.likelihood}

    def forward(self, x: Tensor, t: float | Tensor, *, y: Tensor, **cond: Any) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        level = self.sde.at(t)
        check_signal(self.sde, level, "Posterior")
        y = self.observation.values(y, x)
        if self.likelihood == "project":
            return self._projected(self.model(x, t, **cond), y, level)
        graph = torch.is_grad_enabled()
        with differentiable(x) as state:
            belief = self.model(state, t, **cond)
            x0 = belief.x0
            seen, a, a_transposed = self.observation.linearised(x0, graph=graph)

            def pulled(v: Tensor) -> Tensor:
                return pulled_back(x0, state, a_transposed(v), graph=graph)

            def spread(v: Tensor) -> Tensor:  # A V A^T v
                return column * (a(pulled(v)) if self.likelihood == "moments" else a(a_transposed(v)))

            column = expand(self._variance(level), seen)
            rest = y - seen if graph else (y - seen).detach()
            if self.likelihood == "point":
                solved = rest / self.observation.std**2
            else:
                solved = solve_spread(spread, rest, self.observation.std**2)
            gradient = pulled(solved)
        return with_score(belief, gradient, level, graph=graph)

    def _variance(self, level: Any) -> Any:
        """What multiplies J, or the identity, in V."""
        if self.likelihood == "moments":
            return level.sigma**2 / level.alpha
        r2, s2 = (level.sigma / level.alpha) ** 2, self.data.scale**2
        return r2 * s2 / (r2 + s2)

    def _projected(self, belief: Prediction, y: Tensor, level: Any) -> Prediction:
        x0, noise = belief.x0, belief.noise
        seen, a, a_transposed = self.observation.linearised(x0, graph=False)
        change = a_transposed(solve_spread(lambda v: a(a_transposed(v)), y - seen, 0.0))
        return Prediction(x0 + change, noise - expand(level.alpha / level.sigma, x0) * change, self.sde, belief.t)

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        y = cond.get("y")
        if not isinstance(y, Tensor):
            raise InvalidInputError(f"got y={y!r}, expected what was seen of each sample, a tensor (B, m)")
        super().check_conditions(cond, batch)
        self.model.check_conditions(taken(self.model, {k: v for k, v in cond.items() if k != "y"}), batch)
        if self.event_shape is None or not batch:
            return
        like = torch.zeros(batch, *self.event_shape, dtype=torch.float64, device=y.device)
        values = self.observation.values(y, like)
        if not bool(torch.isfinite(values).all()):
            raise InvalidInputError("got NaN or infinity in y, expected finite numbers where something was seen")
        mean = 0.0 if self.data.mean is None else self.data.mean.to(like)
        offset = self.observation.in_data_units(values, like, mean)
        far = _FAR * (self.data.scale + self.observation.std)
        if offset is not None and self.data.std is not None and float(offset.square().mean().sqrt()) > far:
            raise InvalidInputError(
                f"got y from {float(values.min()):.3g} to {float(values.max()):.3g}, expected the units of the data, "
                f"whose standard deviation is {self.data.scale:.3g}: scale y as the data were scaled"
            )


def solve_spread(spread: Callable[[Tensor], Tensor], rest: Tensor, noise: float) -> Tensor:
    """(A V A^T + noise)^-1 rest, (B, m), every sample by itself.

    Args:
        spread: v -> A V A^T v; of a learned belief it need be neither symmetric nor positive.
        rest: (B, m).
        noise: std^2.
    """
    return _by_cholesky(spread, rest, noise) if rest.shape[1] <= _DENSE else _by_gradients(spread, rest, noise)


def _by_cholesky(spread: Map, rest: Tensor, noise: float) -> Tensor:
    """In float64, of the symmetric part, no eigenvalue of which counts as less than std^2."""
    m = rest.shape[1]
    unit = torch.eye(m, dtype=rest.dtype, device=rest.device)
    s = torch.stack([spread(row.expand_as(rest)) for row in unit], 2).double()
    identity = unit.double()
    s = (s + s.mT) / 2 + noise * identity
    least = (1e-14 * s.detach().diagonal(dim1=1, dim2=2).abs().amax(1)).clamp_min(max(noise, 1e-300))
    lowest = torch.linalg.eigvalsh(s.detach())[:, 0]
    lift = torch.where(lowest < least / 2, least - lowest, 0.0)
    root = torch.linalg.cholesky(s + lift[:, None, None] * identity)
    return torch.cholesky_solve(rest.double()[:, :, None], root)[:, :, 0].to(rest)


def _by_gradients(spread: Map, rest: Tensor, noise: float) -> Tensor:
    """Conjugate gradients until each sample's residual is 1e-3 of what it was; a sample that is done stays put."""
    found, residual, direction = torch.zeros_like(rest), rest, rest
    size = residual.square().sum(1, keepdim=True)
    goal = _TOLERANCE**2 * size.detach()
    for _ in range(min(rest.shape[1], _MOST)):
        image = spread(direction) + noise * direction
        curvature = (direction * image).sum(1, keepdim=True)
        going = (size > goal) & (curvature > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        found, residual = found + step * direction, residual - step * image
        smaller = residual.square().sum(1, keepdim=True)
        turn = torch.where(going, smaller / torch.where(going, size, 1.0), 0.0)
        direction, size = torch.where(going, residual + turn * direction, direction), torch.where(going, smaller, size)
    return found
