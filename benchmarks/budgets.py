"""What "auto" makes of a number of evaluations, over the best of sixteen published settings: exact scores and networks.

Exact scores of clustered and of random mixtures, small networks trained here on toys (digits as 64 numbers where
scikit-learn is installed; VP, EDM, VE and cosine, three parametrisations), and the shipped Fashion-MNIST network. The
peers are UniPC 2 and 3, DPM-Solver++ 2M and 3M with their own first and last steps, each on four grids: this package's
settings of these names, which agree with diffusers' schedulers to rounding (tests/laws/test_identities.py) and work in
any process's frame; the best of the sixteen is picked afterwards for each problem and number. All make N evaluations.
"auto" ends as `sample` does, with the denoised sample; peers with N steps to t_min or with N - 1 and the denoising,
whichever is better. The error is the root mean square distance to the flow's own end from the same noise, at t_min or
denoised, over the data's standard deviation.

    python benchmarks/budgets.py [--nets FOLDER]     # 5 minutes of one core; writes results/budgets.json
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from problems import random_mixture
from report import table, write
from torch import Tensor

import sdegen as sg

F64 = torch.float64
CHECKPOINT = Path("fashion")  # comes with the package
PEERS = [
    (name, kind)
    for name in ("unipc2", "unipc3", "dpm++2m", "dpm++3m")
    for kind in ("uniform", "karras", "lambda", "blend")
]
BUDGETS = {"exact score": (5, 8, 10, 20, 50, 100), "network": (5, 8, 10, 15, 20)}
TIGHT = {"exact score": 1e-10, "network": 1e-6}


@dataclass
class Problem:
    """A model and the noise to begin with."""

    name: str
    kind: str
    model: sg.ScoreModel
    x: Tensor
    cond: dict[str, Any] = field(default_factory=dict)

    def sampled(self, **how: Any) -> Tensor:
        if not isinstance(how.get("steps"), Tensor):
            how.setdefault("t_span", (self.model.sde.t_max, self.model.sde.t_min))
        return sg.sample(self.model, self.x.shape, x_init=self.x, dtype=F64, progress=False, **self.cond, **how).x

    def grid(self, n: int, kind: str) -> Tensor:
        return sg.grid(self.model, n, kind=kind, t_span=(self.model.sde.t_max, self.model.sde.t_min))

    def denoised(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x, torch.tensor(self.model.sde.t_min, dtype=F64), **self.cond).x0

    def measured(self) -> dict[str, Any]:
        """By number of evaluations: the error of "auto", the best peer's, and which it is."""
        exact, found, s = self.sampled(rtol=TIGHT[self.kind]), {}, self.model.sigma_data
        clean = self.denoised(exact)

        def error(x: Tensor, end: Tensor) -> float:
            return float((x - end).square().mean().sqrt()) / s

        for n in BUDGETS[self.kind]:
            peers = {}
            for name, kind in PEERS:
                steps, last = (self.sampled(solver=name, steps=self.grid(k, kind)) for k in (n, n - 1))
                peers[f"{name}, {kind}"] = min(error(steps, exact), error(self.denoised(last), clean))
            name = min(peers, key=peers.__getitem__)
            auto = self.sampled(steps=n, t_span=(self.model.sde.t_max, 0.0))
            found[n] = {"auto": error(auto, clean), "best peer": peers[name], "peer": name}
        return {"name": self.name, "kind": self.kind, "std": s, "turn": self.model.data.turning, "errors": found}


