"""Error against evaluations of the flow's solvers, beside the peers: tolerances, what they mean, and fixed budgets.

Random Gaussian mixtures with exact scores in 2, 16 and 64 dimensions, along VP and along Karras' range; float64; the
state at t_min, no final denoising. The error is that of the end-point against the same flow solved to 1e-11, root mean
square over samples and coordinates, in units of the data's standard deviation; evaluations are the mean over samples.

    python benchmarks/solvers.py                   # 18 problems, about 35 minutes
    python benchmarks/solvers.py --instances 1     # six of them
    python benchmarks/solvers.py --quick           # two in two dimensions, about a minute

torchode and azula take part where they are installed. One thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import peers
import torch
from problems import Problem, problems
from report import figure, table, write
from torch import Tensor

import sdegen as sg

ERRORS = (1e-2, 1e-3, 1e-4, 1e-6)
TOLERANCES = [10 ** (-k / 2) for k in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)]
CALIBRATED = [10.0**-k for k in range(2, 8)]
BUDGETS = (5, 8, 10, 20, 50, 100)
LADDER = (5, 8, 10, 14, 20, 28, 50, 100, 140, 200, 280)
# settings of the peers that go on beyond so many evaluations: the best there
SURVIVORS = {20: 30, 50: 12, 100: 8, 140: 6}
MOST = 500  # evaluations, after which a peer's ladder of tolerances ends

OURS, UNKNOWING, KNOWING = "adams", "adams, data unknown", "adams, covariance known"
LEAPING, PILOT = "adams, Gaussian start", "adams, a pilot's grid"
GOALS = {  # median, worst
    "adaptive": {e: (0.36, 0.55) for e in ERRORS},
    "tuned": dict(zip(ERRORS, ((1.0, None), (0.7, None), (0.5, None), (0.25, None)), strict=True)),
    "auto": dict(zip(BUDGETS, (1.0, 0.85, 1.2, 0.7, 0.15, 0.03), strict=True)),
    "leaping": dict(zip(BUDGETS, (0.75, 0.6, 0.7, 0.4, 0.05, 0.01), strict=True)),
}


@dataclass(frozen=True)
class Point:
    """One run: evaluations a sample, error, and the 90th percentile over samples of error/(atol + rtol std)."""

    nfe: float
    error: float
    tail: float = math.nan
    tol: float = math.nan


@dataclass
class Measured:
    """All runs on one problem."""

    problem: Problem
    exact: Tensor
    controlled: dict[str, list[Point]] = field(default_factory=dict)  # by tolerance
    alone: dict[str, list[Point]] = field(default_factory=dict)  # adams with rtol alone, with atol alone
    budgets: dict[str, dict[int, float]] = field(default_factory=dict)  # sdegen's, by steps
    grids: dict[str, dict[int, float]] = field(default_factory=dict)  # the peers'

    def error(self, x: Tensor) -> Tensor:
        """Root mean square over the event, in units of the data's std, (B,)."""
        error = (x - self.exact).square().mean(1).sqrt() / self.problem.std
        return error.nan_to_num(math.inf)

    def point(self, x: Tensor, nfe: float, rtol: float, atol: float, tol: float) -> Point:
        error, allowed = self.error(x), atol / self.problem.std + rtol
        tail = float(torch.quantile(error, 0.9)) / allowed
        return Point(float(nfe), float(error.square().mean().sqrt()), tail, tol)

    def best(self, n: int) -> tuple[float, str]:
        """The smallest error of all of the peers' settings at so many evaluations, and whose it is."""
        return min((errors[n], name) for name, errors in self.grids.items() if n in errors)


def sampled(model: sg.ScoreModel, x: Tensor, **how) -> sg.Solution:
    """From t_max to t_min, no final denoising."""
    return sg.sample(model, x.shape, x_init=x, t_span=(model.sde.t_max, model.sde.t_min), **how)


