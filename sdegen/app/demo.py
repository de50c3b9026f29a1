"""The demonstration: a 2-D mixture and the handwritten digits, trained, sampled by both equations, measured and
drawn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics, nets, plot
from ..core.files import write_whole
from ..data import images, toys
from ..distributions.mixture import GaussianMixture
from ..inference.sampling import sample
from ..models.denoiser import Denoiser
from ..models.exact import MixtureModel
from ..noise.purposes import Purpose
from ..noise.white import Noise
from ..plot.style import figure_of, panels
from ..processes import VPSDE
from ..storage.models import save
from ..training import fit

TOY_STEPS, DIGIT_STEPS = 2400, 450
FLOW_EVALUATIONS = 20
SDE_STEPS = 80


def demo(
    out: str | Path = "demo_output", *, seed: int = 0, scale: float = 1.0, progress: bool | None = True
) -> dict[str, Any]:
    """Train on a ring of Gaussians and on real digits, sample by the reverse SDE and the probability flow, draw, and
    write `summary.json`.

    Args:
        out: the folder for pictures, the GIF, checkpoints and summary.json.
        seed: of everything: weights, data order, noise.
        scale: multiplies the training steps, and below 1 the sampling too (a test uses a small one).
        progress: progress bars.

    Returns:
        What summary.json holds.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    summary: dict[str, Any] = {"toy": toy(folder, seed, scale, progress)}
    summary["digits"] = digits(folder, seed, scale, progress)
    summary["seconds"] = round(time.perf_counter() - begun, 1)
    write_whole(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    tell(folder, summary)
    return summary


def toy(folder: Path, seed: int, scale: float, progress: bool | None) -> dict[str, Any]:
    """An eight-mode ring: everything about it is known, so everything can be checked."""
    mixture = toys.ring(8)
    torch.manual_seed(seed)
    model = Denoiser(nets.MLP(2, hidden=88), VPSDE())
    say("1/2  a ring of eight Gaussians: training a small network")
    history = fit(
        model,
        mixture.sample(20_000, seed=seed),
        steps=round(max(1, TOY_STEPS * scale)),
        batch_size=512,
        lr=2e-3,
        seed=seed,
        progress=progress,
    )
    save(model, folder / "toy_model")
    n = some(10_000, scale)
    flow = sample(model, n, rtol=1e-3, seed=seed, progress=progress)
    reverse = sample(model, n, solver="ancestral", steps=some(SDE_STEPS, scale), seed=seed, progress=progress)
    draw_toy(folder, model, mixture, flow.x, reverse.x, seed=seed, scale=scale)
    held_out = mixture.sample(n, seed=seed + 1)
    distance = distances_to(held_out, lambda x, y: metrics.sliced_wasserstein(x, y, seed=seed))
    return {
        "data": "8 Gaussians on a ring, 20,000 training points",
        "training": training_words(history),
        "distance": "sliced Wasserstein-2 to 10,000 held-out points, in data units",
        "probability_flow": {"distance": distance(flow.x), "evaluations": mean(flow.nfe), "solver": flow.solver},
        "reverse_sde": {"distance": distance(reverse.x), "evaluations": mean(reverse.nfe), "solver": reverse.solver},
        "floor": {"distance": distance(mixture.sample(n, seed=seed + 2)), "what": "10,000 more points of the same law"},
        "mode_weights": {
            "exact": 0.125,
            "probability_flow": mode_weights(mixture, flow.x),
            "reverse_sde": mode_weights(mixture, reverse.x),
        },
    }


def draw_toy(
    folder: Path, model: Denoiser, mixture: GaussianMixture, flow: Tensor, reverse: Tensor, *, seed: int, scale: float
) -> None:
    exact = MixtureModel(mixture, model.sde)
    paths = plot.trajectories(model, density=mixture, seed=seed, data=mixture.sample(300, seed=seed))
    plot.save(paths, folder / "toy_trajectories.png")
    with plot.style():
        axes = panels(None, 4, width=3.4, height=3.5, columns=2)
        t, extent = 0.08, (-1.7, 1.7, -1.7, 1.7)
        for a, x, title in ((axes[0], flow, "probability flow"), (axes[1], reverse, "reverse SDE")):
            plot.density(x, exact=mixture, ax=a, extent=extent)
            a.set_title(title, pad=24)
        for a, m, title in ((axes[2], model, "learned"), (axes[3], exact, "exact")):
            plot.score_field(m, t, ax=a, extent=extent).set_title(f"{title} score at t = {t}")
        plot.save(figure_of(axes[0]), folder / "toy_density.png")
    moving = sample(model, some(1500, scale), solver="ancestral", steps=some(SDE_STEPS, scale), seed=seed, save="all")
    plot.animate(moving, folder / "toy_reverse.gif", density=exact)
    plot.explore(model, folder / "explore.html")


def digits(folder: Path, seed: int, scale: float, progress: bool | None) -> dict[str, Any]:
    """Real handwritten digits, 8 x 8 pixels, one network for all ten classes."""
    train, held_out = images.digits("train"), images.digits("held-out")
    n = some(len(held_out), scale)
    torch.manual_seed(seed)
    net = nets.UNet(1, n_classes=10)
    model = Denoiser(net, VPSDE())
    say(f"2/2  {len(train)} handwritten digits of scikit-learn: training a U-Net of {parameters(net):,} parameters")
    history = fit(
        model,
        train.images,
        label=train.labels,
        steps=round(max(1, DIGIT_STEPS * scale)),
        batch_size=128,
        lr=2e-3,
        seed=seed,
        progress=progress,
    )
    save(model, folder / "digits_model")
    shape, label = (n, 1, 8, 8), held_out.batch(torch.arange(n))[1]["label"]
    flow = sample(model, shape, steps=FLOW_EVALUATIONS, seed=seed, label=label, progress=progress)
    reverse = sample(
        model, shape, solver="ancestral", steps=some(SDE_STEPS, scale), seed=seed, label=label, progress=progress
    )
    draw_digits(folder, model, train, seed, scale)
    order = Noise(seed).normal((len(train), 1), Purpose.ORDER, dtype=torch.float64, device="cpu")[:, 0].argsort()
    real = train.images[order[:n]]
    frechet = distances_to(held_out.images, metrics.frechet_distance)
    sliced = distances_to(held_out.images, lambda x, y: metrics.sliced_wasserstein(x, y, seed=seed))

    def measured(x: Tensor) -> dict[str, float]:
        return {"frechet_pixels": frechet(x), "sliced_wasserstein": sliced(x)}

    return {
        "data": f"{len(train)} training and {len(held_out)} held-out images, grey values in [-1, 1]",
        "training": training_words(history),
        "distance": f"of {n} samples to the held-out images: Frechet distance of the 64 pixels' means and covariances, "
        "and sliced Wasserstein-2 of the pixels",
        "probability_flow": {**measured(flow.x), "evaluations": mean(flow.nfe), "solver": flow.solver},
        "reverse_sde": {**measured(reverse.x), "evaluations": mean(reverse.nfe), "solver": reverse.solver},
        "floor": {**measured(real), "what": f"{len(real)} real training images"},
    }


def draw_digits(folder: Path, model: Denoiser, train: images.Images, seed: int, scale: float) -> None:
    rows = 6
    label = torch.arange(10).repeat(rows)
    shape = (len(label), 1, 8, 8)
    flow = sample(model, shape, steps=FLOW_EVALUATIONS, seed=seed, label=label)
    reverse = sample(model, shape, solver="ancestral", steps=some(SDE_STEPS, scale), seed=seed, label=label)
    real = torch.cat([torch.stack([train.images[train.labels == k][row] for k in range(10)]) for row in range(rows)])
    with plot.style():
        axes = panels(None, 3, width=3.4, height=2.7)
        for a, x, title in (
            (axes[0], real, "real"),
            (axes[1], reverse.x, "reverse SDE"),
            (axes[2], flow.x, "probability flow"),
        ):
            plot.image_grid(x, nrow=10, ax=a, columns=range(10))
            a.set_title(title, pad=16)
        plot.save(figure_of(axes[0]), folder / "digits_samples.png")
    path = sample(
        model,
        (10, 1, 8, 8),
        solver="ancestral",
        steps=some(SDE_STEPS, scale),
        seed=seed,
        label=torch.arange(10),
        save="all",
    )
    plot.save(plot.denoising_strip(path, samples=len(path.x)), folder / "digits_strip.png")


# ---- numbers


def some(n: int, scale: float) -> int:
    """n, or a smaller number for a demonstration in small."""
    return max(min(n, 20), round(n * min(1.0, scale)))


def distances_to(reference: Tensor, distance: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor], float]:
    """The distance of samples to a fixed reference, rounded for a table."""
    return lambda x: round(float(distance(x, reference)), 4)


