"""
A density, and how wrong it is
==============================

The log-density along the flow on the left, what it is wrong by on the right: for a mixture the truth is known, so the
error that ``log_prob`` tells can be compared with the error that it makes.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], std=0.3)
model = sg.MixtureModel(mixture, sg.VPSDE())
side = torch.linspace(-2.2, 2.2, 60, dtype=torch.float64)
points = torch.cartesian_prod(side, side)
found = sg.log_prob(model, points, rtol=1e-3)
error = (found.nats - model.log_prob(points, model.sde.t_min)).abs()

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
box = {"extent": (-2.2, 2.2, -2.2, 2.2), "origin": "lower"}
image = axes[0].imshow(found.nats.reshape(60, 60).T.clamp(min=-12), cmap="Blues", **box)
figure.colorbar(image, ax=axes[0], label="log p, nats")
image = axes[1].imshow(error.log10().reshape(60, 60).T.clamp(-6, 0), cmap="magma", **box)
figure.colorbar(image, ax=axes[1], label="log10 of the error, nats")
axes[0].set_title("found")
axes[1].set_title(f"its error; told: {found.errors['solver'].mean():.1e}")
