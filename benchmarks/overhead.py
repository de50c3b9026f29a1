"""Loop overhead: microseconds that a solver adds to each network call, with a network that does nothing.

Two runs that differ in their number of steps are timed in turns, and the difference of the least CPU times is divided by
the difference in calls, so what a call of `sample` costs once is not counted. That is "a call of one step", the start
drawn or given. One thread. The first line is a single
operation, what all others are made of. "steps=" and "rtol=" are `sample` with a Denoiser whose network is the identity;
under error control every sample has its own time, so that the coefficients of process and parametrisation are vectors,
computed at every call. There whole calls of `sample` count, one batch each; in "refilled" a batch takes in the samples
of three more as its places become free. "loop alone" is `solve` of a term whose drift is x; "arithmetic alone" is what
Adams' method by a tolerance computes however it is written: no bookkeeping can be saved from it.

    python benchmarks/overhead.py [--repeats 30]
    python benchmarks/overhead.py --against FOLDER    # another checkout: both in turns, and the ratio

With `--against` each of the two packages has a process, and the one is timed while the other waits, in many short bursts
that take turns: what else the machine does meanwhile befalls both.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from report import table, write

import sdegen as sg

SHAPES = ((4096, 2), (16, 3, 32, 32))
FIXED = ("euler", "ddim", "heun", "dpm++2m", "dpm++3m", "unipc3", "deis3", "adams", "ancestral", "dpm++2m-sde", "sra1")
TOLERANT = ("adams", "dopri5", "bosh3")
CALLS = ("ddim", "auto")


class Growth(sg.Term):
    """dx/dt = x: a right-hand side that costs nothing and keeps an error control busy."""

    def drift(self, x, t):
        return x


class Nothing(torch.nn.Module):
    def forward(self, x, t):
        return x


class Bursts(NamedTuple):
    """Least seconds of CPU time of a short run and of a long one, and how many calls the long one makes beyond it."""

    few: float
    many: float
    calls: int

    @property
    def cost(self) -> float:
        """Microseconds a call."""
        return 1e6 * (self.many - self.few) / self.calls

    @classmethod
    def of(cls, run: Callable[[int], int], few: int, many: int, repeats: int) -> Bursts:
        calls = run(many) - run(few)
        costs = []
        for _ in range(repeats):
            start = time.process_time()
            run(few)
            middle = time.process_time()
            run(many)
            costs.append((middle - start, time.process_time() - middle))
        return cls(*map(min, zip(*costs, strict=True)), calls)  # others may slow us down, never speed up

    @classmethod
    def least(cls, several: Sequence[Bursts]) -> Bursts:
        return cls(min(b.few for b in several), min(b.many for b in several), several[0].calls)


def single(shape: tuple[int, ...], repeats: int) -> Bursts:
    """One torch.add of two states."""
    x, y = torch.zeros(shape), torch.ones(shape)

    def run(n: int) -> int:
        for _ in range(n):
            torch.add(x, y)
        return n

    return Bursts.of(run, 20, 1020, repeats)


def fixed(name: str, shape: tuple[int, ...], repeats: int) -> Bursts:
    model = sg.Denoiser(Nothing(), sg.VPSDE(), parametrization="noise")
    return Bursts.of(lambda n: sg.sample(model, shape, solver=name, steps=n, seed=0).calls, 20, 120, repeats)


def whole(name: str, shape: tuple[int, ...], repeats: int, *, given: bool = False) -> Bursts:
    """Calls of one evaluation each: all that a call costs beside its steps."""
    model = sg.Denoiser(Nothing(), sg.VPSDE(), parametrization="noise")
    start = {"x_init": torch.zeros(shape)} if given else {}

    def run(n: int) -> int:
        return sum(sg.sample(model, shape, solver=name, steps=1, seed=seed, **start).calls for seed in range(n))

    return Bursts.of(run, 2, 22, repeats)


given = functools.partial(whole, given=True)


def tolerant(name: str, shape: tuple[int, ...], repeats: int, *, refilled: bool = False) -> Bursts:
    """Whole solves of n batches: each alone, or all through the places of one."""
    model = sg.Denoiser(Nothing(), sg.VPSDE(), parametrization="x0")

    def calls(n: int, seed: int) -> int:
        asked = (n * shape[0], *shape[1:])
        return sg.sample(model, asked, solver=name, rtol=1e-5, seed=seed, batch_size=shape[0]).calls

    run = (lambda n: calls(n, 0)) if refilled else (lambda n: sum(calls(1, seed) for seed in range(n)))
    return Bursts.of(run, 1, 4, repeats)


refilled = functools.partial(tolerant, refilled=True)


def arithmetic(shape: tuple[int, ...], repeats: int) -> Bursts:
    """What Adams' method of order 6 computes at a call in any case: the model at each sample's own time, the sums of the
    past slopes that predict, their differences, what each of these is worth, and the correction."""
    model = sg.Denoiser(Nothing(), sg.VPSDE(), parametrization="x0", data_mean=0.0, data_std=1.0)
    term = sg.ProbabilityFlow(model.on(sg.TrigSDE(1.0)))
    x, tall = torch.ones(shape), (6, shape[0], *(1,) * (len(shape) - 1))
    phi, weights = torch.ones(7, *shape), torch.full(tall, 1e-3)

    def run(n: int) -> int:
        with torch.no_grad():
            for i in range(n):
                t = torch.full((shape[0],), 1.0 + i / n / 4, dtype=torch.float64)
                y = torch.addcmul(x, phi[0], weights[0])
                for row, weight in zip(phi[1:6], weights[1:], strict=True):
                    y.addcmul_(row, weight)
                differences = [term.drift(y, t)]
                for row, weight in zip(phi[:6], weights, strict=True):
                    differences.append(torch.addcmul(differences[-1], row, weight, value=-1))
                table = torch.stack(differences)
                torch.linalg.vector_norm(table.flatten(2), dim=2)
                torch.addcmul(y, table[6], weights[5])
        return n

    return Bursts.of(run, 20, 120, repeats)


def alone(name: str, shape: tuple[int, ...], repeats: int) -> Bursts:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5

    def run(n: int) -> int:
        return sg.solve(Growth(), x, solver=name, rtol=1e-3, t_span=(0.0, float(n))).calls

    return Bursts.of(run, 5, 25, repeats)


TITLES = {
    "call": "a call of one step",
    "given": "a call of one step, from a given start",
    "steps": "steps=",
    "rtol": "rtol=",
    "refilled": "rtol=, refilled",
}
MEASURES = {"call": whole, "given": given, "steps": fixed, "rtol": tolerant, "refilled": refilled}


# ---- two packages


class Served:
    """This script in a process of its own, with the package of a checkout."""

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, __file__, "--serve"]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True)

    def bursts(self, kind: str, name: str, place: int, repeats: int) -> Bursts | None:
        """Of a solver at a shape; None: this package has no such solver."""
        print(kind, name, place, repeats, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            raise SystemExit("the process of one of the two packages ended: its message is above")
        found = json.loads(answer)
        return found and Bursts(*found)


def serve() -> None:
    """Answer lines "kind name place repeats" with bursts, or null."""
    print(sg.__file__, file=sys.stderr)
    for line in sys.stdin:
        kind, name, place, repeats = line.split()
        measure = MEASURES[kind]
        try:
            found = measure(name, SHAPES[int(place)], int(repeats))
        except ValueError:  # both packages' InvalidInputError
            found = None
        print(json.dumps(found), flush=True)


def ratio(ours: Served, theirs: Served, solver: tuple[str, str], place: int, rounds: int) -> str:
    """Our cost of a call over theirs: of the least of all bursts, and the median over the rounds."""
    mine, other = [], []
    for turn in range(rounds):
        sides = ((ours, mine), (theirs, other)) if turn % 2 else ((theirs, other), (ours, mine))
        for side, found in sides:
            bursts = side.bursts(*solver, place, 3)
            if bursts is None:
                return ""
            found.append(bursts)
    a, b = Bursts.least(mine).cost, Bursts.least(other).cost
    middle = statistics.median(x.cost / y.cost for x, y in zip(mine, other, strict=True))
    return f"{a:.1f} / {b:.1f} = {a / b:.2f} (median {middle:.2f})"


def ratios(other: Path, solvers: Sequence[str], rounds: int) -> str:
    """Our cost of a call over that of another checkout, for the solvers of these names."""
    ours, theirs = Served(Path(sg.__file__).parents[1]), Served(other)
    names = {"call": CALLS, "given": CALLS, "steps": FIXED, "rtol": TOLERANT, "refilled": TOLERANT}
    asked = [(kind, n) for kind in MEASURES for n in names[kind] if n in solvers]
    rows = []
    for kind, name in asked:
        cells = [ratio(ours, theirs, (kind, name), place, rounds) for place in range(len(SHAPES))]
        rows.append([f"{name}, {TITLES[kind]}", *cells])
    return table(["microseconds per network call, here / there", *map(str, SHAPES)], rows)


def peers(shape: tuple[int, ...], repeats: int) -> dict[str, Bursts]:
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

        found[f"diffusers {name}"] = Bursts.of(run, 20, 120, repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout of the package: print ratios")
    parser.add_argument("--solvers", nargs="+", help="with --against: only these")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    repeats = asked.repeats
    torch.set_num_threads(1)
    if asked.serve:
        serve()
        return
    if asked.against:
        print(ratios(asked.against.resolve(), asked.solvers or FIXED + TOLERANT + CALLS, repeats))
        return
    rows = {"one torch.add": [single(s, repeats) for s in SHAPES]}
    for kind in ("call", "given"):
        rows |= {f"{n}, {TITLES[kind]}": [MEASURES[kind](n, s, repeats) for s in SHAPES] for n in CALLS}
    rows |= {f"{n}, steps=": [fixed(n, s, repeats) for s in SHAPES] for n in FIXED}
    rows |= {f"{n}, rtol=": [tolerant(n, s, repeats) for s in SHAPES] for n in TOLERANT}
    rows |= {f"{n}, rtol=, refilled": [refilled(n, s, repeats) for s in SHAPES] for n in TOLERANT}
    rows["adams, rtol=, arithmetic alone"] = [arithmetic(s, repeats) for s in SHAPES]
    rows |= {f"{n}, rtol=, loop alone": [alone(n, s, repeats) for s in SHAPES] for n in TOLERANT}
    by_shape = [peers(s, repeats) for s in SHAPES]
    rows |= {n: [found[n] for found in by_shape] for n in by_shape[0]}
    cells = [[name, *(f"{b.cost:.0f}" for b in bursts)] for name, bursts in rows.items()]
    print(table(["microseconds per network call", *map(str, SHAPES)], cells))
    about = "Microseconds that a solver adds to each network call, the network being the identity; least CPU times."
    write("overhead", "Overhead of the loop", about)


if __name__ == "__main__":
    main()
