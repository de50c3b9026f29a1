"""Solvers of the flow on a learned score: error against evaluations, tolerances and budgets, beside the peers.

The model is the small U-Net of Fashion-MNIST of the package (VP, float32), its classes in turn. All
solvers start from the same noise, see the same network and end at t_min, no final denoising. The error is that of the
end-point against the same flow solved to a tight tolerance, root mean square over samples and pixels, in units of the
data's standard deviation; evaluations are the mean over samples.

diffusers' schedulers (DPM-Solver++ 2M and 3M, UniPC 2 and 3, with their own defaults for the last steps) are the
library's own code, where it is installed, on times of four kinds: uniform in t is the one that they take by themselves,
Karras' and lambda are options of theirs, the fourth is the one that "auto" takes here. torchdiffeq's dopri5 runs in the
process's own time, as a user would have it, and on the circular path on which this package solves.

    python benchmarks/learned.py                 # about 10 minutes
    python benchmarks/learned.py --choices --n 8   # Adams' orders and grids alone
    python benchmarks/learned.py --frechet         # distances to held-out images instead, which must be on this machine
    python benchmarks/learned.py --quick           # a minute
    python benchmarks/learned.py --model RUN       # another network, from train_images.py --data digits, say
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import figure, table, write
from solvers import reach
from torch import Tensor

import sdegen as sg

CHECKPOINT = Path("fashion")  # comes with the package
BUDGETS = (5, 8, 10, 15, 20, 30, 50)
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
ERRORS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
KINDS = {"uniform": "t", "karras": "Karras", "lambda": "lambda", "blend": "blend"}
ORDERS = (1, 2, 3, 4)  # past values of a predictor; its corrector has one more
REFERENCE, CHECK = 1e-6, 1e-8  # tolerances of adams, and of dopri5 beside it

Sampler = Callable[..., Tensor]  # (x, times, **conditions) -> the state at the last time


@dataclass(frozen=True)
class Row:
    """One run; what `sg.plot.work_precision` draws."""

    solver: str
    setting: str
    nfe: float
    error: float
    typical: float = math.nan  # the median over samples


@dataclass
class Task:
    """A model, the noise to begin with and where the flow ends."""

    model: sg.ScoreModel
    x: Tensor  # (B, C, H, W) at t_max, float64
    label: Tensor
    exact: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def span(self) -> tuple[float, float]:
        """Of times."""
        return self.model.sde.t_max, self.model.sde.t_min

    def sampled(self, **how: Any) -> sg.Solution:
        words = {"x_init": self.x, "label": self.label, "t_span": self.span, "dtype": torch.float64}
        if how.get("steps") is not None and not isinstance(how["steps"], int):
            del words["t_span"]
        return sg.sample(self.model, self.x.shape, progress=False, **{**words, **how})

    def in_own_time(self, solver: str, tol: float) -> sg.Solution:
        """A solver along the probability flow as it stands, dx/dt in the process's time."""
        term = sg.ProbabilityFlow(self.model, label=self.label)
        s = self.model.sigma_data
        return sg.solve(term, self.x, solver=solver, t_span=self.span, rtol=tol, atol=tol * s)

    def row(self, solver: str, setting: str, nfe: float, x: Tensor) -> Row:
        squares = (x.double() - self.exact).square().flatten(1).mean(1) / self.model.sigma_data**2
        return Row(solver, setting, nfe, float(squares.mean().sqrt()), float(squares.median().sqrt()))

    def grid(self, n: int, kind: str) -> Tensor:
        return sg.grid(self.model, n, kind=kind, t_span=self.span)


def task(checkpoint: Path, n: int, seed: int) -> Task:
    """A model of ten classes, in turn."""
    model = sg.load(checkpoint)
    x = model.sde.prior((n, *(model.event_shape or ())), seed=seed, dtype=torch.float64)
    return Task(model, x, torch.arange(n) % 10)


def evaluations(solution: sg.Solution) -> float:
    return float(solution.nfe.double().mean())


# ---- the peers


