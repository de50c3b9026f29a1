"""Pictures: each function takes its object first, then `ax=None`, and returns matplotlib objects.

Several panels come back as their Figure, one as its Axes. The look is sdegen's own, put on while a picture is drawn:
rcParams stay the user's. This is the only part of sdegen that imports matplotlib, when `sdegen.plot` is first used.
"""

from .animate import animate
from .explore import explore
from .fields import density, score_field
from .history import history
from .images import denoising_strip, image_grid
from .schedule import schedule
from .style import save, style
from .trajectories import trajectories
from .work_precision import work_precision

__all__ = [
    "animate",
    "denoising_strip",
    "density",
    "explore",
    "history",
    "image_grid",
    "save",
    "schedule",
    "score_field",
    "style",
    "trajectories",
    "work_precision",
]


def __dir__() -> list[str]:
    return __all__
