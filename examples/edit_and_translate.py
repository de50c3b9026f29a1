"""Edit, invert, translate and mix images with the model that comes along.

python examples/edit_and_translate.py --out edited

Writes four strips, a picture first in each row:
edits.png       noised to sigma/alpha = 0.3, 1, 3, 10 and drawn back: from small changes to another picture
translated.png  encoded as its class, decoded as another (a sneaker as a sandal, an ankle boot, a bag)
between.png     from one picture to another: their latents on an arc, decoded
mixed.png       one class above sigma/alpha = 1.5, another below: layout of the one, detail of the other
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdegen as sg

LEVELS = (0.3, 1.0, 3.0, 10.0)


def edits(model: Any, x: Tensor, label: Tensor, how: dict[str, Any]) -> Tensor:
    times = [float(model.sde.time(torch.tensor(-math.log(r), dtype=torch.float64))) for r in LEVELS]
    found = [sg.edit(model, x, t, seed=1, label=label, **how).x for t in times]
    return torch.stack([x, *found], 1)


def translated(model: Any, x: Tensor, label: Tensor, others: list[int], how: dict[str, Any]) -> Tensor:
    to = lambda k: {"label": torch.full_like(label, k)}
    found = [sg.translate(model, model, x, cond_a={"label": label}, cond_b=to(k), **how).x for k in others]
    return torch.stack([x, *found], 1)


def between(model: Any, x: Tensor, label: Tensor, how: dict[str, Any]) -> Tensor:
    """From each picture to the next, under no class."""
    free = torch.full_like(label, -1)
    z = sg.encode(model, x, label=free, **how).x
    arcs = sg.slerp(z, z.roll(-1, 0), torch.linspace(0, 1, 6))
    flat = arcs.flatten(0, 1)
    found = sg.sample(model, len(flat), x_init=flat, label=free.repeat(6), **how).x
    return found.unflatten(0, (6, len(x))).transpose(0, 1)


def mixed(model: Any, label: Tensor, styles: list[int], how: dict[str, Any]) -> Tensor:
    switched = sg.Switched(model, 1.5, {"label": "style"})
    draw = lambda k: sg.sample(switched, len(label), seed=2, label=label, style=torch.full_like(label, k), **how).x
    own = sg.sample(model, len(label), seed=2, label=label, **how).x
    return torch.stack([own, *map(draw, styles)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("edited"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    args = parser.parse_args()
    how = {"steps": 4 if args.smoke else args.steps}
    args.out.mkdir(parents=True, exist_ok=True)
    model: Any = sg.load(args.model)
    label = torch.tensor([7, 0, 3])  # sneaker, T-shirt, dress
    x = sg.sample(model, 3, seed=0, label=label, **how).x
    strips = {
        "edits": edits(model, x, label, how),
        "translated": translated(model, x, label, [5, 9, 8], how),
        "between": between(model, x, label, how),
        "mixed": mixed(model, label, [5, 9, 8], how),
    }
    for name, strip in strips.items():
        sg.plot.save(sg.plot.image_grid(strip.flatten(0, 1), nrow=strip.shape[1]), args.out / f"{name}.png")
        print(f"wrote {args.out / name}.png")


if __name__ == "__main__":
    main()
