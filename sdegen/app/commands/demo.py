"""sdegen demo --out demo_output"""

from __future__ import annotations

import argparse

from ..told import Told


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="demo_output", help="folder for pictures and summary.json (default: demo_output)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides all random numbers (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the training steps (default: 1)")


def run(args: argparse.Namespace) -> Told:
    """The demonstration; it prints what it makes."""
    import torch

    from ..demo import demo

    torch.set_num_threads(1)  # networks this small gain little from a second thread, and lose much where cores are busy
    return Told("", demo(args.out, seed=args.seed, scale=args.scale))
