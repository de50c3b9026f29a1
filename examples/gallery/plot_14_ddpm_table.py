"""
A DDPM's thousand nodes
=======================

The betas of a DDPM are the VP process seen at a thousand times. Ancestral sampling may visit all of them, a hundred, or
ten; the flow needs ten.
"""

import matplotlib.pyplot as plt

import sdegen as sg
from sdegen import discrete

ring = sg.data.toys.ring(8, std=0.12)
model = sg.MixtureModel(ring, sg.TabulatedVPSDE(discrete.betas("linear", 1000)))

figure, axes = plt.subplots(1, 4, figsize=(13, 3.5), sharex=True, sharey=True, layout="constrained")
for ax, steps in zip(axes, (10, 100, 1000)):
    ax.plot(*discrete.ddpm(model, 2000, steps=steps, seed=0).x.T, ".", ms=1.5)
    ax.set_title(f"ancestral, {steps} nodes")
axes[3].plot(*sg.sample(model, 2000, steps=10, seed=0).x.T, ".", ms=1.5, color="tab:orange")
axes[3].set_title("flow, 10 evaluations")
for ax in axes:
    ax.set_aspect("equal")
