"""A cascade: a model of small pictures, then models that enlarge them, each told the smaller picture.

python examples/cascade.py --out cascade                                        # digits, 4 -> 8
python examples/cascade.py --data fashion-mnist --sizes 7 14 28 --out cascade   # or a folder, .npz ...

A stage learns x given u = alpha(s) low + sigma(s) noise, low the smaller picture enlarged, and is told s, drawn anew
for each sample over all levels of its process, small ones more often: so it has seen faults like those of the model
below it (Ho et al. 2021, arXiv 2106.15282, section 4). When sampling, s is chosen: at 0 it believes the small picture
as far as it has learned to, at 1 not at all. "Average kept" is a `Posterior` of the stage that knows its pictures'
averages to be the small picture, so that they are.

Writes cascade.png (the stages of some samples) and prints for several s the Frechet distance, the share of right
classes and how well the result, averaged down, agrees with the picture that it was told; beside it one model without
stages that was trained for as long, and real training images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import sdegen as sg

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)  # of s, in units of the last time


def smaller(x: Tensor, size: int) -> Tensor:
    return F.adaptive_avg_pool2d(x, size)


def larger(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False)


def blurred(sde: sg.SDE, image: Tensor, s: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """What a stage is told: the enlarged picture at noise level s, and the level as log(alpha/sigma)."""
    s = s.clamp(sde.t_min, sde.t_max)
    return {"image": sde.perturb(image, s, noise), "vector": sde.half_log_snr(s)[:, None] / 2}


def stage_loss(model: sg.Denoiser, x0: Tensor, *, image: Tensor, label: Tensor, seed: int | None = None) -> Tensor:
    """dsm_loss under pictures of every level."""
    s = model.sde.t_max * torch.rand(len(x0), device=x0.device) ** 3
    return sg.dsm_loss(model, x0, label=label, seed=seed, **blurred(model.sde, image, s, torch.randn_like(image)))


def network(size: int, channels: int, n_classes: int, below: int | None, width: int) -> sg.nets.UNet:
    told = {} if below is None else {"image_channels": channels, "vector_channels": 1}
    shape = {"patch": 2 if size >= 28 else 1, "multipliers": (1, 2) if size >= 8 else (1,), "attention": (-1,)}
    return sg.nets.UNet(channels, channels=width, n_classes=n_classes, **shape, **told)


def train(data: sg.data.Images, size: int, below: int | None, args: argparse.Namespace, steps: int) -> sg.Denoiser:
    """A model of pictures of this size; below: the size of the pictures that it is told."""
    x = smaller(data.images, size)
    torch.manual_seed(args.seed)
    model = sg.Denoiser(network(size, x.shape[1], data.n_classes, below, args.width), sg.VPSDE())
    told = {"label": data.labels} if below is None else {"label": data.labels, "image": larger(smaller(x, below), size)}
    how = {} if below is None else {"loss": stage_loss}
    sg.fit(model, x, steps=steps, batch_size=args.batch_size, seed=args.seed, **how, **told)
    return model


def enlarge(stage: sg.Denoiser, low: Tensor, size: int, s: float, label: Tensor, args, kept: bool = False) -> Tensor:
    """One picture of `size` for each small one, which is believed up to level s; kept: and is its average."""
    image = larger(low, size)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(args.seed + size))
    told = {"label": label, **blurred(stage.sde, image, torch.full((len(low),), s * stage.sde.t_max), noise)}
    how = {"steps": args.sampling_steps, "seed": args.seed + 1, "batch_size": 250}
    if not kept:
        return sg.sample(stage, image.shape, **told, **how).x
    average = sg.Observation.average(size // low.shape[-1])
    return sg.sample(sg.Posterior(stage, average, likelihood="project"), image.shape, y=low, **told, **how).x


def climb(models: list[sg.Denoiser], base: Tensor, sizes: list[int], s: float, label: Tensor, args, kept: bool = False):
    """The samples of the first model and what the other stages make of them, smallest first."""
    steps = [base]
    for model, size in zip(models[1:], sizes[1:], strict=True):
        steps.append(enlarge(model, steps[-1], size, s, label, args, kept))
    return steps


def agreement(x: Tensor, low: Tensor) -> float:
    """Of the pictures averaged down with those that were told, PSNR in dB over all."""
    return float(10 * torch.log10(4 / (smaller(x, low.shape[-1]) - low).square().mean()))


class Scores:
    """Rows of how far pictures are from held-out ones, and how well they agree with what they were told."""

    def __init__(self, features, held_out: Tensor) -> None:
        self.features, self.seen, self.rows = features, features(held_out), []

    def add(self, name: str, x: Tensor, label: Tensor, low: Tensor | None = None) -> None:
        row = {"Frechet distance": sg.metrics.frechet_distance(self.features(x), self.seen)}
        row["class right"] = self.features.accuracy(x, label)
        row["agreement, dB"] = None if low is None else agreement(x, low)
        self.rows.append({"": name, **row})
        print(f"{name:40}" + "".join(f"{v:10.3f}" for v in row.values() if v is not None), flush=True)


def trained(data: sg.data.Images, args: argparse.Namespace) -> tuple[list[sg.Denoiser], sg.Denoiser]:
    """The stages, and one model without any that had as many seconds."""
    started: float = time.process_time()
    models: list[sg.Denoiser] = []
    for below, size in zip([None, *args.sizes], args.sizes, strict=False):
        models.append(train(data, size, below, args, args.steps))
    seconds = time.process_time() - started
    print(f"{len(models)} stages in {seconds:.0f} CPU s; one model without stages, for as long:")
    began, trial = time.process_time(), max(args.steps // 50, 2)
    train(data, args.sizes[-1], None, args, trial)
    steps = max(int(seconds * trial / (time.process_time() - began)), 2)
    return models, train(data, args.sizes[-1], None, args, steps)


def measure(models, single, data: sg.data.Images, scores: Scores, args) -> tuple[list[dict], list[Tensor]]:
    """A row for each level; and ten samples of each stage."""
    real = data.only(torch.linspace(0, len(data) - 1, args.n).round().long())
    y, how = real.labels, {"steps": args.sampling_steps, "seed": args.seed, "batch_size": 250}
    scores.add(f"{args.n} training images", real.images, y)
    scores.add("one model", sg.sample(single, args.n, label=y, **how).x, y)
    base = sg.sample(models[0], args.n, label=y, **how).x
    found = {}
    for s, kept in [*((s, False) for s in LEVELS), *((s, True) for s in LEVELS[:2])]:
        steps = found[s, kept] = climb(models, base, args.sizes, s, y, args, kept)
        scores.add(f"cascade, s = {s:g}" + ", average kept" * kept, steps[-1], y, steps[-2])
    low = smaller(real.images, args.sizes[-2])
    for kept in (False, True):
        x = enlarge(models[-1], low, args.sizes[-1], 0.0, y, args, kept)
        scores.add("last stage on real ones, s = 0" + ", average kept" * kept, x, y, low)
    shown = torch.linspace(0, args.n - 1, 10).long()
    return scores.rows, [x[shown] for x in found[LEVELS[1], False]]


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=1000, help="of training, for each stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--sampling-steps", type=int, default=12)
    parser.add_argument("--n", type=int, default=1000, help="samples that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("cascade"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.sampling_steps, args.n, args.width = 4, 3, 40, 8
    args.out.mkdir(parents=True, exist_ok=True)
    data, held_out = sg.data.load_images(args.data), sg.data.load_images(args.data, split="held-out")
    if args.sizes[-1] != data.shape[-1]:
        parser.error(f"--sizes must end with {data.shape[-1]}, the size of these pictures")

    models, single = trained(data, args)
    features = sg.metrics.train_classifier(
        data.images, data.labels, steps=5 if args.smoke else 400, path=args.out / "classifier.safetensors"
    )
    rows, shown = measure(models, single, data, Scores(features, held_out.images), args)
    strip = torch.cat([F.interpolate(x, size=args.sizes[-1]) for x in shown])
    sizes = [f"{size} x {size}" for size in args.sizes]
    sg.plot.save(sg.plot.image_grid(strip, nrow=10, rows=sizes, smooth=False), args.out / "cascade.png")
    print(f"wrote {args.out / 'cascade.png'}")
    return rows


if __name__ == "__main__":
    main()
