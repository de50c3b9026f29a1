"""How objects show themselves: a line of text, and in notebooks a small table with a picture."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LONGEST_VALUE, _LONGEST_LINE = 80, 380
_DRAWN_POINTS, _DRAWN_IMAGES, _TOLD_NUMBERS = 400, 16, 4


class Shown:
    """Gives a class its `repr` and its table in notebooks, from `_facts()`, and a picture from `_picture()`."""

    __slots__ = ()

    def _title(self) -> str:
        """The name it goes by."""
        return type(self).__name__

    def _facts(self) -> Mapping[str, Any]:
        """What to tell, by name; None is left out."""
        return {}

    def _picture(self) -> str:
        """HTML of a small picture, or nothing."""
        return ""

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={brief(value)}" for name, value in self._facts().items() if value is not None)
        return f"{self._title()}({_cut(told, _LONGEST_LINE - len(self._title()))})"

    def _repr_html_(self) -> str:
        rows = [(name.replace("_", " "), brief(value)) for name, value in self._facts().items() if value is not None]
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return (
            f"<div style='display:flex;gap:1.5em;align-items:center'><div><b>{self._title()}</b>"
            f"<table>{cells}</table></div>{self._picture()}</div>"
        )


class ShownNet:
    """`Shown` for networks: the number of parameters, and the arguments they were made with.

    No subclass of it: PyTorch's FSDP gives a network another class, which a base with `__slots__` forbids.
    """

    _title, _picture, __repr__, _repr_html_ = Shown._title, Shown._picture, Shown.__repr__, Shown._repr_html_

    def _facts(self) -> Mapping[str, Any]:
        return {"parameters": parameters(self), **getattr(self, "config", {})}  # type: ignore[arg-type]


def brief(value: Any) -> str:
    """One value in a few characters: numbers to four digits, tensors by shape and spread, functions by name."""
    if isinstance(value, str):
        return _cut(value, _LONGEST_VALUE)
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, nn.Module) and not isinstance(value, Shown):
        return f"{type(value).__name__} of {parameters(value)} parameters"
    if callable(value) and not isinstance(value, (Shown, type)):
        return getattr(value, "__qualname__", type(value).__name__).replace("<locals>.", "")
    return _cut(repr(value), _LONGEST_VALUE)


def parameters(module: nn.Module) -> str:
    """How many numbers a module learns, in thousands and millions."""
    count = sum(p.numel() for p in module.parameters())
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def spread(values: Tensor) -> str:
    """A tensor of per-sample numbers as its mean and range."""
    if not values.numel():
        return "none"
    v = values.detach().double()
    low, mean, high = float(v.min()), float(v.mean()), float(v.max())
    return f"{mean:.4g}" if low == high else f"{mean:.4g} ({low:.4g} to {high:.4g})"


def picture_of(x: Tensor) -> str:
    """A thumbnail of samples: a scatter of points in the plane, a grid of images; nothing for other shapes."""
    x = x.detach()
    if not len(x) or not bool(torch.isfinite(x).all()):
        return ""
    if x.ndim == 2 and x.shape[1] == 2:
        return _scatter(x[:_DRAWN_POINTS].double())
    if x.ndim == 4 and x.shape[1] in (1, 3, 4) and min(x.shape[2:]) > 1:
        return _grid(x[:_DRAWN_IMAGES].float())
    return ""


def curves(*lines: Tensor) -> str:
    """Small curves over their index as an SVG, all to one scale; what is not finite is left out."""
    drawn = [_thinned(line.detach().double().flatten()) for line in lines]
    finite = torch.cat([line[torch.isfinite(line)] for line in drawn])
    if not finite.numel():
        return ""
    low, high = float(finite.min()), float(finite.max())
    paths = []
    for line, colour in zip(drawn, ("#1f6f8b", "#d1603d", "#6b8f3d"), strict=False):
        places = enumerate(line.tolist())
        at = [
            f"{5 + 190 * i / max(1, len(line) - 1):.1f},{95 - 90 * (v - low) / (high - low or 1):.1f}"
            for i, v in places
            if math.isfinite(v)
        ]
        paths.append(f"<polyline points='{' '.join(at)}' stroke='{colour}'/>")
    body = "".join(paths)
    return (
        "<svg width='200' height='100' viewBox='0 0 200 100' fill='none' stroke-width='1.5' role='img' "
        f"aria-label='curves'>{body}</svg>"
    )


def _thinned(line: Tensor, most: int = 200) -> Tensor:
    """Means over equal pieces of a long line."""
    if len(line) <= most:
        return line
    return torch.stack([piece.nanmean() for piece in line.tensor_split(most)])


def _scatter(points: Tensor) -> str:
    """Points in the plane as an SVG, both axes to the same scale."""
    centre = (points.amax(0) + points.amin(0)) / 2
    half = float((points.amax(0) - points.amin(0)).max()) / 2 or 1.0
    at = (
        60 + 55 * (points - centre) / half * torch.tensor([1.0, -1.0], dtype=points.dtype, device=points.device)
    ).tolist()
    dots = "".join(f"<circle cx='{u:.1f}' cy='{v:.1f}' r='1.3'/>" for u, v in at)
    head = "<svg width='160' height='160' viewBox='0 0 120 120' fill='#1f6f8b' role='img' aria-label='samples'>"
    return f"{head}{dots}</svg>"


def _grid(images: Tensor) -> str:
    """Images within [-1, 1] as one PNG."""
    from PIL import Image  # comes with matplotlib

    n, c, h, w = images.shape
    columns = min(n, max(1, round((n * h / w) ** 0.5)))
    rows = -(-n // columns)
    sheet = torch.ones(rows * columns, c, h, w)
    sheet[:n] = images.cpu().clamp(-1, 1)
    sheet = sheet.reshape(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    levels = (127.5 * (sheet + 1)).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if c == 1 else levels).save(file, "PNG")
    height = max(rows * h, min(160, 4 * rows * h))
    code = base64.b64encode(file.getvalue()).decode()
    return f"<img height='{height}' style='image-rendering:auto' alt='samples' src='data:image/png;base64,{code}'/>"


def _of_tensor(value: Tensor) -> str:
    if value.numel() == 1:
        number = value.item()
        return f"{number:.4g}" if isinstance(number, float) else str(number)
    if 0 < value.numel() <= _TOLD_NUMBERS and value.ndim == 1:
        return f"[{', '.join(_of_tensor(v) for v in value.detach())}]"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
