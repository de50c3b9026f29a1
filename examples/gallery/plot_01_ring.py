"""
A ring, there and back
======================

The forward SDE turns data into noise. The reverse SDE and the probability flow turn noise into data, with the same
density at every time: one by random steps, the other along smooth curves.
"""

import sdegen as sg

model = sg.MixtureModel(sg.data.toys.ring(8), sg.VPSDE())
sg.plot.trajectories(model, seed=0)
