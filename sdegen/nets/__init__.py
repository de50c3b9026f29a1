"""Networks: functions net(x, t, **cond) of a state and a number per sample, and an autoencoder of images; they know
nothing of processes.

Each keeps the arguments it was built with in `net.config`, a dict that survives JSON: `type(net)(**net.config)` has the
same architecture.
"""

from .autoencoder import Autoencoder
from .dit import DiT
from .mlp import MLP
from .presets import PRESETS, make_net
from .unet import UNet

__all__ = ["PRESETS", "Autoencoder", "DiT", "MLP", "UNet", "make_net"]
