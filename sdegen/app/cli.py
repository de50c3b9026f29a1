"""The command line: sdegen demo | sample | compare | fit-solver | solvers | doctor."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..core.errors import InvalidInputError, SdegenError
from . import fit_solver


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 with the error's message on stderr."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        args.run(args)
    except (SdegenError, OSError) as error:
        print(f"sdegen {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdegen", description="Continuous-time diffusion models: a linear SDE, a score, a choice of solver."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")

    demo = commands.add_parser(
        "demo", help="train, sample and draw a 2-D mixture and handwritten digits, in under three minutes"
    )
    demo.add_argument(
        "--out", default="demo_output", help="folder for pictures and summary.json (default: demo_output)"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--scale", type=float, default=1.0, help="multiplies the training steps (default: 1)")
    demo.set_defaults(run=_demo)

    sample = commands.add_parser("sample", help="draw samples from a saved model")
    sample.add_argument("model", help="a folder that sdegen.save or fit(out=...) wrote")
    sample.add_argument(
        "--n", "--samples", type=int, default=16, help="how many (default: 16); --samples with torchrun"
    )
    sample.add_argument("--solver", default="auto", help="a name from `sdegen solvers` (default: auto)")
    sample.add_argument("--steps", type=int, help="a fixed number of steps")
    sample.add_argument("--rtol", type=float, help="error control instead of steps")
    sample.add_argument("--atol", type=float)
    sample.add_argument("--eta", type=float, help="noise: 0 probability flow, 1 reverse SDE")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--label", type=int, help="class of all samples, for a conditional model")
    sample.add_argument("--batch-size", type=int, help="solve so many at a time")
    sample.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    sample.add_argument(
        "--out", default="samples.png", help="a picture (.png), or the numbers (.npy) (default: samples.png)"
    )
    sample.add_argument("--to", help="a folder of files instead, for many samples: it goes on where it was stopped")
    sample.add_argument("--kind", default="npz", choices=("npz", "png"), help="what is in these files (default: npz)")
    sample.set_defaults(run=_sample)

    compare = commands.add_parser("compare", help="measure solvers, budgets and tolerances on a saved model")
    compare.add_argument("model", help="a folder that sdegen.save or fit(out=...) wrote")
    compare.add_argument("--solvers", nargs="+", help="names (default: adams ddim dpm++2m unipc3 heun dopri5)")
    compare.add_argument("--steps", nargs="*", type=int, default=[5, 10, 20, 50])
    compare.add_argument("--tolerances", nargs="*", type=float, default=[1e-1, 1e-2, 1e-3])
    compare.add_argument("--n", type=int, default=64, help="how many samples (default: 64)")
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--label", type=int, help="class of all samples, for a conditional model")
    compare.add_argument("--out", help="a picture of error against evaluations, such as comparison.png")
    compare.set_defaults(run=_compare)

    fit_solver.add_to(commands)

    solvers = commands.add_parser("solvers", help="print the table of solvers")
    solvers.set_defaults(run=_solvers)

    doctor = commands.add_parser("doctor", help="print versions, devices, threads and what is not installed")
    doctor.set_defaults(run=_doctor)
    return parser


def _demo(args: argparse.Namespace) -> None:
    import torch

    from .demo import demo

    torch.set_num_threads(1)  # networks this small gain little from a second thread, and lose much where cores are busy
    demo(args.out, seed=args.seed, scale=args.scale)


def _sample(args: argparse.Namespace) -> None:
    import torch

    from ..core.team import team
    from ..storage.models import load

    if not args.to and not args.out.endswith((".png", ".npy")):
        raise InvalidInputError(f"--out {args.out}: expected a name ending in .png (a picture) or .npy (the numbers)")
    model = load(args.model, device=args.device)
    processes = team(torch.device("cpu"))
    if args.to:
        _sample_files(args, model, processes)
    else:
        _check_out(args.out, model.event_shape)
        _sample_file(args, model, processes)


def _how(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("solver", "steps", "rtol", "atol", "eta", "seed")}


def _sample_files(args: argparse.Namespace, model: Any, processes: Any) -> None:
    """A folder of files, shared by the processes of torchrun."""
    import torch

    from ..inference.files import sample_files

    labels = None if args.label is None else lambda index: {"label": torch.full_like(index, args.label)}
    size = args.batch_size or 64
    written = sample_files(model, args.to, args.n, kind=args.kind, batch_size=size, labels=labels, **_how(args))
    found = processes.to_leader((len(written.made), len(written.kept)))
    if processes.leads:
        made, kept = map(sum, zip(*found))
        print(f"{args.to}: {args.n} samples in {made + kept} files, {kept} of which were there")


def _sample_file(args: argparse.Namespace, model: Any, processes: Any) -> None:
    """One file, written by the first of the processes, which share the samples."""
    import numpy as np
    import torch

    from ..inference.sampling import sample
    from ..inference.shard import shard

    index = shard(args.n, batch_size=args.batch_size)
    device = next((p.device for p in model.parameters()), None)
    cond: dict[str, Any] = {} if args.label is None else {"label": torch.full_like(index, args.label, device=device)}
    found = (0, None, "", None)
    if len(index):
        solution = sample(model, len(index), index=index, batch_size=args.batch_size, **_how(args), **cond)
        found = (solution.calls, solution.x.cpu(), str(solution.solver), solution.nfe.double().cpu())
    drawn = [part for part in processes.to_leader(found) if part[1] is not None]
    if not processes.leads:
        return
    x = torch.cat([part[1] for part in drawn])
    if args.out.endswith(".npy"):
        np.save(args.out, x.numpy())
    else:
        from .. import plot

        plot.save(plot.image_grid(x) if x.ndim >= 3 else plot.density(x), args.out)
    print(f"{args.out}: {len(x)} samples of shape {tuple(x.shape[1:])}")
    print(
        f"{drawn[0][2]}; {torch.cat([part[3] for part in drawn]).mean():.1f} evaluations a sample, "
        f"{sum(part[0] for part in drawn)} network calls, seed {args.seed}"
    )


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


def _compare(args: argparse.Namespace) -> None:
    import torch

    from ..inference.compare import SOLVERS, compare
    from ..storage.models import load

    model = load(args.model)
    cond: dict[str, Any] = {} if args.label is None else {"label": torch.full((args.n,), args.label)}
    names = args.solvers or SOLVERS
    table = compare(model, args.n, solvers=names, steps=args.steps, tolerances=args.tolerances, seed=args.seed, **cond)
    print(table)
    if args.out:
        from .. import plot

        plot.save(plot.work_precision(table), args.out)


def _solvers(args: argparse.Namespace) -> None:
    from ..solvers import solvers

    print(solvers())


_OPTIONAL = {
    "scikit-learn": "the digits of the demo: pip install 'sdegen[data]'",
    "pillow": "GIFs and folders of images: pip install 'sdegen[data]'",
    "diffusers": "from_diffusers: pip install 'sdegen[interop]'",
    "tensorboard": "TensorBoard logs: pip install 'sdegen[train]'",
}


def _doctor(args: argparse.Namespace) -> None:
    import torch

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    print(f"sdegen {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    needed = ("torch", "numpy", "scipy", "matplotlib", "torchdiffeq", "torchsde", "safetensors", "tqdm", "filelock")
    for name in needed:
        print(f"  {name:12s} {version(name) or 'MISSING: pip install ' + name}")
    for name, what in _OPTIONAL.items():
        print(f"  {name:12s} {version(name) or 'not installed (optional; ' + what + ')'}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            print(f"  cuda:{i}       {p.name}, {p.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()}")
    else:
        print("  devices      cpu only (no CUDA device found)")
    print(f"  threads      torch {torch.get_num_threads()} of {os.cpu_count()} cores")


if __name__ == "__main__":
    sys.exit(main())
