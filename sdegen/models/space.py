"""Latent spaces: data seen through an autoencoder, in numbers of mean 0 and standard deviation 1."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.kinds import checked, kind_of, take, told
from ..core.modes import evaluating
from ..core.shapes import check_state
from ..core.show import Shown
from ..data.batched import Batched
from ..data.conditioned import Conditioned
from ..noise.purposes import Purpose
from ..noise.white import Noise, noise_of
from .latents import Latents, kept, moments_of

_ROWS = 64  # images encoded at a time
_AT_ONCE = {"cpu": 2**13}  # numbers decoded at a time: what stays in a processor's cache
_AT_ONCE_ELSEWHERE = 2**16


class LatentSpace(Shown, nn.Module):
    """Data seen through an autoencoder: z = (E(x) - mean)/std, channel by channel, and x = D(std z + mean).

    A Denoiser of z carries its space, `Denoiser(net, sde, space=space)`, also in checkpoints; `model.decode(z)` gives
    the data of its samples. An autoencoder whose latents are scaled by a number has the same z.

    It stays in eval mode, and its weights are not among the parameters of the model that carries it, so that training
    leaves them as they are.

    Args:
        autoencoder: a module with `encode(x) -> (mean, std)`, std None where it draws nothing, and `decode(z) -> x`,
            such as a `nets.Autoencoder`. Channels are axis 1 of its latents.
        mean, std: of its latents: a number, or (C,) one for each channel.

    Attributes:
        channels: C, None where a number stands for all and the autoencoder does not say.

    Raises:
        InvalidInputError: an autoencoder without these functions, numbers that are not finite or for another number of
            channels, a std that is not above 0.

    Source: Rombach et al. 2022 (arXiv 2112.10752) section 3.3 and appendix G, which divides by one number, the
    standard deviation of the first batch; here it is one for each channel, and over the data.

    Example:
        >>> import torch, sdegen as sg
        >>> images = torch.rand(32, 1, 8, 8) * 2 - 1
        >>> space = sg.LatentSpace.measured(sg.nets.Autoencoder(1, 3, patch=2, width=8, blocks=1), images)
        >>> model = sg.Denoiser(sg.nets.UNet(3, channels=8), sg.VPSDE(), space=space)
        >>> history = sg.fit(model, space.latents(images), steps=2, batch_size=8, seed=0, progress=False)
        >>> z = sg.sample(model, 2, steps=3, seed=0, progress=False).x
        >>> z.shape, model.decode(z).shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 1, 8, 8]))
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, autoencoder: nn.Module, *, mean: Any, std: Any) -> None:
        super().__init__()
        if not callable(getattr(autoencoder, "encode", None)) or not callable(getattr(autoencoder, "decode", None)):
            raise InvalidInputError(
                f"autoencoder: got a {type(autoencoder).__name__}, expected a module with encode(x) -> (mean, std or "
                "None) and decode(z) -> x, such as nets.Autoencoder"
            )
        own = getattr(autoencoder, "latent_channels", None)
        values = [_per_channel("mean", mean, own), _per_channel("std", std, own)]
        if not bool((values[1] > 0).all()):
            raise InvalidInputError(f"std: got {values[1].tolist()}, expected numbers above 0: a channel is constant")
        sizes = {len(v) for v in values if v.ndim}
        if len(sizes) > 1:
            raise InvalidInputError(
                f"mean and std are for {len(values[0])} and {len(values[1])} channels: expected one"
            )
        self.channels: int | None = sizes.pop() if sizes else own
        self.autoencoder = autoencoder
        for name, value in zip(("mean", "std"), values, strict=True):
            self.register_buffer(name, value)
        self.eval()

    @classmethod
    @checked
    def measured(cls, autoencoder: nn.Module, data: Any, *, n: int = 4096) -> LatentSpace:
        """The space whose mean and std are those of the latents of data, each channel over samples and places.

        std counts what the encoder draws, so that a draw of `encode(x, seed=)` has standard deviation 1.

        Args:
            autoencoder: as above.
            data: a tensor (N, *event), or a set such as `data.Images`.
            n: how many samples, evenly from all of them.

        Returns:
            `LatentSpace`.

        Raises:
            InvalidInputError: data that are none of these or empty, n below 2.
        """
        if n < 2:
            raise InvalidInputError(f"got n={n}, expected at least 2 samples")
        unscaled = cls(autoencoder, mean=0.0, std=1.0)
        data = _checked(data)
        numbers = torch.linspace(0, len(data) - 1, min(n, len(data)), dtype=torch.float64).round().long()
        m, s = moments_of(unscaled._moments, data, numbers, _ROWS)
        m = m.double().movedim(1, 0).flatten(1)
        drawn = 0.0 if s is None else s.double().movedim(1, 0).flatten(1).square().mean(1)
        return cls(autoencoder, mean=m.mean(1), std=(m.var(1, correction=0) + drawn).sqrt())

    def _facts(self):
        return {"autoencoder": self.autoencoder, "channels": self.channels, "mean": self.mean, "std": self.std}

    @checked
    def encode(self, x: Tensor, *, seed: int | Noise | None = None) -> Tensor:
        """Latents of data.

        Args:
            x: (B, *event).
            seed: None: the mean of the encoder's distribution. Else a draw from it: sample i's depends on (seed, i)
                alone; a `Noise` numbers the samples its own way.

        Returns:
            z (B, C, ...), in the dtype of x.

        Raises:
            InvalidInputError: what the autoencoder refuses.
        """
        check_state(x)
        m, s = self._moments(x)
        return m if seed is None or s is None else m + s * _normal(seed, m)

    @checked
    def decode(self, z: Tensor) -> Tensor:
        """Data of latents; differentiable where z asks for gradients.

        Otherwise a few are decoded at a time, which bounds the memory and is two to three times as fast on a CPU.

        Args:
            z: (B, C, ...).

        Returns:
            x (B, *event), in the dtype of z.

        Raises:
            InvalidInputError: latents of another number of channels.
        """
        check_state(z, name="z")
        if self.channels is not None and (z.ndim < 2 or z.shape[1] != self.channels):
            raise InvalidInputError(f"z has shape {tuple(z.shape)}: this space is of latents (B, {self.channels}, ...)")
        mean, std = self._scale(z)
        graph = torch.is_grad_enabled() and z.requires_grad
        rows = len(z) if graph else _AT_ONCE.get(z.device.type, _AT_ONCE_ELSEWHERE) // max(1, z[:1].numel())
        with evaluating(self), torch.set_grad_enabled(graph):
            parts = self._as_computed(z * std + mean).split(max(1, rows))
            return torch.cat([self._decoded(part).to(z.dtype) for part in parts])

    def _decoded(self, z: Tensor) -> Tensor:
        x = self.autoencoder.decode(z)  # type: ignore[operator]
        if not isinstance(x, Tensor) or x.shape[:1] != z.shape[:1]:
            raise InvalidInputError(
                f"decode of {type(self.autoencoder).__name__}: got {_kind(x)} for {len(z)} latents, expected a tensor "
                f"({len(z)}, *event)"
            )
        return x

    @checked
    def latents(self, images: Any, *, seed: int | None = None, cache: str | os.PathLike | None = None) -> Latents:
        """The latents of data, as `fit` takes them: encoded once, drawn whenever they are asked for.

        Conditions of the images stay theirs.

        Args:
            images: a tensor (N, *event), or a set such as `data.Images`.
            seed: None: a latent is drawn anew whenever it is asked for, from torch's global generator (which `fit`
                seeds by its seed and the step); a whole number: each has one draw, by (seed, its number).
            cache: a folder that keeps what was encoded for the next time, checked when it is read; None: none.

        Returns:
            `Latents`: len, and batch(numbers) -> (z, conditions).

        Raises:
            InvalidInputError: data that are none of these, or what the autoencoder refuses; a folder that cannot be
                written to.
        """
        data = _checked(images)
        numbers = torch.arange(len(data))
        found = kept(cache, self, data, lambda: moments_of(self._moments, data, numbers, _ROWS))
        return Latents(*found, data, seed=seed)

    def train(self, mode: bool = True) -> LatentSpace:
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> LatentSpace:
        """Move like any module, but mean and std stay in float64."""
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        self.mean, self.std = (v.to(now.device) for v, now in ((mean, self.mean), (std, self.std)))
        return self

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised mean and std of the encoder, like x."""
        with evaluating(self), torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            m, s = self._encoded(self._as_computed(x))
        if self.channels is not None and (m.ndim < 2 or m.shape[1] != self.channels):
            raise InvalidInputError(
                f"the autoencoder gave latents {tuple(m.shape)}: this space is of {self.channels} channels"
            )
        mean, std = self._scale(m)
        return ((m - mean) / std).to(x.dtype), None if s is None else (s / std).to(x.dtype)

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.autoencoder.encode(x)  # type: ignore[operator]
        m, s = found if isinstance(found, tuple | list) and len(found) == 2 else (None, None)
        if (
            not isinstance(m, Tensor)
            or m.shape[:1] != x.shape[:1]
            or (s is not None and not (isinstance(s, Tensor) and s.shape == m.shape))
        ):
            got = f"({', '.join(map(_kind, found))})" if isinstance(found, tuple | list) else _kind(found)
            raise InvalidInputError(
                f"encode of {type(self.autoencoder).__name__}: got {got} for {len(x)} samples, expected (mean, std), "
                f"both ({len(x)}, C, ...), or (mean, None) where it draws nothing"
            )
        return m, s

    def _scale(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std, to be broadcast over z."""
        shape = (-1,) + (1,) * (z.ndim - 2)
        return self.mean.to(z).reshape(shape), self.std.to(z).reshape(shape)

    def _as_computed(self, x: Tensor) -> Tensor:
        """In the dtype and on the device of the autoencoder's weights."""
        like = next((p for p in self.autoencoder.parameters() if p.is_floating_point()), None)
        return x if like is None else x.to(like.device, like.dtype)


