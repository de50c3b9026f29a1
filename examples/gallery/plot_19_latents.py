"""
A latent space of the digits
============================

Each digit, 64 pixels, is 2x2 places of 4 numbers: a quarter. Rows one and two are held-out digits and what the
autoencoder gives back; the third row are samples of a model of the latents, decoded, with the classes of the first.
No sample can be sharper than a reconstruction.
"""

import torch

import sdegen as sg

train, held_out = (sg.data.load_images("digits", split=part) for part in ("train", "held-out"))
torch.manual_seed(0)
net = sg.nets.Autoencoder(1, 4, patch=4, width=32, blocks=1)
how = {"batch_size": 64, "lr": 3e-3, "seed": 0, "progress": False}
sg.fit(net, train.unlabelled(), loss=sg.autoencoder_loss, steps=400, **how)

space = sg.LatentSpace.measured(net, train)
of_latents = sg.nets.MLP((4, 2, 2), hidden=128, layers=3, n_classes=10)
model = sg.Denoiser(of_latents, sg.VPSDE(), space=space)
sg.fit(model, space.latents(train), steps=1000, **how)

x, labels = held_out.images[:10], held_out.labels[:10]
samples = model.decode(sg.sample(model, 10, steps=20, seed=1, label=labels).x)
rows = torch.cat([x, model.decode(space.encode(x)), samples]).clamp(-1, 1)
sg.plot.image_grid(rows, nrow=10, title="digits, reconstructions, samples")