def thin(d: int, k: int, seed: int) -> sg.GaussianMixture:
    """k components, each with standard deviations from 0.5 to 0.02 along axes of its own."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(k, d, d, generator=g, dtype=F64))[0]
    variances = torch.logspace(math.log10(0.25), math.log10(4e-4), d, dtype=F64)
    means = torch.randn(k, d, generator=g, dtype=F64)
    return sg.GaussianMixture(means, covariances=axes @ torch.diag_embed(variances.expand(k, d)) @ axes.mT)


def exact_scores(n: int = 200) -> Iterator[Problem]:
    ring = sg.data.toys.ring
    made: dict[str, tuple[sg.GaussianMixture, sg.SDE]] = {
        "ring of 8, std .05, VP": (ring(8, std=0.05), sg.VPSDE()),
        "ring of 8, std .05, EDM": (ring(8, std=0.05), sg.EDMSDE()),
        "ring of 8, std .1, VE": (ring(8), sg.VESDE()),
        "ring of 8, std .02, VP": (ring(8, std=0.02), sg.VPSDE()),
        "thin, 2-D, VP": (thin(2, 3, 1), sg.VPSDE()),
        "thin, 16-D, EDM": (thin(16, 4, 2), sg.EDMSDE()),
        "random, 2-D, VP": (random_mixture(2, 0), sg.VPSDE()),
        "random, 16-D, EDM": (random_mixture(16, 1), sg.EDMSDE()),
        "random, 64-D, VP": (random_mixture(64, 2), sg.VPSDE()),
    }
    for name, (mixture, sde) in made.items():
        model = sg.MixtureModel(mixture, sde)
        z = sg.Noise(3).normal((n, mixture.dim), 41, dtype=F64, device="cpu")
        x = model.data.prior.noisy(z, float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max)))
        yield Problem(name, "exact score", model, x)


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1


def moons() -> Tensor:
    g = torch.Generator().manual_seed(0)
    turn, upper = torch.rand(20_000, generator=g) * math.pi, torch.arange(20_000) % 2 == 0
    x = torch.where(
        upper[:, None], torch.stack([turn.cos(), turn.sin()], 1), torch.stack([1 - turn.cos(), 0.5 - turn.sin()], 1)
    )
    x = x + 0.05 * torch.randn(x.shape, generator=g)
    return (x - x.mean(0)) / x.std()


def drawn(mixture: sg.GaussianMixture) -> Tensor:
    return mixture.sample(20_000, seed=1).float()


def scattered() -> sg.GaussianMixture:
    return sg.GaussianMixture(1.2 * torch.randn(12, 8, generator=torch.Generator().manual_seed(4)), std=0.25)


NETWORKS: dict[str, tuple[Callable[[], Tensor], Callable[[], sg.SDE], str, int, int]] = {
    # data, process, parametrisation, width, steps of training
    "digits, 64 numbers, VP": (digits, sg.VPSDE, "edm", 192, 3000),
    "ring of 8, std .05, EDM": (lambda: drawn(sg.data.toys.ring(8, std=0.05)), sg.EDMSDE, "edm", 96, 4000),
    "moons, cosine, v": (moons, sg.CosineSDE, "v", 96, 4000),
    "moons, VP, noise": (moons, sg.VPSDE, "noise", 96, 4000),
    "12 clusters, 8-D, VE": (lambda: drawn(scattered()), sg.VESDE, "edm", 128, 4000),
}


def trained(name: str, folder: Path) -> sg.ScoreModel:
    data, sde, of, width, steps = NETWORKS[name]
    path = folder / name.replace(" ", "_").replace(",", "")
    if not path.exists():
        x = data()
        torch.manual_seed(0)
        model = sg.Denoiser(sg.nets.MLP(x.shape[1], hidden=width, layers=3), sde(), parametrization=of)
        sg.fit(model, x, steps=steps, batch_size=256, lr=1e-3, ema=0.999, seed=0, progress=False)
        sg.save(model, path)
    return sg.load(path)


def networks(folder: Path, n: int = 256) -> Iterator[Problem]:
    for name in NETWORKS:
        model = trained(name, folder)
        yield Problem(name, "network", model, model.sde.prior((n, *model.event_shape), seed=5, dtype=F64))
    model = sg.load(CHECKPOINT)
    x = model.sde.prior((24, *model.event_shape), seed=5, dtype=F64)
    yield Problem("Fashion-MNIST, VP", "network", model, x, {"label": torch.arange(24) % 10})


def report(rows: list[dict[str, Any]], kind: str) -> str:
    """Ratios of "auto" to the best peer, problem by problem, and their median and largest."""
    chosen = [row for row in rows if row["kind"] == kind]
    ratios = {n: [row["errors"][n]["auto"] / row["errors"][n]["best peer"] for row in chosen] for n in BUDGETS[kind]}
    lines = [[row["name"], *(f"{ratios[n][i]:.2f}" for n in ratios)] for i, row in enumerate(chosen)]
    lines.append(["median (largest)", *(f"{statistics.median(r):.2f} ({max(r):.1f})" for r in ratios.values())])
    return table([f"{kind}: error of auto / of the best of 16", *map(str, ratios)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=Path, default=Path("runs/budgets"), help="where trained networks are, or go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that an order is above what the budget carries
    rows = []
    for kind, problems in (("exact score", exact_scores()), ("network", networks(options.nets))):
        rows += [problem.measured() for problem in problems]
        print(report(rows, kind), flush=True)
    about = __doc__.split("\n\n")[1].replace("\n", " ")
    write("budgets", 'What "auto" makes of a number of evaluations', about, errors=rows)


if __name__ == "__main__":
    main()
