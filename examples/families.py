"""One data set, one budget, many families: VAE, GANs, VQ-VAE with a prior, latent and pixel diffusion, in one table.

python examples/families.py --seconds 10 --seeds 5 --out families           # of training, for each family and seed
python examples/families.py --tune --out families                           # at three rates, beforehand

The handwritten digits, 1352 to learn from and 445 held out. Every family has about 0.18M parameters, the same seconds,
Adam (WGAN: RMSProp) with a rate that falls to 0, and averaged weights. The distance is Frechet's on
features of a classifier, of 1000 samples to the held-out images; its floor is that of 1000 training images.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import families_gans as gans
import families_models as models
import torch
from scipy.stats import spearmanr
from torch import Tensor

import sdegen as sg

FAMILIES: dict[str, Any] = {
    "VAE": models.VAE,
    "GAN, minimax": gans.Minimax,
    "GAN, non-saturating": gans.GAN,
    "GAN, least squares": gans.LeastSquares,
    "WGAN, clipping": gans.Wasserstein,
    "GAN, DCGAN layers": gans.Convolutions,
    "GAN, told the class": gans.Conditional,
    "VQ-VAE and prior": models.Codes,
    "latent diffusion": models.Latents,
    "pixel diffusion": models.Pixels,
    "pixel diffusion, told the class": models.ConditionalPixels,
    "clean pixels": models.Clean,
    "clean pixels, told the class": models.ConditionalClean,
}
BATCH = 128
CHECKPOINTS = 10  # at which loss and distance are compared


def nearest(x: Tensor, train: Tensor) -> float:
    """The distance to the nearest training image, the median over x."""
    return float(torch.cdist(x.flatten(1), train.flatten(1)).min(1).values.median())


class Judge:
    """What is measured of samples."""

    def __init__(self, n: int, smoke: bool) -> None:
        self.train, self.held_out = (sg.data.load_images("digits", split=part) for part in ("train", "held-out"))
        self.features = sg.metrics.train_classifier(self.train.images, self.train.labels, steps=5 if smoke else 400)
        self.seen, self.n = self.features(self.held_out.images), n
        rows = torch.linspace(0, len(self.train) - 1, n).round().long()
        self.real, self.labels = self.train.images[rows], self.train.labels[rows]
        self.floor = self.distance(self.real)

    def distance(self, x: Tensor) -> float:
        """The Frechet distance; infinite where samples are not finite."""
        return sg.metrics.frechet_distance(self.features(x), self.seen) if bool(x.isfinite().all()) else math.inf

    def scores(self, x: Tensor) -> dict[str, float]:
        share = torch.bincount(self.features.probabilities(x).argmax(1), minlength=10).double() / len(x)
        real = torch.bincount(self.train.labels, minlength=10).double() / len(self.train)
        near = sg.metrics.precision_recall(self.features(x[: len(self.seen)]), self.seen)
        return {
            "FD/floor": self.distance(x) / self.floor,
            "class KL": float((share * (share / real).clamp_min(1e-12).log()).sum()),
            "rarest class": float(share.min()),
            "precision": near.precision,
            "recall": near.recall,
            "class right": self.features.accuracy(x, self.labels),
            "nearest": nearest(x, self.train.images),
        }


@torch.no_grad()
def average_into(average: Any, family: Any, k: int) -> None:
    """The running average of the weights of a stage, of every tenth step, the k-th time."""
    keep = min(0.97, k / (k + 2))
    for a, b in zip(average.state_dict().values(), family.state_dict().values(), strict=True):
        a.copy_(torch.lerp(b, a, keep) if a.is_floating_point() else b)


def train(name: str, lr: float, seconds: float, seed: int, judge: Judge, *, checks: bool = True) -> tuple[Any, ...]:
    """The family with averaged weights, and its loss and distance at checkpoints, which cost it no time."""
    torch.manual_seed(seed)
    family, x, y = FAMILIES[name](), judge.train.images, judge.train.labels
    average, optimisers = copy.deepcopy(family), family.optimisers(lr)
    spent, k, stage = 0.0, 0, 0
    losses: list[float] = []
    curve: tuple[list[float], list[float]] = ([], [])
    while spent < seconds:
        start, done = time.process_time(), spent / seconds
        k, stage = (0, int(done * family.stages)) if int(done * family.stages) > stage else (k, stage)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = lr * family.rate(done)
        rows = torch.randint(len(x), (BATCH,))
        losses.append(family.step(x[rows], y[rows], optimisers, done, x))
        if k % 10 == 0:
            average_into(average, family, k // 10)
        k += 1
        spent += time.process_time() - start
        if spent / seconds >= (len(curve[0]) + 1) / CHECKPOINTS:
            curve[0].append(sum(losses) / len(losses))
            curve[1].append(judge.distance(draw(average, judge.labels[::2], seed)) if checks else 0.0)
            losses = []
    return average, *curve


@torch.no_grad()
def draw(family: Any, y: Tensor, seed: int) -> Tensor:
    """(n, 1, 8, 8), one for each label; most families do not look at it."""
    family.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return family.draw(y).reshape(-1, 1, 8, 8).clamp(-1, 1)


@torch.no_grad()
def milliseconds(family: Any) -> float:
    """For one sample, in batches of 64."""
    start = time.process_time()
    for _ in range(3):
        family.draw(torch.zeros(64, dtype=torch.long))
    return (time.process_time() - start) / 3 / 64 * 1000


def row(name: str, lr: float, args: argparse.Namespace, judge: Judge, pictures: dict[str, Tensor]) -> dict[str, Any]:
    """One family over its seeds."""
    found, correlations = [], []
    for seed in range(args.seeds):
        family, losses, distances = train(name, lr, args.seconds, seed, judge)
        x = draw(family, judge.labels, seed)
        found.append(judge.scores(x) if bool(x.isfinite().all()) else {"FD/floor": math.inf})
        correlations.append(float(spearmanr(losses, distances)[0]))
        pictures.setdefault(name, x[torch.linspace(0, judge.n - 1, 12).long()])
    ratios = sorted(one["FD/floor"] for one in found)
    median = ratios[len(ratios) // 2]
    told = {"": name, "parameters": sum(p.numel() for p in family.parameters()), "rate": lr}
    told |= {"FD/floor": sum(ratios) / len(ratios), "worst": ratios[-1], "lost": sum(r > 3 * median for r in ratios)}
    whole = [one for one in found if "recall" in one]
    told |= {key: sum(one[key] for one in whole) / len(whole) for key in (whole or [{}])[0] if key != "FD/floor"}
    told["class right"] = told.get("class right") if family.conditional else None
    told |= {"evaluations": family.evaluations, "ms": milliseconds(family)}
    return told | {"loss and FD": sum(correlations) / len(correlations)}


def tune(args: argparse.Namespace, judge: Judge) -> None:
    """The distance of each family at its own rate, a third and three times it, of one seed that the table has not."""
    for name in args.only:
        family = FAMILIES[name]
        print(f"{name:32}", end="")
        for lr in (family.lr / 3, family.lr, 3 * family.lr):
            trained = train(name, lr, args.seconds, 100, judge, checks=False)[0]
            ratio = judge.distance(draw(trained, judge.labels, 100)) / judge.floor
            print(f"  {lr:.1e}: {ratio:<7.3g}", end="", flush=True)
        print()


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="some of the families")
    parser.add_argument("--tune", action="store_true", help="compare rates, and end")
    parser.add_argument("--out", type=Path, default=Path("families"))
    parser.add_argument("--smoke", action="store_true", help="a moment only, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.seconds, args.seeds, args.n = 0.05, 1, 100
    args.out.mkdir(parents=True, exist_ok=True)
    judge = Judge(args.n, args.smoke)
    if args.tune:
        tune(args, judge)
        return []
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}
    for name in args.only:
        rows.append(row(name, FAMILIES[name].lr, args, judge, pictures))
        print(*(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()), flush=True)
    rows.append({"": "training images: the floor", **judge.scores(judge.real)})
    rows.append({"": "held-out images", "nearest": nearest(judge.held_out.images, judge.train.images)})
    shown = torch.cat([judge.real[:12], *pictures.values()])
    grid = sg.plot.image_grid(shown, nrow=12, rows=["training images", *pictures], smooth=False)
    sg.plot.save(grid, args.out / "families.png")
    print(f"floor {judge.floor:.3f}; wrote {args.out / 'families.png'}")
    return rows


if __name__ == "__main__":
    main()