def schedulers() -> dict[str, Callable[[], Any]]:
    """diffusers' schedulers by name, each to be made anew for every run."""
    if importlib.util.find_spec("diffusers") is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    words: dict[str, Any] = {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}
    return {
        "DPM-Solver++ 2M": lambda: DPMSolverMultistepScheduler(solver_order=2, **words),
        "DPM-Solver++ 3M": lambda: DPMSolverMultistepScheduler(solver_order=3, **words),
        "UniPC 2": lambda: UniPCMultistepScheduler(solver_order=2, **words),
        "UniPC 3": lambda: UniPCMultistepScheduler(solver_order=3, **words),
    }


def scheduled(make: Callable[[], Any], model: sg.ScoreModel) -> Sampler:
    """A scheduler driving the model, which is told every node's own time and not the nearest of a table.

    These schedulers take states of variance preserving processes, alpha^2 + sigma^2 = 1, and find alpha and sigma from
    their ratio: whatever the process, they are given x/sqrt(alpha^2 + sigma^2).
    """

    def run(x: Tensor, ts: Tensor, **cond: Tensor) -> Tensor:
        n, scheduler = len(ts) - 1, make()
        alpha, sigma = model.sde.alpha(ts), model.sde.sigma(ts)
        size = (alpha**2 + sigma**2).sqrt().to(x)
        scheduler.set_timesteps(n)
        scheduler.sigmas, scheduler.timesteps = sigma / alpha, torch.arange(n)
        scheduler._step_index = scheduler._begin_index = 0
        x = x / size[0]
        for k in range(n):
            x0 = model(x * size[k], ts[k], **cond).x0
            x = scheduler.step(x0, k, x, return_dict=False)[0]
        return x * size[n]

    return run


# ---- measuring


def reference(task: Task) -> str:
    """Solve the flow tightly, and again by another method; says how far apart the two are."""
    solution = task.sampled(rtol=REFERENCE, atol=REFERENCE * task.model.sigma_data)
    task.exact = solution.x
    other = task.in_own_time("torchdiffeq:dopri5", CHECK)
    apart = task.row("", "", evaluations(other), other.x)
    return (
        f"reference: adams at {REFERENCE:g}, {evaluations(solution):.0f} evaluations; torchdiffeq's dopri5 at {CHECK:g}, "
        f"{evaluations(other):.0f}, is {apart.error:.1e} away (the median sample {apart.typical:.1e})"
    )


def by_tolerance(task: Task, tolerances: Iterable[float]) -> list[Row]:
    s, rows = task.model.sigma_data, []
    runs: dict[str, Callable[[float], sg.Solution]] = {
        "adams": lambda tol: task.sampled(solver="adams", rtol=tol, atol=tol * s),
        "torchdiffeq dopri5": lambda tol: task.in_own_time("torchdiffeq:dopri5", tol),
        "the same, circular path": lambda tol: task.sampled(solver="torchdiffeq:dopri5", rtol=tol, atol=tol * s),
    }
    for name, run in runs.items():
        for tol in tolerances:
            solution = run(tol)
            rows.append(task.row(name, f"rtol={tol:g}", evaluations(solution), solution.x))
    return rows


def by_budget(task: Task, budgets: Iterable[int]) -> list[Row]:
    """What a number of evaluations buys: "auto", DDIM and the schedulers on every kind of grid."""
    rows = []
    for n in budgets:
        own: dict[str, dict[str, Any]] = {
            "auto": {"steps": n},
            "adams, Gaussian start": {"solver": sg.make_solver("adams", start="gaussian"), "steps": n},
            "DDIM": {"solver": "ddim", "steps": task.grid(n, "uniform")},
        }
        rows += [task.row(name, f"{n} steps", n, task.sampled(**how).x) for name, how in own.items()]
        for name, make in schedulers().items():
            for kind, words in KINDS.items():
                x = scheduled(make, task.model)(task.x, task.grid(n, kind), label=task.label)
                rows.append(task.row(f"{name}, {words}", f"{n} steps", n, x))
    return rows


