"""
Schedules of seven processes
============================

What noise does to data in seven papers. In the third panel, half the logarithm of the signal-to-noise ratio, they are
the same thing at different speeds: that is why a model trained along one can be sampled along another.
"""

import sdegen as sg

processes = [
    sg.VPSDE(),
    sg.SubVPSDE(),
    sg.CosineSDE(),
    sg.VESDE(),
    sg.EDMSDE(),
    sg.TrigSDE(sigma_data=1.0),
    sg.LinearPathSDE(),
]
sg.plot.schedule({type(sde).__name__: sde for sde in processes})
