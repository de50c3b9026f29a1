"""
What a tolerance buys
=====================

Ask for an error, and see whether you get it. Every dot is a sample; the line is where the error is what was asked for.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], std=0.2)
model = sg.MixtureModel(mixture, sg.VPSDE())
start = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
exact = sg.sample(model, start.shape, x_init=start, rtol=1e-11).x

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True, layout="constrained")
for ax, solver in zip(axes, ("adams", "dopri5")):
    for rtol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        found = sg.sample(model, start.shape, x_init=start, solver=solver, rtol=rtol)
        error = (found.x - exact).square().mean(1).sqrt()
        spread = rtol * 10 ** (0.3 * torch.rand(len(error)) - 0.15)
        ax.loglog(spread, error, ".", ms=2)
        ax.text(rtol, 3, f"{found.nfe.double().mean():.0f}", ha="center")
    ax.plot([1e-6, 1e-1], [1e-6, 1e-1], "k--", lw=0.8)
    ax.set(title=f"{solver} (above: evaluations)", xlabel="tolerance", ylim=(1e-10, 10))
axes[0].set_ylabel("error of a sample")
