"""The loss of an autoencoder of images, variational or vector-quantised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.shapes import event_mean, event_sum
from ..models.networks import unwrapped
from ..nets import Autoencoder
from ..noise.purposes import Purpose
from ..noise.white import Noise, noise_of

_COMMITMENT = 0.25


@checked
def autoencoder_loss(
    model: nn.Module,
    x0: Tensor,
    *,
    beta: float = 0.1,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int | Noise | None = None,
) -> Tensor:
    """What `fit(nets.Autoencoder(...), images, loss=autoencoder_loss)` minimises, in nats for each of the d numbers.

    With the pixels' variance v = exp(log_variance) around the decoded image D(z),

        |x0 - D(z)|^2/(2 v d) + (log v)/2  +  beta KL(N(m, s^2) | N(0, I))/d,            z = m + s noise,
        |x0 - D(e)|^2/(2 v d) + (log v)/2  +  |z - sg(e)|^2/(4 n) + |sg(z) - e|^2/n,     e = the codes nearest to z,

    without and with codes; n numbers are in a latent, sg(.) passes no gradient, and that of e goes to z. beta = 1 is
    the bound on -log p(x0)/d (up to a constant); a latent space for diffusion needs less noisy latents, so a smaller
    beta.

    Args:
        model: a `nets.Autoencoder`.
        x0: images (B, C, H, W).
        beta: weight of the divergence from N(0, I); ignored where there are codes.
        features: a function of images (B, C, H, W) to (B, n), such as `metrics.train_classifier(...).embed`: the mean
            square distance of what it makes of x0 and of the decoded image is added, so that what it sees is kept.
        seed: sample i's noise depends on (seed, i) alone; a `Noise` gives other numbers than 0..B-1. None: torch's
            global generator.

    Returns:
        (B,), one number per sample.

    Raises:
        InvalidInputError: another model, images of another shape, a negative beta, features that are not one row for
            each image.

    Source: Kingma & Welling 2014 (arXiv 1312.6114) for the bound, Rybkin et al. 2021 (arXiv 2006.13202) for a learned
    v, Higgins et al. 2017 for beta; van den Oord et al. 2017 (arXiv 1711.00937) eq. 3 for codes, with its weight 0.25;
    Johnson et al. 2016 (arXiv 1603.08155) for a loss of features.

    Example:
        >>> import torch, sdegen as sg
        >>> net = sg.nets.Autoencoder(1, patch=2, width=8, blocks=1)
        >>> history = sg.fit(net, torch.rand(64, 1, 8, 8), loss=sg.autoencoder_loss, steps=3, batch_size=16, seed=0)
        >>> net.encode(torch.rand(2, 1, 8, 8))[0].shape
        torch.Size([2, 4, 4, 4])
    """
    if not beta >= 0:
        raise InvalidInputError(f"got beta={beta}, expected a number, at least 0")
    net = _autoencoder(model)
    m, s = net.encode(x0)
    decoded, regular = _quantised(net, m) if s is None else _variational(net, m, s, seed)
    if s is not None:
        regular = beta * regular / x0[0].numel()
    log_v = net.log_variance.to(x0.dtype)
    loss = event_mean((x0 - decoded) ** 2) / (2 * log_v.exp()) + log_v / 2 + regular
    return loss if features is None else loss + event_mean((_seen(features, decoded) - _seen(features, x0)) ** 2)


def _autoencoder(model: nn.Module) -> Autoencoder:
    if not isinstance(unwrapped(model), Autoencoder):
        raise InvalidInputError(
            f"model: got a {type(model).__name__}, expected a nets.Autoencoder; for other modules write a loss of "
            "your own, a function of (model, x0) with one number per sample"
        )
    return unwrapped(model)


def _seen(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        z = features(x)
    except RuntimeError as error:
        raise InvalidInputError(f"features: got a function that fails for {tuple(x.shape)}: {error}") from error
    if not isinstance(z, Tensor) or z.shape[:1] != x.shape[:1]:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise InvalidInputError(f"features gave {got} for {len(x)} images, expected numbers for each, ({len(x)}, n)")
    return z


def _variational(net: Autoencoder, m: Tensor, s: Tensor, seed: int | Noise | None) -> tuple[Tensor, Tensor]:
    """The decoded draw, and KL(N(m, s^2) | N(0, I)) in nats (B,)."""
    divergence = 0.5 * event_sum(m**2 + s**2 - 1 - 2 * s.log())
    return net.decode(m + s * _normal(seed, m)), divergence


def _quantised(net: Autoencoder, z: Tensor) -> tuple[Tensor, Tensor]:
    """The decoded codes, and how far the latents are from them."""
    e, _ = net.quantise(z)
    apart = _COMMITMENT * event_mean((z - e.detach()) ** 2) + event_mean((z.detach() - e) ** 2)
    return net.decoder(z + (e - z).detach()).to(z.dtype), apart


def _normal(seed: int | Noise | None, like: Tensor) -> Tensor:
    if seed is None:
        return torch.randn_like(like)
    return noise_of(seed).normal(like.shape, Purpose.LATENT, dtype=like.dtype, device=like.device)