def mode_weights(mixture: GaussianMixture, x: Tensor) -> list[float]:
    """The share of samples nearest to each mode's centre."""
    nearest = torch.cdist(x.double(), mixture.means).argmin(1)
    return [round(float((nearest == k).double().mean()), 4) for k in range(len(mixture.means))]


def mean(nfe: Tensor) -> float:
    return round(float(nfe.double().mean()), 1)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def training_words(history: Any) -> dict[str, Any]:
    """The loss at the start and at the end of training, a mean over a twentieth of the steps."""
    loss = torch.as_tensor(history.loss)
    n = max(1, len(loss) // 20)
    return {
        "steps": len(loss),
        "loss_start": round(float(loss[:n].mean()), 4),
        "loss_end": round(float(loss[-n:].mean()), 4),
    }


# ---- words


def say(line: str) -> None:
    print(line, flush=True)


def tell(folder: Path, summary: dict[str, Any]) -> None:
    """What was made, and what the numbers mean."""
    t, d = summary["toy"], summary["digits"]
    flow, reverse = "probability_flow", "reverse_sde"
    shares = t["mode_weights"][flow]
    say(
        f"""
Made in {summary["seconds"]:.0f} s, in {folder}/
  toy_trajectories.png   forward SDE, reverse SDE and probability flow over the exact density
  toy_density.png        samples against exact contours; the learned score beside the exact one
  toy_reverse.gif        noise becoming data
  digits_samples.png     real digits, and samples of both equations, a class a column
  digits_strip.png       ten digits coming out of noise
  toy_model/, digits_model/   checkpoints: sdegen sample {folder}/digits_model --n 16 --out samples.png
  summary.json           these numbers

Ring: distance to held-out points (sliced Wasserstein-2)
  probability flow {t[flow]["distance"]:.4f}  with {t[flow]["evaluations"]:g} evaluations a sample
  reverse SDE      {t[reverse]["distance"]:.4f}  with {t[reverse]["evaluations"]:g}
  floor            {t["floor"]["distance"]:.4f}  between two exact sets: no sampler can be expected below it
  modes            {min(shares):.3f} to {max(shares):.3f} of the samples each, exact 0.125

Digits: Frechet distance of the pixels to {d["data"].split(" and ")[1].split(",")[0]}
  probability flow {d[flow]["frechet_pixels"]:.3f}  with {d[flow]["evaluations"]:g} evaluations a sample
  reverse SDE      {d[reverse]["frechet_pixels"]:.3f}  with {d[reverse]["evaluations"]:g}
  floor            {d["floor"]["frechet_pixels"]:.3f}  for equally many real training images

To try solvers, steps and tolerances on the ring's network, open in a browser: {folder}/explore.html"""
    )
