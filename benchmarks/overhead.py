"""Loop overhead: microseconds that a solver adds to each network call, with a network that does nothing.

Two runs that differ in their number of steps are timed in turns, and the difference of the least CPU times is divided by
the difference in calls, so what a call of `sample` costs once is not counted. One thread. The first line is a single
operation, what all others are made of. "steps=" and "rtol=" are `sample` with a Denoiser whose network is the identity;
under error control every sample has its own time, so that the coefficients of process and parametrisation are vectors,
computed at every call. "loop alone" is `solve` of a term whose drift is x.

    python benchmarks/overhead.py [--repeats 30]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from report import table, write

import sdegen as sg

SHAPES = ((4096, 2), (16, 3, 32, 32))
FIXED = ("euler", "ddim", "heun", "dpm++2m", "dpm++3m", "unipc3", "deis3", "adams", "ancestral", "dpm++2m-sde", "sra1")
TOLERANT = ("adams", "dopri5", "bosh3")


class Growth(sg.Term):
    """dx/dt = x: a right-hand side that costs nothing and keeps an error control busy."""

    def drift(self, x, t):
        return x


class Nothing(torch.nn.Module):
    def forward(self, x, t):
        return x


def per_call(run: Callable[[int], int], few: int, many: int, repeats: int) -> float:
    """Microseconds of CPU time for each call that `run(many)` makes beyond `run(few)`."""
    calls = run(many) - run(few)
    costs = []
    for _ in range(repeats):
        start = time.process_time()
        run(few)
        middle = time.process_time()
        run(many)
        costs.append((middle - start, time.process_time() - middle))
    few_cost, many_cost = (
        min(column) for column in zip(*costs, strict=True)
    )  # others may slow us down, never speed up
    return 1e6 * (many_cost - few_cost) / calls


def single(shape: tuple[int, ...], repeats: int) -> float:
    """One torch.add of two states."""
    x, y = torch.zeros(shape), torch.ones(shape)

    def run(n: int) -> int:
        for _ in range(n):
            torch.add(x, y)
        return n

    return per_call(run, 20, 1020, repeats)


def fixed(name: str, shape: tuple[int, ...], repeats: int) -> float:
    model = sg.Denoiser(Nothing(), sg.VPSDE(), parametrization="noise")
    return per_call(lambda n: sg.sample(model, shape, solver=name, steps=n, seed=0).calls, 20, 120, repeats)


def tolerant(name: str, shape: tuple[int, ...], repeats: int) -> float:
    """Whole solves of n chunks."""
    model = sg.Denoiser(Nothing(), sg.VPSDE(), parametrization="x0")

    def run(n: int) -> int:
        return sg.sample(model, (n * shape[0], *shape[1:]), solver=name, rtol=1e-5, seed=0, batch_size=shape[0]).calls

    return per_call(run, 1, 4, repeats)


def alone(name: str, shape: tuple[int, ...], repeats: int) -> float:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5

    def run(n: int) -> int:
        return sg.solve(Growth(), x, solver=name, rtol=1e-3, t_span=(0.0, float(n))).calls

    return per_call(run, 5, 25, repeats)


def peers(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """The loops of diffusers' schedulers, where it is installed."""
    try:
        import diffusers
    except ImportError:
        return {}
    found = {}
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"):

        def run(n: int, name: str = name) -> int:
            scheduler = getattr(diffusers, name)(num_train_timesteps=1000)
            scheduler.set_timesteps(n)
            x = torch.randn(shape)
            for t in scheduler.timesteps:
                x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
            return n

        found[f"diffusers {name}"] = per_call(run, 20, 120, repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = {"one torch.add": [single(s, repeats) for s in SHAPES]}
    rows |= {f"{n}, steps=": [fixed(n, s, repeats) for s in SHAPES] for n in FIXED}
    rows |= {f"{n}, rtol=": [tolerant(n, s, repeats) for s in SHAPES] for n in TOLERANT}
    rows |= {f"{n}, rtol=, loop alone": [alone(n, s, repeats) for s in SHAPES] for n in TOLERANT}
    by_shape = [peers(s, repeats) for s in SHAPES]
    rows |= {n: [found[n] for found in by_shape] for n in by_shape[0]}
    cells = [[name, *(f"{c:.0f}" for c in costs)] for name, costs in rows.items()]
    print(table(["microseconds per network call", *map(str, SHAPES)], cells))
    about = "Microseconds that a solver adds to each network call, the network being the identity; least CPU times."
    write("overhead", "Overhead of the loop", about)


if __name__ == "__main__":
    main()