def unknowing(model: sg.MixtureModel) -> sg.MixtureModel:
    """The same belief, its data's mean and spread unknown to the solvers."""
    other = sg.MixtureModel(model.mixture, model.sde)
    other.set_statistics(None, None)
    other.data_covariance = other.data_turn = None
    return other


def knowing(model: sg.MixtureModel) -> sg.MixtureModel:
    """The same belief, its data's covariance known, too."""
    return sg.MixtureModel(model.mixture, model.sde)


# ---- measuring


def measure(problem: Problem, tolerances: list[float], ladder: Iterable[int]) -> Measured:
    m = Measured(problem, problem.reference())
    leap = sg.make_solver("adams", start="gaussian", covariance=problem.model.mixture.covariance)
    variants = {
        OURS: (problem.model, "adams"),
        UNKNOWING: (unknowing(problem.model), "adams"),
        KNOWING: (knowing(problem.model), "adams"),
        LEAPING: (knowing(problem.model), leap),
    }
    for name, (model, solver) in variants.items():
        m.controlled[name] = [tolerant(m, model, solver, tol, tol, tol * problem.std) for tol in tolerances]
    for name, rtol, atol in (("rtol alone", 1.0, 1.0), ("atol alone", 0.0, problem.std)):
        m.alone[name] = [tolerant(m, problem.model, "adams", tol, rtol * tol, atol * tol) for tol in CALIBRATED]
    for name, run in peers.adaptive().items():
        m.controlled[name] = []
        for tol in tolerances:
            x, nfe = run(problem, tol, tol * problem.std)
            m.controlled[name].append(m.point(x, nfe, tol, tol * problem.std, tol))
            if nfe > MOST or (m.controlled[name][-1].error < min(ERRORS) and tol < 1.01 * CALIBRATED[-1]):
                break
    for name, solver in (("auto", "auto"), (LEAPING, leap), (PILOT, "adams")):
        m.budgets[name] = {n: budget(m, solver, n, pilot=name == PILOT) for n in ladder if n <= 100}
    tuned(m, ladder)
    return m


def tolerant(m: Measured, model: sg.ScoreModel, solver, tol: float, rtol: float, atol: float) -> Point:
    solution = sampled(model, m.problem.x, solver=solver, rtol=rtol, atol=atol)
    return m.point(solution.x, float(solution.nfe.double().mean()), rtol, atol, tol)


def budget(m: Measured, solver, n: int, pilot: bool = False) -> float:
    if pilot:
        model, sde = m.problem.model, m.problem.model.sde
        times = sg.grid(model, n, kind="pilot", t_span=(sde.t_max, sde.t_min))
        solution = sg.sample(model, m.problem.x.shape, x_init=m.problem.x, solver=solver, steps=times)
    else:
        solution = sampled(m.problem.model, m.problem.x, solver=solver, steps=n)
    if int(solution.nfe.max()) > n:
        raise RuntimeError(f"{solver}: {int(solution.nfe.max())} evaluations for steps={n}")
    return float(m.error(solution.x).square().mean().sqrt())


def tuned(m: Measured, ladder: Iterable[int]) -> None:
    """Every published sampler on every kind of grid, then the best of them on."""
    going = {f"{name}, {kind}": (run, kind) for name, run in peers.fixed().items() for kind in peers.KINDS}
    m.grids = {name: {} for name in going}
    for n in ladder:
        for name, (run, kind) in going.items():
            error = m.error(run(m.problem, kind, n))
            m.grids[name][n] = float(error.square().mean().sqrt())
        if n >= 100 and m.best(n)[0] < min(ERRORS):
            break
        if n in SURVIVORS:
            order = sorted(going, key=lambda name: m.grids[name][n])
            going = {name: going[name] for name in order[: SURVIVORS[n]]}


# ---- reading


