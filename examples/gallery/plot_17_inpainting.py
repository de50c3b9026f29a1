"""
Filling in what six masks leave out
===================================

What is seen of a boot under each mask, and three ways to fill in the rest. The seen pixels are in every result to the
bit.
"""

import torch

import sdegen as sg

model = sg.load("fashion", device="cpu")
boot = sg.sample(model, 1, steps=20, seed=4, label=torch.tensor([9])).x[0]
kinds, label, rows = ("wide", "outer", "thin", "half", "pixels", "rows"), torch.full((3,), -1), []
for kind in kinds:
    mask = sg.data.mask(kind, boot.shape)
    how = {"method": "repaint", "passes": 3, "steps": 30, "seed": 0}
    filled = sg.sample_posterior(model, sg.Observation.mask(mask), 3, y=boot.expand(3, 1, 28, 28), label=label, **how).x
    assert torch.equal(filled[:, mask], boot[mask].expand(3, -1))
    rows.append(torch.cat([torch.where(mask, boot, 0.0)[None], filled]))
columns = torch.stack(rows).transpose(0, 1).flatten(0, 1)
sg.plot.image_grid(columns, nrow=len(kinds), titles=[*kinds, *[""] * 18])
