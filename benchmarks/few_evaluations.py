"""Few evaluations on trained networks: a solver fitted to the network, `auto` without it, and what others publish.

Every network is run by the fitted solver, by "auto" without it, by diffusers' four multistep schedulers on four grids
each (see learned.py) and on a grid of GITS, made here as its paper says and run by its three solvers. All start from
the same noise, which no fit has seen, and make N evaluations. The error is that of the end-point against the flow
solved tightly, root mean square over samples and numbers, in standard deviations of the data. The fitted solver and
"auto" end with the denoised sample, as `sample` does; the others end with N steps to t_min or with N - 1 and the denoising,
whichever is better, and the peer is the best of the sixteen, chosen for each number of evaluations after they were run.

The networks: the U-Net of Fashion-MNIST of the package (VP), and five that are trained here once: an MLP of handwritten
digits as 64 numbers (VP), an MLP of a ring of eight modes in the plane (EDM), a U-Net of handwritten digits as 8 x 8
images (VE), an MLP of a checkerboard (EDM) and one of six clusters in 16 dimensions (cosine, v). No constant of "auto"
or of the fit was chosen on the last two, nor on this noise.

Each has 2,048 noises, the U-Nets 256 and 32: the flow of clustered data parts, the few noises where it does carry the
mean square, and of 256 two carried six sevenths of that of "auto" on the clusters.

Of digits there is also the Frechet distance, in the features of a classifier, to the end-points of the same noise, and
beside it the one between two halves of those end-points.

    python benchmarks/few_evaluations.py                  # 10 minutes of one core; writes results/few_evaluations.json
    python benchmarks/few_evaluations.py --only ring      # one of them, kept in build/ for a run of all
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from learned import CHECKPOINT, KINDS, scheduled, schedulers
from report import table, write
from torch import Tensor

import sdegen as sg

BUDGETS = (5, 8, 10, 15, 20)
ASKED = {5: (0.5, 0.7), 8: (0.35, 0.55), 10: (0.35, 0.55), 15: (0.4, 0.6), 20: (0.4, 0.6)}
OF_AUTO = {5: 0.8, 8: 0.7, 10: 0.6, 15: 0.6, 20: 0.6}
KEPT = Path(__file__).parent.parent / "build" / "few_evaluations"  # trained networks
SEED = 2000  # of the noise that is measured on
HALVES = "halves of the reference"


@dataclass
class Found:
    """What was found for a network, by number of evaluations: errors and Frechet distances by name, and what the fit
    says of itself."""

    name: str
    errors: dict[int, dict[str, float]] = field(default_factory=dict)
    frechets: dict[int, dict[str, float]] = field(default_factory=dict)
    fits: dict[int, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Found:
        """What `--only` kept."""
        name, *tables = json.loads(path.read_text())
        return cls(name, *({int(n): value for n, value in kept.items()} for kept in tables))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([self.name, self.errors, self.frechets, self.fits]))


@dataclass
class Case:
    """A network, the noise to begin with, where the flow ends, and what was found."""

    name: str
    model: sg.Denoiser
    n: int = 2048
    classes: int = 0
    features: Callable[[Tensor], Tensor] | None = None
    fitted: Any = None

    def __post_init__(self) -> None:
        self.x = self.model.sde.prior((self.n, *(self.model.event_shape or ())), seed=SEED, dtype=torch.float64)
        self.found, self.cond = Found(self.name), self.labels(self.n)
        self.span = (self.model.sde.t_max, self.model.sde.t_min)
        tightly = self.sampled(solver="adams", steps=301, save=[self.span[1], 0.0])
        self.exact, self.clean = tightly.xs

    def labels(self, n: int) -> dict[str, Tensor]:
        return {"label": torch.arange(n) % self.classes} if self.classes else {}

    def sampled(self, **how: Any) -> sg.Solution:
        return sg.sample(self.model, self.x.shape, x_init=self.x, progress=False, **self.cond, **how)

    def error(self, x: Tensor, *, clean: bool = True) -> float:
        away = x.double() - (self.clean if clean else self.exact)
        return float(away.square().mean().sqrt()) / self.model.sigma_data

    def frechet(self, x: Tensor) -> float:
        """To the end-points of the same noise."""
        return sg.metrics.frechet_distance(*map(self.features, (x.float(), self.clean.float())))  # type: ignore[arg-type]

    def between_halves(self) -> float:
        """Of the end-points: what two sets of other noise differ by, of half as many samples."""
        parts = self.clean.float().chunk(2)
        return sg.metrics.frechet_distance(*map(self.features, parts))  # type: ignore[arg-type]

    def note(self, n: int, name: str, ends: Sequence[Tensor], exact: Sequence[bool] = (True,)) -> None:
        """Keep the smallest error, and distance, of some ends; with `exact` those that go to the denoised one."""
        self.found.errors.setdefault(n, {})[name] = min(
            self.error(x, clean=c) for x, c in zip(ends, exact, strict=True)
        )
        if self.features is not None:
            self.found.frechets.setdefault(n, {})[name] = min(map(self.frechet, ends))

    def both_ends(self, run: Callable[[Tensor], Tensor], grid: Callable[[int], Tensor], n: int) -> list[Tensor]:
        """What n steps to t_min end with, and n - 1 with the denoising."""
        last = torch.tensor(self.span[1], dtype=torch.float64)
        return [run(grid(n)), self.model(run(grid(n - 1)), last, **self.cond).x0]

    def grid(self, n: int, kind: str) -> Tensor:
        return sg.grid(self.model, n, kind=kind, t_span=self.span)


# ---- the networks


def trained(name: str, make: Callable[[], sg.Denoiser], data: Callable[[], Tensor], **how: Any) -> sg.Denoiser:
    """A network that is trained once and kept."""
    path = KEPT / name
    if not path.exists():
        torch.manual_seed(0)
        model = make()
        sg.fit(model, data(), seed=0, progress=False, **how)
        path.parent.mkdir(parents=True, exist_ok=True)
        sg.save(model, path)
    return sg.load(path, device="cpu")  # type: ignore[return-value]


def digits() -> Tensor:
    """(1797, 1, 8, 8) in [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1


def ring() -> Tensor:
    angles = torch.arange(8) * (math.pi / 4)
    means = torch.stack([angles.cos(), angles.sin()], 1)
    return sg.GaussianMixture(means, std=0.1).sample(20_000, seed=0).float()


def clusters() -> Tensor:
    g = torch.Generator().manual_seed(9)
    return sg.GaussianMixture(torch.randn(6, 16, generator=g), std=0.3).sample(20_000, seed=0).float()


def classifier() -> Callable[[Tensor], Tensor]:
    from sklearn.datasets import load_digits

    net = sg.metrics.train_classifier(digits(), torch.from_numpy(load_digits().target), seed=0)
    return lambda x: net(x.reshape(-1, 1, 8, 8))


def cases() -> dict[str, Callable[[], Case]]:
    def fashion() -> Case:
        return Case("Fashion-MNIST, U-Net, VP", sg.load(CHECKPOINT, device="cpu"), 32, 10)  # type: ignore[arg-type]

    def digits_mlp() -> Case:
        make = lambda: sg.Denoiser(sg.nets.MLP(64, hidden=256, layers=3), sg.VPSDE())
        how = {"steps": 4000, "batch_size": 128, "lr": 2e-3}
        model = trained("digits-mlp", make, lambda: digits().flatten(1), **how)
        return Case("digits as 64 numbers, MLP, VP", model, features=classifier())

    def ring_mlp() -> Case:
        make = lambda: sg.Denoiser(sg.nets.MLP(2, hidden=96, layers=3), sg.EDMSDE())
        how = {"steps": 5000, "batch_size": 256, "lr": 2e-3}
        return Case("ring of eight, MLP, EDM", trained("ring-mlp", make, ring, **how))

    def digits_unet() -> Case:
        make = lambda: sg.Denoiser(sg.nets.UNet(1, channels=16, multipliers=[1, 2], blocks=1), sg.VESDE())
        how = {"steps": 2500, "batch_size": 64, "lr": 2e-3}
        return Case(
            "digits as images, U-Net, VE", trained("digits-unet", make, digits, **how), 256, features=classifier()
        )

    def board_mlp() -> Case:
        make = lambda: sg.Denoiser(sg.nets.MLP(2, hidden=96, layers=3), sg.EDMSDE())
        data = lambda: sg.data.toys.checkerboard(20_000, seed=0).float()
        return Case("checkerboard, MLP, EDM", trained("board-mlp", make, data, steps=5000, batch_size=256, lr=2e-3))

    def clusters_mlp() -> Case:
        make = lambda: sg.Denoiser(sg.nets.MLP(16, hidden=128, layers=3), sg.CosineSDE(), parametrization="v")
        how = {"steps": 4000, "batch_size": 256, "lr": 2e-3}
        return Case("six clusters in 16-D, MLP, cosine", trained("clusters-mlp", make, clusters, **how))

    return {
        "fashion": fashion,
        "digits": digits_mlp,
        "ring": ring_mlp,
        "ve": digits_unet,
        "board": board_mlp,
        "clusters": clusters_mlp,
    }


# ---- a published learned grid


class Gits:
    """Grids of GITS: the way through the nodes of a fine grid that costs least.

    cost(i, j) is how far an Euler step in sigma/alpha from the exact state at t_i lands from that at t_j, mean over some
    flows; the grid of N steps minimises, from the end on, V_k(i) = min_j cost(i, j) + gamma V_(k-1)(j).

    Source: Chen et al. 2024 (arXiv 2405.11326) section 4, with their 61 nodes and gamma 1.15.
    """

    nodes, gamma = 60, 1.15

    def __init__(self, case: Case) -> None:
        model = case.model
        times = sg.grid(model, self.nodes, kind="karras", t_span=case.span)
        n = 64
        x = model.sde.prior((n, *(model.event_shape or ())), seed=SEED + 1, dtype=torch.float64)
        path = sg.sample(
            model, x.shape, x_init=x, solver="adams", steps=times, save="all", progress=False, **case.labels(n)
        ).xs
        alpha, sigma = model.sde.alpha(times), model.sde.sigma(times)
        ratio, self.times = sigma / alpha, times
        self.cost = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
        with torch.no_grad():
            for i in range(len(times) - 1):
                noise = model(path[i], times[i], **case.labels(n)).noise
                for j in range(i + 1, len(times)):
                    away = path[i] / alpha[i] + (ratio[j] - ratio[i]) * noise - path[j] / alpha[j]
                    self.cost[i, j] = away.flatten(1).norm(dim=1).mean()

    def grid(self, n: int) -> Tensor:
        last = len(self.times) - 1
        value = torch.full((last + 1,), math.inf, dtype=torch.float64)
        value[last], choices = 0.0, []
        for _ in range(n):
            value, choice = (self.cost + self.gamma * value).min(1)
            choices.append(choice)
        places = [0]
        for choice in reversed(choices):
            places.append(int(choice[places[-1]]))
        return self.times[places]


# ---- measuring


def measured(case: Case, report: Callable[[str], None]) -> None:
    """All errors of a network."""
    began = time.process_time()
    case.fitted = sg.fit_solver(case.model, steps=BUDGETS, progress=False, **case.labels(64))
    case.model.solvers = ()
    case.found.fits = {n: (fit.error, fit.evaluations) for n, fit in case.fitted.fits.items()}
    took, gits = time.process_time() - began, Gits(case)
    for n in BUDGETS:
        run_all(case, n)
        for name in ("ipndm4", "dpm++2m", "unipc2"):
            ends = case.both_ends(lambda ts, name=name: case.sampled(solver=name, steps=ts).x, gits.grid, n)
            case.note(n, f"GITS, {name}", ends, (False, True))
        report(
            f"{case.name}, {n}: {' '.join(f'{k} {v:.4f}' for k, v in summary(case.found, n).items() if k != 'name')}"
        )
    report(f"{case.name}: the fit took {took:.0f} s of CPU time")
    for distances in case.found.frechets.values():
        distances[HALVES] = case.between_halves()


def run_all(case: Case, n: int) -> None:
    """What the fitted solver, "auto" and the sixteen peers end with after n evaluations."""
    case.note(n, "fitted", [case.sampled(solver=case.fitted, steps=n).x])
    case.note(n, "auto", [case.sampled(steps=n).x])
    for name, make in schedulers().items():
        for kind, words in KINDS.items():
            run = lambda ts, make=make: scheduled(make, case.model)(case.x, ts, **case.cond)
            ends = case.both_ends(run, lambda k, kind=kind: case.grid(k, kind), n)
            case.note(n, f"{name}, {words}", ends, (False, True))


def published(found: dict[str, float]) -> dict[str, float]:
    """Of the sixteen peers alone."""
    own = ("fitted", "auto", HALVES)
    return {name: value for name, value in found.items() if name not in own and not name.startswith("GITS")}


def summary(case: Found, n: int) -> dict[str, Any]:
    found = case.errors[n]
    peers = published(found)
    peer, gits = min(peers, key=lambda k: peers[k]), min(found[k] for k in found if k.startswith("GITS"))
    best = peers[peer]
    ratios = {"fitted/peer": found["fitted"] / best, "auto/peer": found["auto"] / best, "GITS/peer": gits / best}
    return {"fitted": found["fitted"], "auto": found["auto"], "GITS": gits, "peer": best, "name": peer, **ratios}


def tables(found: list[Found]) -> Iterator[dict[str, Any]]:
    """What is shown of it."""
    rows = []
    for n in BUDGETS:
        got = [summary(case, n) for case in found]
        row: list[Any] = [n]
        for key in ("fitted/peer", "auto/peer", "GITS/peer"):
            row += [statistics.median(g[key] for g in got), max(g[key] for g in got)]
        row += [max(g["fitted"] / g["auto"] for g in got), "{} ({})".format(*ASKED[n]), f"{OF_AUTO[n]} (1.1)"]
        rows.append(row)
    columns = [
        "evaluations",
        "fitted",
        "worst",
        "auto",
        "worst",
        "GITS",
        "worst",
        "fitted/auto, worst",
        "asked of fitted",
        "of auto",
    ]
    about = (
        "Errors over those of the best of sixteen peers, chosen afterwards: the median over networks, and the worst."
    )
    yield {"title": "Against the best peer", "about": about, "columns": columns, "rows": rows}
    for case in found:
        rows = []
        for n in BUDGETS:
            s = summary(case, n)
            rows.append([n, s["fitted"], s["auto"], s["GITS"], s["peer"], s["name"], *case.fits[n]])
        columns = [
            "evaluations",
            "fitted",
            "auto",
            "GITS, best of three solvers",
            "best peer",
            "which",
            "the fit's own word",
            "evaluations it took",
        ]
        yield {"title": case.name, "columns": columns, "rows": rows}
    rows = []
    for case in found:
        for n, got in case.frechets.items():
            peers = published(got)
            best = min(peers, key=lambda k: peers[k])
            ratios = [got[name] / peers[best] for name in ("fitted", "auto")]
            rows.append([case.name, n, got["fitted"], got["auto"], peers[best], best, *ratios, got[HALVES]])
    columns = ["network", "evaluations", "fitted", "auto", "best peer", "which", "fitted/peer", "auto/peer", HALVES]
    about = (
        "In the features of a classifier, between what was made of a noise and where its flow ends. The last column is "
        "that between two halves of those ends, of other noise each: what chance makes of unlike noises."
    )
    yield {"title": "Frechet distance to the reference", "about": about, "columns": columns, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=cases(), nargs="+", help="some of the networks, which are kept for a run of all"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Found] = []
    for name, make in cases().items():
        path = KEPT / f"{name}.json"
        if name in (options.only or ()) or (options.only is None and not path.exists()):
            with torch.no_grad():
                case = make()
                measured(case, lambda line: print(line, flush=True))
            case.found.write(path)
        if options.only is None or name in options.only:
            found.append(Found.read(path))
    for shown in tables(found):
        print(table(shown.pop("columns"), shown.pop("rows"), **shown))
    if options.only:
        return
    errors = {case.name: case.errors for case in found}
    frechets = {case.name: case.frechets for case in found if case.frechets}
    about = __doc__.split("\n\n")[1].replace("\n", " ")
    write("few_evaluations", "Few evaluations on trained networks", about, errors=errors, frechets=frechets)


if __name__ == "__main__":
    main()
