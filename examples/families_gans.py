"""The adversaries that families.py compares: a generator g, a discriminator d, an optimiser each."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from families_models import LATENT, Family, Optimisers, follow, mlp
from torch import Tensor, nn


class GAN(Family):
    """Non-saturating (Goodfellow et al. 2014); both kinds of pictures are shown to D with noise of 0.1."""

    lr = 8e-4
    critic_steps: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        told = 10 * self.conditional
        self.g, self.d = mlp(LATENT + told, 64), mlp(64 + told, 1)

    def optimisers(self, lr: float) -> Optimisers:
        return [self.adam(m.parameters(), lr, betas=(0.5, 0.9)) for m in (self.g, self.d)]

    def rate(self, done: float) -> float:
        return min(1.0, 2 * (1 - done))  # constant, then to 0: the game needs its time

    def told(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, F.one_hot(y, 10).float()], 1) if self.conditional else x

    def draw(self, y: Tensor) -> Tensor:
        return torch.tanh(self.g(self.told(torch.randn(len(y), LATENT), y)))

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return self.d(self.told(x.flatten(1) + 0.1 * torch.randn_like(x.flatten(1)), y))

    def of_d(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def of_g(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def step(self, x: Tensor, y: Tensor, optimisers: Optimisers, done: float, data: Tensor) -> float:
        """Returns the generator's loss."""
        for _ in range(self.critic_steps):
            loss = self.of_d(self.score(x, y), self.score(self.draw(y).detach(), y))
            follow(loss, optimisers[1], self.d.parameters())
            x = data[torch.randint(len(data), (len(x),))] if self.critic_steps > 1 else x
        return follow(self.of_g(self.score(self.draw(y), y)), optimisers[0], self.g.parameters())


class Minimax(GAN):
    """G descends log(1 - D(G)), which is flat where D is sure (Goodfellow et al. 2014, eq. 1)."""

    lr = 2.5e-3

    def of_g(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


class LeastSquares(GAN):
    """(D - 1)^2 and D(G)^2 (Mao et al. 2017)."""

    lr = 7e-4

    def of_d(self, real: Tensor, fake: Tensor) -> Tensor:
        return (real - 1).square().mean() + fake.square().mean()

    def of_g(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()


class Wasserstein(GAN):
    """Five steps of a critic with weights within 0.01, RMSProp (Arjovsky et al. 2017); tells the critic's estimate."""

    critic_steps, lr = 5, 1e-3

    def adam(self, weights: Any, lr: float, **how: Any) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(weights, lr=lr)

    def of_d(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def of_g(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def step(self, x: Tensor, y: Tensor, optimisers: Optimisers, done: float, data: Tensor) -> float:
        for _ in range(self.critic_steps):
            rows = torch.randint(len(data), (len(x),))
            estimate = -follow(
                self.of_d(self.score(data[rows], y), self.score(self.draw(y).detach(), y)),
                optimisers[1],
                self.d.parameters(),
            )
            with torch.no_grad():
                for p in self.d.parameters():
                    p.clamp_(-0.01, 0.01)
        follow(self.of_g(self.score(self.draw(y), y)), optimisers[0], self.g.parameters())
        return estimate


class Conditional(GAN):
    """G and D are told the class (Mirza & Osindero 2014)."""

    conditional, lr = True, 1.5e-3


class Convolutions(GAN):
    """DCGAN's layers (Radford et al. 2016): strided convolutions and batch norm."""

    lr = 1.5e-3

    def __init__(self) -> None:
        super().__init__()
        c = 72
        up = lambda a, b: nn.ConvTranspose2d(a, b, 4, 2, 1)
        start = [nn.Linear(LATENT, 2 * c * 4), nn.Unflatten(1, (2 * c, 2, 2)), nn.BatchNorm2d(2 * c), nn.ReLU()]
        self.g = nn.Sequential(
            *start, up(2 * c, c // 2), nn.BatchNorm2d(c // 2), nn.ReLU(), up(c // 2, 1), nn.Flatten()
        )
        act = lambda: nn.LeakyReLU(0.2)
        down = [nn.Conv2d(1, c // 2, 4, 2, 1), act(), nn.Conv2d(c // 2, 2 * c, 4, 2, 1), nn.BatchNorm2d(2 * c), act()]
        self.d = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *down, nn.Flatten(), nn.Linear(8 * c, 1))
