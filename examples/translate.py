"""Pictures of one kind as pictures of another, learned without pairs: two flows, and a CycleGAN beside them.

python examples/translate.py --out translated                          # digits as bright ink, and as dark outlines
python examples/translate.py --pairs emoji.npz noto twemoji --out translated

Two models are trained, each on pictures of one kind; no picture is in both kinds' training data. A picture goes up the
flow of its own kind to its noise, and from there down the flow of the other (DDIB, Su et al. 2023, arXiv 2203.08382).
There and back again is the identity up to the tolerance, which CycleGAN (Zhu et al. 2017, arXiv 1703.10593) has to
learn. Both are scored on held-out pictures by the partners that neither has seen: how close the translation is, and how
often its nearest picture among all partners is its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdegen as sg


def outlined(x: Tensor) -> Tensor:
    """Dark outlines on white, of bright ink on black."""
    return 1 - 2 * (F.max_pool2d(x, 3, 1, 1) - x).clamp(0, 1)


def pairs(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) of each kind, picture i of the one the partner of picture i of the other."""
    if args.pairs is None:
        x = sg.data.load_images("digits", split="all").images
        return x, outlined(x)
    file, *names = args.pairs
    with np.load(file) as arrays:
        kinds = [torch.from_numpy(arrays[name]).float() / 127.5 - 1 for name in names]
    a, b = (x.permute(0, 3, 1, 2) if x.shape[-1] in (1, 3) else x for x in kinds)
    return tuple(F.adaptive_avg_pool2d(x, min(args.size, x.shape[-1])) for x in (a, b))


# ---- CycleGAN


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.InstanceNorm2d(c_out), nn.LeakyReLU(0.2))


class Generator(nn.Module):
    """x plus what residual blocks make of it, within [-1, 1]."""

    def __init__(self, channels: int, width: int = 48, blocks: int = 4) -> None:
        super().__init__()
        self.stem = conv(channels, width)
        self.blocks = nn.ModuleList(nn.Sequential(conv(width, width), conv(width, width)) for _ in range(blocks))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return torch.tanh(self.out(h))


def discriminator(channels: int, width: int = 48) -> nn.Sequential:
    """One number for each patch."""
    first = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2))
    return nn.Sequential(first, conv(width, 2 * width), nn.Conv2d(2 * width, 1, 3, padding=1))


def cyclegan(a: Tensor, b: Tensor, seconds: float, args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The two generators, a to b and b to a; least squares, cycle weight 10, identity weight 5."""
    torch.manual_seed(args.seed)
    g_ab, g_ba = Generator(a.shape[1]), Generator(a.shape[1])
    d_a, d_b = discriminator(a.shape[1]), discriminator(a.shape[1])
    how = {"lr": 4e-4, "betas": (0.5, 0.999)}
    of_g = torch.optim.Adam([*g_ab.parameters(), *g_ba.parameters()], **how)
    of_d = torch.optim.Adam([*d_a.parameters(), *d_b.parameters()], **how)
    start = time.process_time()
    while (done := (time.process_time() - start) / seconds) < 1:
        for group in (*of_g.param_groups, *of_d.param_groups):
            group["lr"] = how["lr"] * min(1.0, 2 * (1 - done))  # constant, then to 0
        x, y = (kind[torch.randint(len(kind), (args.batch_size // 2,))] for kind in (a, b))
        fake_y, fake_x = g_ab(x), g_ba(y)
        cycle = F.l1_loss(g_ba(fake_y), x) + F.l1_loss(g_ab(fake_x), y)
        same = F.l1_loss(g_ab(y), y) + F.l1_loss(g_ba(x), x)
        real = (d_b(fake_y) - 1).square().mean() + (d_a(fake_x) - 1).square().mean()
        of_g.zero_grad()
        (real + 10 * cycle + 5 * same).backward()
        of_g.step()
        of_d.zero_grad()
        for d, true, fake in ((d_a, x, fake_x), (d_b, y, fake_y)):
            ((d(true) - 1).square().mean() / 2 + d(fake.detach()).square().mean() / 2).backward()
        of_d.step()
    return g_ab.eval(), g_ba.eval()


# ---- scores


def decibels(x: Tensor, y: Tensor) -> float:
    """PSNR over all pictures."""
    return float(10 * torch.log10(4 / (x - y).square().mean()))


def scores(found: Tensor, partners: Tensor, seen: Tensor, cycle: float) -> dict[str, float]:
    """Against the partners, and against as many pictures of the kind that training saw (the law)."""
    own = torch.cdist(found.flatten(1), partners.flatten(1)).argmin(1) == torch.arange(len(found))
    distance = sg.metrics.energy_distance(found.double(), seen.double())
    retrieved = float(own.double().mean())
    return {
        "to partner, dB": decibels(found, partners),
        "partner first": retrieved,
        "energy distance": distance,
        "there and back, dB": cycle,
    }


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs=3, metavar=("NPZ", "A", "B"), help="a file and the names of two arrays in it")
    parser.add_argument("--size", type=int, default=16, help="pixels a side of pairs, at most")
    parser.add_argument("--steps", type=int, default=1500, help="of training, for each kind")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rtol", type=float, default=1e-4)
    parser.add_argument("--n", type=int, default=200, help="held-out pictures that are translated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("translated"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.n, args.rtol = 4, 12, 1e-2
    args.out.mkdir(parents=True, exist_ok=True)
    a, b = pairs(args)
    number = torch.arange(len(a))
    first, second, held_out = number % 8 % 2 == 0, number % 8 % 2 == 1, number % 8 == 7
    a_train, b_train = a[first], b[second & ~held_out]
    x, y = a[held_out][: args.n], b[held_out][: args.n]

    start, models = time.process_time(), []
    for kind in (a_train, b_train):
        torch.manual_seed(args.seed)
        side = {"patch": 2, "attention": (-1,)} if kind.shape[-1] >= 28 else {}
        model = sg.Denoiser(sg.nets.UNet(kind.shape[1], channels=32, **side), sg.VPSDE())
        sg.fit(model, kind, steps=args.steps, batch_size=args.batch_size, seed=args.seed)
        models.append(model)
    seconds = time.process_time() - start
    print(f"two flows: {seconds:.0f} CPU s; a CycleGAN, for as long:")
    g_ab, g_ba = cyclegan(a_train, b_train, seconds, args)

    there = sg.translate(*models, x, rtol=args.rtol)
    back = sg.translate(*models[::-1], there.x, rtol=args.rtol)
    with torch.no_grad():
        fake = g_ab(x)
        cycle = decibels(g_ba(fake), x)
    found = {"the picture itself": (x, None), "CycleGAN": (fake, cycle), "two flows": (there.x, decibels(back.x, x))}
    found["pictures of that kind"] = (b_train[: len(x)], None)
    rows: list[dict[str, object]] = []
    for name, (translated, cycle) in found.items():
        rows.append({"": name, **scores(translated, y, b_train, cycle)})
        print(f"{name:24}", *(f"{key} {value:.3g}" for key, value in rows[-1].items() if isinstance(value, float)))
    print(f"{float(there.nfe.double().mean()):.0f} evaluations a picture and way")
    shown = {"picture": x, "two flows": there.x, "CycleGAN": fake, "partner": y, "there and back": back.x}
    grid = torch.cat([pictures[:10] for pictures in shown.values()])
    sg.plot.save(sg.plot.image_grid(grid, nrow=min(10, len(x)), rows=list(shown)), args.out / "translated.png")
    print(f"wrote {args.out / 'translated.png'}")
    return rows


if __name__ == "__main__":
    main()
