"""An autoencoder of images: from pixels to a few numbers for every patch, and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..core.show import ShownNet
from .attention import group_norm, to_patches, zero
from .conditions import check_count
from .embeddings import check_input

_PATIENCE = 16  # batches in a row that a code may go unused
_NARROWEST = 16  # channels of the decoder's finest level
_LOG_VARIANCE = -3.0  # of images in [-1, 1], to begin with


class Autoencoder(ShownNet, nn.Module):
    """Images (B, C, H, W) as latents (B, latent_channels, H/patch, W/patch), and latents as images.

    The encoder first takes the pixels of a patch for channels (a space-to-depth reshape), so that all of its residual
    blocks work at the latents' size. The decoder repeats neighbours and convolves, once for every prime factor of
    `patch` (rearranged channels would leave a grid), and halves its width as it goes.

    Without `codes` it is variational: z ~ N(mean(x), std(x)^2) in training. With `codes` it is vector-quantised: every
    place of the latent takes the nearest of K learned codes; the gradient passes straight through. A code that was the
    nearest of no latent in 16 training batches in a row is moved onto a latent of the next batch (of the first process,
    where there are several; not with strategy="fsdp", where no process has all of them). `sdegen.autoencoder_loss`
    trains either kind.

    `net(x)` is the reconstruction decode(mean(x)).

    Args:
        channels: C of the images.
        latent_channels: of the latents.
        patch: pixels to a side of one place of the latents; H and W are divisible by it.
        width: channels of the residual blocks.
        blocks: residual blocks each way.
        codes: K, how many codes there are; None: a variational autoencoder.

    Attributes:
        log_variance: (1,) log v of the variance v of a pixel around the decoded one, learned by `autoencoder_loss`.

    Raises:
        InvalidInputError: arguments out of range; images or latents of a shape that does not fit, before any work.

    Source: Rombach et al. 2022 (arXiv 2112.10752) section 3.1 and appendix G for the two kinds; van den Oord et al.
    2017 (arXiv 1711.00937) for codes.
    """

    @checked
    def __init__(
        self,
        channels: int,
        latent_channels: int = 4,
        *,
        patch: int = 4,
        width: int = 64,
        blocks: int = 2,
        codes: int | None = None,
    ) -> None:
        super().__init__()
        self.config = {
            "channels": check_count("channels", channels),
            "latent_channels": check_count("latent_channels", latent_channels),
            "patch": check_count("patch", patch),
            "width": check_count("width", width),
            "blocks": check_count("blocks", blocks, 0),
            "codes": None if codes is None else check_count("codes", codes),
        }
        self.channels, self.latent_channels, self.patch = channels, latent_channels, patch
        moments = latent_channels * (1 if codes else 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels * patch**2, width, 3, padding=1), *_blocks(width, blocks), *_ending(width, moments)
        )
        finer, last = _upwards(width, patch)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1), *_blocks(width, blocks), *finer, *_ending(last, channels)
        )
        self.log_variance = nn.Parameter(torch.full((1,), _LOG_VARIANCE))
        if codes is not None:
            self.codes = nn.Parameter(torch.randn(codes, latent_channels) / codes)
            self.register_buffer("unused", torch.full((codes,), _PATIENCE))  # batches in a row

    unused: Tensor

    @property
    def quantised(self) -> bool:
        """Whether latents are codes."""
        return self.config["codes"] is not None

    @checked
    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of images, from the mean of their latents.

        Args:
            x: (B, C, H, W), both sides divisible by the patch.

        Returns:
            As x.
        """
        return self.decode(self.encode(x)[0])

    @checked
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the encoder makes of images.

        Args:
            x: (B, C, H, W), H and W divisible by `patch`.

        Returns:
            mean and std of the latents, (B, latent_channels, H/patch, W/patch) each; std is None with codes, where the
            latents are not yet codes.

        Raises:
            InvalidInputError: images of another shape.
        """
        check_input(x, self.log_variance)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InvalidInputError(
                f"x has shape {tuple(x.shape)}: this autoencoder was built for (B, {self.channels}, H, W)"
            )
        if x.shape[2] % self.patch or x.shape[3] % self.patch or not x.shape[2] * x.shape[3]:
            raise InvalidInputError(
                f"images of {x.shape[2]}x{x.shape[3]} cannot be cut into patches of {self.patch}: pad both sides to "
                f"multiples of {self.patch}"
            )
        h = self.encoder(to_patches(x, self.patch) if self.patch > 1 else x).to(x.dtype)
        if self.quantised:
            return h, None
        mean, log_std = h.chunk(2, 1)
        return mean, log_std.clamp(-12, 6).exp()

    @checked
    def decode(self, z: Tensor) -> Tensor:
        """Images of latents; with codes, of the nearest ones.

        Args:
            z: (B, latent_channels, h, w).

        Returns:
            (B, C, patch h, patch w).

        Raises:
            InvalidInputError: latents of another shape.
        """
        self._check_latents(z)
        return self.decoder(self.quantise(z)[0] if self.quantised else z).to(z.dtype)

    @checked
    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code at every place of latents.

        In training, codes that have gone unused are put on latents of this batch before.

        Args:
            z: (B, latent_channels, h, w).

        Returns:
            the codes, shaped like z, and their numbers (B, h, w).

        Raises:
            InvalidInputError: an autoencoder without codes, latents of another shape.
        """
        if not self.quantised:
            raise InvalidInputError("this autoencoder has no codes: build it with codes=")
        self._check_latents(z)
        rows = z.movedim(1, -1).reshape(-1, self.latent_channels).detach()
        nearest = self._nearest(rows)
        if self.training:
            self._put_to_use(rows, nearest)
            nearest = self._nearest(rows)
        numbers = nearest.reshape(len(z), *z.shape[2:])
        return F.embedding(numbers, self.codes).movedim(-1, 1).to(z.dtype), numbers

    def _check_latents(self, z: Tensor) -> None:
        check_input(z, self.log_variance)
        if z.ndim != 4 or z.shape[1] != self.latent_channels or not z.shape[2] * z.shape[3]:
            raise InvalidInputError(
                f"z has shape {tuple(z.shape)}: this autoencoder is for latents (B, {self.latent_channels}, h, w)"
            )

    def _nearest(self, rows: Tensor) -> Tensor:
        """(n,) the numbers of the codes nearest to latents (n, C)."""
        rows, codes = rows.float(), self.codes.detach().float()
        return (codes.square().sum(1) - 2 * rows @ codes.T).argmin(1)

    @torch.no_grad()
    def _put_to_use(self, rows: Tensor, nearest: Tensor) -> None:
        """Count for how long each code has gone unused, and move those to latents where it is too long."""
        used = torch.zeros(len(self.codes), device=rows.device).index_fill_(0, nearest, 1)
        drawn = rows[torch.randint(len(rows), (len(self.codes),), device="cpu").to(rows.device)].to(self.codes)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(used)
            dist.broadcast(drawn, 0)
        self.unused.add_(1).mul_((used == 0).to(self.unused.dtype))
        dead = self.unused > _PATIENCE
        self.codes.data.copy_(torch.where(dead[:, None], drawn, self.codes.data))
        self.unused.mul_((~dead).to(self.unused.dtype))


class _Residual(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), the second convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = group_norm(width), group_norm(width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = zero(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(h)))


def _blocks(width: int, n: int) -> Iterator[nn.Module]:
    return (_Residual(width) for _ in range(n))


def _ending(width: int, channels: int) -> tuple[nn.Module, ...]:
    return group_norm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)


def _upwards(width: int, patch: int) -> tuple[list[nn.Module], int]:
    """The decoder's way from latents to pixels, and its width in the end."""
    modules: list[nn.Module] = []
    for factor in _prime_factors(patch):
        finer = max(width // 2, min(width, _NARROWEST))
        modules += [nn.Upsample(scale_factor=float(factor)), nn.Conv2d(width, finer, 3, padding=1), _Residual(finer)]
        width = finer
    return modules, width


def _prime_factors(n: int) -> Iterator[int]:
    factor = 2
    while n > 1:
        while n % factor == 0:
            yield factor
            n //= factor
        factor += 1
