"""Posteriors against the truth: distances, weights of modes, evidence; the same on learned scores, and on pictures.

    python benchmarks/posteriors.py                       about 10 minutes of one core
    python benchmarks/posteriors.py --quick               two problems of each kind, a minute
    python benchmarks/posteriors.py --data FOLDER         where the idx files of Fashion-MNIST are

Mixtures: 8 modes in 8 dimensions, standardised; 3 coordinates are seen with noise of std 0.2. Each problem has five
fresh observations, those kept where no mode has more than three quarters of the posterior, for which the exact
posterior is a mixture in closed form. Distances are sliced Wasserstein-2 distances to exact draws, as many, in standard
deviations of the posterior; the floor is that of exact draws. "modes off" is the total variation of the shares of the
modes. Rules of azula and deepinv run beside, where they are installed: see posterior_peers.py.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from posterior_peers import rules
from report import table, write
from torch import Tensor

import sdegen as sg

F64 = torch.float64
DRAWS, SEEN, STD = 400, 3, 0.2


@dataclass(frozen=True)
class Problem:
    """A mixture with five observations and their exact posteriors."""

    mixture: sg.GaussianMixture
    a: Tensor
    y: Tensor  # (5, m)
    posteriors: tuple[sg.GaussianMixture, ...]
    std: float = STD

    @property
    def observation(self) -> sg.Observation:
        return sg.Observation.linear(self.a, std=self.std)

    def log_evidence(self) -> Tensor:
        """log p(y), (5,)."""
        noise = self.std**2 * torch.eye(len(self.a), dtype=F64)
        covariances = torch.stack([self.a @ c @ self.a.mT + noise for c in _covariances(self.mixture)])
        seen = sg.GaussianMixture(self.mixture.means @ self.a.mT, covariances=covariances, weights=self.mixture.weights)
        return seen.log_prob(self.y)


def _covariances(mixture: sg.GaussianMixture) -> list[Tensor]:
    axes = (
        torch.eye(mixture.dim, dtype=F64).expand(len(mixture.means), -1, -1) if mixture.axes is None else mixture.axes
    )
    return [u @ torch.diag(v) @ u.mT for u, v in zip(axes, mixture.variances, strict=True)]


def clusters(seed: int, modes: int = 8, dim: int = 8) -> Problem:
    """Of mean 0 and mean variance 1."""
    g = torch.Generator().manual_seed(7000 + seed)
    means = torch.randn(modes, dim, generator=g, dtype=F64)
    std = 0.25 + 0.25 * torch.rand(modes, generator=g, dtype=F64)
    weights = 0.5 + torch.rand(modes, generator=g, dtype=F64)
    rough = sg.GaussianMixture(means, std=std.tolist(), weights=weights)
    size = math.sqrt(float(rough.covariance.trace()) / dim)
    mixture = sg.GaussianMixture((means - rough.mean) / size, std=(std / size).tolist(), weights=weights)
    return _observed(mixture, torch.eye(dim, dtype=F64)[:SEEN], STD, g)


def gaussian(seed: int, dim: int = 64) -> Problem:
    """Variances from 4 to 0.01 in random directions, a quarter of the coordinates seen with noise of std 0.1."""
    g = torch.Generator().manual_seed(9000 + seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=F64))[0]
    covariance = axes @ torch.diag(torch.logspace(math.log10(4), -2, dim, dtype=F64)) @ axes.mT
    mixture = sg.GaussianMixture(torch.zeros(1, dim), covariances=(covariance + covariance.mT) / 2)
    return _observed(mixture, torch.eye(dim, dtype=F64)[: dim // 4], 0.1, g, most=1.0)


def _observed(mixture: sg.GaussianMixture, a: Tensor, std: float, g: torch.Generator, *, most: float = 0.75) -> Problem:
    found: list[tuple[Tensor, sg.GaussianMixture]] = []
    x = mixture.sample(400, seed=int(torch.randint(2**31, (), generator=g)), dtype=F64)
    for y in x @ a.mT + std * torch.randn(400, len(a), generator=g, dtype=F64):
        exact = mixture.posterior(a, y, std)
        if len(found) < 5 and float(exact.weights.max()) <= most:
            found.append((y, exact))
    ys, exact = zip(*found, strict=True)
    return Problem(mixture, a, torch.stack(ys), exact, std)


# ---- judging


@dataclass(frozen=True)
class Mark:
    """One problem: means over its observations."""

    distance: float
    modes_off: float
    evaluations: float
    ess: float = math.nan
    evidence_off: float = math.nan
    seconds: float = math.nan


def judged(problem: Problem, x: Tensor, **more: float) -> Mark:
    """x (5 n, d), n draws for each observation, against exact ones."""
    distances, off = [], []
    for draws, exact in zip(x.double().chunk(len(problem.y)), problem.posteriors, strict=True):
        size = math.sqrt(float(exact.covariance.trace()) / exact.dim)
        right = exact.sample(len(draws), seed=123, dtype=F64)
        distances.append(sg.metrics.sliced_wasserstein(draws, right, projections=128) / size)
        off.append(modes_off(draws, exact))
    return Mark(statistics.mean(distances), statistics.mean(off), **{"evaluations": math.nan, **more})


def modes_off(draws: Tensor, exact: sg.GaussianMixture) -> float:
    """Total variation of the shares of the nearest means."""
    k = len(exact.means)
    shares = [
        (x[:, None] - exact.means).square().sum(2).argmin(1).bincount(minlength=k) / len(x)
        for x in (draws, exact.sample(20_000, seed=5, dtype=F64))
    ]
    return 0.5 * float((shares[0] - shares[1]).abs().sum())


def evened(x: Tensor, log_weights: Tensor, groups: int) -> tuple[Tensor, float]:
    """As many draws of equal weight, systematically by the weights within each observation; and the effective share."""
    rows, shares = [], []
    for i, w in enumerate(log_weights.chunk(groups)):
        w, n = torch.softmax(w, 0), len(w)
        shares.append(1 / (n * float(w.square().sum())))
        picked = torch.searchsorted(w.cumsum(0), (torch.arange(n, dtype=F64) + 0.5) / n).clamp_max(n - 1)
        rows.append(i * n + picked)
    return x[torch.cat(rows)], statistics.mean(shares)


Method = Callable[[Problem, sg.ScoreModel, int], tuple[Mark, Tensor]]


def floor(problem: Problem, model: sg.ScoreModel, n: int) -> tuple[Mark, Tensor]:
    x = torch.cat([p.sample(n, seed=77 + i, dtype=F64) for i, p in enumerate(problem.posteriors)])
    return judged(problem, x), x


def one_pass(likelihood: str = "moments", **how: Any) -> Method:
    """`sample` of a Posterior."""

    def run(problem: Problem, model: sg.ScoreModel, n: int) -> tuple[Mark, Tensor]:
        posterior = sg.Posterior(model, problem.observation, likelihood=likelihood)
        y, begun = problem.y.repeat_interleave(n, 0), time.process_time()
        found = sg.sample(posterior, len(y), y=y, seed=3, progress=False, **how)
        seconds = time.process_time() - begun
        return judged(problem, found.x, evaluations=_mean(found.nfe), seconds=seconds), found.x

    return run


def noisy(eta: float = 5.0, steps: int = 25, last: int = 4) -> Method:
    """A Posterior with much noise where modes are decided: the draws move about for longer, and low levels, where the
    rule is right, mend what high ones decided. The flow makes the last steps, which keeps what is finer.

    Steps with noise are even in atan(sh/(0.7 s))^(1/2) from sh = 10 s, where the solver begins, to 0.25 s.
    """

    def run(problem: Problem, model: sg.ScoreModel, n: int) -> tuple[Mark, Tensor]:
        s = model.data.scale
        ends = torch.atan(torch.tensor([10.0, 0.25], dtype=F64) / 0.7).sqrt()
        level = 0.7 * s * torch.tan(torch.linspace(float(ends[0]), float(ends[1]), steps - last + 1, dtype=F64) ** 2)
        times = [model.sde.t_max, *model.sde.time(-level.log()).tolist()]
        posterior, y = sg.Posterior(model, problem.observation), problem.y.repeat_interleave(n, 0)
        how: dict[str, Any] = {"y": y, "seed": 3, "progress": False}
        begun = time.process_time()
        found = sg.sample(posterior, len(y), solver="d-adams2-sde", steps=times, eta=eta, **how)
        ended = sg.sample(posterior, len(y), x_init=found.x, t_span=(times[-1], 0.0), steps=last, **how)
        evaluations, seconds = _mean(found.nfe + ended.nfe), time.process_time() - begun
        return judged(problem, ended.x, evaluations=evaluations, seconds=seconds), ended.x

    return run


def drawn(*, particles: int, weighted: bool = False, batch: int | None = 8192, **how: Any) -> Method:
    """`sample_posterior`; with `weighted` the draws count what they say they do."""

    def run(problem: Problem, model: sg.ScoreModel, n: int) -> tuple[Mark, Tensor]:
        y, begun = problem.y.repeat_interleave(n, 0), time.process_time()
        found = sg.sample_posterior(
            model,
            problem.observation,
            len(y),
            y=y,
            particles=particles,
            seed=3,
            batch_size=batch,
            progress=False,
            **how,
        )
        seconds, x, ess = time.process_time() - begun, found.x, _mean(found.ess)  # type: ignore[arg-type]
        if weighted:
            x, ess = evened(x, found.log_weights, len(problem.y))  # type: ignore[arg-type]
        log_p = torch.stack([w.logsumexp(0) - math.log(n) for w in found.log_evidence.chunk(len(problem.y))])  # type: ignore[union-attr]
        off = _mean((log_p - problem.log_evidence()).abs())
        return judged(problem, x, evaluations=_mean(found.nfe), ess=ess, evidence_off=off, seconds=seconds), x

    return run


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def peer(rule: Any) -> Method:
    def run(problem: Problem, model: sg.ScoreModel, n: int) -> tuple[Mark, Tensor]:
        y, begun = problem.y.repeat_interleave(n, 0), time.process_time()
        x = rule(model, problem.a, y, problem.std)
        return judged(problem, x, evaluations=100.0, seconds=time.process_time() - begun), x

    return run


OURS: dict[str, Method] = {
    "exact draws (the floor)": floor,
    'Posterior "moments", rtol=1e-3': one_pass(rtol=1e-3),
    'Posterior "isotropic", rtol=1e-3': one_pass("isotropic", rtol=1e-3),
    'Posterior "project", 25 steps': one_pass("project", steps=25),
    'Posterior "moments", 25 steps': one_pass(steps=25),
    'Posterior "moments", 25 steps, eta=1': one_pass(solver="d-adams2-sde", steps=25),
    'Posterior "moments", 25 steps, eta=5 down to 0.25 s': noisy(),
    "twisted, 4 particles, 6 steps": drawn(particles=4, steps=6),
    "twisted, 1 particle, 25 steps, by its weights": drawn(particles=1, weighted=True, steps=25),
    "twisted, 16 particles, 50 steps": drawn(particles=16, steps=50),
    "weighted flow, rtol=1e-2, by its weights": drawn(method="weighted", particles=1, weighted=True, rtol=1e-2),
}
SINGLE = [name for name in OURS if name.startswith(("Posterior", "twisted, 1 ", "twisted, 4 "))]


def marks(methods: dict[str, Method], problems: Sequence[Problem], n: int) -> dict[str, list[Mark]]:
    found: dict[str, list[Mark]] = {name: [] for name in methods}
    for problem in problems:
        model = sg.MixtureModel(problem.mixture, sg.VPSDE())
        for name, method in methods.items():
            found[name].append(method(problem, model, n)[0])
    return found


def summary(title: str, found: dict[str, list[Mark]]) -> str:
    base, lines = statistics.mean(m.distance for m in found["exact draws (the floor)"]), []
    for name, own in found.items():
        distances = [m.distance for m in own]
        spread = f"{min(distances):.2f} to {max(distances):.2f}"
        mean = statistics.mean(distances)
        rest = [statistics.mean(getattr(m, part) for m in own) for part in ("modes_off", "ess", "evidence_off")]
        shown = ["" if math.isnan(v) else f"{v:.3f}" for v in rest]
        evaluations = statistics.mean(m.evaluations for m in own)
        told = "" if math.isnan(evaluations) else f"{evaluations:.0f}"
        lines.append([name, told, f"{mean:.3f}", spread, f"{mean / base:.1f}", *shown])
    head = [title, "evaluations", "distance", "over problems", "in floors", "modes off", "effective share"]
    return table([*head, "log p(y) off, nats"], lines)


# ---- learned scores


def learned(problems: Sequence[Problem], steps: int, n: int) -> str:
    """A network for each mixture: the error of the method alone, of the network alone, and of both."""
    methods = {name: OURS[name] for name in OURS if "isotropic" not in name and "project" not in name}
    rows: dict[str, list[list[float]]] = {name: [] for name in methods}
    for i, problem in enumerate(problems):
        exact = sg.MixtureModel(problem.mixture, sg.VPSDE())
        net = trained(problem, steps, seed=i)
        for name, method in methods.items():
            (right, x), (own, z) = (method(problem, model, n) for model in (exact, net))
            sizes = [math.sqrt(float(p.covariance.trace()) / p.dim) for p in problem.posteriors]
            pairs = zip(x.double().chunk(5), z.double().chunk(5), sizes, strict=True)
            apart = [sg.metrics.sliced_wasserstein(a, b, projections=128) / s for a, b, s in pairs]
            off = own.evidence_off
            rows[name].append([right.distance, statistics.mean(apart), own.distance, own.modes_off, own.ess, off])
    lines = []
    for name, found in rows.items():
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        lines.append([name, *("" if math.isnan(v) else f"{v:.3f}" for v in means)])
    head = [f"a network trained on the first of these mixtures, {steps} steps", "exact score, to the truth"]
    head += ["network to exact score", "network, to the truth", "modes off", "effective share", "log p(y) off, nats"]
    return table(head, lines)


def trained(problem: Problem, steps: int, seed: int) -> sg.Denoiser:
    data = problem.mixture.sample(50_000, seed=seed)
    torch.manual_seed(seed)
    net = sg.Denoiser(sg.nets.MLP(problem.mixture.dim, hidden=192), sg.VPSDE())
    sg.fit(net, data, steps=steps, batch_size=512, lr=2e-3, seed=seed, device="cpu", progress=False)
    return net


# ---- what guidance costs


def overhead(repeats: int) -> str:
    """CPU time of guided calls over that of the network calls in them, the small U-Net of Fashion-MNIST."""
    model: Any = sg.load("fashion", device="cpu")
    lines = [_overhead(model, batch, repeats) for batch in (1, 16, 64)]
    head = ["guidance, medians of CPU time", "two network calls, ms", "guided call, ms", "more"]
    return table(head, lines)


@torch.no_grad()
def _overhead(model: Any, batch: int, repeats: int) -> list[str]:
    guided = sg.Guided(model, 3.0, null={"label": -1})
    x, label = torch.randn(batch, 1, 28, 28), torch.arange(batch) % 10
    none = torch.full_like(label, -1)
    calls = (lambda: (model(x, 0.5, label=label), model(x, 0.5, label=none)), lambda: guided(x, 0.5, label=label))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            begun = time.process_time()
            call()
            own.append(time.process_time() - begun)
    plain, own = map(statistics.median, times)
    return [f"batch {batch}", f"{1e3 * plain:.1f}", f"{1e3 * own:.1f}", f"{100 * (own / plain - 1):+.1f} %"]


# ---- pictures


def blur(x: Tensor) -> Tensor:
    """A Gaussian of std 1.5 pixels, 9 by 9, zeros around; its own transpose."""
    u = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.5**2)).to(x)
    kernel = (u[:, None] * u / u.sum() ** 2)[None, None]
    return torch.nn.functional.conv2d(x, kernel, padding=4)


def tasks(event: tuple[int, int, int]) -> dict[str, sg.Observation]:
    kinds = ("wide", "outer", "thin", "half", "pixels", "rows")
    found = {f"mask {kind}": sg.Observation.mask(sg.data.mask(kind, event)) for kind in kinds}
    for k in (2, 4):
        found[f"{k}x super-resolution"] = sg.Observation.average(k, std=0.02)
    return {**found, "deblurring": sg.Observation.linear((blur, blur), std=0.02)}


def pictures(folder: str, n: int) -> str:
    """Held-out pictures, no class told to the model; each method by its evaluations."""
    model: Any = sg.load("fashion", device="cpu")
    train, real = (sg.data.load_images(folder, split=part) for part in ("train", "held-out"))
    classifier = sg.metrics.train_classifier(train.images[:20_000], train.labels[:20_000])  # type: ignore[index]
    x, kind = real.images[:n], real.labels[:n]  # type: ignore[index]
    others, label = classifier(real.images[n : 11 * n]), torch.full((n,), -1)
    free = sg.metrics.kernel_distance(classifier(x), others, groups=10)
    known = classifier.accuracy(x, kind)
    lines = [["the pictures themselves (the floor)", "", "", "", f"{known:.2f}", f"{free.value:.2f}"]]
    how = {"label": label, "seed": 0, "progress": False}
    for name, observation in tasks(model.event_shape).items():
        mask = name.startswith("mask")
        seen = observation.measure(x)
        y = seen + observation.std * torch.randn(seen.shape, generator=torch.Generator().manual_seed(1))
        guided = {"y": y, "steps": 25, **how}
        methods: dict[str, Callable[[], sg.Solution]] = {
            f"isotropic, {told}25 steps": lambda o=observation, g=guided, eta=eta: sg.sample(
                sg.Posterior(model, o, likelihood="isotropic"), n, eta=eta, **g
            )
            for told, eta in (("", None), ("the flow, ", 0.0))
        }
        if "blur" not in name:
            methods["project, 25 steps"] = lambda o=observation, g=guided: sg.sample(
                sg.Posterior(model, o, likelihood="project"), n, **g
            )
            methods["repaint, 3 passes of 50"] = lambda o=observation, y=y: sg.sample_posterior(
                model, o, n, y=y, method="repaint", passes=3, steps=50, **how
            )
        if name in ("mask half", "4x super-resolution"):
            methods["twisted, 4 particles of 50"] = lambda o=observation, y=y: sg.sample_posterior(
                model, o, n, y=y, particles=4, steps=50, batch_size=200, **how
            )
        for method, run in methods.items():
            found = run()
            made = found.x.clamp(-1, 1)
            kept = "all" if torch.equal(observation.measure(found.x), seen) else "no"
            left = float((observation.measure(found.x) - y).square().mean().sqrt())
            unseen = 10 * math.log10(4 / float((made - x).square().mean()))
            same = classifier.accuracy(made, kind)
            distance = sg.metrics.kernel_distance(classifier(made), others, groups=10)
            told = kept if mask else f"rms {left:.3f}"
            shown = [f"{unseen:.1f}", f"{same:.2f}", f"{distance.value:.2f}"]
            lines.append([f"{name}: {method}", f"{_mean(found.nfe):.0f}", told, *shown])
    head = [f"{n} held-out pictures of Fashion-MNIST", "evaluations", "seen pixels kept to the bit, or y - A x"]
    return table([*head, "PSNR, dB", "class kept", "kernel distance"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two problems of each kind, few draws: a minute")
    parser.add_argument("--data", default="fashion-mnist", help="a folder with the idx files of Fashion-MNIST")
    parser.add_argument("--problems", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, n = time.process_time(), 128 if options.quick else DRAWS
    problems = [clusters(seed) for seed in range(2 if options.quick else options.problems)]
    found = marks({**OURS, **{name: peer(rule) for name, rule in rules().items()}}, problems, n)
    print(summary(f"{len(problems)} mixtures, {n} draws for each of five observations", found), flush=True)
    print(ratios(found), flush=True)
    methods = {name: OURS[name] for name in list(OURS)[:2]}
    smooth = marks(methods, [gaussian(seed) for seed in range(2 if options.quick else 4)], n)
    print(summary("Gaussian data in 64 dimensions, 16 numbers seen", smooth), flush=True)
    print(learned(problems[:1], 300 if options.quick else 5000, 64 if options.quick else 128), flush=True)
    print(overhead(5 if options.quick else 31), flush=True)
    try:
        print(pictures(options.data, 24 if options.quick else 64), flush=True)
    except sg.InvalidInputError as error:
        print(f"no pictures: {error}")
    print(f"{time.process_time() - begun:.0f} s of CPU time")
    if not rules():
        print("neither azula nor deepinv is installed: their rules are left out")
    if not options.quick:
        write("posteriors", "Posteriors against the truth", " ".join(__doc__.split("\n\n")[2].split()))


def ratios(found: dict[str, list[Mark]]) -> str:
    """Our single passes over the best of the peers' rules: on the mean, and problem by problem."""
    peers = {name: own for name, own in found.items() if name not in OURS}
    lines = []
    if peers:
        best = min(peers, key=lambda name: statistics.mean(m.distance for m in peers[name]))
        by_problem = [min(own[i].distance for own in peers.values()) for i in range(len(peers[best]))]
        mean = statistics.mean(m.distance for m in peers[best])
        for name in SINGLE:
            own = [m.distance for m in found[name]]
            each = [a / b for a, b in zip(own, by_problem, strict=True)]
            lines.append([name, f"{statistics.mean(own) / mean:.2f}", f"{statistics.mean(each):.2f} ({max(each):.2f})"])
        return table(
            [f"distance over that of {best}, 100", "on the mean", "over the best of each problem (worst)"], lines
        )
    return "no peers\n"


if __name__ == "__main__":
    main()
