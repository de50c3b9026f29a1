"""sdegen train fashion-mnist --out fashion
sdegen train fashion-mnist --space autoencoder --net multipliers=[1] --net patch=1 --out latent
sdegen train photos/ --size 64 --network cifar10-small --flips --precision bf16 --out photos
torchrun --standalone --nproc-per-node 8 -m sdegen train hf:cifar10 --network cifar10-edm --out cifar

Stop it whenever you like. The same command goes on where it stopped, and so does `--out fashion` alone: the run folder
knows the rest. Pictures of samples appear in its `previews` from the first steps on, and take a tenth of the time at
most. Then: sdegen sample fashion, sdegen evaluate fashion, sdegen compare fashion.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import data, nets, plot
from ...core.errors import CheckpointError, InvalidInputError
from ...core.team import place_here
from ...inference.fit_solver import fit_solver
from ...inference.sampling import sample
from ...models.base import ScoreModel
from ...models.denoiser import Denoiser
from ...models.space import LatentSpace
from ...processes import EDMSDE, VESDE, VPSDE, CosineSDE, LinearPathSDE, SubVPSDE
from ...storage import newest, steps
from ...storage.models import load as load_model
from ...storage.models import save
from ...training import History, fit
from ...training.losses import dsm_loss
from ...training.options import STRATEGIES
from ..pictures import grid_of
from ..told import Told

SDES = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "cosine": CosineSDE,
    "ve": VESDE,
    "edm": EDMSDE,
    "linear": LinearPathSDE,
}


NOT_OF_THE_RUN = ("run", "command", "json", "quiet", "source")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the run folder: checkpoints, metrics, previews")
    parser.add_argument("source", nargs="?", metavar="DATA", help="a name, file or folder, see sdegen.data.load_images")
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))


def _add_data(of_data: argparse._ArgumentGroup) -> None:
    of_data.add_argument("--data", default="digits", help=argparse.SUPPRESS)
    of_data.add_argument("--size", type=int, help="cut and scale pictures to so many pixels")
    of_data.add_argument("--channels", type=int, choices=(1, 3, 4), help="grey, RGB or RGBA; default: as they are")
    of_data.add_argument(
        "--levels",
        type=int,
        help="how many grey levels, where whole numbers do not use all of their type: white is LEVELS - 1",
    )
    of_data.add_argument("--cache", help="a folder where decoded pictures are kept for the next time")
    of_data.add_argument(
        "--held-out-every", type=int, metavar="K", help="hold out every K-th image, where the data have no test part"
    )
    of_data.add_argument("--no-labels", action="store_true", help="train without classes")
    of_data.add_argument("--flips", action="store_true", help="mirror images at random")


def _add_model(model: argparse._ArgumentGroup) -> None:
    model.add_argument("--sde", default="vp", choices=SDES, help="the forward process (default: %(default)s)")
    model.add_argument(
        "--parametrization",
        default="edm",
        choices=("edm", "v", "noise", "x0", "score", "velocity"),
        help="what the network predicts (default: %(default)s)",
    )
    model.add_argument("--network", default="mnist-small", choices=nets.PRESETS, help="a network of a known size")
    model.add_argument(
        "--net",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change an argument of the network, such as channels=64",
    )
    model.add_argument(
        "--space", metavar="RUN", help="train on latents of the autoencoder, or of the model, in this run folder"
    )
    model.add_argument(
        "--drop-label", type=float, default=0.1, help="probability that a label is left out, for guidance"
    )


def _add_training(run: argparse._ArgumentGroup) -> None:
    run.add_argument("--steps", type=int, default=10_000, help="optimiser steps (default: %(default)s)")
    run.add_argument("--batch-size", type=int, default=128, help="images to a step, of all processes together")
    run.add_argument("--accumulate", type=int, default=1, help="split each batch into so many parts, to save memory")
    run.add_argument(
        "--lr", type=float, default=2e-3, help="the learning rate after the warm-up (default: %(default)s)"
    )
    run.add_argument("--warmup", type=int, help="steps over which the learning rate rises")
    run.add_argument(
        "--schedule", default="cosine", choices=("cosine", "constant"), help="the learning rate falls to 0, or stays"
    )
    run.add_argument(
        "--ema",
        type=float,
        nargs="+",
        default=[0.999],
        help="average of the weights: a decay, or two widths such as 0.05 0.1",
    )
    run.add_argument(
        "--weight", help="of the loss: simple, likelihood, edm, min-snr, one (default: by the parametrization)"
    )
    run.add_argument(
        "--precision", default="full", choices=("full", "bf16", "fp16"), help="what the network computes in"
    )
    run.add_argument("--compile", action="store_true", help="torch.compile the network")
    run.add_argument("--workers", type=int, default=0, help="processes that read images of a --cache ahead of the step")
    run.add_argument("--strategy", choices=STRATEGIES, help="with several processes: copies of the weights, or shards")
    run.add_argument("--save-every", type=int, help="steps between checkpoints (default: every two minutes)")
    run.add_argument("--preview-every", type=int, help="steps between previews (default: at 1, 2, 4, ... steps)")
    run.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard, too")
    run.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    run.add_argument("--seed", type=int, default=0, help="decides all random numbers (default: %(default)s)")
    run.add_argument(
        "--fit-solver",
        type=int,
        nargs="*",
        metavar="STEPS",
        help="after training fit solvers for so few steps (default: 5 8 10)",
    )
    run.add_argument("--smoke", action="store_true", help="few steps only, to see that it runs")


def recalled(args: argparse.Namespace) -> dict[str, Any]:
    """What options mean that are not given: as the run in the folder was started."""
    try:
        found = newest(args.out, [])
    except CheckpointError:
        return {}  # fit will say what is wrong
    known = {} if found is None else found[1]["model"]["about"].get("arguments", {})
    return {k: v for k, v in known.items() if k not in ("out", "smoke", "source")} if isinstance(known, dict) else {}


def changes(words: list[str]) -> dict[str, Any]:
    """Arguments of the network, such as channels=16 or multipliers=[1,2,4]."""
    try:
        return {name: json.loads(value) for name, value in (word.split("=", 1) for word in words)}
    except ValueError:
        raise InvalidInputError(
            f"--net {' '.join(words)}: expected such as channels=16 or multipliers=[1,2,4]"
        ) from None


class Previews:
    """Samples of the averaged model, always from the same noise.

    Unless they are asked for, they take a tenth of the time at most; but for the one of the last step.
    """

    evaluations, share = 18, 0.1

    def __init__(self, args: argparse.Namespace, n_classes: int | None, *, together: bool = False) -> None:
        self.args, self.n_classes, self.n = args, n_classes, 10 if args.smoke else 30
        self.together = together  # every process draws, and all have to agree on when
        self.started, self.spent, self.cost = time.monotonic(), 0.0, 0.0

    def __call__(self, step: int, model: ScoreModel, history: History) -> Any:
        asked_for = step == self.args.steps or self.args.preview_every
        if not asked_for and (self.together or not self.affordable(model)):
            return None
        began = time.monotonic()
        (self.args.out / "previews").mkdir(exist_ok=True)
        file = self.args.out / "previews" / f"step-{step:08d}.png"
        grid = grid_of(model, self.draw(model, self.evaluations), nrow=10)
        if leads():
            plot.save(grid, file)
        self.cost = time.monotonic() - began
        self.spent += self.cost
        return grid

    def draw(self, model: ScoreModel, steps: int) -> Tensor:
        device = next(model.parameters()).device
        cond: dict[str, Any] = (
            {} if self.n_classes is None else {"label": torch.arange(self.n, device=device) % self.n_classes}
        )
        return model.decode(sample(model, self.n, steps=steps, seed=0, progress=False, **cond).x)

    def affordable(self, model: ScoreModel) -> bool:
        """Whether one more is within the share; what the first costs, one evaluation tells."""
        now = time.monotonic()
        if not self.cost:
            self.draw(model, 1)
            took = time.monotonic() - now
            self.cost, self.spent = self.evaluations * took, self.spent + took
        return self.spent + self.cost <= self.share * (now - self.started - self.spent)


def load(args: argparse.Namespace, source: dict[str, Any]) -> data.Images:
    """The images to train on."""
    try:
        return data.load_images(**source, split="train", flips=args.flips, cache=args.cache)
    except InvalidInputError as error:
        recalled = args.source is None or os.sep in args.data
        lost = recalled and not Path(args.data).is_absolute() and not Path(args.data).exists()
        hint = "; it is a relative path: start where training began, or pass --data" if lost else ""
        raise InvalidInputError(f"{error}{hint}") from error


def space_of(args: argparse.Namespace, images: data.Images) -> LatentSpace | None:
    """The latent space asked for: of the run that goes on, of a model of latents, or measured for an autoencoder."""
    if args.space is None:
        return None
    found: Any = load_model(args.out if steps(args.out) else args.space, device=args.device)
    if isinstance(found, ScoreModel):
        if found.space is None:
            raise InvalidInputError(
                f"--space {args.space}: got a model of the data themselves, expected an autoencoder"
            )
        return found.space
    return LatentSpace.measured(found, images)


def few_evaluations(args: argparse.Namespace, n_classes: int | None) -> None:
    """Fit a solver to the trained model, and write both to the run's folder `fitted`."""
    model: Any = load_model(args.out, device=args.device)
    steps, n = args.fit_solver or [5, 8, 10], 64
    device = next(model.parameters()).device
    cond: dict[str, Any] = {} if n_classes is None else {"label": torch.arange(n, device=device) % n_classes}
    fitted = fit_solver(model, steps=steps, samples=n, progress=False, **cond)
    save(model, args.out / "fitted", solvers=fitted)
    for k, found in fitted.fits.items():
        print(f"{k} evaluations: error {found.error:.3f} fitted, {found.unfitted:.3f} without", flush=True)


