"""sdegen inpaint fashion shoe.png wide --out strip.png
sdegen inpaint fashion shoe.png mask.png --method twisted --particles 16 --n 6 --out strip.png
sdegen inpaint run_folder photo.jpg rows --passes 10 --out filled.npy

MASK is a picture, white where the image is seen, or one of wide, outer, thin, half, pixels, rows. The strip shows the
image, what is seen of it, and --n ways to fill in the rest; pixels that are seen stay as they are. A model of latents
is told the latents of those places that are seen whole.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ... import plot
from ...core.errors import InvalidInputError
from ...data.load import load_images
from ...data.masks import mask as named_mask
from ...data.pixels import MODES
from ...inference.posteriors.verb import sample_posterior
from ...inference.sampling import sample
from ...models.denoiser import Denoiser
from ...models.guided.observation import Observation
from ...models.guided.posterior import Posterior
from ...models.space import shown_shape
from ..options import add_model, count, label_of, labels
from ..pictures import is_picture
from ..sample_folder import write_array
from ..saved import saved_model
from ..told import Told

_METHODS = ("repaint", "twisted", "guided")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("image", help="a picture; it is cut and resampled to the model's size")
    parser.add_argument("mask", help="a picture, white where the image is seen, or a kind of mask (see below)")
    parser.add_argument("--out", default="inpainted.png", help="a strip (.png) or the filled images (.npy)")
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default="repaint",
        help="repaint: replacement with resampling; twisted: weighted particles; guided: one pass of moment matching",
    )
    parser.add_argument("--n", type=count, default=4, help="how many ways to fill in")
    parser.add_argument("--passes", type=count, default=5, help="how often repaint takes each step")
    parser.add_argument("--particles", type=count, default=8, help="of twisted, for each way")
    parser.add_argument("--steps", type=count, default=50, help="a fixed number of steps (default: %(default)s)")
    parser.add_argument("--label", help="the class, its name or number")
    parser.add_argument("--seed", type=int, default=0, help="decides all random numbers (default: %(default)s)")
    parser.add_argument("--batch-size", type=count, help="solve so many at a time")


def run(args: argparse.Namespace) -> Told:
    """Fill in, and draw the strip."""
    if not args.out.endswith((".png", ".npy")) or not os.path.isdir(os.path.dirname(os.path.abspath(args.out))):
        raise InvalidInputError(f"--out {args.out}: expected a name ending in .png or .npy, in a folder that exists")
    model = saved_model(args.model, args.device)
    event = shown_shape(model)
    if event is None or len(event) != 3:
        raise InvalidInputError(f"{args.model}: the model works on events {event}, expected images (C, H, W)")
    if event[0] in MODES and not is_picture(model):
        raise InvalidInputError(
            f"{args.model}: got a model of {event[0]} channels, expected one of pictures: where these are colours with "
            'opacity, set model.about["levels"] = 256 and save it'
        )
    device = next(model.parameters()).device
    image, seen = picture_for(args.image, event), _mask(args.mask, event)
    told, y = _told(model, image.to(device), seen.to(device))
    y = y.expand(args.n, *y.shape)
    cond = labels(torch.full((args.n,), -1), label_of(args.label, model), model, device)
    if args.label is None and "label" in cond:
        cond["label"] = torch.full((args.n,), -1, device=device)  # no class
    observation = Observation.mask(told)
    how: dict[str, Any] = {"steps": args.steps, "seed": args.seed, "batch_size": args.batch_size, **cond}
    if args.method == "guided":
        found = sample(Posterior(model, observation, likelihood="isotropic"), args.n, y=y, **how)
    else:
        extra = {"particles": args.particles} if args.method == "twisted" else {"passes": args.passes}
        found = sample_posterior(model, observation, args.n, y=y, method=args.method, **extra, **how)
    x = model.decode(found.x).cpu()
    if model.space is not None:
        x = torch.where(seen, image, x)
    if args.out.endswith(".npy"):
        write_array(Path(args.out), x.numpy())
    else:
        strip = torch.cat([image[None], torch.where(seen, image, 0.0)[None], x])
        names = ["image", "seen", *(f"{i + 1}" for i in range(args.n))]
        plot.save(plot.image_grid(strip, nrow=len(strip), titles=names), args.out)
    share, evaluations = float(seen.double().mean()), float(found.nfe.double().mean())
    return Told(
        f"{args.out}: {args.n} ways to fill in {1 - share:.0%} of the image\n{found.solver}; {evaluations:.0f} "
        f"evaluations each, seed {args.seed}",
        {"out": args.out, "solver": found.solver, "evaluations": evaluations, "seen": share, "seed": args.seed},
    )


def _told(model: Denoiser, image: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Which numbers of a sample are seen, and a sample that has them: of latents those places whose pixels are all."""
    if model.space is None:
        return seen.cpu(), image
    z = model.space.encode(torch.where(seen, image, 0.0)[None])[0]
    places = -F.adaptive_max_pool2d(-seen.all(0).float()[None], z.shape[1:])[0] > 0
    if not bool(places.any()):
        raise InvalidInputError(f"no place of the {tuple(z.shape)} latents is seen whole: pass a mask that shows more")
    return places.expand(z.shape).cpu(), z


def picture_for(path: str, event: tuple[int, ...]) -> Tensor:
    """A picture as the model has its data, in [-1, 1]."""
    if not os.path.isfile(path):
        raise InvalidInputError(f"{path}: there is no such picture")
    from PIL import Image, UnidentifiedImageError

    if event[0] not in MODES:
        raise InvalidInputError(f"the model works on {event[0]} channels, expected 1, 3 or 4 of a picture")
    try:
        with Image.open(path) as opened:
            pixels = np.array(opened.convert(MODES[event[0]]))
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidInputError(f"{path}: not a picture that can be read ({error})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what load_images decides of arrays, the mode decides here
        batch = pixels.reshape(1, *pixels.shape[:2], event[0])
        return load_images(batch, size=(event[1], event[2]), layout="channels-last", levels=256).images[0]


def _mask(word: str, event: tuple[int, ...]) -> Tensor:
    """Which pixels are seen: a kind by name, or where a picture is white."""
    if not os.path.isfile(word):
        return named_mask(word, event)
    seen = picture_for(word, (1, *event[1:])) > 0
    if not bool(seen.any()):
        raise InvalidInputError(f"{word}: nothing is white, expected white where the image is seen")
    return seen.expand(event).clone()
