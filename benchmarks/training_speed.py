"""Training speed: `fit` against a bare PyTorch loop with the same network, loss, optimiser, average and clipping.

Both run in turns within one process, a block of steps each, and every block of `fit` is divided by the mean of the bare
blocks before and after it; the table has the median of these ratios. The bare loop calls the same `dsm_loss` (what the
loop itself costs), or has the loss written out in float32 for this one process (what generality costs on top).

    python benchmarks/training_speed.py [--blocks 40] [--steps 100]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdegen.losses import dsm_loss
from sdegen.model import Denoiser
from sdegen.nets import MLP, UNet
from sdegen.sde import VPSDE
from sdegen.training import fit

EMA, CLIP, LR = 0.999, 1.0, 1e-3


def written_out(model: Denoiser, x0: Tensor) -> Tensor:
    """The noise-prediction loss along linear VP as a script would have it."""
    t = torch.rand(len(x0)) * 0.999 + 0.001
    integral = (0.1 * t + 9.95 * t**2).reshape(-1, *[1] * (x0.ndim - 1))
    noise = torch.randn_like(x0)
    x = torch.exp(-integral / 2) * x0 + torch.sqrt(-torch.expm1(-integral)) * noise
    return (model.net(x, t) - noise).square().flatten(1).mean(1)


def bare_loop(model: Denoiser, data: Tensor, batch_size: int, loss: Callable[..., Tensor]) -> Callable[[int], None]:
    """A training loop as short as it can be."""
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            x0 = data[torch.randint(len(data), (batch_size,))]
            optimiser.zero_grad()
            loss(model, x0).mean().backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimiser.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - EMA)

    return run


def ratio(
    model_of: Callable[[], Denoiser],
    data: Tensor,
    batch_size: int,
    loss: Callable[..., Tensor],
    blocks: int,
    steps: int,
) -> tuple[float, float, float]:
    """Median of fit's time over the bare loop's, and milliseconds a step of both (CPU time)."""
    bare = bare_loop(model_of().train(), data, batch_size, loss)
    bare(steps)
    fits, bares, last = [], [], 0.0

    def take_turns(step: int, model: object, history: object) -> None:
        nonlocal last
        now = time.process_time()
        fits.append(now - last)
        with torch.enable_grad():
            bare(steps)
        last = time.process_time()
        bares.append(last - now)

    model = model_of()
    last = time.process_time()
    fit(
        model,
        data,
        steps=steps * (blocks + 1),
        batch_size=batch_size,
        lr=LR,
        ema=EMA,
        clip=CLIP,
        seed=0,
        device="cpu",
        progress=False,
        callback=take_turns,
        callback_every=steps,
    )
    ratios = [2 * fits[i] / (bares[i - 1] + bares[i]) for i in range(1, blocks + 1)]  # the first holds the start
    fit_ms, bare_ms = (1e3 * statistics.median(times[1:]) / steps for times in (fits, bares))
    return statistics.median(ratios), fit_ms, bare_ms


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--blocks", type=int, default=40)
    options.add_argument("--steps", type=int, default=100, help="in a block; a tenth for the images")
    chosen = options.parse_args()
    torch.set_num_threads(1)

    def points(parametrization: str) -> Callable[[], Denoiser]:
        return lambda: Denoiser(MLP(2, hidden=128, layers=3), VPSDE(), parametrization=parametrization, data_std=1.0)

    def images() -> Denoiser:
        return Denoiser(UNet(1), VPSDE(), parametrization="noise", data_std=1.0)

    plane, grey = torch.randn(20_000, 2), torch.rand(1800, 1, 8, 8) * 2 - 1
    few = max(1, chosen.steps // 10)
    rows = [
        ("MLP 3x128, (512, 2), edm", points("edm"), plane, 512, dsm_loss, chosen.steps),
        ("MLP 3x128, (512, 2), noise", points("noise"), plane, 512, dsm_loss, chosen.steps),
        ("the same, loss written out", points("noise"), plane, 512, written_out, chosen.steps),
        ("U-Net, (128, 1, 8, 8), noise", images, grey, 128, dsm_loss, few),
        ("the same, loss written out", images, grey, 128, written_out, few),
    ]
    print(f"{'':32}{'fit / bare':>12}{'fit ms':>10}{'bare ms':>10}")
    for name, model_of, data, batch_size, loss, steps in rows:
        r, fit_ms, bare_ms = ratio(model_of, data, batch_size, loss, chosen.blocks, steps)
        print(f"{name:32}{r:12.3f}{fit_ms:10.3f}{bare_ms:10.3f}", flush=True)


if __name__ == "__main__":
    main()
