"""sdegen evaluate fashion
sdegen evaluate fashion --solver ancestral --steps 200 --n 1000 --only frechet
torchrun --standalone --nproc-per-node 8 -m sdegen evaluate fashion --samples 50000 --batch-size 250

Frechet and kernel distance are of the features of a small classifier that is trained on the same images first (and kept
beside the model): no FID, and to be compared with the floor that stands beside them, real training images of the same
number. How the data are scaled and which process it is, the checkpoint knows. Which data, it only tells: a folder, a
file or a data set of the hub is read when you pass it as --data, or say yes when asked.

Started by torchrun, the processes share the samples, the bits and the reconstructions batch by batch; the numbers are
those of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import data, metrics
from ...core.errors import InvalidInputError
from ...core.files import write_whole
from ...core.team import team
from ...inference.bits import bits_per_dim
from ...inference.sampling import encode, sample
from ...models.denoiser import Denoiser
from ...models.space import shown_shape
from ..options import add_how, add_model, count, how
from ..saved import saved_model
from ..shared import device_here, of_all
from ..told import Told

PARTS = ("frechet", "bits", "reconstruction")
BUILT_IN = ("digits", "mnist", "fashion-mnist")  # data that are on the machine and belong to nobody
CPU = torch.device("cpu")
FEWEST = 40  # samples that a kernel distance needs


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--data", help="what the model was trained on: a name, file or folder, see load_images")
    parser.add_argument(
        "--held-out-every", type=int, metavar="K", help="evaluate on every K-th image, where none were held out"
    )
    parser.add_argument("--cache", help="a folder where decoded pictures are kept for the next time")
    parser.add_argument(
        "--n",
        "--samples",
        type=count,
        default=1000,
        help="samples, and held-out images they are compared with (torchrun takes --n for its own: --samples)",
    )
    parser.add_argument("--n-bits", type=count, default=64, help="held-out images for bits per dimension")
    parser.add_argument("--n-reconstructions", type=count, default=64, help="held-out images to encode and decode")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: all that the model has")
    add_how(parser)
    parser.add_argument("--reconstruction-steps", type=int, default=40, help="each way")
    parser.add_argument("--bits-rtol", type=float, default=1e-2, help="rtol of the bits per dimension")
    parser.add_argument("--classifier", type=Path, help="its file; default: classifier.safetensors in the run folder")
    parser.add_argument("--batch-size", type=count, default=250, help="images to a batch (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the numbers there, as JSON")
    parser.add_argument("--smoke", action="store_true", help="few images and steps, to see that it runs")


def spread(images: data.Images, n: int) -> data.Images:
    """n of them, evenly from the whole set."""
    return images.only(torch.linspace(0, len(images) - 1, min(n, len(images))).round().long())


def cond(images: data.Images, device: torch.device) -> dict[str, Any]:
    return {} if images.labels is None else {"label": images.labels.to(device)}


def chosen(told: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What to load: the data that the caller names or agrees to, made into images as the checkpoint tells."""
    told = told if isinstance(told, dict) else {}
    source = args.data or told.get("source")
    if args.data is None and source not in BUILT_IN:
        relative = isinstance(source, str) and not source.startswith("hf:") and not os.path.isabs(source)
        where = ", a relative path, of where training began" if relative else ""
        if not sys.stdin.isatty() or not isinstance(source, str):
            raise InvalidInputError(
                f"{args.model} tells that it was trained on {source!r}{where}: pass --data to say what to read"
            )
        if input(f"{args.model} tells that it was trained on {source!r}{where}. Read that? [y/N] ").lower() != "y":
            raise InvalidInputError("pass --data to say what to read")
    how = {name: told[name] for name in ("size", "channels", "levels", "held_out_every") if told.get(name) is not None}
    how |= {"labels": False} if told.get("labels") is False else {}
    if args.held_out_every:
        if "held_out_every" not in how:
            print(f"note: the model was trained on all of {source}, the images it is evaluated on among them")
        how["held_out_every"] = args.held_out_every
    return {"source": source, **how, "cache": args.cache}


def parts(model: Denoiser, args: argparse.Namespace) -> tuple[data.Images, data.Images]:
    """Images for training and held out."""
    source = team(CPU).from_leader(lambda: chosen(model.about["data"], args))
    try:
        train, held_out = (data.load_images(**source, split=part) for part in ("train", "held-out"))
    except InvalidInputError as error:
        hint = ": pass --held-out-every 10" if "has no held-out part" in str(error) else ""
        raise InvalidInputError(
            f"{str(error).split(': pass held_out_every')[0]}{hint}" if hint else str(error)
        ) from None
    if train.shape != (shape := shown_shape(model)):
        raise InvalidInputError(f"the images have shape {train.shape}, and the model makes {shape}: pass other --data")
    return train, held_out


def labelled(images: data.Images) -> data.Images:
    """Those that have a class."""
    return images if images.labels is None else images.only((images.labels >= 0).nonzero()[:, 0])


