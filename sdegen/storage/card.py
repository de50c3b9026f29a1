"""A model card: the README of a checkpoint folder, with a snippet that samples what is in it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.errors import InvalidInputError
from ..models.base import ScoreModel
from ..models.networks import class_of, unwrapped
from ..nets.conditions import Conditional

README = "README.md"


def card(model: nn.Module, name: str, words: str, *, ours: bool) -> str:
    """The text of a model card, Markdown under a header as model hubs read it.

    Args:
        model: what the folder holds.
        name: a title.
        words: what the model is, where its data are from, its licence: the author's own.
        ours: whether `load` rebuilds the network from the folder alone.

    Raises:
        InvalidInputError: a model that a snippet could not sample: its network is one's own, its samples have no known
            shape, or it is no model of scores.
    """
    if not isinstance(model, ScoreModel) or not ours:
        what = type(unwrapped(getattr(model, "net", model))).__name__
        raise InvalidInputError(
            f"card: a card has a snippet that runs, but load cannot sample or rebuild a {what} of your own from the "
            "folder alone: save without card=, or build the network from sdegen.nets"
        )
    if model.event_shape is None:
        raise InvalidInputError("card: the shape of a sample is not known: fit the model, or set model.event_shape")
    rows = "\n".join(f"| {key} | {value} |" for key, value in _facts(model))
    return f"""---
library_name: sdegen
tags:
- sdegen
- diffusion
---

# {name}

{words.strip()}

| | |
|---|---|
{rows}

## Sample from it

With this folder as the working directory (`pip install sdegen`):

```python
{_snippet(model)}
```

Any solver, number of steps or tolerance works: `sdegen sample . --rtol 1e-2` does the same from the command line.
"""


def _facts(model: Any) -> list[tuple[str, str]]:
    net = unwrapped(model.net)
    count = sum(parameter.numel() for parameter in net.parameters())
    latents = "" if model.space is None else " latents, see `model.decode`"
    found = [
        ("network", f"{class_of(net).__name__}, {count:,} parameters"),
        ("process", f"`{model.sde!r}`"),
        ("parametrization", model.parametrization),
        ("samples", f"{tuple(model.event_shape)}" + latents),
        ("conditions", ", ".join(_conditions(net)) or "none"),
    ]
    classes = model.about.get("classes")
    return [*found, ("classes", ", ".join(map(str, classes)))] if classes else found


def _conditions(net: Any) -> list[str]:
    """Those that it was built for."""
    return sorted(net.conditions.names - {"token_mask"}) if isinstance(net, Conditional) else []


def _snippet(model: Any) -> str:
    """Python that loads and samples; what a network can do without is left out, but for a label."""
    net, words = unwrapped(model.net), ""
    lines = ["import sdegen as sg", "", 'model = sg.load(".")']
    if "label" in _conditions(net):
        words += ", label=0"
    if "image" in _conditions(net):
        shape = (4, net.conditions.image_channels, *model.event_shape[1:])
        lines = ["import sdegen as sg", "import torch", "", 'model = sg.load(".")', f"image = torch.zeros{shape}"]
        words += ", image=image"
    shown = "x" if model.space is None else "model.decode(x)"
    lines += [f"x = sg.sample(model, 4, steps=20, seed=0{words}).x", f"print({shown}.shape)"]
    return "\n".join(lines)
