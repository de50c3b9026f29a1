"""
The same noise, eight evaluations
=================================

Four solvers of the probability flow start from the same states and may ask the score eight times. Grey: where the flow
really ends. All four solve one equation; they differ in what they make of what they have seen.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], std=0.2)
model = sg.MixtureModel(mixture, sg.VPSDE())
start = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
exact = sg.sample(model, start.shape, x_init=start, rtol=1e-9).x

figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), sharex=True, sharey=True, layout="constrained")
for ax, solver in zip(axes, ("euler", "ddim", "dpm++2m", "adams")):
    x = sg.sample(model, start.shape, x_init=start, solver=solver, steps=8).x
    ax.plot(*exact.T, ".", ms=4, color="0.8")
    ax.plot(*x.T, ".", ms=2.5)
    ax.set_title(f"{solver}: error {(x - exact).square().mean().sqrt():.2g}")
    ax.set_aspect("equal")
