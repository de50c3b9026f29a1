"""Style mixing: one condition decides what is drawn at high noise, another what is drawn at low noise.

python examples/style_mixing.py --out mixed                             # digits
python examples/style_mixing.py --data fashion-mnist --out mixed        # or a folder, .npz ..., with classes

A model is told a picture's class and its tone: how bright its ink is, dark, middling or bright, a third of the pictures
each. `Switched` tells it one pair, A, down to a noise level and another, B, from there on. Which of the two the result
follows is read off by a classifier and by the tone of the ink: the class is decided at higher noise than the tone, and
between their levels pictures have the class of A and the tone of B. (Karras et al. 2019, arXiv 1812.04948, section 3.1,
mix styles by the layers of a generator; here it is the noise level.)

Writes mixed.png (rows A, columns levels), curve.png (who is followed, over the level) and variation.png: the same
picture with other noise below a level, StyleGAN's "stochastic variation" (`sg.edit`).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from captions import FASHION
from torch import Tensor

import sdegen as sg

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0)  # sigma/alpha
VARIED = (0.1, 0.3, 1.0)  # levels below which noise is drawn again
TONES = ("dark", "middling", "bright")


def brightness(x: Tensor) -> Tensor:
    """Of the ink: the mean of what is brighter than a quarter, from 0 to 1."""
    ink = (x + 1) / 2
    return (ink * (ink > 0.25)).flatten(1).sum(1) / (ink > 0.25).flatten(1).sum(1).clamp_min(1)


def crossing(rows: list[dict], a: str, b: str) -> float:
    """The level at which as many follow A as B, in one attribute."""
    for low, high in zip(rows, rows[1:], strict=False):
        before, after = (row[a] - row[b] for row in (low, high))
        if before >= 0 > after:
            share = before / (before - after)
            return math.exp((1 - share) * math.log(low["level"]) + share * math.log(high["level"]))
    return math.nan


def variations(model: sg.Denoiser, x: Tensor, label: Tensor, how: dict) -> Tensor:
    """Each picture with fresh noise below three levels, three draws of each."""
    out = [x]
    for level in VARIED:
        t = float(model.sde.time(torch.tensor(-math.log(level), dtype=torch.float64)))
        out += [sg.edit(model, x, t, seed=k, eta=1.0, label=label, **how).x for k in range(3)]
    return torch.stack(out, 1).flatten(0, 1)


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--n", type=int, default=300, help="pairs of conditions that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mixed"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.sampling_steps, args.n = 4, 3, 12
    args.out.mkdir(parents=True, exist_ok=True)
    data = sg.data.load_images(args.data)
    x, y, things = data.images, data.labels, FASHION if "fashion" in args.data else range(data.n_classes)
    edges = brightness(x).quantile(torch.tensor([1 / 3, 2 / 3]))
    tone_of = lambda x: torch.bucketize(brightness(x), edges)
    features = sg.metrics.train_classifier(x, y, steps=5 if args.smoke else 400)

    torch.manual_seed(args.seed)
    small = {"channels": 32, "patch": 2, "multipliers": (1, 2), "attention": (-1,)} if x.shape[-1] >= 28 else {}
    n_classes = data.n_classes * len(TONES)
    model = sg.Denoiser(sg.nets.UNet(x.shape[1], n_classes=n_classes, **small), sg.VPSDE())
    sg.fit(model, x, label=len(TONES) * y + tone_of(x), steps=args.steps, batch_size=args.batch_size, seed=args.seed)

    draw = torch.Generator().manual_seed(args.seed)
    a = torch.randint(n_classes, (args.n,), generator=draw)
    # B differs from A in class and in tone
    class_b = (a // 3 + torch.randint(1, data.n_classes, (args.n,), generator=draw)) % data.n_classes
    b = len(TONES) * class_b + (a % 3 + torch.randint(1, 3, (args.n,), generator=draw)) % 3
    how = {"steps": args.sampling_steps, "batch_size": 250}
    rows, strips = [], []
    print("   level  class of A, of B   tone of A, of B   class of A with tone of B")
    for level in LEVELS:
        mixed = sg.Switched(model, level, {"label": "style"})
        made = sg.sample(mixed, args.n, seed=args.seed, label=a, style=b, **how).x
        classes, tones = features.probabilities(made).argmax(1), tone_of(made)
        share = lambda hits: float(hits.double().mean())
        row = {"level": level, "class of A": share(classes == a // 3), "class of B": share(classes == b // 3)}
        row |= {"tone of A": share(tones == a % 3), "tone of B": share(tones == b % 3)}
        rows.append(row | {"class of A with tone of B": share((classes == a // 3) & (tones == b % 3))})
        strips.append(made[:6])
        print(f"{level:8g}", "".join(f"{value:9.3f}" for name, value in rows[-1].items() if name != "level"))
    levels = [crossing(rows, f"{what} of A", f"{what} of B") for what in ("class", "tone")]
    print(f"as many follow A as B: class at {levels[0]:.2g}, tone at {levels[1]:.2g}")

    names = [f"{TONES[k % 3]} {things[k // 3]}" for k in range(n_classes)]
    sides = [f"{names[first]} | {names[second]}" for first, second in zip(a[:6], b[:6], strict=True)]
    heads = [f"{level:g}" for level in LEVELS]
    grid = sg.plot.image_grid(torch.stack(strips, 1).flatten(0, 1), nrow=len(LEVELS), columns=heads, rows=sides)
    sg.plot.save(grid, args.out / "mixed.png")
    with sg.plot.style():
        axes = plt.figure(figsize=(5, 3), layout="constrained").add_subplot()
        for name in ("class of A", "class of B", "tone of A", "tone of B"):
            line = "-" if name.endswith("A") else "--"
            axes.plot(LEVELS, [row[name] for row in rows], line, color="C0" if "class" in name else "C1", label=name)
        axes.set(xscale="log", xlabel="B is told below this noise level", ylabel="share of samples", ylim=(0, 1))
        axes.legend()
        sg.plot.save(axes, args.out / "curve.png")
    own = sg.sample(model, 4, seed=args.seed, label=a[:4], **how).x
    varied = variations(model, own, a[:4], how)
    columns = ["its own", *(f"below {level:g}" for level in VARIED for _ in range(3))]
    sg.plot.save(sg.plot.image_grid(varied, nrow=10, columns=columns), args.out / "variation.png")
    print(f"wrote mixed.png, curve.png and variation.png into {args.out}")
    return [{"": f"{row['level']:g}", **row} for row in rows]


if __name__ == "__main__":
    main()
