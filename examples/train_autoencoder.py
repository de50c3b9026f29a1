"""An autoencoder of images, the first half of a latent model: trained, and measured by what it gives back.

python examples/train_autoencoder.py --out autoencoder                                     # digits, variational
python examples/train_autoencoder.py --data fashion-mnist --patch 4 --steps 4000 --out autoencoder
python examples/train_autoencoder.py --data fashion-mnist --patch 4 --codes 256 --out codes

Then: sdegen train fashion-mnist --space autoencoder --net channels=64 --out latent

What an autoencoder loses, no model of its latents brings back, so the reconstructions are measured like samples: by the
Frechet distance of half of the held-out images, decoded, from the other half; the floor is that of the images
themselves. The loss sees features of one small classifier, the distance is of another. With codes: how many are in use,
and their perplexity, exp of the entropy of how often.

Writes a run folder, `sg.load(out)` is the autoencoder, and reconstructions.png in it.
"""

from __future__ import annotations

import argparse
import csv
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import sdegen as sg


def reconstructed(net: sg.nets.Autoencoder, x: Tensor) -> Tensor:
    """What the autoencoder gives back, of the mean of the latents or the nearest codes."""
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(250)])


def psnr(x: Tensor, y: Tensor) -> float:
    """In dB, of images in [-1, 1], the mean over images."""
    return float(sg.metrics.psnr(x.clamp(-1, 1), y, data_range=2.0).mean())


def in_use(net: sg.nets.Autoencoder, x: Tensor) -> dict[str, float]:
    """How many codes images take, and the perplexity of how often."""
    with torch.no_grad():
        numbers = torch.cat([net.quantise(net.encode(part)[0])[1].flatten() for part in x.split(250)])
    share = torch.bincount(numbers, minlength=len(net.codes)).double() / len(numbers)
    entropy = -torch.special.xlogy(share, share).sum()
    return {"codes in use": int((share > 0).sum()), "perplexity": float(entropy.exp())}


def seconds_of(run: Path) -> float:
    """How long the run took, by its metrics; one that went on, its last part."""
    with open(run / "metrics.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def train(data: sg.data.Images, args: argparse.Namespace) -> sg.nets.Autoencoder:
    torch.manual_seed(args.seed)
    net = sg.nets.Autoencoder(
        data.shape[0], args.channels, patch=args.patch, width=args.width, blocks=2, codes=args.codes
    )
    seen = sg.metrics.train_classifier(data.images, data.labels, steps=10 if args.smoke else 400, seed=args.seed)
    seen.requires_grad_(False)
    loss = partial(sg.autoencoder_loss, beta=args.beta, features=seen.embed)
    sg.fit(
        net,
        data.unlabelled(),
        loss=loss,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        seed=args.seed,
        out=args.out,
    )
    return net.eval()


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a name, file or folder, see sdegen.data.load_images")
    parser.add_argument("--channels", type=int, default=4, help="of the latents")
    parser.add_argument("--patch", type=int, default=2, help="pixels to a side of one place of the latents")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--codes", type=int, help="vector-quantised, with so many codes")
    parser.add_argument("--beta", type=float, default=0.1, help="weight of the latents' divergence from N(0, I)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--n", type=int, default=1000, help="at most so many held-out images are decoded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("autoencoder"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.width = 4, 8
    data, held_out = sg.data.load_images(args.data), sg.data.load_images(args.data, split="held-out")
    net = train(data, args)

    judge = sg.metrics.train_classifier(data.images, data.labels, steps=10 if args.smoke else 400, seed=args.seed + 1)
    half, rest = (held_out.only(slice(k, None, 2)) for k in (0, 1))
    half = half.only(torch.linspace(0, len(half) - 1, min(args.n, len(half))).round().long())
    x, y = half.images, judge(rest.images)
    back = reconstructed(net, x)
    space = sg.LatentSpace.measured(net, data)
    row = {
        "": f"{args.codes} codes" if args.codes else "variational",
        "images": len(x),
        "numbers of the latent": net.encode(x[:1])[0].numel(),
        "of the image": x[0].numel(),
        "PSNR, dB": psnr(back, x),
        "Frechet distance": sg.metrics.frechet_distance(judge(back), y),
        "floor": sg.metrics.frechet_distance(judge(x), y),
        "class kept": judge.accuracy(back, half.labels),
        "class of the image": judge.accuracy(x, half.labels),
        **(in_use(net, x) if args.codes else {"codes in use": None, "perplexity": None}),
        "steps": args.steps,
        "minutes": seconds_of(args.out) / 60,
    }
    for name, value in row.items():
        print(f"{name or 'autoencoder':24}{value:.3f}" if isinstance(value, float) else f"{name:24}{value}")
    print(f"latents: mean {space.mean.tolist()}, std {space.std.tolist()}")
    shown = torch.cat([x[:10], back[:10]])
    sg.plot.save(sg.plot.image_grid(shown, nrow=10, rows=["picture", "given back"]), args.out / "reconstructions.png")
    print(f"wrote {args.out / 'reconstructions.png'}; now: sdegen train {args.data} --space {args.out} --out latent")
    return [row]


if __name__ == "__main__":
    main()
