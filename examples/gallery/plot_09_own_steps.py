"""
Each sample takes its own steps
===============================

Under a tolerance no sample waits for another. The ones that start between two modes have to decide, and take more
steps; the map on the left says where they came from.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

model = sg.MixtureModel(sg.data.toys.ring(5, std=0.08), sg.VPSDE())
start = torch.randn(6000, 2, generator=torch.Generator().manual_seed(0))
found = sg.sample(model, start.shape, x_init=start, rtol=1e-3)

figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
for ax, x, title in zip(axes, (start, found.x), ("at t = 1", "at t = 0")):
    dots = ax.scatter(*x.T, c=found.nfe, s=3, cmap="viridis")
    ax.set(title=title, aspect="equal")
figure.colorbar(dots, ax=axes, label="evaluations of the network")
