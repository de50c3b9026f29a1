"""sdegen fit-solver fashion --steps 5 8 10

The solver is kept with the model, and `auto` takes it where steps agree.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ... import storage
from ...core.table import table
from ...inference.fit_solver import fit_solver
from ..options import add_model, label_of, labels
from ..saved import saved_model
from ..told import Told

FOLDER = "fitted"  # in a run's folder, where the model goes with its solver


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 8, 10], help="evaluations (default: 5 8 10)")
    parser.add_argument("--samples", type=int, default=64, help="flows to learn from (default: 64)")
    parser.add_argument("--bands", type=int, default=1, help="frequencies with weights of their own (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="decides all random numbers (default: %(default)s)")
    parser.add_argument("--label", help="class of all samples, its name or number (default: the classes in turn)")
    parser.add_argument(
        "--out", help=f"where the model goes with its solver (default: its own folder, of a run {FOLDER} inside of it)"
    )


def run(args: argparse.Namespace) -> Told:
    """Fit, tell how it compares, and write."""
    model = saved_model(args.model, args.device)
    device = next(model.parameters()).device
    place = Path(args.model)
    out = Path(args.out) if args.out else (place if (place / storage.MANIFEST).exists() else place / FOLDER)
    cond = labels(torch.arange(args.samples), label_of(args.label, model), model, device)
    fitted = fit_solver(model, steps=args.steps, samples=args.samples, bands=args.bands, seed=args.seed, **cond)
    storage.save(model, out)
    rows = [
        (str(n), f"{fit.error:.2e}", f"{fit.unfitted:.2e}", f"{fit.evaluations}", "yes" if fit.better else "no")
        for n, fit in fitted.fits.items()
    ]
    said = table(("steps", "error", "without it", "evaluations it took", "kept"), rows)
    where = f"{out}: errors in standard deviations of the data, on samples held out; `sdegen sample {out} --steps ...`"
    values = {
        str(n): {"error": fit.error, "unfitted": fit.unfitted, "kept": fit.better} for n, fit in fitted.fits.items()
    }
    return Told(f"{said}\n{where}", {"out": str(out), "fits": values})
