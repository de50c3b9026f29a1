"""sdegen compare fashion --solvers adams ddim unipc3 --steps 5 10 20 --out comparison.png"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from ...inference.compare import SOLVERS, compare
from ..options import add_model, count, label_of, labels
from ..saved import saved_model
from ..told import Told


def arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--solvers", nargs="+", help=f"names (default: {' '.join(SOLVERS)})")
    parser.add_argument("--steps", nargs="*", type=int, default=[5, 10, 20, 50], help="numbers of steps to try")
    parser.add_argument("--tolerances", nargs="*", type=float, default=[1e-1, 1e-2, 1e-3], help="rtol to try")
    parser.add_argument("--n", type=count, default=64, help="how many samples (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="decides all random numbers (default: %(default)s)")
    parser.add_argument("--label", help="class of all samples, its name or number (default: the classes in turn)")
    parser.add_argument("--out", help="a picture of error against evaluations, such as comparison.png")


def run(args: argparse.Namespace) -> Told:
    """The table, with a recommendation."""
    model = saved_model(args.model, args.device)
    device = next(model.parameters()).device
    cond = labels(torch.arange(args.n), label_of(args.label, model), model, device)
    names = args.solvers or SOLVERS
    table = compare(model, args.n, solvers=names, steps=args.steps, tolerances=args.tolerances, seed=args.seed, **cond)
    if args.out:
        from ... import plot

        plot.save(plot.work_precision(table), args.out)
    return Told(str(table), {"rows": [asdict(row) for row in table], "recommendation": table.recommendation()})
