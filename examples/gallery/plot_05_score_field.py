"""
A score at four times
=====================

The score points to where data become more likely. With little noise that is the nearest mode, with much noise the
middle of everything.
"""

import matplotlib.pyplot as plt

import sdegen as sg

model = sg.MixtureModel(sg.data.toys.grid(3, spacing=0.9, std=0.12), sg.VPSDE())

figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for ax, t in zip(axes, (0.01, 0.1, 0.2, 0.5)):
    sg.plot.score_field(model, t, ax=ax, extent=(-2, 2, -2, 2))
    ax.set_title(f"t = {t:g}")
