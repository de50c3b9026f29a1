"""A small classifier, trained here, whose last hidden layer tells pictures apart: features where Inception has none."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.arguments import number, whole
from ..core.errors import CorruptCheckpointError, InvalidInputError
from ..core.files import as_path, cure, write_whole
from ..core.kinds import checked
from ..core.modes import evaluating
from ..core.show import ShownNet
from ..core.team import alone
from ..training.loop import fit

FEATURES = 64
_RECIPE = 2  # changes when training does: a file of another recipe is not taken for this one's


class Classifier(ShownNet, nn.Module):
    """Convolutions to 4x4 pixels or so, their mean, one hidden layer, one output per class.

    `classifier(x)` gives features (N, 64), the hidden layer: what `frechet_distance`, `kernel_distance` and
    `precision_recall` take. It runs without gradients, some images at a time.

    Args:
        shape: (C, H, W) of an image.
        n_classes: how many.
    """

    @checked
    def __init__(self, shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        self.shape, self.n_classes = tuple(shape), n_classes
        c, h, w = (whole(n, "shape", least=1, most=2**20) for n in shape)
        whole(n_classes, "n_classes", least=1, most=2**20)
        side, width, layers = min(h, w), 32, []
        while not layers or side > 4:
            stride = 2 if side > 8 or layers else 1
            layers += [nn.Conv2d(c, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
            c, width, side = width, FEATURES, -(-side // stride)
        layers += [nn.Conv2d(c, FEATURES, 3, padding=1, bias=False), nn.BatchNorm2d(FEATURES), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(FEATURES, FEATURES)
        self.out = nn.Linear(FEATURES, n_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on the CPU

    def _facts(self):
        return {**super()._facts(), "shape": self.shape, "n_classes": self.n_classes}

    @checked
    def forward(self, x: Tensor) -> Tensor:
        """The features of images.

        Args:
            x: (N, C, H, W), scaled as those it learned.

        Returns:
            (N, 64), on the CPU.

        Raises:
            InvalidInputError: images of another shape.
        """
        return self._in_portions(x, self.embed)

    @checked
    def probabilities(self, x: Tensor) -> Tensor:
        """How likely each class is.

        Args:
            x: (N, C, H, W), scaled as those it learned.

        Returns:
            (N, n_classes) on the CPU, rows that sum to 1.

        Raises:
            InvalidInputError: images of another shape.
        """
        return self._in_portions(x, lambda some: self.out(self.embed(some)).softmax(1))

    @checked
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """The share of images whose likeliest class is their label.

        Args:
            x: (N, C, H, W), scaled as those it learned.
            labels: (N,) whole numbers.

        Returns:
            In [0, 1].

        Raises:
            InvalidInputError: images of another shape.
        """
        self._check(x)
        if labels.shape != x.shape[:1]:
            raise InvalidInputError(
                f"got labels of shape {tuple(labels.shape)}, expected one for each of {len(x)} images"
            )
        return float((self.probabilities(x).argmax(1) == labels.cpu()).double().mean())

    @checked
    def embed(self, x: Tensor) -> Tensor:
        """The hidden layer, with gradients and in the module's mode: what `forward` gives without.

        Args:
            x: (N, C, H, W), scaled as those it learned.

        Returns:
            (N, 64).
        """
        self._check(x)
        return F.silu(self.hidden(self.convolutions(x).mean((2, 3))))

    def _check(self, x: Tensor) -> None:
        if not x.ndim or tuple(x.shape[1:]) != self.shape:
            raise InvalidInputError(f"x: got shape {tuple(x.shape)}, but this classifier learned images {self.shape}")

    @torch.no_grad()
    def _in_portions(self, x: Tensor, function: Any) -> Tensor:
        self._check(x)
        weight = self.out.weight
        with evaluating(self):
            found = [function(some.to(weight.device, weight.dtype)).cpu() for some in x.split(512)]
        return torch.cat(found) if found else torch.empty(0, FEATURES)


@checked
def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    path: str | os.PathLike | None = None,
    seed: int = 0,
    steps: int = 400,
    batch_size: int = 128,
    lr: float = 3e-3,
) -> Classifier:
    """Train a classifier on real images, or read the one that an earlier call with the same arguments left at `path`.

    By `fit`, on the CPU. The same arguments give the same features on one machine, and on another
    one others that are as good: compare numbers that were made with one file. A Frechet distance of these features is
    not FID, and compares only with others of the same classifier.

    Args:
        images: (N, C, H, W) in [-1, 1].
        labels: (N,), 0 .. n_classes - 1.
        path: a file to keep it in.
        seed: of weights and order.
        steps, batch_size, lr: of training. The defaults take seconds on one CPU core.

    Returns:
        The classifier, in eval mode, on the CPU.

    Raises:
        InvalidInputError: images or labels of another shape, or a file at `path` that was made with other arguments.
        CorruptCheckpointError: the file is damaged.

    Example:
        >>> import sdegen as sg
        >>> digits = sg.data.load_images("digits")
        >>> classifier = sg.metrics.train_classifier(digits.images, digits.labels, steps=20)
        >>> tuple(classifier(digits.images[:10]).shape)
        (10, 64)
    """
    _check(images, labels)
    whole(steps, "steps", least=1)
    whole(batch_size, "batch_size", least=1, most=2**24)
    if not number(lr, "lr", "a number above 0") > 0:
        raise InvalidInputError(f"got lr={lr}, expected a number above 0")
    n_classes = int(labels.max()) + 1
    made_from = _digest(images, labels, [_RECIPE, seed, steps, batch_size, lr])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        net = Classifier((images.shape[1], images.shape[2], images.shape[3]), n_classes)
        file = None if path is None else as_path(path)
        if file is not None and os.path.exists(file):
            _read(net, file, made_from)
        else:
            how: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": 1e-2}
            how |= {"loss": _cross_entropy, "ema": None, "seed": seed, "device": "cpu", "progress": False}
            with alone():  # in several processes the same features as in one
                fit(net, images, label=labels, **how)
            if file is not None:
                _write(net, file, made_from)
    return net.eval().requires_grad_(False)


def _cross_entropy(net: Classifier, x: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(net.out(net.embed(x.float())), label, reduction="none")


def _check(images: Tensor, labels: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel() or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InvalidInputError(f"images: got {got}, expected floating numbers (N, C, H, W) in [-1, 1]")
    if labels is None or labels.shape != images.shape[:1] or labels.is_floating_point() or int(labels.min()) < 0:
        raise InvalidInputError(f"labels: expected whole numbers ({len(images)},), from 0; a classifier needs classes")


def _digest(images: Tensor, labels: Tensor, options: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([*options, list(images.shape)]).encode())
    digest.update(images.detach().cpu().float().contiguous().numpy().data)
    digest.update(labels.detach().cpu().long().contiguous().numpy().data)
    return digest.hexdigest()


def _write(net: Classifier, path: Path, made_from: str) -> None:
    tensors = {name: value.contiguous() for name, value in net.state_dict().items()}
    content = safetensors.torch.save(tensors, {"made_from": made_from, "weights": _fingerprint(tensors)})
    try:
        write_whole(path, content)
    except OSError as error:
        raise InvalidInputError(f"path={str(path)!r} cannot be written: {error}: {cure(error)}") from error


def _read(net: Classifier, path: Path, made_from: str) -> None:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptCheckpointError(f"{path} is no classifier, or damaged ({error}): remove it") from error
    if metadata.get("weights") != _fingerprint(tensors):
        raise CorruptCheckpointError(f"{path} is damaged: its weights are not those that were written; remove it")
    if metadata.get("made_from") != made_from:
        raise InvalidInputError(
            f"{path} holds a classifier of other images or options: remove it, or pass another path"
        )
    net.load_state_dict(tensors)


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