def reach(points: Iterable[tuple[float, float]], error: float) -> float:
    """Evaluations at which a line of (evaluations, error) comes down to an error, straight in logarithms between its
    points; infinity where it never does."""
    before = None
    for nfe, e in sorted(points):
        if e <= error:
            if before is None:
                return nfe
            least, high = before
            return least * (nfe / least) ** (math.log(high / error) / math.log(high / e))
        if before is None or e < before[1]:
            before = (nfe, e)
    return math.inf


def needed(m: Measured, name: str, error: float) -> float:
    return reach(((p.nfe, p.error) for p in m.controlled[name]), error)


def tuned_needed(m: Measured, error: float) -> float:
    return reach(((n, m.best(n)[0]) for n in sorted({n for e in m.grids.values() for n in e})), error)


def adaptive_peers(m: Measured) -> list[str]:
    return [name for name in m.controlled if name not in (OURS, UNKNOWING, KNOWING, LEAPING)]


def spread(values: list[float], form: str = "{:.2g}") -> str:
    """median (worst)"""
    shown = (form.format(v) if math.isfinite(v) else "-" for v in (statistics.median(values), max(values)))
    return "{} ({})".format(*shown)


def judged(values: list[float], goal: tuple[float, float | None]) -> str:
    met = statistics.median(values) <= goal[0] and (goal[1] is None or max(values) <= goal[1])
    asked = f"{goal[0]:g}" + ("" if goal[1] is None else f" ({goal[1]:g})")
    return f"{spread(values)}; wanted {asked}{'' if met else ' MISSED'}"


def tolerances_report(ms: list[Measured]) -> str:
    names = [*ms[0].controlled]
    head = ["evaluations for an error of", *(f"{e:g}" for e in ERRORS)]
    rows = [[name, *(spread([needed(m, name, e) for m in ms], "{:.0f}") for e in ERRORS)] for name in names]
    rows.append(["best published grid, tuned", *(spread([tuned_needed(m, e) for m in ms], "{:.0f}") for e in ERRORS)])
    text = table(head, rows)

    def ratios(name: str, e: float, other) -> list[float]:
        return [needed(m, name, e) / other(m, e) for m in ms]

    def adaptive(m: Measured, e: float) -> float:
        return min(needed(m, name, e) for name in adaptive_peers(m))

    def published(m: Measured, e: float) -> float:  # one that never comes so far counts as if it did at last
        return min(tuned_needed(m, e), LADDER[-1])

    def own(m: Measured, e: float) -> float:
        return needed(m, OURS, e)

    rows = [
        ["adams / best adaptive peer", *(judged(ratios(OURS, e, adaptive), GOALS["adaptive"][e]) for e in ERRORS)],
        ["adams / best published grid", *(judged(ratios(OURS, e, published), GOALS["tuned"][e]) for e in ERRORS)],
        ["data unknown / adams", *(judged(ratios(UNKNOWING, e, own), (1.3, None)) for e in ERRORS)],
        ["covariance known / adams", *(spread(ratios(KNOWING, e, own), "{:.2g}") for e in ERRORS)],
        ["Gaussian start / adams", *(judged(ratios(LEAPING, e, own), (1.0, None)) for e in ERRORS)],
    ]
    return text + "\n" + table(["ratio", *(f"{e:g}" for e in ERRORS)], rows)


def calibration_report(ms: list[Measured]) -> str:
    head = ["90th percentile of error/(atol + rtol std)", "least", "median", "most", "within [0.3, 2.5]"]

    def line(name: str, points: list[Point]) -> list[str]:
        tails = [p.tail for p in points if any(math.isclose(p.tol, tol) for tol in CALIBRATED)]
        good = sum(0.3 <= tail <= 2.5 for tail in tails)
        shown = (f"{v:.2f}" for v in (min(tails), statistics.median(tails), max(tails)))
        return [name, *shown, f"{good} of {len(tails)}"]

    rows = [line(f"adams, {name}", [p for m in ms for p in m.alone[name]]) for name in ms[0].alone]
    rows += [line(name, [p for m in ms for p in m.controlled[name]]) for name in ms[0].controlled]
    return table(head, rows)


