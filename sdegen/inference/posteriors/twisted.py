"""Twisted particles: ancestral sampling of a tilted belief, corrected by weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.conditions import rows_of
from ...core.errors import InvalidInputError
from ...core.shapes import event_sum
from ...loop.solution import Solution
from ...models.guided.observation import Observation
from ...models.guided.posterior import Posterior
from ...models.guided.spread import DENSE
from ...noise.purposes import Purpose
from .kernel import ReverseKernel
from .particles import ancestors, one_of_each, resampled
from .request import Group, Request, answer


def twisted(request: Request, group: Group) -> Solution:
    """Particles x_t that follow the ancestral kernel p of the belief, its mean moved by the gradient of L (that is q),

        w <- w p(x_s | x_t) L(x_s)/(L(x_t) q(x_s | x_t)),    L(x) = N(y; A(x0hat), A V A^T + std^2),

    drawn anew where fewer than half of a group count; the last weight has p(y | x0) for L. Whatever L is, averages of
    a group's weights are unbiased for p(y), and its particles weighted so are right in the limit of many.

    Source: Wu et al. 2023 (arXiv 2306.17775) algorithm 1.
    """
    n, k = group.size, request.particles
    posterior = Posterior(request.model, request.observation, likelihood=twist_of(request.observation, group.y))
    y, cond = group.repeated(k)
    start = request.level(request.times[0])
    z = group.noise.normal(
        (n, k, *request.event), Purpose.PARTICLE_START, dtype=request.dtype, device=request.device
    ).flatten(0, 1)
    x = request.model.data.prior.noisy(z, float(start.alpha), float(start.sigma))
    log_w, before = torch.zeros(n, k, dtype=torch.float64, device=request.device), torch.zeros(())
    evaluations, calls, times = 0, 0, request.times.tolist()
    for i, t in enumerate(times):
        told = told_at(request, posterior, x, t, y, cond)
        evaluations += int(request.model.evaluations(torch.tensor(t)))
        calls += len(list(request.parts(n * k)))
        log_w = _dead(log_w + (told.log_likelihood - before.to(log_w)).reshape(-1, k))
        group.report((i + 1) / len(times))
        if i + 1 == len(times):
            break
        chosen = ancestors(log_w, group.noise, t)
        log_w = resampled(log_w, chosen)
        told = told.rows((chosen + k * torch.arange(n, device=x.device)[:, None]).flatten())
        kernel = ReverseKernel.between(request.level(t), request.level(times[i + 1]))
        z = group.noise.normal(
            (n, k, *request.event), Purpose.PARTICLE, t, times[i + 1], dtype=x.dtype, device=x.device
        ).flatten(0, 1)
        shift, std = kernel.pull * told.gradient, kernel.widened(told.noise, request.model.data.scale)
        x = kernel.mean(told.x0, told.noise) + shift + std * z
        moved = shift.double() / std
        log_w = log_w - event_sum(moved * (moved / 2 + z)).reshape(n, k)  # log p/q
        before = told.log_likelihood
    x0, log_y = told.settled(request, y, times[-1])
    log_w = _dead(log_w + (log_y - told.log_likelihood).reshape(n, k))
    x0, weighed = one_of_each(x0, log_w, group.noise)
    return answer(request, x0, evaluations=k * evaluations, calls=calls, seed=group.noise.seed, weighed=weighed)


def twist_of(observation: Observation, y: Tensor) -> str:
    """The likelihood of x0 given x whose determinant is known: "moments" of few numbers, "isotropic" of many."""
    return "moments" if y.shape[1] <= DENSE else "isotropic"


def check_twist(request: Request, y: Tensor) -> None:
    """Raise where the determinant of y's covariance cannot be known."""
    if twist_of(request.observation, y) == "isotropic":
        if request.observation.curved:
            raise InvalidInputError(
                f"got {y.shape[1]} numbers of y by a function that is not linear, expected at most {DENSE} for method="
                f"{request.method!r}: use sample(Posterior(model, observation))"
            )
        spectrum = request.observation.spectrum(request.like(1))
        if request.observation.std == 0 and float(spectrum.min()) <= 1e-12 * float(spectrum.max()):
            raise InvalidInputError("got std=0 and rows of A that repeat each other, expected std above 0")


@dataclass(frozen=True)
class Told:
    """What is known at (x, t): the belief (x0, noise), the gradient of log L and log L itself."""

    x0: Tensor
    noise: Tensor
    gradient: Tensor
    log_likelihood: Tensor

    def rows(self, rows: Tensor) -> Told:
        return Told(self.x0[rows], self.noise[rows], self.gradient[rows], self.log_likelihood[rows])

    def settled(self, request: Request, y: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The clean samples at the last time and log p(y | x0), or where std = 0 the mean given y and log L."""
        observation, level = request.observation, request.level(t)
        if observation.std == 0:
            x0 = self.x0 + float(level.sigma**2 / level.alpha) * self.gradient
            return observation.known(x0, y), self.log_likelihood
        rest = (y - observation.measure(self.x0)).double() / observation.std
        constant = rest.shape[1] * math.log(observation.std * math.sqrt(2 * math.pi))
        return self.x0, -rest.square().sum(1) / 2 - constant


def told_at(request: Request, posterior: Posterior, x: Tensor, t: float, y: Tensor, cond: dict) -> Told:
    """At x and one time, `request.rows` rows at a time."""
    parts = []
    for rows in request.parts(len(x)):
        belief, gradient, log_l = posterior.update(x[rows], t, y=y[rows], **rows_of(cond, rows))
        parts.append([v.detach() for v in (belief.x0, belief.noise, gradient, log_l)])
    return Told(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _dead(log_w: Tensor) -> Tensor:
    """A particle that is not finite counts nothing."""
    return log_w.nan_to_num(-math.inf, posinf=-math.inf, neginf=-math.inf)
