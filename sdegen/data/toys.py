"""Distributions in the plane: Gaussian mixtures, whose density and score are known, and curves that are only sampled.

toys.mixture("ring").log_prob(x)            toys.sample("swiss-roll", 1000, seed=0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.arguments import one_of
from ..core.errors import InvalidInputError
from ..core.kinds import checked
from ..distributions.mixture import GaussianMixture
from ..noise.purposes import Purpose
from ..noise.white import Noise, check_seed


@checked
def ring(
    modes: int = 8, *, radius: float = 1.0, std: float = 0.1, weights: Sequence[float] | None = None
) -> GaussianMixture:
    """Equal round modes on a circle: m_k = radius (cos, sin)(2 pi k/K), C_k = std^2 I.

    Args:
        modes: K.
        radius: of the circle.
        std: of a mode, in each direction.
        weights: one per mode, None for equal ones.

    Returns:
        A `GaussianMixture` in two dimensions.

    Raises:
        InvalidInputError: modes below 1; a std or weights that no mixture has.
    """
    _check_count("modes", modes)
    angles = [2 * math.pi * k / modes for k in range(modes)]
    return GaussianMixture([[radius * math.cos(a), radius * math.sin(a)] for a in angles], std=std, weights=weights)


@checked
def grid(
    side: int = 5, *, spacing: float = 0.5, std: float = 0.05, weights: Sequence[float] | None = None
) -> GaussianMixture:
    """Round modes on a square grid of side x side points around 0, `spacing` apart.

    Args:
        side: how many modes along each axis.
        spacing: between neighbouring modes.
        std: of a mode, in each direction.
        weights: side^2 of them, row by row along the second axis; None for equal ones.

    Returns:
        A `GaussianMixture` in two dimensions.

    Raises:
        InvalidInputError: a side below 1; a std or weights that no mixture has.
    """
    _check_count("side", side)
    places = [spacing * (i - (side - 1) / 2) for i in range(side)]
    return GaussianMixture([[a, b] for a in places for b in places], std=std, weights=weights)


@checked
def anisotropic(
    modes: int = 3, *, long: float = 0.5, short: float = 0.08, weights: Sequence[float] | None = (0.5, 0.3, 0.2)
) -> GaussianMixture:
    """A pinwheel of long thin modes of unequal weight: m_k = u_k, C_k = long^2 v_k v_k^T + short^2 w_k w_k^T.

    u_k are unit vectors evenly around the circle, v_k is u_k turned by 45 degrees, w_k is orthogonal to v_k.

    Args:
        modes: K.
        long, short: standard deviations along and across a mode.
        weights: one per mode, None for equal ones.

    Returns:
        A `GaussianMixture` in two dimensions.

    Raises:
        InvalidInputError: modes below 1; standard deviations or weights that no mixture has.
    """
    _check_count("modes", modes)
    a = 2 * math.pi / modes * torch.arange(modes, dtype=torch.float64)
    v, w = (torch.stack([b.cos(), b.sin()], 1) for b in (a + math.pi / 4, a + 3 * math.pi / 4))
    covariances = long * long * v[:, :, None] * v[:, None] + short * short * w[:, :, None] * w[:, None]
    return GaussianMixture(torch.stack([a.cos(), a.sin()], 1), covariances=covariances, weights=weights)


@checked
def two_moons(n: int, *, noise: float = 0.05, seed: int | None = None) -> Tensor:
    """Two half circles that interlock: (cos a, sin a) or (1 - cos a, 1/2 - sin a) evenly, a uniform on [0, pi].

    Args:
        n: how many points.
        noise: standard deviation of the isotropic Gaussian noise added.
        seed: draw i depends on (seed, i) alone; None: a seed from torch's global generator.

    Returns:
        (n, 2), in torch's default dtype.

    Source: as in scikit-learn's make_moons, the angles drawn instead of evenly spaced.
    """
    u, z = _draws(n, 2, seed)
    a, upper = math.pi * u[:, 0], u[:, 1] < 0.5
    x = torch.where(upper, a.cos(), 1 - a.cos())
    y = torch.where(upper, a.sin(), 0.5 - a.sin())
    return _points(x, y, noise * z)


@checked
def swiss_roll(n: int, *, noise: float = 0.03, seed: int | None = None) -> Tensor:
    """A spiral of one and a half turns: (a cos a, a sin a)/10, a uniform on [3 pi/2, 9 pi/2].

    Args:
        n: how many points.
        noise: standard deviation of the isotropic Gaussian noise added.
        seed: draw i depends on (seed, i) alone; None: a seed from torch's global generator.

    Returns:
        (n, 2), in torch's default dtype.
    """
    u, z = _draws(n, 1, seed)
    a = 1.5 * math.pi * (1 + 2 * u[:, 0])
    return _points(a * a.cos() / 10, a * a.sin() / 10, noise * z)


@checked
def checkerboard(n: int, *, noise: float = 0.0, seed: int | None = None) -> Tensor:
    """Uniform on the squares of [-2, 2)^2 where floor(x) + floor(y) is even, density 1/8.

    Args:
        n: how many points.
        noise: standard deviation of the isotropic Gaussian noise added.
        seed: draw i depends on (seed, i) alone; None: a seed from torch's global generator.

    Returns:
        (n, 2), in torch's default dtype.
    """
    u, z = _draws(n, 3, seed)
    x = 4 * u[:, 0] - 2
    y = 2 * (u[:, 1] < 0.5) - 2 + x.floor() % 2 + u[:, 2]
    return _points(x, y, noise * z)


MIXTURES: dict[str, Callable[..., GaussianMixture]] = {"ring": ring, "grid": grid, "anisotropic": anisotropic}
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "two-moons": two_moons,
    "swiss-roll": swiss_roll,
    "checkerboard": checkerboard,
}


def names() -> list[str]:
    """What `sample` knows.

    Returns:
        The names.
    """
    return [*MIXTURES, *SAMPLERS]


@checked
def mixture(name: str, **options) -> GaussianMixture:
    """The mixture of that name, options as in its function.

    Args:
        name: "ring", "grid" or "anisotropic".
        **options: of the function of that name.

    Returns:
        A `GaussianMixture` in two dimensions.

    Raises:
        InvalidInputError: no mixture of that name.
    """
    if name not in MIXTURES:
        why = " (it is only sampled: its density has no closed form)" if name in SAMPLERS else ""
        raise InvalidInputError(f"got name={name!r}{why}, expected {', '.join(map(repr, MIXTURES))}")
    return MIXTURES[name](**options)


@checked
def sample(name: str, n: int, *, seed: int | None = None, **options) -> Tensor:
    """Draws of the toy of that name.

    Args:
        name: one of `names()`.
        n: how many points.
        seed: draw i depends on (seed, i) alone; None: a seed from torch's global generator.
        **options: of the function of that name.

    Returns:
        (n, 2), in torch's default dtype.

    Raises:
        InvalidInputError: no toy of that name.
    """
    one_of(name, "name", names())
    if name in SAMPLERS:
        return SAMPLERS[name](n, seed=seed, **options)
    return mixture(name, **options).sample(n, seed=seed)


def _draws(n: int, uniforms: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Independent uniforms (n, k) and standard normals (n, 2), float64, addressed by seed as a mixture's draws are."""
    noise, at = Noise(check_seed(seed)), {"dtype": torch.float64, "device": "cpu"}
    shape = (n, uniforms + 2)
    u, z = (draw(shape, Purpose.COMPONENT_NOISE, **at) for draw in (noise.uniform, noise.normal))
    return u[:, :uniforms], z[:, uniforms:]


def _points(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    return (torch.stack([x, y], 1) + noise).to(torch.get_default_dtype())


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"got {name}={value!r}, expected a whole number, at least 1")