def outliers(ms: list[Measured]) -> str:
    """The runs of adams, its model's statistics known, whose tails leave [0.3, 2.5]."""
    found = []
    for m in ms:
        lines = {"adams": m.controlled[OURS], LEAPING: m.controlled[LEAPING], **m.alone}
        found += [
            f"{m.problem.name}, {name}, tolerance {p.tol:g}: {p.tail:.2f}"
            for name, points in lines.items()
            for p in points
            if any(math.isclose(p.tol, tol) for tol in CALIBRATED) and not 0.3 <= p.tail <= 2.5
        ]
    return "\n".join(found) + "\n"


def budgets_report(ms: list[Measured]) -> str:
    head = ["error / best of the peers' settings", *(str(n) for n in BUDGETS)]
    rows = [
        [label, *(judged([m.budgets[name][n] / m.best(n)[0] for m in ms], (GOALS[key][n], None)) for n in BUDGETS)]
        for label, name, key in (("auto", "auto", "auto"), ("Gaussian start", LEAPING, "leaping"))
    ]
    rows.append([PILOT, *(spread([m.budgets[PILOT][n] / m.best(n)[0] for m in ms]) for n in BUDGETS)])
    errors = {
        "best of the peers": lambda m, n: m.best(n)[0],
        "auto": lambda m, n: m.budgets["auto"][n],
        LEAPING: lambda m, n: m.budgets[LEAPING][n],
        PILOT: lambda m, n: m.budgets[PILOT][n],
    }
    absolute = [[name, *(spread([f(m, n) for m in ms], "{:.1e}") for n in BUDGETS)] for name, f in errors.items()]
    winners = {n: statistics.mode(m.best(n)[1] for m in ms) for n in BUDGETS}
    absolute.append(["the peer that is best most often", *winners.values()])
    return table(head, rows) + "\n" + table(["error", *head[1:]], absolute)


def draw(ms: list[Measured]) -> None:
    """Lines of the first problem and of the last."""
    for m in dict.fromkeys((0, len(ms) - 1)):
        one = ms[m]
        lines = {
            "adams, rtol": [(p.nfe, p.error) for p in one.controlled[OURS]],
            "the same, Gaussian start": [(p.nfe, p.error) for p in one.controlled[LEAPING]],
            "auto, steps": [*one.budgets["auto"].items()],
            "best published sampler and grid": [
                (n, one.best(n)[0]) for n in LADDER if any(n in e for e in one.grids.values())
            ],
            "scipy RK45": [(p.nfe, p.error) for p in one.controlled["scipy RK45"]],
            "k-diffusion DPM-23": [(p.nfe, p.error) for p in one.controlled["k-diffusion DPM-23"]],
        }
        seen = {name: [(n, e) for n, e in line if e > 1e-8 and n < 1000] for name, line in lines.items()}
        figure(one.problem.name.rsplit(" ", 1)[0], seen, "error, in standard deviations of the data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two problems in two dimensions, in about a minute")
    parser.add_argument("--instances", type=int, default=3, help="problems of each dimension and process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = problems(1, dims=(2,), batch=64) if options.quick else problems(options.instances)
    ms, begun = [], time.perf_counter()
    with torch.no_grad():
        for problem in chosen:
            ms.append(measure(problem, TOLERANCES, LADDER))
            print(f"{problem.name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    print(f"{len(ms)} problems; median (worst) over them\n")
    for report in (tolerances_report, calibration_report, outliers, budgets_report):
        print(report(ms))
    absent = [library for library in ("torchode", "azula") if not peers.installed(library)]
    print(f"not installed: {', '.join(absent) or 'none'}; {time.perf_counter() - begun:.0f} s")
    about = "Medians over the problems, in brackets the worst; evaluations are means over samples."
    draw(ms)
    if not options.quick:
        write("solvers", f"Solvers on exact scores: {len(ms)} problems", about)


if __name__ == "__main__":
    main()
