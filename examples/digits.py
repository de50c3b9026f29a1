"""Train on the 8 x 8 handwritten digits, resumable, and draw samples of every class.

python examples/digits.py --out digits_run                    # run it again and it goes on where it stopped
python examples/digits.py --out digits_run --solver unipc3 --sampling-steps 15
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sdegen as sg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_run"), help="run folder: checkpoints and pictures")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--parametrization", default="edm", choices=("edm", "v", "noise", "x0", "score", "velocity"))
    parser.add_argument("--solver", default="auto", help="see `sdegen solvers`")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args()

    train, held_out = sg.data.images.digits("train"), sg.data.images.digits("held-out")
    torch.manual_seed(args.seed)
    model = sg.Denoiser(sg.nets.UNet(1, n_classes=10), sg.VPSDE(), parametrization=args.parametrization)
    sg.fit(
        model,
        train.images,
        label=train.labels,
        steps=5 if args.smoke else args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        seed=args.seed,
        out=args.out,
    )

    n = 20 if args.smoke else len(held_out)
    label = held_out.labels[:n]
    solution = sg.sample(model, n, solver=args.solver, steps=args.sampling_steps, label=label, seed=args.seed)
    distance = sg.metrics.frechet_distance(solution.x, held_out.images)
    floor = sg.metrics.frechet_distance(train.images[:n], held_out.images)
    print(f"{solution.solver}: Frechet distance of the pixels {distance:.3f}, of {n} real training images {floor:.3f}")

    label = torch.arange(10).repeat(6)
    solution = sg.sample(model, 60, solver=args.solver, steps=args.sampling_steps, label=label, seed=args.seed)
    sg.plot.save(sg.plot.image_grid(solution.x, nrow=10), args.out / "samples.png")
    print(f"{args.out}/samples.png")


if __name__ == "__main__":
    main()
