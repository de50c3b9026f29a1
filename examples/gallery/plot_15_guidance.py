"""
Guidance, scale by scale
========================

Three classes with exact scores. A scale of 1 is each class's own law; more makes samples typical and less various, and
moves the classes apart.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], std=0.45)
classes = sg.MixtureModel(mixture, sg.VPSDE(), labels=[0, 1, 2])
label = torch.arange(900) % 3

figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharex=True, sharey=True, layout="constrained")
for ax, scale in zip(axes, (0.0, 1.0, 2.0, 5.0)):
    guided = sg.Guided(classes, scale, null={"label": -1})
    x = sg.sample(guided, 900, steps=20, seed=0, label=label).x
    ax.scatter(*x.T, c=label, s=3, cmap="brg")
    ax.set(title=f"scale {scale:g}", aspect="equal")
