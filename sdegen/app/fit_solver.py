"""sdegen fit-solver: a solver for few evaluations, fitted to a saved model and kept with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.table import table

FOLDER = "fitted"  # in a run's folder, where the model goes with its solver


def add_to(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser("fit-solver", help="fit a solver for few evaluations to a saved model")
    parser.add_argument("model", help="a folder that sdegen.save or fit(out=...) wrote")
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 8, 10], help="evaluations (default: 5 8 10)")
    parser.add_argument("--samples", type=int, default=64, help="flows to learn from (default: 64)")
    parser.add_argument("--bands", type=int, default=1, help="frequencies with weights of their own (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=int, help="class of all samples (default: all classes in turn)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument(
        "--out", help=f"where the model goes with its solver (default: its own folder, of a run {FOLDER} inside of it)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fit, print how it compares, and write."""
    import torch

    from .. import storage
    from ..inference.fit_solver import fit_solver

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = storage.load(args.model, device=device)
    place = Path(args.model)
    out = Path(args.out) if args.out else (place if (place / storage.MANIFEST).exists() else place / FOLDER)
    cond = {}
    if "label" in (model.condition_names() or ()):
        number = torch.arange(args.samples)
        label = number % _classes(model) if args.label is None else torch.full_like(number, args.label)
        cond["label"] = label.to(device)
    elif args.label is not None:
        raise InvalidInputError(f"--label {args.label}: the model in {args.model} has no classes")
    fitted = fit_solver(model, steps=args.steps, samples=args.samples, bands=args.bands, seed=args.seed, **cond)
    storage.save(model, out)  # type: ignore[arg-type]
    rows = [
        (str(n), f"{fit.error:.2e}", f"{fit.unfitted:.2e}", f"{fit.evaluations}", "yes" if fit.better else "no")
        for n, fit in fitted.fits.items()
    ]
    print(table(("steps", "error", "without it", "evaluations it took", "kept"), rows))
    print(f"{out}: errors in standard deviations of the data, on samples held out; `sdegen sample {out} --steps ...`")


def _classes(model: Any) -> int:
    """How many classes the network knows."""
    said = getattr(model.net, "config", None) or {}
    count = said.get("n_classes") or model.about.get("n_classes")
    if not count:
        raise InvalidInputError("the model takes labels, but does not say how many there are: pass --label")
    return int(count)
