"""Bits per dimension of a model of the handwritten digits, by the flow and by the variational bound.

Trains a DDPM (1000 nodes) on the digits' 17 grey levels and measures it on images that it never saw. Every figure
bounds -log2 P(image)/64 from above and comes with its standard error over the images; beside it what its own draws
leave for one image, and its solver.

python examples/digits_likelihood.py --out digits_likelihood       # run it again and it goes on where it stopped
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor

import sdegen as sg
from sdegen import discrete

LEVELS = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_likelihood"), help="folder: checkpoints, bits.csv")
    parser.add_argument("--training-steps", type=int, default=4000)
    parser.add_argument("--n", type=int, default=100, help="held-out images; bounds by several draws take every 10th")
    parser.add_argument("--draws", type=int, default=4, help="of the importance-weighted bounds")
    parser.add_argument("--nodes", type=int, default=1000, help="of the tables")
    parser.add_argument("--rtol", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps and images only, to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        args.training_steps, args.n, args.draws, args.nodes = 3, 2, 2, 25

    train, x = sg.data.images.digits("train").images, sg.data.images.digits("held-out").images
    x = x[torch.linspace(0, len(x) - 1, min(args.n, len(x))).long()]
    every = 1 if args.smoke else 10
    few = x[::every]
    torch.manual_seed(args.seed)
    sde = sg.TabulatedVPSDE(discrete.betas("linear", args.nodes))
    model = sg.Denoiser(sg.nets.UNet(1), sde, parametrization="noise")
    how = {"steps": args.training_steps, "seed": args.seed, "out": args.out / "run"}
    sg.fit(model, train, loss=discrete.ddpm_loss, **how)
    rows: list[list] = []

    def tell(what: str, bits: Tensor, own: float, solver: float) -> None:
        mean, error = float(bits.mean()), float(bits.std()) / len(bits) ** 0.5
        rows.append([what, len(bits), mean, error, own, solver])
        print(f"{what:32} {len(bits):4}  {mean:.3f} +- {error:.3f}  {own:6.3f}  {solver:.4f}", flush=True)

    print(f"{'bits per dimension, bound':32} {'n':>4}  mean +- s.e.    own s.e.  solver")
    for variance in ("small", "large"):
        bound = discrete.vlb(model, x, variance=variance, levels=LEVELS, seed=args.seed)
        again = discrete.vlb(model, few, variance=variance, levels=LEVELS, seed=args.seed + 1)
        own = float((again.total - bound.total[::every]).square().mean().div(2).sqrt())
        tell(f"variational, variance={variance!r}", bound.total, own, 0.0)
    for draws in (1, args.draws):
        for kind in ("truncated-normal", "uniform"):
            found = sg.bits_per_dim(
                model,
                few if draws > 1 else x,
                levels=LEVELS,
                draws=draws,
                dequantisation=kind,
                divergence="exact" if draws > 1 else "rademacher",
                seed=args.seed,
                batch_size=64,
                **({"steps": 3} if args.smoke else {"rtol": args.rtol}),
            )
            own, solver = float(found.stderr.square().mean().sqrt()), float(found.errors["solver"].mean())
            tell(f"flow, {kind}, draws={draws}", found.bits, own, solver)

    with open(args.out / "bits.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["bound", "images", "bits_per_dim", "standard_error", "own_error", "solver_error"])
        writer.writerows(rows)
    print(f"{args.out}/bits.csv")


if __name__ == "__main__":
    main()
