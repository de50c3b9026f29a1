"""How noisy should the reverse steps be, and how many are needed? The table of the DDIM paper, on one discrete model.

Trains a DDPM (1000 nodes, linear betas, noise prediction, the simple loss), draws samples for each noise of the steps
(rows) and each number of steps (columns), and prints their Frechet distances to the training images: in plain pixels,
and in the features of a small classifier trained on the same images. The floor is the distance of equally many real
images that were not trained on: no sampler can be expected below it. Neither distance is FID.

python examples/ddim_eta_table.py --out ddim_eta                          # the 8 x 8 digits
python examples/ddim_eta_table.py --data DIR --out fashion                # Fashion-MNIST's idx files in a folder

Run it again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sdegen as sg
from sdegen import discrete

# Song et al. 2020 (arXiv 2010.02502) table 1: DDIM's eta, and DDPM with the forward kernel's (the large) variance.
ROWS = {"eta = 0": 0.0, "eta = 0.2": 0.2, "eta = 0.5": 0.5, "eta = 1": 1.0, "large variance": None}


def draw(model: sg.ScoreModel, n: int, steps: int, eta: float | None, seed: int) -> Tensor:
    """n samples of one cell."""
    how = {"steps": steps, "seed": seed, "batch_size": 150, "progress": False}
    if eta is None:
        return discrete.ddpm(model, n, variance="large", **how).x.cpu()
    return discrete.ddim(model, n, eta=eta, **how).x.cpu()


def cells(model: sg.ScoreModel, sizes: dict[int, int], seed: int, folder: Path) -> dict[str, list[Tensor]]:
    """The samples of all cells, row by row, so many in each column; each cell is kept in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    table: dict[str, list[Tensor]] = {name: [] for name in ROWS}
    for steps, n in sizes.items():
        for name, eta in ROWS.items():
            file = folder / f"{name.replace(' ', '')}-{steps}-{n}.npy"
            if not file.exists():
                print(f"drawing: {name}, {steps} steps", flush=True)
                part = file.with_suffix(".part.npy")
                np.save(part, draw(model, n, steps, eta, seed).numpy())
                part.rename(file)
            table[name].append(torch.from_numpy(np.load(file)))
    return table


def distance(x: Tensor, y: Tensor, resamples: int = 20) -> tuple[float, float]:
    """The Frechet distance of features x to y, and its standard error: its spread over resamples of x."""
    g = torch.Generator().manual_seed(0)
    again = [x[torch.randint(len(x), (len(x),), generator=g)] for _ in range(resamples)]
    spread = torch.tensor([sg.metrics.frechet_distance(some, y) for some in again]).std()
    return sg.metrics.frechet_distance(x, y), float(spread)


def tell(title: str, embed: Callable[[Tensor], Tensor], train: Tensor, table: dict, columns: list[int]) -> list[list]:
    print(f"\n{title}\n{'':16}" + "".join(f"{s:>16}" for s in columns))
    y, lines = embed(train), []
    for name, row in table.items():
        found = [distance(embed(x), y) for x in row]
        print(f"{name:16}" + "".join(f"{d:9.3g} +- {e:.2g}".rjust(16) for d, e in found), flush=True)
        lines += [[title, name, steps, d, e] for steps, (d, e) in zip(columns, found, strict=False)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ddim_eta"), help="folder: checkpoints, samples, table.csv")
    parser.add_argument("--data", default="digits", help='"digits", or anything that load_images takes, with labels')
    parser.add_argument("--training-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100, 1000], help="the columns")
    parser.add_argument("--n", type=int, default=300, help="samples a cell, at most the number of held-out images")
    parser.add_argument("--n-long", type=int, help="samples where there are more than 100 steps; default as --n")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps and samples only, to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        args.training_steps, args.steps, args.n = 3, [2, 5], 20

    train, held_out = (sg.data.load_images(args.data, split=split) for split in ("train", "held-out"))
    columns = sorted(args.steps)
    sizes = {s: min(args.n_long or args.n if s > 100 else args.n, len(held_out)) for s in columns}
    torch.manual_seed(args.seed)
    net = sg.nets.UNet(train.images.shape[1], multipliers=(1, 2) if train.images.shape[-1] < 16 else (1, 2, 2))
    model = sg.Denoiser(net, sg.TabulatedVPSDE(discrete.betas("linear", 1000)), parametrization="noise")
    sg.fit(
        model,
        train.images,
        steps=args.training_steps,
        loss=discrete.ddpm_loss,
        seed=args.seed,
        out=args.out / "run",
    )
    table = cells(model, sizes, args.seed, args.out / f"samples-{args.training_steps}-{args.seed}")

    classifier = sg.metrics.train_classifier(
        train.images,
        train.labels,
        seed=args.seed,
        steps=10 if args.smoke else 400,
        path=args.out / "classifier.safetensors",
    )
    accuracy = classifier.accuracy(held_out.images, held_out.labels)
    table["floor"] = [held_out.images[torch.linspace(0, len(held_out) - 1, n).long()] for n in sizes.values()]
    print(f"Frechet distances to {len(train.images)} training images; floor: of as many held-out images")
    print(f"{'samples':16}" + "".join(f"{n:>16}" for n in sizes.values()))
    spaces = {
        "pixels": lambda x: x.flatten(1),
        f"features of a classifier that is right on {accuracy:.1%} of held-out images": classifier,
    }
    lines = [line for title, embed in spaces.items() for line in tell(title, embed, train.images, table, columns)]
    with open(args.out / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["space", "row", "steps", "frechet_distance", "standard_error"])
        writer.writerows(lines)

    few = torch.cat([row[0][:10].clamp(-1, 1) for row in table.values()])
    axes = sg.plot.image_grid(few, nrow=10, title=f"{columns[0]} steps; rows: {', '.join(ROWS)}, real")
    sg.plot.save(axes, args.out / "few_steps.png")
    print(f"\n{args.out}/table.csv, {args.out}/few_steps.png")


if __name__ == "__main__":
    main()
