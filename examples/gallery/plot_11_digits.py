"""
Digits coming out of noise
==========================

A U-Net after 250 steps of training, which take less than ten seconds: rough digits, but digits. The strip keeps the
states on the way; the film plays them.
"""

import torch

import sdegen as sg

digits = sg.data.load_images("digits")
torch.manual_seed(0)
model = sg.Denoiser(sg.nets.UNet(1, n_classes=10), sg.VPSDE())
sg.fit(model, digits, steps=250, batch_size=64, seed=0, progress=False)

path = sg.sample(model, 5, steps=20, label=torch.tensor([0, 2, 3, 7, 8]), seed=1, save="all")
sg.plot.denoising_strip(path, samples=5)

# %%
film = sg.plot.animate(path, frames=12)
