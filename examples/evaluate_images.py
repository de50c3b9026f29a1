"""Score a trained model: samples against held-out images, bits per dimension, reconstructions.

python examples/evaluate_images.py fashion
python examples/evaluate_images.py fashion --solver ancestral --steps 200 --n 1000 --only frechet

Frechet and kernel distance are of the features of a small classifier that is trained on the same images first (and kept
beside the model): no FID, and to be compared with the floor that stands beside them, real training images of the same
number. Which data, how they are scaled, which process: the checkpoint knows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdegen as sg

PARTS = ("frechet", "bits", "reconstruction")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder or a checkpoint of train_images.py")
    parser.add_argument("--n", type=int, default=1000, help="samples, and held-out images they are compared with")
    parser.add_argument("--n-bits", type=int, default=64, help="held-out images for bits per dimension")
    parser.add_argument("--n-reconstructions", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--solver", default="auto", help="of the samples; see `sdegen solvers`")
    parser.add_argument("--steps", type=int, help="a fixed number of steps")
    parser.add_argument("--rtol", type=float, help="error control instead")
    parser.add_argument("--eta", type=float)
    parser.add_argument("--reconstruction-steps", type=int, default=40, help="each way")
    parser.add_argument("--bits-rtol", type=float, default=1e-2)
    parser.add_argument("--classifier", type=Path, help="its file; default: classifier.safetensors in the run folder")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="write the numbers there, as JSON")
    parser.add_argument("--smoke", action="store_true", help="few images and steps, to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        args.n, args.n_bits, args.n_reconstructions, args.reconstruction_steps = 80, 2, 4, 4
        args.steps, args.rtol, args.bits_rtol = 4, None, 0.1
    elif args.steps is None and args.rtol is None:
        args.steps = 20
    args.classifier = args.classifier or args.model / "classifier.safetensors"
    return args


def spread(images: sg.data.Images, n: int) -> sg.data.Images:
    """n of them, evenly from the whole set."""
    return images.only(torch.linspace(0, len(images) - 1, min(n, len(images))).round().long())


def cond(images: sg.data.Images, device: torch.device) -> dict[str, Tensor]:
    return {} if images.labels is None else {"label": images.labels.to(device)}


def distances(model: sg.Denoiser, train: sg.data.Images, held_out: sg.data.Images, args: argparse.Namespace) -> dict:
    """Samples with the held-out images' classes, against those; and the floor."""
    if train.labels is None:
        raise SystemExit("the features are those of a classifier, and these images have no classes: use --only bits")
    real = spread(held_out, args.n)
    solution = sg.sample(
        model,
        len(real),
        solver=args.solver,
        steps=args.steps,
        rtol=args.rtol,
        eta=args.eta,
        seed=args.seed,
        batch_size=args.batch_size,
        **cond(real, args.device),
    )
    short = {"steps": 20} if args.smoke else {}
    every = spread(train, 20_000)
    features = sg.metrics.train_classifier(every.images, every.labels, path=args.classifier, **short)
    x, y, floor = features(solution.x.cpu()), features(real.images), features(spread(train, len(real)).images)
    kernel, kernel_floor = sg.metrics.kernel_distance(x, y), sg.metrics.kernel_distance(floor, y)
    return {
        "solver": solution.solver,
        "evaluations": float(solution.nfe.double().mean()),
        "classifier's accuracy on held-out images": features.accuracy(real.images, real.labels),
        "classifier's accuracy on samples": features.accuracy(solution.x.cpu(), real.labels),
        "Frechet distance": sg.metrics.frechet_distance(x, y),
        "Frechet distance, floor": sg.metrics.frechet_distance(floor, y),
        "kernel distance": [kernel.value, kernel.stderr],
        "kernel distance, floor": [kernel_floor.value, kernel_floor.stderr],
        "images": len(real),
    }


def bits(model: sg.Denoiser, held_out: sg.data.Images, args: argparse.Namespace) -> dict[str, Any]:
    """A bound on -log2 of the probability of held-out images, for each number in them."""
    some = spread(held_out, args.n_bits)
    if some.levels is None:
        raise SystemExit("these images have no levels, so no bits: use --only frechet reconstruction")
    x = some.images.to(args.device)
    found = sg.bits_per_dim(
        model,
        x,
        levels=some.levels,
        rtol=args.bits_rtol,
        divergence="hutchinson",
        seed=args.seed,
        batch_size=args.batch_size,
        **cond(some, x.device),
    )
    stderr = float(found.bits.std() / len(found.bits) ** 0.5)
    return {"bits per dimension": [float(found.bits.mean()), stderr], "images": len(some), "levels": some.levels}


def reconstruction(model: sg.Denoiser, held_out: sg.data.Images, args: argparse.Namespace) -> dict[str, Any]:
    """Along the probability flow into noise, and back."""
    some = spread(held_out, args.n_reconstructions)
    x = some.images.to(args.device)
    how = {"steps": args.reconstruction_steps, "batch_size": args.batch_size, **cond(some, x.device)}
    latent = sg.encode(model, x * model.sde.alpha(model.sde.t_min), **how)
    back = sg.sample(model, len(x), x_init=latent.x, **how).x.cpu()
    sigma = 1.5 if min(x.shape[2:]) >= 11 else 0.5
    return {
        "PSNR": float(sg.metrics.psnr(back, some.images).mean()),
        "SSIM": float(sg.metrics.ssim(back, some.images, sigma=sigma).mean()),
        "steps each way": args.reconstruction_steps,
        "images": len(some),
    }


def main() -> None:
    args = arguments()
    model = sg.load(args.model, device=args.device)
    if not isinstance(model, sg.Denoiser) or "data" not in model.about:
        raise SystemExit(f"{args.model} does not tell its data: it was not made by train_images.py")
    args.device = next(model.parameters()).device
    source = model.about["data"]
    train, held_out = (sg.data.load_images(**source, split=part) for part in ("train", "held-out"))

    found: dict[str, Any] = {}
    if "frechet" in args.only:
        found["samples"] = distances(model, train, held_out, args)
    if "bits" in args.only:
        found["likelihood"] = bits(model, held_out, args)
    if "reconstruction" in args.only:
        found["reconstruction"] = reconstruction(model, held_out, args)
    for part, numbers in found.items():
        print(part)
        for name, value in numbers.items():
            shown = " +- ".join(f"{v:.4g}" for v in value) if isinstance(value, list) else value
            print(f"  {name:42s} {f'{shown:.4g}' if isinstance(shown, float) else shown}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
