"""Train on a 2-D toy density, or take its exact score, and draw how samples travel.

python examples/train_toy.py --data ring --sde vp --out toy_output
python examples/train_toy.py --data two_moons --sde edm --steps 4000
python examples/train_toy.py --data ring --exact

The output folder keeps the run: stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sdegen as sg

SDES = {
    "vp": sg.VPSDE,
    "subvp": sg.SubVPSDE,
    "cosine": sg.CosineSDE,
    "ve": sg.VESDE,
    "edm": sg.EDMSDE,
    "linear": sg.LinearPathSDE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ring", choices=sg.data.toys.names())
    parser.add_argument("--sde", default="vp", choices=SDES)
    parser.add_argument("--exact", action="store_true", help="use the mixture's exact score instead of training")
    parser.add_argument("--steps", type=int, default=4000, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("toy_output"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    sde = SDES[args.sde]()
    data = sg.data.toys.sample(args.data, 20_000, seed=args.seed)
    if args.exact:
        model: sg.ScoreModel = sg.MixtureModel(sg.data.toys.mixture(args.data), sde)
    else:
        torch.manual_seed(args.seed)
        model = sg.Denoiser(sg.nets.MLP(2, hidden=88), sde)
        steps = 20 if args.smoke else args.steps
        history = sg.fit(model, data, steps=steps, batch_size=512, seed=args.seed, out=args.out / "run")
        print(f"loss {float(history.loss[-100:].mean()):.4f}")

    n = 500 if args.smoke else 5000
    flow = sg.sample(model, n, rtol=1e-3, seed=args.seed)
    noisy = sg.sample(model, n, solver="ancestral", steps=20 if args.smoke else 200, seed=args.seed, save="all")
    for name, solution in (("probability flow", flow), ("reverse SDE", noisy)):
        distance = sg.metrics.sliced_wasserstein(solution.x, data[:n])
        evaluations = float(solution.nfe.double().mean())
        print(f"{name:17s} {evaluations:6.1f} evaluations, sliced Wasserstein to the data {distance:.4f}")

    sg.plot.save(sg.plot.trajectories(model, seed=args.seed, data=data[:300]), args.out / "trajectories.png")
    sg.plot.save(sg.plot.density(flow), args.out / "density.png")
    sg.plot.animate(noisy, args.out / "reverse.gif", fps=20)
    print(f"pictures in {args.out}/")


if __name__ == "__main__":
    main()
