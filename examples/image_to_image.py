"""A picture from a picture: enlarged, filled in, coloured, or drawn by another artist; three ways for as long.

python examples/image_to_image.py --task larger --out tasks                         # digits, 4 to 8 pixels a side
python examples/image_to_image.py --task half --data fashion-mnist --out tasks      # or a folder, .npz ...
python examples/image_to_image.py --pairs emoji.npz noto twemoji --out tasks        # two arrays of one file

A diffusion model hears the picture as channels of its network's input (SR3, Saharia et al. 2021, arXiv 2104.07636;
Palette, 2021, arXiv 2111.05826), and now and then none, so that it can be guided. Beside it the same U-Net trained to
the least absolute error, and with a discriminator of (picture, answer) beside that error, which is pix2pix (Isola et
al. 2017, arXiv 1611.07004; its noise is dropout).

Where the answer is open, the least error is a blurred picture, between all answers, and no answer that is drawn can be
as near to the true one: of an exact model its squared error is twice that of the mean of all answers, 3 dB more. So the
table has the agreement with the true one of one answer, of the mean of several and, by that law, of the mean of all,
the Frechet distance of answers to real pictures, and how far the answers to one picture differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import translate
from pix2pix import answer, least_error, pix2pix
from torch import Tensor
from translate import decibels

import sdegen as sg

DRAWS = 4  # answers to one picture


def larger(x: Tensor) -> Tensor:
    """From a picture of a quarter of the pixels a side, of small ones a half."""
    small = F.avg_pool2d(x, 4 if x.shape[-1] >= 28 else 2)
    return F.interpolate(small, size=x.shape[-2:], mode="bicubic", align_corners=False)


def half(x: Tensor) -> Tensor:
    """From the left half."""
    return torch.where(torch.arange(x.shape[-1]) < x.shape[-1] // 2, x, 0.0)


def colour(x: Tensor) -> Tensor:
    """From shades of grey."""
    return x.mean(1, keepdim=True).expand_as(x)


TASKS = {"larger": larger, "half": half, "colour": colour}


def pairs(args: argparse.Namespace, split: str) -> tuple[Tensor, Tensor]:
    """Pictures that are told and those that are wanted, (N, C, H, W) each."""
    if args.pairs is None:
        x = sg.data.load_images(args.data, split=split).images
        return TASKS[args.task](x), x
    told, x = translate.pairs(args)
    rows = (torch.arange(len(x)) % 8 == 7) == (split == "held-out")
    return told[rows], x[rows]


def network(channels: int, size: int, **more: Any) -> sg.nets.UNet:
    patch = 2 if size >= 28 else 1
    return sg.nets.UNet(channels, channels=32, patch=patch, multipliers=(1, 2), attention=(-1,), **more)


def of_all(answers: Tensor, y: Tensor) -> float:
    """The agreement of the mean of infinitely many answers, from that of one and that of the mean of K (K, B, ...).

    E|m_K - y|^2 = E|m - y|^2 + V/K with V the variance of one answer.
    """
    noise = answers.var(0).mean() if len(answers) > 1 else 0.0
    return float(10 * torch.log10(4 / ((answers.mean(0) - y).square().mean() - noise / len(answers))))


def classes(args: argparse.Namespace) -> Tensor | None:
    """Of the pictures that are wanted in training; of pairs the `categories` in their file, if it has them."""
    if args.pairs is None:
        return sg.data.load_images(args.data).labels
    with np.load(args.pairs[0]) as arrays:
        if "categories" not in arrays:
            return None
        number = np.unique(arrays["categories"], return_inverse=True)[1]
    return torch.from_numpy(number[np.arange(len(number)) % 8 != 7])


def features_of(x: Tensor, args: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Of a classifier where there are classes, else the pixels of small copies."""
    labels = classes(args)
    if labels is None:
        return lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1)
    return sg.metrics.train_classifier(x, labels, steps=5 if args.smoke else 400)


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--task", default="larger", choices=TASKS)
    parser.add_argument("--pairs", nargs=3, metavar=("NPZ", "FROM", "TO"), help="a file and the names of two arrays")
    parser.add_argument("--size", type=int, default=16, help="pixels a side of pairs, at most")
    parser.add_argument("--steps", type=int, default=1000, help="of training of the diffusion model")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--n", type=int, default=400, help="held-out pictures that are answered")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("tasks"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.sampling_steps, args.n = 4, 3, 10
    args.out.mkdir(parents=True, exist_ok=True)
    told, x = pairs(args, "train")
    asked, wanted = (kind[: args.n] for kind in pairs(args, "held-out"))
    channels, size = x.shape[1], x.shape[-1]

    start = time.process_time()
    torch.manual_seed(args.seed)
    model = sg.Denoiser(network(channels, size, image_channels=channels, image_dropout=0.1), sg.VPSDE())
    how: dict[str, Any] = {"batch_size": args.batch_size, "seed": args.seed}
    sg.fit(model, x, image=told, steps=args.steps, **how)
    seconds = time.process_time() - start
    print(f"diffusion: {seconds:.0f} CPU s; the others for as long")
    torch.manual_seed(args.seed)
    blur = network(channels, size)
    trial, start = max(args.steps // 50, 2), time.process_time()
    sg.fit(blur, x, image=told, loss=least_error, steps=trial, **how)
    more = max(int(trial * seconds / (time.process_time() - start)) - trial, 2)
    sg.fit(blur, x, image=told, loss=least_error, steps=more, **how)
    torch.manual_seed(args.seed)
    gan = pix2pix(network(channels, size, dropout=0.5), told, x, seconds, args.batch_size)

    guided, how = sg.Guided(model, 2.0, null={"image": None}), {"steps": args.sampling_steps, "batch_size": 250}
    draw = lambda model, k: sg.sample(model, len(asked), seed=k, image=asked, **how).x
    with torch.no_grad():
        answers = {
            "the picture itself": asked[None],
            "least absolute error": answer(blur.eval(), asked)[None],
            "pix2pix": torch.stack([answer(gan, asked) for _ in range(DRAWS)]),
            "diffusion": torch.stack([draw(model, k) for k in range(DRAWS)]),
            "diffusion, guidance 2": torch.stack([draw(guided, k) for k in range(DRAWS)]),
            "real pictures": x[torch.linspace(0, len(x) - 1, len(asked)).long()][None],
        }
    features, rows = features_of(x, args), []
    for name, found in answers.items():
        fd = sg.metrics.frechet_distance(features(found[0]), features(wanted))
        row = {"": name, "one answer, dB": decibels(found[0], wanted), "mean of all, dB": of_all(found, wanted)}
        row |= {f"mean of {DRAWS}, dB": decibels(found.mean(0), wanted), "Frechet distance": fd}
        row["answers differ"] = float(found.var(0).mean().sqrt()) if len(found) > 1 else 0.0
        rows.append(row)
        print(f"{name:22}", *(f"{key} {value:.3g} " for key, value in row.items() if key))
    shown = {"asked": asked, "least error": answers["least absolute error"][0], "pix2pix": answers["pix2pix"][0]}
    for name in ("diffusion", "diffusion, guidance 2"):
        shown |= {f"{name}: {k + 1}": answers[name][k] for k in range(2)}
    shown["wanted"] = wanted
    grid = torch.cat([picture[:10] for picture in shown.values()])
    sg.plot.save(sg.plot.image_grid(grid, nrow=min(10, args.n), rows=list(shown)), args.out / "answers.png")
    print(f"wrote {args.out / 'answers.png'}")
    return rows


if __name__ == "__main__":
    main()
