"""
Error against evaluations
=========================

What a solver is worth on a model of yours: ``compare`` runs budgets and tolerances and measures the end points against
a tight solution. Left and below is better.
"""

import sdegen as sg

mixture = sg.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], std=0.2)
model = sg.MixtureModel(mixture, sg.VPSDE())
table = sg.compare(
    model,
    256,
    solvers=("adams", "ddim", "dpm++2m", "unipc3", "heun", "dopri5"),
    steps=(5, 8, 10, 20, 40, 80),
    tolerances=(1e-1, 1e-2, 1e-3, 1e-4),
    seed=0,
)
sg.plot.work_precision(table)
