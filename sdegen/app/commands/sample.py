"""sdegen sample fashion --out samples.png
sdegen sample fashion --n 64 --label boot --rtol 1e-3 --out boots.npy
sdegen sample fashion --index 100-163 --solver dpm++2m-sde --steps 40 --to samples
sdegen sample stable-diffusion-folder --prompt "a red boot" --scale 5 --rtol 1e-2 --to boots
torchrun --standalone --nproc-per-node 8 -m sdegen sample fashion --samples 50000 --kind npz --to samples

A folder of a diffusers pipeline is sampled by its prompts, with its own text encoders and autoencoder; nothing is
downloaded. Several --prompt come in turn.

Sample i is decided by the seed and i. A folder (--to, or an --out without an ending) holds a file for each image, or
with --kind npz or png for every thousand samples or so: kill it and start it again, and what is there and whole stays,
the rest is made, and the folder is the one that an uninterrupted run makes. Samples of other settings in the same
folder are refused. Started by torchrun, the processes share the samples.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ... import plot
from ...core.errors import InvalidInputError
from ...core.files import write_whole
from ...core.progress import progress_bar
from ...core.settings import check_settings, claim
from ...core.team import team
from ...data.pixels import MODES
from ...data.png import encoded
from ...inference.files import KINDS, sample_files
from ...inference.sampling import sample
from ...inference.shard import shard
from ...models.base import ScoreModel
from ...models.space import shown_shape
from ..asked import Asked, asked, sides
from ..options import add_how, add_model, count, how
from ..pictures import grid_of, is_picture
from ..sample_folder import image_of, settings_of, write_array
from ..shared import device_here
from ..told import Told

_MOST = 10**7  # samples at a time


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--n", "--samples", type=count, help="samples 0 to n - 1 (torchrun takes --n for its own: --samples)"
    )
    parser.add_argument("--index", help="which samples instead, such as 0-63,100")
    add_how(parser)
    parser.add_argument("--label", help="class of all samples, its name or number (default: the classes in turn)")
    parser.add_argument("--prompt", action="append", help="of a pipeline of diffusers: what to show (several: in turn)")
    parser.add_argument(
        "--negative-prompt", help="what guidance goes away from (default: what the pipeline takes for none)"
    )
    parser.add_argument(
        "--size", type=sides, help="of a pipeline's pictures, HEIGHTxWIDTH (default: what it was made for)"
    )
    parser.add_argument("--scale", type=float, help="guidance: 1 none (default: 5 for prompts, none for classes)")
    parser.add_argument("--batch-size", type=count, help="solve so many at a time")
    parser.add_argument("--out", help="a picture (.png) or the numbers (.npy); without an ending as --to")
    parser.add_argument("--to", help="a folder: images 000000.png, 000001.png, ... or files of many samples")
    parser.add_argument(
        "--kind",
        choices=("image", *KINDS),
        help="in a folder: a PNG for each image, or files of many, .npz or archives of PNGs (default: what suits)",
    )
    parser.add_argument("--strips", type=int, default=0, help="in a folder: how so many come out of noise, strips.png")
    parser.add_argument("--smoke", action="store_true", help="few samples and steps, to see that it runs")


def run(args: argparse.Namespace) -> Told:
    """Samples, as a picture, as numbers or in a folder."""
    out = args.to or args.out or "samples.png"
    folder = args.to is not None or not Path(out).suffix
    if not folder and not out.endswith((".png", ".npy")):
        raise InvalidInputError(
            f"--out {out}: expected a name ending in .png (a picture) or .npy (the numbers), or a folder's"
        )
    if args.smoke:
        args.n, args.batch_size, args.steps, args.rtol, args.atol = min(args.n or 6, 6), 4, 4, None, None
    what = asked(args, device_here(args.device))
    if not folder:
        return _into_file(args, what, out)
    if (args.kind or ("image" if is_picture(what.model) else "npz")) == "image":
        return _into_folder(args, what, Path(out))
    return _into_files(args, what, out)


def chosen(args: argparse.Namespace, default: int) -> list[int]:
    """The numbers of the samples, in order."""
    if args.index is None:
        return list(range(args.n or default))
    try:
        ends = [[int(end) for end in part.split("-")] for part in args.index.split(",")]
    except ValueError:
        ends = []
    ranges = [range(end[0], end[-1] + 1) for end in ends if len(end) < 3]
    if not ends or len(ranges) < len(ends) or not all(0 < r.stop - r.start <= _MOST for r in ranges):
        raise InvalidInputError(f"--index {args.index}: expected numbers and ranges such as 0-63,100")
    return sorted({i for found in ranges for i in found})


# ---- one file


def _into_file(args: argparse.Namespace, what: Asked, out: str) -> Told:
    model = what.model
    _check_out(out, shown_shape(model))
    processes, wanted = team(torch.device("cpu")), torch.tensor(chosen(args, 16))
    index = wanted[shard(len(wanted), batch_size=args.batch_size)]
    drawn: Any = None
    if len(index):
        cond = what.conditions(index)
        solution = sample(model, len(index), index=index, batch_size=args.batch_size, **how(args), **cond)
        drawn = (
            _decoded(model, solution.x, args.batch_size or 64),
            solution.nfe.double().cpu(),
            solution.calls,
            str(solution.solver),
        )
    parts = [part for part in processes.of_all(drawn) if part is not None]
    if not processes.leads:
        return Told("")
    x, nfe = torch.cat([part[0] for part in parts]), float(torch.cat([part[1] for part in parts]).mean())
    calls = sum(part[2] for part in parts)
    if out.endswith(".npy"):
        write_array(Path(out), x.numpy())
    else:
        plot.save(grid_of(model, x) if x.ndim >= 3 else plot.density(x), out)
    values = {"out": out, "shape": list(x.shape), "solver": parts[0][3], "evaluations": nfe, "seed": args.seed}
    return Told(
        f"{out}: {len(x)} samples of shape {tuple(x.shape[1:])}\n"
        f"{parts[0][3]}; {nfe:.1f} evaluations a sample, {calls} network calls, seed {args.seed}",
        values,
    )


def _decoded(model: ScoreModel, x: Tensor, rows: int) -> Tensor:
    """What samples show, some at a time."""
    with torch.no_grad():
        return torch.cat([model.decode(part).cpu() for part in x.split(rows)])


def _check_out(out: str, event: Sequence[int] | None) -> None:
    """Whether samples of an event shape can be written there: asked before they are made, and they would be lost."""
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InvalidInputError(f"--out {out}: there is no folder {folder} to write to")
    if out.endswith(".npy") or event is None or len(event) in (2, 3) or tuple(event) in ((), (1,), (2,)):
        return
    raise InvalidInputError(
        f"--out {out}: samples have shape {tuple(event)}, and pictures are drawn of points (1,) or (2,) and of images "
        "(H, W) or (C, H, W); pass a name that ends in .npy, which keeps the numbers"
    )


# ---- a folder


def _into_files(args: argparse.Namespace, what: Asked, out: str) -> Told:
    """Files of many samples."""
    if args.index is not None:
        raise InvalidInputError("got --index, expected --n where files hold many samples: use --kind image")
    processes, n, rows = team(torch.device("cpu")), args.n or 64, args.batch_size or 64
    kind, cond = args.kind or "npz", what.conditions
    written = sample_files(what.model, out, n, kind=kind, batch_size=rows, labels=cond, **how(args))
    found = processes.of_all((len(written.made), len(written.kept)))
    if not processes.leads:
        return Told("")
    made, kept = map(sum, zip(*found, strict=True))
    values = {"out": out, "samples": n, "files": made + kept, "were_there": kept}
    text = f"{out}: {n} samples in {made + kept} files, {kept} of which were there"
    return Told(text + _why_numbers(args, what.model), values)


def _why_numbers(args: argparse.Namespace, model: ScoreModel) -> str:
    """Why samples of as many channels as pictures have became no pictures, where nobody asked for numbers."""
    shape = shown_shape(model)
    if args.kind is not None or not _can_be_picture(shape):
        return ""
    return (
        f"\nnumbers, as nothing says that the {shape[0]} channels are a picture's, and not latents: "
        "--kind image writes PNGs with opacity"
    )


def _can_be_picture(shape: Sequence[int] | None) -> TypeGuard[Sequence[int]]:
    return shape is not None and len(shape) == 3 and shape[0] in MODES


def _into_folder(args: argparse.Namespace, what: Asked, out: Path) -> Told:
    model = what.model
    if not _can_be_picture(shape := shown_shape(model)):
        raise InvalidInputError(f"{args.model} makes events of shape {shape}, which are no images")
    if args.steps is None and args.rtol is None and args.atol is None:
        args.steps = 20
    size = args.batch_size or 64
    settings = settings_of(model, how(args), **what.settings, batch_size=size)
    check_settings(out, settings)

    def made(batch: Tensor, **options: Any) -> Any:
        return sample(model, len(batch), index=batch, **how(args), **options, **what.conditions(batch))

    def path_of(i: int) -> Path:
        return out / f"{i:06d}.png"

    # A batch is i // size, whichever of its samples are wanted: rounding then cannot depend on what is there.
    index, processes = torch.tensor(chosen(args, 64)), team(torch.device("cpu"))
    mine = [i for i in index.tolist() if i // size % processes.size == processes.rank]
    todo = {i for i in mine if image_of(path_of(i)) is None}
    evaluations: list[Tensor] = []
    for k in progress_bar(None if processes.leads else False, sorted({i // size for i in todo}), desc="batches"):
        batch = torch.arange(k * size, (k + 1) * size)
        solution = made(batch, progress=False)
        claim(out, settings)
        x = _decoded(model, solution.x, size)
        for i in sorted(set(batch.tolist()) & todo):
            write_whole(path_of(i), encoded(x[i - int(batch[0])]))
        evaluations.append(solution.nfe.double().cpu())
    parts = processes.of_all((len(todo), torch.cat(evaluations).tolist() if evaluations else []))
    if not processes.leads:
        return Told("")
    some = [image_of(path_of(i)) for i in index[:100].tolist()]
    plot.save(plot.image_grid(torch.stack([x for x in some if x is not None]), nrow=10), out / "grid.png")
    if args.strips:
        few = index[: args.strips]
        plot.save(_strips(model, made(few, save="all"), what.conditions(few)), out / "strips.png")
    new, spent = sum(n for n, _ in parts), [nfe for _, those in parts for nfe in those]
    values = {"out": str(out), "made": new, "were_there": len(index) - new, **settings}
    cost = f"; {sum(spent) / len(spent):.1f} evaluations a sample" if spent else ""
    return Told(f"{out}: {new} samples made, {len(index) - new} were there{cost}", values)


def _strips(model: ScoreModel, path: Any, cond: dict[str, Any]) -> Any:
    """Samples coming out of noise, and what the model makes of them; of latents what they decode to on their way."""
    if model.space is None:
        return plot.denoising_strip(path, samples=len(path.x), model=model, **cond)
    seen = replace(path, x=model.decode(path.x), xs=torch.stack([model.decode(x) for x in path.xs]))
    return plot.denoising_strip(seen, samples=len(path.x))
