"""
Two moons, learned
==================

A small network learns two moons from samples in a few seconds. The probability flow then tells the density it believes
in, which nobody ever wrote down.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

data = sg.data.toys.two_moons(20_000, noise=0.08, seed=0)
torch.manual_seed(0)
model = sg.Denoiser(sg.nets.MLP(2), sg.VPSDE())
sg.fit(model, data, steps=1200, batch_size=512, seed=0, progress=False)
samples = sg.sample(model, 4000, rtol=1e-3, seed=1).x

side = torch.linspace(-2.4, 2.4, 70)
points = torch.cartesian_prod(side, side)
believed = sg.log_prob(model, points, rtol=1e-2).nats.exp().reshape(70, 70).T

figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
axes[0].plot(*data[:4000].T, ".", ms=1.5), axes[0].set_title("data")
axes[1].plot(*samples.T, ".", ms=1.5), axes[1].set_title("samples of the flow")
(
    axes[2].imshow(believed, extent=(-2.4, 2.4, -2.4, 2.4), origin="lower", cmap="Blues"),
    axes[2].set_title("learned density"),
)
for ax in axes:
    ax.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), aspect="equal")