def choices(task: Task, budgets: Iterable[int]) -> list[Row]:
    """What "auto" could have chosen: Adams of every order on every kind of grid."""
    rows = []
    for n in budgets:
        for kind in ("blend", "sqrt-time", "lambda", "karras"):
            for k in ORDERS:
                if k < n:
                    solver = sg.make_solver("adams", order=(k, k + 1))
                    x = task.sampled(solver=solver, steps=task.grid(n, kind)).x
                    rows.append(task.row(f"{k}/{k + 1}, {kind}", f"{n} steps", n, x))
    return rows


def spread(images: sg.data.Images, n: int) -> sg.data.Images:
    """n of them, evenly from the whole set."""
    return images.only(torch.linspace(0, len(images) - 1, n).round().long())


def frechet(task: Task, budgets: Iterable[int], n: int) -> str:
    """Frechet distance of n samples to as many held-out images, in the features of the default classifier."""
    train, held_out = (sg.data.load_images("fashion-mnist", split=part) for part in ("train", "held-out"))
    every, real = spread(train, 20_000), spread(held_out, n)
    features = sg.metrics.train_classifier(every.images, every.labels)  # type: ignore[arg-type]
    known, label = features(real.images), real.labels
    x = task.model.sde.prior((n, *task.x.shape[1:]), seed=0)

    def auto(x: Tensor, ts: Tensor, label: Tensor) -> Tensor:
        how = {"x_init": x, "label": label, "t_span": task.span, "progress": False}
        return sg.sample(task.model, x.shape, steps=len(ts) - 1, **how).x

    samplers: dict[str, Sampler] = {"auto": auto}
    for name in ("DPM-Solver++ 2M", "UniPC 2"):
        if make := schedulers().get(name):
            samplers[f"{name}, t"] = scheduled(make, task.model)
    lines = []
    for name, run in samplers.items():
        found = []
        for k in budgets:
            ts = task.grid(k, "uniform")
            made = [run(a, ts, label=b) for a, b in zip(x.split(100), label.split(100), strict=True)]  # type: ignore
            found.append(f"{sg.metrics.frechet_distance(features(torch.cat(made).float()), known):.2f}")
        lines.append([name, *found])
    floor = sg.metrics.frechet_distance(features(spread(train, n).images), known)
    head = [f"Frechet distance of {n}; {n} training images: {floor:.2f}", *(str(k) for k in budgets)]
    return table(head, lines)


# ---- reading


def lines_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.solver, []).append(row)
    return found


def best(rows: Iterable[Row]) -> dict[float, Row]:
    """For every number of evaluations the row with the smallest error."""
    found: dict[float, Row] = {}
    for row in rows:
        if row.nfe not in found or row.error < found[row.nfe].error:
            found[row.nfe] = row
    return found


def needed_report(rows: Sequence[Row], peers: Sequence[Row]) -> str:
    """Evaluations for an error, straight in logarithms between runs; the peers' best grid is chosen for each error."""
    names = [name for name in lines_of(rows) if name not in lines_of(peers)]
    kept = {name: lines_of(rows)[name] for name in names}
    for name in dict.fromkeys(name.rsplit(", ", 1)[0] for name in lines_of(peers)):
        kept[f"{name}, best of {len(KINDS)} grids"] = list(
            best(r for r in peers if r.solver.rsplit(", ", 1)[0] == name).values()
        )
    lines = []
    for name, own in kept.items():
        needed = [reach(((r.nfe, r.error) for r in own), e) for e in ERRORS]
        most = max(r.nfe for r in own)
        lines.append([name, *(f"{v:.0f}" if math.isfinite(v) else f"more than {most:.0f}" for v in needed)])
    return table(["evaluations for an error of", *(f"{e:g}" for e in ERRORS)], lines)


def errors_report(rows: Iterable[Row], budgets: Iterable[int]) -> str:
    """The error, and that of the median sample."""
    lines = [
        [name, *(next((f"{r.error:.1e} ({r.typical:.1e})" for r in own if r.nfe == n), "-") for n in budgets)]
        for name, own in lines_of(rows).items()
    ]
    return table(["error after (median sample)", *(str(n) for n in budgets)], lines)


