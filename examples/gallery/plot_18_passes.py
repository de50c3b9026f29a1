"""
RePaint, each step taken one to five times
==========================================

Half of each picture is seen. Taken once, steps put the seen half in and leave the other one to itself; taken again and
again they bring the two into harmony, each pass at the price of one more. The model is told no class.
"""

import torch

import sdegen as sg

model = sg.load("fashion", device="cpu")
names = torch.tensor([0, 1, 3, 5, 7, 8, 9])
pictures = sg.sample(model, 7, steps=20, seed=4, label=names).x
mask = sg.data.mask("half", (1, 28, 28))
half, rows, titles = sg.Observation.mask(mask), [pictures, torch.where(mask, pictures, 0.0)], ["picture", "seen"]
for passes in (1, 2, 3, 4, 5):
    how = {"method": "repaint", "passes": passes, "steps": 30, "seed": 0}
    rows.append(sg.sample_posterior(model, half, 7, y=pictures, label=torch.full_like(names, -1), **how).x)
    titles.append(f"n = {passes}")
columns = torch.stack(rows).transpose(0, 1).flatten(0, 1)
sg.plot.image_grid(columns.clamp(-1, 1), nrow=len(rows), titles=[*titles, *[""] * 42])
