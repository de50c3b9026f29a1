"""Networks by name: what suits which images, from a CPU's minutes to a GPU's days."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ..core.arguments import one_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from .dit import DiT
from .unet import UNet


class Preset(NamedTuple):
    """A class with the arguments of one network, and where they come from."""

    kind: type[UNet] | type[DiT]
    options: dict[str, Any]
    channels: int
    source: str


# Parameters are those for the channels that stand here, without classes.
PRESETS: dict[str, Preset] = {
    "digits": Preset(UNet, {}, 1, "8x8, 0.33M: seconds to minutes on one CPU core"),
    "mnist-small": Preset(
        UNet, {"channels": 32, "patch": 2, "multipliers": (1, 2), "attention": (-1,)}, 1, "28x28, 0.35M: a CPU"
    ),
    "mnist": Preset(
        UNet,
        {"channels": 48, "patch": 2, "multipliers": (1, 2), "attention": (-1,), "dropout": 0.05},
        1,
        "28x28, 0.78M, 3 MB: an hour on a CPU",
    ),
    "cifar10-small": Preset(
        UNet,
        {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (1,), "head_channels": 64, "dropout": 0.1},
        3,
        "32x32, 4.9M: hours on a small GPU",
    ),
    "cifar10-ddpm": Preset(
        UNet,
        {
            "channels": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 3,
            "attention": (1,),
            "head_channels": 256,
            "dropout": 0.1,
        },
        3,
        "32x32, 41M: the widths of Ho et al. 2020, appendix B",
    ),
    "cifar10-edm": Preset(
        UNet,
        {
            "channels": 128,
            "multipliers": (2, 2, 2),
            "blocks": 4,
            "attention": (1,),
            "head_channels": 256,
            "dropout": 0.13,
            "skip_rescale": True,
        },
        3,
        "32x32, 53M: the widths of DDPM++ in Karras et al. 2022, table 7",
    ),
    "dit-mini/2": Preset(DiT, {"hidden": 128, "depth": 6, "heads": 4}, 1, "28x28, 1.84M"),
    "dit-s/2": Preset(DiT, {"hidden": 384, "depth": 12, "heads": 6}, 3, "33M: Peebles & Xie 2023, table 1"),
    "dit-s/4": Preset(DiT, {"hidden": 384, "depth": 12, "heads": 6, "patch": 4}, 3, "33M: Peebles & Xie 2023, table 1"),
    "dit-b/2": Preset(DiT, {"hidden": 768, "depth": 12, "heads": 12}, 3, "130M: Peebles & Xie 2023, table 1"),
}


@checked
def make_net(name: str, in_channels: int | None = None, **changes: Any) -> nn.Module:
    """The network of that name, for images of so many channels.

    Args:
        name: one of `PRESETS`.
        in_channels: None: that of the images the name stands for.
        changes: arguments that differ, as `UNet` or `DiT` takes them: n_classes=10, dropout=0.0.

    Returns:
        A `UNet` or a `DiT`; its arguments are in `net.config`.

    Raises:
        InvalidInputError: an unknown name or argument, or one out of range.

    Example:
        >>> import sdegen as sg
        >>> net = sg.nets.make_net("digits", n_classes=10)
        >>> sum(p.numel() for p in net.parameters()) > 300_000
        True
    """
    one_of(name, "name", PRESETS)
    kind, options, channels, _ = PRESETS[name]
    try:
        return kind(channels if in_channels is None else in_channels, **{**options, **changes})
    except TypeError as error:
        raise InvalidInputError(f"{name!r} is a {kind.__name__}: {error}") from error