def leads() -> bool:
    """Whether this is the one of the processes of torchrun that writes and speaks."""
    return place_here()[0] == 0


def build(args: argparse.Namespace, images: data.Images, source: dict[str, Any], space: LatentSpace | None) -> Denoiser:
    """The model, with what its checkpoints tell besides."""
    torch.manual_seed(args.seed)
    labels: dict[str, Any] = (
        {} if images.n_classes is None else {"n_classes": images.n_classes, "label_dropout": args.drop_label}
    )
    channels = images.shape[0] if space is None else space.channels
    net = nets.make_net(args.network, channels, **labels, **changes(args.net))
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = Denoiser(net, SDES[args.sde](), parametrization=args.parametrization, space=space)
    classes = None if images.classes is None else list(images.classes)
    model.about = {"data": source, "levels": images.levels, "n_classes": images.n_classes, "classes": classes}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    model.about["arguments"] = {name: value for name, value in plain.items() if name not in NOT_OF_THE_RUN}
    if args.compile:
        net.compile()
    return model


def run(args: argparse.Namespace) -> Told:
    """Train, or go on."""
    args.data = args.source or args.data
    if args.smoke:
        args.steps, args.batch_size, args.preview_every = min(args.steps, 4), min(args.batch_size, 16), 4
    source = {"source": args.data, "size": args.size, "channels": args.channels, "held_out_every": args.held_out_every}
    source |= {"levels": args.levels} if args.levels else {}
    source |= {"labels": False} if args.no_labels else {}
    images = load(args, source)
    space = space_of(args, images)
    model = build(args, images, source, space)
    train_on = images if space is None else space.latents(images, cache=args.cache)
    if leads():
        size = sum(p.numel() for p in model.net.parameters())
        print(f"{len(images)} images {images.shape}, {size / 1e6:.2f}M parameters, {model.sde}", flush=True)

    history = fit(
        model,
        train_on,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        warmup=args.warmup,
        schedule=args.schedule,
        ema=args.ema[0] if len(args.ema) == 1 else args.ema,
        loss=partial(dsm_loss, weight=args.weight),
        precision=args.precision,
        accumulate=args.accumulate,
        out=args.out,
        seed=args.seed,
        device=args.device,
        callback=Previews(args, images.n_classes, together=args.strategy == "fsdp" and place_here()[1] > 1),
        callback_every=args.preview_every,
        save_every=args.save_every,
        tensorboard=args.tensorboard,
        strategy=args.strategy,
        workers=args.workers,
    )
    if leads() and args.fit_solver is not None:
        few_evaluations(args, images.n_classes)
    if not leads():
        return Told("")
    text = f"{history!r}\nnow: sdegen sample {args.out} --out samples, sdegen evaluate {args.out}"
    return Told(
        text,
        {"out": str(args.out), "steps": len(history.loss), "last_loss": float(history.loss[-1]), "seed": history.seed},
    )
