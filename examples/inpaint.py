"""Fill in what masks leave out of pictures: six masks, RePaint with 1 to 5 passes, and particles beside it.

python examples/inpaint.py --out inpainted                     # pictures drawn from the model that comes along
python examples/inpaint.py --image shoe.png --out inpainted    # your own, cut and resampled to 28 by 28

Writes masks.png (for each mask: the picture, what is seen, three ways to fill in) and passes.png (one mask, RePaint
with n = 1 .. 5 passes, a row each), and prints for each method its evaluations, how far the unseen pixels are from the
picture's (the median over the ways), and whether what was seen is kept to the bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import sdegen as sg
from sdegen.app.commands.inpaint import picture_for

KINDS = ("wide", "outer", "thin", "half", "pixels", "rows")


def picture(model: Any, args: argparse.Namespace) -> torch.Tensor:
    """(1, 28, 28)."""
    if args.image:
        return picture_for(args.image, model.event_shape)
    label = torch.tensor([args.label])
    return sg.sample(model, 1, steps=20, seed=args.seed, label=label).x[0]


def filled(model: Any, image: torch.Tensor, kind: str, args: argparse.Namespace, **how: Any) -> sg.Solution:
    """Ways to fill in; the model is told no class."""
    mask = sg.data.mask(kind, image.shape)
    y, label = image.expand(args.n, *image.shape), torch.full((args.n,), -1)
    call = {"y": y, "label": label, "seed": args.seed, "steps": args.steps, **how}
    return sg.sample_posterior(model, sg.Observation.mask(mask), args.n, **call)


def guided(model: Any, image: torch.Tensor, kind: str, args: argparse.Namespace) -> sg.Solution:
    """One pass of guidance."""
    observation = sg.Observation.mask(sg.data.mask(kind, image.shape))
    posterior = sg.Posterior(model, observation, likelihood="isotropic")
    y, label = image.expand(args.n, *image.shape), torch.full((args.n,), -1)
    return sg.sample(posterior, args.n, steps=25, seed=args.seed, y=y, label=label)


def tell(name: str, found: sg.Solution, image: torch.Tensor, kind: str) -> None:
    unseen = ~sg.data.mask(kind, image.shape)
    same = bool((found.x[:, ~unseen] == image[~unseen]).all())
    off = (found.x - image)[:, unseen].square().mean(1).sqrt().median()
    print(f"{kind:8}{name:24}{float(found.nfe.double().mean()):8.0f}{float(off):10.3f}{same!s:>8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--image")
    parser.add_argument("--label", type=int, default=7)
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("inpainted"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.n = 4, 1
    args.out.mkdir(parents=True, exist_ok=True)
    model: Any = sg.load(args.model)
    image = picture(model, args)

    print(f"{'mask':8}{'method':24}{'evaluations':>8}{'unseen off':>10}{'seen kept':>8}")
    rows = []
    for kind in KINDS:
        found = filled(model, image, kind, args, method="repaint", passes=3)
        tell("repaint, 3 passes", found, image, kind)
        tell("guided, 25 steps", guided(model, image, kind, args), image, kind)
        seen = torch.where(sg.data.mask(kind, image.shape), image, 0.0)
        rows.append(torch.cat([image[None], seen[None], found.x]))
    particles = filled(model, image, "half", args, particles=4)
    tell("twisted, 4 particles", particles, image, "half")
    columns = ["picture", "seen", *["filled in"] * args.n]
    sg.plot.save(sg.plot.image_grid(torch.cat(rows), nrow=2 + args.n, columns=columns), args.out / "masks.png")

    rows = []
    for passes in range(1, 3 if args.smoke else 6):
        found = filled(model, image, "half", args, method="repaint", passes=passes)
        tell(f"repaint, {passes} passes", found, image, "half")
        rows.append(found.x)
    sg.plot.save(sg.plot.image_grid(torch.cat(rows), nrow=args.n, title="passes 1 to 5"), args.out / "passes.png")
    print(f"wrote {args.out / 'masks.png'} and {args.out / 'passes.png'}")


if __name__ == "__main__":
    main()