def tolerances_report(rows: Iterable[Row]) -> str:
    lines = [
        [name, *(f"{r.error / float(r.setting[5:]):.2f} ({r.nfe:.0f})" for r in own)]
        for name, own in lines_of(rows).items()
    ]
    return table(["error/tolerance (evaluations)", *(f"{tol:g}" for tol in TOLERANCES)], lines)


def choices_report(rows: Sequence[Row], auto: dict[int, float], budgets: Sequence[int]) -> str:
    """The best order for each grid, and what "auto" loses to the best of all."""
    lines = []
    for kind in dict.fromkeys(row.solver.split(", ")[1] for row in rows):
        found = best(row for row in rows if row.solver.endswith(f", {kind}"))
        lines.append([kind, *(f"{found[n].error:.1e} ({found[n].solver.split(',')[0]})" for n in budgets)])
    best_of_all = best(rows)
    lines.append(["auto", *(f"{auto[n]:.1e}" for n in budgets)])
    lines.append(["auto / best of all", *(f"{auto[n] / best_of_all[n].error:.2f}" for n in budgets)])
    return table(["adams' error, best order (values of predictor/corrector)", *(str(n) for n in budgets)], lines)


def draw(controlled: Sequence[Row], fixed: Sequence[Row]) -> None:
    """The named lines, each scheduler on the grid that it takes by itself and on its best."""
    lines = lines_of(fixed)
    chosen = [*controlled, *lines["auto"]]
    for name in schedulers():
        if "3" not in name:
            chosen += lines[f"{name}, t"]
    if schedulers():
        names = tuple(schedulers())
        rows = best(row for row in fixed if row.solver.startswith(names)).values()
        chosen += [Row("best of the schedulers and grids", r.setting, r.nfe, r.error) for r in rows]
    legend = {"adams": "adams, rtol", "auto": "auto, steps", "the same, circular path": "dopri5, circular path"}
    points = {legend.get(name, name): [(row.nfe, row.error) for row in rows] for name, rows in lines_of(chosen).items()}
    figure("Error against evaluations", points, "error, in standard deviations of the data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="a checkpoint or run folder, of ten classes")
    parser.add_argument("--n", type=int, default=32, help="samples")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--quick", action="store_true", help="few samples, budgets and tolerances: a minute")
    parser.add_argument("--choices", action="store_true", help="only what `auto` could have chosen")
    parser.add_argument("--frechet", action="store_true", help="instead of errors, Frechet distances of 1000 samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    budgets, tolerances, n = BUDGETS, TOLERANCES, options.n
    if options.choices:
        budgets = (5, 10, 20, 50)
    if options.quick:
        budgets, tolerances, n = (5, 10, 20), TOLERANCES[:3], min(n, 5)
    begun = time.process_time()
    with torch.no_grad():
        chosen = task(options.model, n, options.seed)
        if options.frechet:
            print(frechet(chosen, (5, 8, 10, 20), 1000))
            return
        print(f"{n} samples, seed {options.seed}; {reference(chosen)}\n", flush=True)
        auto = {n: chosen.row("", "", n, chosen.sampled(steps=n).x).error for n in budgets}
        print(choices_report(choices(chosen, budgets), auto, budgets), flush=True)
        if options.choices:
            return
        controlled = by_tolerance(chosen, tolerances)
        print(tolerances_report(controlled), flush=True)
        fixed = by_budget(chosen, budgets)
        peers = [row for row in fixed if row.solver.startswith(tuple(schedulers()) or ("none",))]
        print(needed_report([*controlled, *fixed], peers))
        print(errors_report(fixed, budgets), flush=True)
        draw(controlled, fixed)
    if not peers:
        print("diffusers is not installed: its schedulers are left out")
    print(f"{time.process_time() - begun:.0f} s of CPU time")
    about = f"The flow of a network trained on Fashion-MNIST, {n} samples; errors in standard deviations of the data."
    write("learned", "Solvers on a learned score", about)


if __name__ == "__main__":
    main()
