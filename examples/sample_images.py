"""Draw images from a trained model, each into a file of its own name.

python examples/sample_images.py fashion --n 64 --out samples
python examples/sample_images.py fashion --index 100-163 --solver dpm++2m-sde --steps 40 --label 3 --out bags
python examples/sample_images.py fashion --rtol 1e-3 --strips 6 --out samples

torchrun --standalone --nproc-per-node 8 examples/sample_images.py fashion --samples 50000 --out samples

Sample i is decided by the seed and i. Kill it and start it again: what is there and whole stays, the rest is made, and
the folder is the one that an uninterrupted run makes. Samples of other settings in the same folder are refused. Started
by torchrun, the processes share the batches: --samples, which is --n, counts those of all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sdegen as sg

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
RANK, PROCESSES = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


def count(word: str) -> int:
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number, at least 1")
    return int(word)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder or a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder of 000000.png, 000001.png, ...")
    parser.add_argument(
        "--n",
        "--samples",
        type=count,
        default=64,
        help="samples 0 to n - 1 (torchrun takes --n for its own: --samples)",
    )
    parser.add_argument("--index", help="which samples instead, such as 0-63,100")
    parser.add_argument("--solver", default="auto", help="see `sdegen solvers`")
    parser.add_argument("--steps", type=int, help="a fixed number of steps")
    parser.add_argument("--rtol", type=float, help="error control instead")
    parser.add_argument("--atol", type=float)
    parser.add_argument("--eta", type=float, help="noise: 0 probability flow, 1 reverse SDE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", help="class of all samples, its name or number; default: class i modulo classes")
    parser.add_argument("--batch-size", type=count, default=64, help="samples that are solved, and kept, together")
    parser.add_argument("--strips", type=int, default=0, help="draw how so many of them come out of noise: strips.png")
    parser.add_argument("--device")
    parser.add_argument("--smoke", action="store_true", help="few samples and steps, to see that it runs")
    args = parser.parse_args()
    if args.smoke:
        args.n, args.batch_size, args.steps, args.rtol, args.atol = min(args.n, 6), 4, 4, None, None
    if args.steps is None and args.rtol is None and args.atol is None:
        args.steps = 20
    return args


def chosen(args: argparse.Namespace) -> list[int]:
    """The numbers of the samples, in order."""
    if args.index is None:
        return list(range(args.n))
    try:
        ends = [[int(end) for end in part.split("-")] for part in args.index.split(",")]
        return sorted({i for end in ends for i in range(end[0], end[-1] + 1)})
    except ValueError:
        raise SystemExit(f"--index {args.index}: expected numbers and ranges such as 0-63,100") from None


def write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all."""
    fresh = path.with_name(f".{path.name}.{RANK}.tmp")
    with open(fresh, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)


def check(out: Path, settings: dict[str, Any]) -> None:
    """See that the folder has no samples of other settings."""
    file = out / "settings.json"
    if not file.exists():
        return
    try:
        theirs = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise SystemExit(
            f"{file} is damaged: remove it if the samples beside it are yours, or pass another --out"
        ) from None
    other = [name for name in settings if settings[name] != theirs.get(name)]
    if other:
        raise SystemExit(f"{out} has samples of other settings ({', '.join(other)}): pass another --out")


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder ours: when there is a sample to keep, so that what is refused leaves nothing."""
    out.mkdir(parents=True, exist_ok=True)
    check(out, settings)
    if not (out / "settings.json").exists():
        write(out / "settings.json", json.dumps(settings, indent=1, sort_keys=True).encode())


def label_of(args: argparse.Namespace, about: dict[str, Any]) -> int | None:
    """The number of the class asked for."""
    names, n = about.get("classes") or [], about.get("n_classes")
    if args.label is None or args.label in names:
        return None if args.label is None else names.index(args.label)
    try:
        label = int(args.label)
    except ValueError:
        known = (
            f"the model's classes are {', '.join(map(str, names))}" if names else "the model's classes have no names"
        )
        raise SystemExit(f"--label {args.label}: {known}, or pass a number") from None
    if n is not None and not -1 <= label < n:
        raise SystemExit(f"--label {label}: the model has classes 0 to {n - 1}, and -1 for none")
    return label


def meet() -> None:
    """Wait for the other processes."""
    if PROCESSES > 1:
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def encoded(x: Tensor) -> bytes:
    """An image (C, H, W) in [-1, 1] as a PNG file."""
    import io

    u = ((x.double().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(u[..., 0] if u.shape[2] == 1 else u, MODES[u.shape[2]]).save(stream, "png")
    return stream.getvalue()


def decoded(path: Path) -> Tensor | None:
    """The image of a file, None where there is none or it is damaged."""
    try:
        with Image.open(path) as image:
            u = np.asarray(image)
    except (OSError, SyntaxError):  # Pillow's words for no such file and for a broken one
        return None
    u = torch.tensor(u, dtype=torch.float32) / 127.5 - 1
    return u[None] if u.ndim == 2 else u.permute(2, 0, 1)


def main() -> None:
    args = arguments()
    if args.device is None and PROCESSES > 1 and torch.cuda.is_available():
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    model = sg.load(args.model, device=args.device)
    if model.event_shape is None or len(model.event_shape) != 3 or model.event_shape[0] not in MODES:
        raise SystemExit(f"{args.model} makes events of shape {model.event_shape}, which are no images")
    weights = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest()
    how = {name: getattr(args, name) for name in ("solver", "steps", "rtol", "atol", "eta", "seed")}
    about = model.about if isinstance(model, sg.Denoiser) else {}
    label, classes = label_of(args, about), about.get("n_classes")
    settings = {**how, "label": label, "batch_size": args.batch_size, "weights": weights}
    check(args.out, settings)
    device = next(model.parameters()).device

    def cond(index: Tensor) -> dict[str, Tensor]:
        if label is not None:
            return {"label": torch.full_like(index, label).to(device)}
        return {} if classes is None else {"label": (index % classes).to(device)}

    def path_of(i: int) -> Path:
        return args.out / f"{i:06d}.png"

    # A batch is i // batch_size, whichever of its samples are wanted: rounding then cannot depend on what is there.
    index = torch.tensor(chosen(args))
    todo = [i for i in index.tolist() if decoded(path_of(i)) is None]
    for k in sorted({i // args.batch_size for i in todo if i // args.batch_size % PROCESSES == RANK}):
        batch = torch.arange(k * args.batch_size, (k + 1) * args.batch_size)
        solution = sg.sample(model, len(batch), index=batch, **how, **cond(batch))
        claim(args.out, settings)
        for i in sorted(set(batch.tolist()) & set(todo)):
            write(path_of(i), encoded(solution.x[i - int(batch[0])]))
        print(f"{solution.solver}: {float(solution.nfe.double().mean()):.1f} evaluations a sample", flush=True)
    meet()
    if RANK:
        return
    print(f"{args.out}: {len(todo)} samples made, {len(index) - len(todo)} were there")
    some = [decoded(path_of(i)) for i in index[:100].tolist()]
    sg.plot.save(sg.plot.image_grid(torch.stack([x for x in some if x is not None]), nrow=10), args.out / "grid.png")
    if args.strips:
        few = index[: args.strips]
        path = sg.sample(model, len(few), index=few, **how, save="all", **cond(few))
        strips = sg.plot.denoising_strip(path, samples=len(few), model=model, **cond(few))
        sg.plot.save(strips, args.out / "strips.png")


if __name__ == "__main__":
    try:
        main()
    except (sg.SdegenError, OSError, ImportError) as error:
        raise SystemExit(f"sample_images.py: {error}") from None
