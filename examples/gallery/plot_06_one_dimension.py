"""
Paths of a density in time
==========================

In one dimension time can have an axis of its own. Behind, the density at each time; on top, paths of the flow, which
never cross, and of the reverse SDE, which do.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

mixture = sg.GaussianMixture([[-1.5], [0.5], [1.5]], std=[0.15, 0.3, 0.1], weights=[0.3, 0.4, 0.3])
model = sg.MixtureModel(mixture, sg.VPSDE())
times = torch.linspace(0.001, 1, 200)
y = torch.linspace(-3, 3, 300)[:, None]
density = torch.stack([model.log_prob(y, float(t)).exp() for t in times], dim=1)
density = density / density.amax(0)  # each time by its own largest value

figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for ax, (title, how) in zip(axes, {"flow": {"eta": 0.0}, "reverse SDE": {"eta": 1.0}}.items()):
    path = sg.sample(model, (24, 1), solver="ddim", steps=200, seed=3, save="all", **how)
    ax.imshow(density, extent=(0, 1, -3, 3), origin="lower", aspect="auto", cmap="Blues", vmax=1.4)
    ax.plot(path.ts, path.xs[:, :, 0], color="black", lw=0.7)
    ax.set(title=title, xlabel="time t", ylim=(-3, 3), xlim=(1, 0))
axes[0].set_ylabel("x")