def distances(model: Denoiser, train: data.Images, held_out: data.Images, args: argparse.Namespace) -> dict:
    """Samples with the held-out images' classes, against those; and the floor."""
    train, held_out = labelled(train), labelled(held_out)
    if min(len(train), len(held_out), args.n) < 2:
        return {"left out": f"needs two images or more, got {min(len(train), len(held_out), args.n)}"}
    real: Any = spread(held_out, args.n)
    short = {"steps": 20} if args.smoke else {}
    every: Any = spread(train, 20_000)
    features = team(CPU).from_leader(
        lambda: metrics.train_classifier(every.images, every.labels, path=args.classifier, **short)
    )
    solver = ""

    def made(numbers: Tensor) -> tuple[Tensor, ...]:
        nonlocal solver
        label = cond(real.only(numbers), args.device)
        solution = sample(model, len(numbers), index=numbers, **how(args), progress=False, **label)
        solver, drawn = str(solution.solver), model.decode(solution.x).cpu()
        return features(drawn), features.probabilities(drawn).argmax(1), solution.nfe

    x, classes, nfe = of_all(len(real), args.batch_size, made, "samples")
    y, floor = features(real.images), features(spread(train, len(real)).images)
    found = {
        "solver": max(team(CPU).of_all(solver)),  # "" where a process has no samples
        "evaluations": float(nfe.double().mean()),
        "classifier's accuracy on held-out images": features.accuracy(real.images, real.labels),
        "classifier's accuracy on samples": float((classes == real.labels).double().mean()),
        "Frechet distance": metrics.frechet_distance(x, y),
        "Frechet distance, floor": metrics.frechet_distance(floor, y),
    }
    if min(len(floor), len(y)) >= FEWEST:
        found["kernel distance"] = list(metrics.kernel_distance(x, y))
        found["kernel distance, floor"] = list(metrics.kernel_distance(floor, y))
    return {**found, "images": len(real)}


def bits(model: Denoiser, held_out: data.Images, args: argparse.Namespace) -> dict[str, Any]:
    """A bound on -log2 of the probability of held-out images, for each number in them."""
    some = spread(held_out, args.n_bits)

    def made(numbers: Tensor) -> tuple[Tensor, ...]:
        own = some.only(numbers)
        x = own.images.to(args.device)
        options = {"rtol": args.bits_rtol, "divergence": "hutchinson", "seed": args.seed, "progress": False}
        found = bits_per_dim(model, x, levels=some.levels, index=numbers, **options, **cond(own, x.device))  # type: ignore[arg-type]
        return (found.bits,)

    (bits,) = of_all(len(some), args.batch_size, made, "bits")
    stderr = [float(bits.std() / len(bits) ** 0.5)] if len(some) > 1 else []
    return {"bits per dimension": [float(bits.mean()), *stderr], "images": len(some), "levels": some.levels}


def reconstruction(model: Denoiser, held_out: data.Images, args: argparse.Namespace) -> dict[str, Any]:
    """Along the probability flow into noise, and back; of a model of latents by way of these."""
    some = spread(held_out, args.n_reconstructions)

    def made(numbers: Tensor) -> tuple[Tensor, ...]:
        own = some.only(numbers)
        x = own.images.to(args.device)
        how = {"steps": args.reconstruction_steps, "progress": False, **cond(own, x.device)}
        x0 = x if model.space is None else model.space.encode(x)
        noise = encode(model, x0 * model.sde.alpha(model.sde.t_min), **how)
        return (model.decode(sample(model, len(x), x_init=noise.x, **how).x),)

    (back,) = of_all(len(some), args.batch_size, made, "reconstructions")
    found = {"PSNR": float(metrics.psnr(back, some.images, data_range=2.0).mean())}
    side = min(back.shape[2:])
    if side >= 5:
        sigma = 1.5 if side >= 11 else 0.5
        found["SSIM"] = float(metrics.ssim(back, some.images, data_range=2.0, sigma=sigma).mean())
    return {
        **found,
        "steps each way": args.reconstruction_steps,
        "images": len(some),
    }


def check(train: data.Images, held_out: data.Images, args: argparse.Namespace) -> None:
    """Whether these images can be scored so: asked before anything is computed."""
    if "frechet" in args.only and (train.labels is None or held_out.labels is None):
        raise InvalidInputError(
            "the features are those of a classifier, and these images have no classes: use --only bits"
        )
    if "bits" in args.only and held_out.levels is None:
        raise InvalidInputError("these images have no levels, so no bits: use --only frechet reconstruction")
    if args.out and not args.out.absolute().parent.is_dir():
        raise InvalidInputError(f"--out {args.out}: there is no folder {args.out.absolute().parent}")


def run(args: argparse.Namespace) -> Told:
    """All scores asked for."""
    if args.smoke:
        args.n, args.n_bits, args.n_reconstructions, args.reconstruction_steps = 80, 2, 4, 4
        args.steps, args.rtol, args.bits_rtol = 4, None, 0.1
    elif args.steps is None and args.rtol is None:
        args.steps = 20
    args.classifier = args.classifier or Path(args.model) / "classifier.safetensors"
    model = saved_model(args.model, device_here(args.device))
    if "data" not in model.about:
        raise InvalidInputError(f"{args.model} does not tell its data: it was not made by sdegen train")
    args.device = next(model.parameters()).device
    args.only = [part for part in args.only or PARTS if part != "bits" or args.only or model.space is None]
    if "bits" in args.only and model.space is not None:
        raise InvalidInputError(f"{args.model} is a model of latents, which have no bits: leave bits out of --only")
    train, held_out = parts(model, args)
    check(train, held_out, args)
    found: dict[str, Any] = {}
    if "frechet" in args.only:
        found["samples"] = distances(model, train, held_out, args)
    if "bits" in args.only:
        found["likelihood"] = bits(model, held_out, args)
    if "reconstruction" in args.only:
        found["reconstruction"] = reconstruction(model, held_out, args)
    if not team(CPU).leads:
        return Told("")
    if args.out:
        write_whole(args.out, json.dumps(found, indent=1).encode())
    return Told("\n".join(line for part in found.items() for line in lines(*part)), found)


def lines(part: str, numbers: dict[str, Any]) -> list[str]:
    """One part's scores, a line each; of two numbers the second is a standard error."""
    told = [part]
    for name, value in numbers.items():
        shown = " +- ".join(f"{v:.4g}" for v in value) if isinstance(value, list) else value
        told.append(f"  {name:42s} {f'{shown:.4g}' if isinstance(shown, float) else shown}")
    return told
