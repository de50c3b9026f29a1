"""
From the flow to the reverse SDE
================================

One noise level ``eta`` leads from the probability flow (0) to Anderson's reverse SDE (1). The paths become rougher, the
densities stay.
"""

import matplotlib.pyplot as plt

import sdegen as sg

ring = sg.data.toys.ring(8)
model = sg.MixtureModel(ring, sg.VPSDE())

figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for ax, eta in zip(axes, (0.0, 0.25, 0.5, 1.0)):
    path = sg.sample(model, 300, solver="ddim", eta=eta, steps=100, seed=0, save="all")
    sg.plot.trajectories(path, density=ring, lines=12, ax=ax)
    ax.set_title(f"eta = {eta:g}")
