"""Error against evaluations for many solvers on one model, from the same noise.

python examples/compare_solvers.py                            # an exact score, a ring of Gaussians
python examples/compare_solvers.py --model digits_run --n 64  # what fit or save wrote
"""

from __future__ import annotations

import argparse

import torch

import sdegen as sg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint or a run folder; default an exact score")
    parser.add_argument("--solvers", nargs="+", default=["adams", "ddim", "dpm++2m", "unipc3", "heun", "dopri5"])
    parser.add_argument("--n", type=int, default=256, help="samples")
    parser.add_argument("--label", type=int, help="class of all samples, for a conditional model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="work_precision.png")
    parser.add_argument("--smoke", action="store_true", help="few solvers and budgets, to see that it runs")
    args = parser.parse_args()

    model = sg.load(args.model) if args.model else sg.MixtureModel(sg.data.toys.ring(8), sg.VPSDE())
    n = min(args.n, 16) if args.smoke else args.n
    cond = {} if args.label is None else {"label": torch.full((n,), args.label)}
    table = sg.compare(
        model,
        n,
        solvers=args.solvers[:2] if args.smoke else args.solvers,
        steps=(5, 10) if args.smoke else (5, 8, 10, 15, 20, 30, 50, 100),
        tolerances=(1e-2,) if args.smoke else (1e-1, 1e-2, 1e-3, 1e-4),
        seed=args.seed,
        **cond,
    )
    print(table)
    sg.plot.save(sg.plot.work_precision(table), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
