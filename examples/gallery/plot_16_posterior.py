"""
A posterior with two answers
============================

One number of each pair is seen, and two groups of data agree with it. One pass of guidance finds both and gets their
shares wrong; groups of weighted particles are right in the limit, and say by how much they trust themselves.
"""

import matplotlib.pyplot as plt
import torch

import sdegen as sg

mixture = sg.GaussianMixture([[-1.0, -1.2], [0.2, 0.9], [1.0, 0.0]], std=[0.3, 0.35, 0.2], weights=[0.5, 0.3, 0.2])
model = sg.MixtureModel(mixture, sg.VPSDE())
seen, n = sg.Observation.mask([True, False], std=0.1), 600
y = torch.full((n, 1), -0.3)

exact = mixture.posterior(torch.tensor([[1.0, 0.0]]), y[0], 0.1).sample(n, seed=0)
guided = sg.sample(sg.Posterior(model, seen), n, rtol=1e-3, seed=0, y=y)
found = sg.sample_posterior(model, seen, n, y=y, particles=16, seed=0)
drawn = {
    "data": mixture.sample(n, seed=1),
    "exact posterior": exact,
    f"guided, {guided.nfe.double().mean():.0f} evaluations": guided.x,
    f"16 particles, share {found.ess.mean():.2f}": found.x,
}
figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharex=True, sharey=True, layout="constrained")
for ax, (name, x) in zip(axes, drawn.items()):
    ax.plot(*x.T, ".", ms=3)
    ax.axvline(-0.3, color="grey", lw=0.8)
    upper = float((x[:, 1] > -0.1).double().mean())
    ax.set_title(f"{name}\nabove: {upper:.0%}", fontsize="medium")
