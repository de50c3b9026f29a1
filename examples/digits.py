"""Train on the 8 x 8 handwritten digits, resumable, draw samples of every class and say how good they are.

python examples/digits.py --out digits_run                    # run it again and it goes on where it stopped
python examples/digits.py --out digits_run --solver unipc3 --sampling-steps 15

Samples of both equations are compared with the 445 held-out images, by Frechet distances of the pixels and of the
features of a small classifier; so are equally many real training images, which is the floor. Copies of training images
would score as well as that: the last column is the distance of a sample to the nearest of them, the median, beside that
of a held-out image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sdegen as sg


def nearest(x: torch.Tensor, train: sg.data.Images) -> float:
    """The distance to the nearest training image, the median over x."""
    return float(torch.cdist(x.flatten(1), train.images.flatten(1)).min(1).values.median())


def measure(model: sg.Denoiser, train: sg.data.Images, held_out: sg.data.Images, args: argparse.Namespace) -> None:
    """Samples of both equations, and as many training images, against the held-out ones."""
    real = train.only(torch.linspace(0, len(train) - 1, args.n).round().long())
    short = {"steps": 20} if args.smoke else {}
    features = sg.metrics.train_classifier(
        train.images, train.labels, path=args.out / "classifier.safetensors", **short
    )
    rows = {f"{args.n} training images": real.images}
    for solver, steps in ((args.solver, args.sampling_steps), (args.sde_solver, args.sde_steps)):
        how = {"solver": solver, "steps": steps, "seed": args.seed, "batch_size": 250}
        solution = sg.sample(model, args.n, label=real.labels, **how)
        rows[f"{solution.solver.split(',')[0]}, {float(solution.nfe.double().mean()):.0f} evaluations"] = solution.x
    print(f"{'Frechet distance to held-out images':38}{'pixels':>8}{'features':>10}{'class right':>13}{'nearest':>9}")
    y = held_out.images
    for name, x in rows.items():
        distances = (sg.metrics.frechet_distance(x, y), sg.metrics.frechet_distance(features(x), features(y)))
        right = features.accuracy(x, real.labels)
        print(f"{name:38}{distances[0]:8.3f}{distances[1]:10.3f}{right:13.3f}{nearest(x, train):9.2f}")
    print(f"{'held-out images':38}{'':18}{features.accuracy(y, held_out.labels):13.3f}{nearest(y, train):9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_run"), help="run folder: checkpoints and pictures")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--parametrization", default="edm", choices=("edm", "v", "noise", "x0", "score", "velocity"))
    parser.add_argument("--solver", default="auto", help="see `sdegen solvers`")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--sde-solver", default="d-adams2-sde", help="of the reverse SDE")
    parser.add_argument("--sde-steps", type=int, default=50)
    parser.add_argument("--n", type=int, default=1000, help="samples that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args()

    train, held_out = sg.data.images.digits("train"), sg.data.images.digits("held-out")
    torch.manual_seed(args.seed)
    model = sg.Denoiser(
        sg.nets.UNet(1, n_classes=10, dropout=args.dropout), sg.VPSDE(), parametrization=args.parametrization
    )
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

    if args.smoke:
        args.n, args.sde_steps = 20, 4
    measure(model, train, held_out, args)

    label = torch.arange(10).repeat(6)
    solution = sg.sample(model, 60, solver=args.solver, steps=args.sampling_steps, label=label, seed=args.seed)
    sg.plot.save(sg.plot.image_grid(solution.x, nrow=10), args.out / "samples.png")
    print(f"{args.out}/samples.png")


if __name__ == "__main__":
    main()
