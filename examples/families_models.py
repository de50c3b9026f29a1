"""The families that families.py compares, each as `step` (of training) and `draw`; the adversaries are next door."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdegen as sg

LATENT = 16
Optimisers = list[torch.optim.Optimizer]


def mlp(c_in: int, c_out: int, hidden: int = 256) -> nn.Sequential:
    act = lambda: nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Linear(c_in, hidden), act(), nn.Linear(hidden, hidden), act(), nn.Linear(hidden, c_out))


class Family(nn.Module):
    """One loss and one optimiser, unless it says otherwise."""

    lr: ClassVar[float] = 3e-3
    conditional: ClassVar[bool] = False
    evaluations: ClassVar[int] = 1
    stages: ClassVar[int] = 1

    def optimisers(self, lr: float) -> Optimisers:
        return [self.adam(self.parameters(), lr)]

    def adam(self, weights: Any, lr: float, **how: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=lr, **how)

    def rate(self, done: float) -> float:
        """A cosine to 0 in each stage."""
        return 0.5 * (1 + math.cos(math.pi * min((done * self.stages) % 1, 1)))

    def loss(self, x: Tensor, y: Tensor, done: float, data: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, x: Tensor, y: Tensor, optimisers: Optimisers, done: float, data: Tensor) -> float:
        loss = self.loss(x.flatten(1), y, done, data)
        return follow(loss, optimisers[0], self.parameters())


def follow(loss: Tensor, optimiser: torch.optim.Optimizer, weights: Any) -> float:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 5.0)
    optimiser.step()
    return float(loss.detach())


class VAE(Family):
    """The evidence bound, with one learned variance of all pixels (Kingma & Welling 2014); samples are means."""

    lr = 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 2 * LATENT), mlp(LATENT, 64)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def loss(self, x: Tensor, y: Tensor, done: float, data: Tensor) -> Tensor:
        mean, log_std = self.encoder(x).chunk(2, 1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        v = self.log_variance
        fit = ((x - self.decoder(z)).square() / v.exp() + v).sum(1) / 2
        return (fit + (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1) / 2).mean()

    def draw(self, y: Tensor) -> Tensor:
        return self.decoder(torch.randn(len(y), LATENT))


# ---- two stages: half the time each


class Codes(Family):
    """A vector-quantised autoencoder (van den Oord et al. 2017), 16 codes of 64 a picture; a causal transformer."""

    stages, evaluations = 2, 16

    def __init__(self) -> None:
        super().__init__()
        self.auto = sg.nets.Autoencoder(1, 4, patch=2, width=32, blocks=1, codes=64)
        self.token, self.place = nn.Embedding(65, 64), nn.Parameter(torch.randn(16, 64) / 8)
        layer = lambda: nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True, norm_first=True)
        self.prior, self.out = nn.ModuleList([layer(), layer()]), nn.Linear(64, 64)

    def logits(self, codes: Tensor) -> Tensor:
        """(B, T) the codes so far, the first of them 64 -> (B, T, 64)."""
        h = self.token(codes) + self.place[: codes.shape[1]]
        mask = torch.full((codes.shape[1],) * 2, -math.inf).triu(1)
        for layer in self.prior:
            h = layer(h, src_mask=mask)
        return self.out(h)

    def loss(self, x: Tensor, y: Tensor, done: float, data: Tensor) -> Tensor:
        images = x.reshape(-1, 1, 8, 8)
        if done < 0.5:
            self.auto.train()
            return sg.autoencoder_loss(self.auto, images).mean()
        with torch.no_grad():
            codes = self.auto.eval().quantise(self.auto.encode(images)[0])[1].flatten(1)
        seen = F.pad(codes[:, :-1], (1, 0), value=64)
        return F.cross_entropy(self.logits(seen).flatten(0, 1), codes.flatten())

    def draw(self, y: Tensor) -> Tensor:
        codes = torch.full((len(y), 1), 64)
        for _ in range(16):
            codes = torch.cat([codes, self.logits(codes)[:, -1].softmax(1).multinomial(1)], 1)
        z = F.embedding(codes[:, 1:].reshape(-1, 4, 4), self.auto.codes).movedim(-1, 1)
        return self.auto.decode(z).flatten(1)


class Latents(VAE):
    """Diffusion of a VAE's latents, standardised."""

    stages, evaluations, lr = 2, 20, 6e-3

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 2 * LATENT, 192), mlp(LATENT, 64, 192)
        self.model = sg.Denoiser(sg.nets.MLP(LATENT, hidden=124), sg.VPSDE(), data_mean=0.0, data_std=1.0)
        self.register_buffer("mean", torch.zeros(LATENT))
        self.register_buffer("std", torch.zeros(LATENT))

    def loss(self, x: Tensor, y: Tensor, done: float, data: Tensor) -> Tensor:
        if done < 0.5:
            return super().loss(x, y, done, data)
        with torch.no_grad():
            if not bool(self.std.any()):
                z = self.encoder(data.flatten(1))[:, :LATENT]
                self.mean.copy_(z.mean(0)), self.std.copy_(z.std(0))
            z = (self.encoder(x)[:, :LATENT] - self.mean) / self.std
        return sg.dsm_loss(self.model, z).mean()

    def draw(self, y: Tensor) -> Tensor:
        if not bool(self.std.any()):
            return super().draw(y)
        z = sg.sample(self.model, (len(y), LATENT), steps=20, on_failure="mark", seed=int(torch.randint(2**31, ()))).x
        return self.decoder(z * self.std + self.mean)


class Pixels(Family):
    """Diffusion of the pixels, sampled by the flow."""

    lr, evaluations = 6e-3, 20
    predicts: ClassVar[str] = "edm"

    def __init__(self) -> None:
        super().__init__()
        net = sg.nets.MLP(64, hidden=220, n_classes=10 if self.conditional else None)
        self.model = sg.Denoiser(net, sg.VPSDE(), parametrization=self.predicts, data_mean=-0.39, data_std=0.75)

    def told(self, y: Tensor) -> dict[str, Any]:
        return {"label": y} if self.conditional else {}

    def loss(self, x: Tensor, y: Tensor, done: float, data: Tensor) -> Tensor:
        return sg.dsm_loss(self.model, x, **self.told(y)).mean()

    def draw(self, y: Tensor) -> Tensor:
        how = {"steps": 20, "on_failure": "mark", "seed": int(torch.randint(2**31, ()))}
        return sg.sample(self.model, (len(y), 64), **how, **self.told(y)).x


class ConditionalPixels(Pixels):
    """Told the class."""

    conditional = True


class Clean(Pixels):
    """Its network gives the clean image, which lies near fewer dimensions than noise (Li & He 2025, 2511.13720)."""

    lr, predicts = 6e-3, "x0"


class ConditionalClean(Clean):
    """Told the class."""

    conditional = True
