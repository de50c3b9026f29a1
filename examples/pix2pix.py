"""A picture from a picture by one pass of a network: to the least absolute error, and with a discriminator beside it.

The second is pix2pix (Isola et al. 2017, arXiv 1611.07004): the discriminator sees a picture and its answer by
patches, and what is open is drawn by dropout. image_to_image.py has both beside diffusion.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def answer(net: nn.Module, told: Tensor) -> Tensor:
    """A network's answer in one pass."""
    return net(told, torch.zeros(len(told)))


def least_error(net: nn.Module, x0: Tensor, *, image: Tensor) -> Tensor:
    return (answer(net, image) - x0).abs().flatten(1).mean(1)


def judge(channels: int, width: int = 48) -> nn.Sequential:
    """One number for each patch of a picture and its answer."""
    first = [nn.Conv2d(2 * channels, width, 3, 2, 1), nn.LeakyReLU(0.2)]
    second = [nn.Conv2d(width, 2 * width, 3, 1, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*first, *second, nn.Conv2d(2 * width, 1, 3, padding=1))


def pix2pix(net: nn.Module, told: Tensor, x: Tensor, seconds: float, batch_size: int) -> nn.Module:
    """Train a generator; its dropout stays on. Weight 100 of the absolute error."""
    d = judge(x.shape[1])
    of_g, of_d = (torch.optim.Adam(m.parameters(), lr=5e-4, betas=(0.5, 0.999)) for m in (net, d))
    start = time.process_time()
    while (done := (time.process_time() - start) / seconds) < 1:
        for group in (*of_g.param_groups, *of_d.param_groups):
            group["lr"] = 5e-4 * min(1.0, 2 * (1 - done))  # constant, then to 0
        rows = torch.randint(len(x), (batch_size,))
        image, real = told[rows], x[rows]
        fake = answer(net, image)
        of_d.zero_grad()
        right, wrong = d(torch.cat([image, real], 1)), d(torch.cat([image, fake.detach()], 1))
        (F.softplus(-right).mean() + F.softplus(wrong).mean()).backward()
        of_d.step()
        of_g.zero_grad()
        (F.softplus(-d(torch.cat([image, fake], 1))).mean() + 100 * (fake - real).abs().mean()).backward()
        of_g.step()
    return net.train()