_TENSOR = kind_of(Tensor)


def shown_shape(model: Any) -> tuple[int, ...] | None:
    """The shape of what a sample of a model shows: its own, or of a latent what it decodes to; None where unknown."""
    event, space = model.event_shape, model.space
    if event is None or space is None:
        return event
    with torch.no_grad():
        return tuple(space.decode(torch.zeros(1, *event)).shape[1:])


def _per_channel(name: str, value: Any, channels: int | None) -> Tensor:
    """A number or (C,), float64; of numbers for all channels one for each, where it is known how many there are."""
    if isinstance(value, Tensor):
        take(value, name, _TENSOR)
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(
            f"{name}: got {told(value)}, expected a number, or (C,) one for each channel"
        ) from error
    if tensor.ndim > 1 or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        raise InvalidInputError(f"{name}: got {tensor.tolist()!r:.80}, expected finite numbers, one or (C,)")
    if channels is None or not tensor.ndim:
        return tensor if channels is None else tensor.repeat(channels)
    if len(tensor) != channels:
        raise InvalidInputError(f"{name} is for {len(tensor)} channels, the autoencoder's latents have {channels}")
    return tensor


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _checked(data: Any) -> Batched:
    if isinstance(data, Tensor) and data.ndim:
        data = Conditioned(data)
    if not isinstance(data, Batched) or not len(data):
        got = "no samples" if isinstance(data, Batched) else f"a {type(data).__name__}"
        raise InvalidInputError(
            f"data: got {got}, expected a tensor (N, *event) or a set such as data.Images (of files: data.load_images)"
        )
    return data


def _normal(seed: int | Noise, like: Tensor) -> Tensor:
    return noise_of(seed).normal(like.shape, Purpose.LATENT, dtype=like.dtype, device=like.device)
