"""Toys against their closed forms, and the digits against their source."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch
from torch import Tensor

from sdegen.core.errors import InvalidInputError
from sdegen.data import images, toys
from sdegen.distributions.mixture import GaussianMixture

N = 40_000
PI = math.pi


def check_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """The sample's mean and covariance within five of their own standard errors."""
    x = x.double()
    assert torch.all((x.mean(0) - mean).abs() < 5 * x.std(0) / len(x) ** 0.5)
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert torch.all((products.mean(0) - covariance).abs() < 5 * products.std(0) / len(x) ** 0.5)


# mixtures


@pytest.mark.parametrize("name", toys.MIXTURES)
def test_samples_have_the_mixture_s_moments(name: str) -> None:
    mixture = toys.mixture(name)
    check_moments(toys.sample(name, N, seed=0), mixture.mean, mixture.covariance)


@pytest.mark.parametrize("name", toys.MIXTURES)
def test_density_integrates_to_one(name: str) -> None:
    """On a grid finer than the narrowest mode the sum is exact (trapezoidal rule, smooth and decaying)."""
    side = torch.arange(-4, 4, 0.02, dtype=torch.float64)
    total = sum(
        float(toys.mixture(name).log_prob(row).exp().sum()) for row in torch.cartesian_prod(side, side).split(20_000)
    )
    assert total * 0.02**2 == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(("modes", "radius", "std"), [(8, 1.0, 0.1), (5, 2.0, 0.3)])
def test_ring(modes: int, radius: float, std: float) -> None:
    """K >= 3 points evenly on a circle have the covariance radius^2/2 I."""
    ring = toys.ring(modes, radius=radius, std=std)
    torch.testing.assert_close(ring.mean, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(ring.covariance, (radius**2 / 2 + std**2) * torch.eye(2, dtype=torch.float64))
    gaps = (ring.means - ring.means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 2 * radius * math.sin(PI / modes)))


def test_grid() -> None:
    """Equally spaced points have the variance spacing^2 (side^2 - 1)/12 along each axis."""
    grid = toys.grid(4, spacing=0.7, std=0.05)
    assert len(grid.means) == 16
    torch.testing.assert_close(grid.mean, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(grid.covariance, (0.7**2 * 15 / 12 + 0.05**2) * torch.eye(2, dtype=torch.float64))


def test_anisotropic() -> None:
    """A mean on the unit circle, the standard deviations asked, the long one at 45 degrees to the radius."""
    mixture = toys.anisotropic(3, long=0.5, short=0.08)
    torch.testing.assert_close(mixture.weights, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    for k in range(3):
        u = mixture.means[k]
        v = torch.stack([u[0] - u[1], u[0] + u[1]]) / 2**0.5  # u turned by 45 degrees
        assert float(u.norm()) == pytest.approx(1)
        one = toys.anisotropic(3, long=0.5, short=0.08, weights=[1.0 if j == k else 1e-12 for j in range(3)]).covariance
        torch.testing.assert_close(one @ v, 0.5**2 * v, rtol=0, atol=1e-10)
        assert float(one.trace()) == pytest.approx(0.5**2 + 0.08**2, abs=1e-10)


def test_options_reach_the_mixture() -> None:
    torch.testing.assert_close(toys.mixture("ring", modes=3, std=0.2).means, toys.ring(3, std=0.2).means)
    assert torch.equal(
        toys.sample("ring", 5, seed=0, weights=[1, 2, 3], modes=3), toys.ring(3, weights=[1, 2, 3]).sample(5, seed=0)
    )
    assert isinstance(toys.mixture("grid"), GaussianMixture)
    for mixture in (
        toys.ring(4, weights=[1, 2, 3, 4]),
        toys.grid(2, weights=[1, 2, 3, 4]),
        toys.anisotropic(4, weights=[1, 2, 3, 4]),
    ):
        assert mixture.weights.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert toys.anisotropic(5, weights=None).weights.tolist() == pytest.approx([0.2] * 5)


# curves and boards: (mean, covariance) without noise


def two_moons_moments() -> tuple[list[float], list[list[float]]]:
    within = 0.5 - 4 / PI**2 / 2  # of both coordinates: 1/2 along, and 1/2 - (2/pi)^2 across
    gap = 0.5 - 4 / PI  # between the moons' means, across
    return [0.5, 0.25], [[0.5 + 0.25, gap / 4], [gap / 4, 2 * within - 0.5 + gap**2 / 4]]


def swiss_roll_moments() -> tuple[list[float], list[list[float]]]:
    a = torch.linspace(1.5 * PI, 4.5 * PI, 200_001, dtype=torch.float64)
    x = torch.stack([a * a.cos(), a * a.sin()]) / 10
    mean = torch.trapezoid(x, a) / (3 * PI)
    return mean.tolist(), (torch.trapezoid(x[:, None] * x[None], a) / (3 * PI) - torch.outer(mean, mean)).tolist()


MOMENTS = {
    "two-moons": two_moons_moments(),
    "swiss-roll": swiss_roll_moments(),
    "checkerboard": ([0.0, 0.0], [[4 / 3, 0.25], [0.25, 4 / 3]]),
}


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("name", toys.SAMPLERS)
def test_samplers_have_their_moments(name: str, noise: float) -> None:
    mean, covariance = (torch.tensor(m, dtype=torch.float64) for m in MOMENTS[name])
    check_moments(toys.sample(name, N, seed=1, noise=noise), mean, covariance + noise**2 * torch.eye(2))


def test_two_moons_lie_on_half_circles() -> None:
    x, y = toys.two_moons(2000, noise=0.0, seed=0).double().unbind(1)
    upper = ((x**2 + y**2 - 1).abs() < 1e-5) & (y > -1e-6)
    lower = (((x - 1) ** 2 + (y - 0.5) ** 2 - 1).abs() < 1e-5) & (y < 0.5 + 1e-6)
    assert torch.all(upper | lower)
    assert int(upper.sum()) == pytest.approx(1000, abs=5 * 500**0.5)


def test_swiss_roll_lies_on_its_spiral() -> None:
    x, y = toys.swiss_roll(2000, noise=0.0, seed=0).double().unbind(1)
    a = 10 * (x**2 + y**2).sqrt()
    assert float(a.min()) > 1.5 * PI - 1e-4 and float(a.max()) < 4.5 * PI + 1e-4
    torch.testing.assert_close(torch.stack([a.cos(), a.sin()]), 10 * torch.stack([x, y]) / a, rtol=0, atol=1e-4)


def test_checkerboard_fills_its_eight_squares_evenly() -> None:
    cells = toys.checkerboard(N, seed=0).floor()
    assert torch.all(cells.sum(1) % 2 == 0) and float(cells.min()) == -2 and float(cells.max()) == 1
    counts = (4 * (cells[:, 0] + 2) + cells[:, 1] + 2).long().bincount(minlength=16)
    assert int((counts > 0).sum()) == 8
    assert torch.all((counts[counts > 0] - N / 8).abs() < 5 * (N / 8) ** 0.5)


# all toys


@pytest.mark.parametrize("name", toys.names())
def test_draws_follow_their_seed_and_number(name: str) -> None:
    x = toys.sample(name, 100, seed=3)
    assert torch.equal(x[:7], toys.sample(name, 7, seed=3))
    assert not torch.equal(x, toys.sample(name, 100, seed=4))
    torch.manual_seed(0)
    a, b = toys.sample(name, 5), toys.sample(name, 5)
    torch.manual_seed(0)
    assert torch.equal(a, toys.sample(name, 5)) and not torch.equal(a, b)


@pytest.mark.parametrize("name", toys.names())
def test_draws_have_the_default_dtype(name: str) -> None:
    assert toys.sample(name, 3, seed=0).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        x = toys.sample(name, 3, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert x.dtype == torch.float64 and x.shape == (3, 2)
    assert torch.equal(x.float(), toys.sample(name, 3, seed=0))


@pytest.mark.parametrize("name", toys.names())
def test_no_draws(name: str) -> None:
    assert toys.sample(name, 0, seed=0).shape == (0, 2)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(
        InvalidInputError,
        match="name='spiral', expected 'ring', 'grid', 'anisotropic', 'two-moons', 'swiss-roll' or 'checkerboard'",
    ):
        toys.sample("spiral", 3)
    with pytest.raises(InvalidInputError, match="name='spiral', expected 'ring', 'grid', 'anisotropic'"):
        toys.mixture("spiral")
    with pytest.raises(InvalidInputError, match="'two-moons' .it is only sampled.*'ring'"):
        toys.mixture("two-moons")


@pytest.mark.parametrize("make", [toys.ring, toys.grid, toys.anisotropic])
def test_counts_are_checked(make) -> None:
    for count in (0, 2.0, True):
        with pytest.raises(InvalidInputError, match="expected a whole number"):
            make(count)


# digits


def test_digits_are_scaled_grey_levels() -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    digits = images.digits("all")
    assert (
        digits.images.shape == (1797, 1, 8, 8)
        and digits.images.dtype == torch.float32
        and digits.labels.dtype == torch.long
    )
    assert len(digits) == 1797 and digits.levels == 17 and digits.n_classes == 10
    assert torch.equal((digits.images[:, 0] + 1) * (digits.levels - 1) / 2, torch.from_numpy(source.images).float())
    assert float(digits.images.min()) == -1 and float(digits.images.max()) == 1
    assert torch.equal(digits.labels, torch.from_numpy(source.target))


@pytest.mark.parametrize("every", [2, 4, 7])
def test_digits_are_split_into_two_parts_of_all(every: int) -> None:
    """Disjoint, complete, even over the classes, the same on every call: rows are told by their pixels, all differ."""
    pytest.importorskip("sklearn")
    rows = {split: images.digits(split, held_out_every=every) for split in images.SPLITS}
    keys = {
        split: [(tuple(x.flatten().tolist()), int(y)) for x, y in zip(d.images, d.labels, strict=True)]
        for split, d in rows.items()
    }
    assert len(set(keys["all"])) == 1797
    assert not set(keys["train"]) & set(keys["held-out"])
    assert set(keys["train"]) | set(keys["held-out"]) == set(keys["all"])
    assert len(keys["train"]) + len(keys["held-out"]) == 1797
    for label in range(10):
        of_class = int((rows["all"].labels == label).sum())
        assert int((rows["held-out"].labels == label).sum()) == of_class // every
    assert torch.equal(rows["train"].images, images.digits(held_out_every=every).images)


def test_digits_in_the_docs() -> None:
    pytest.importorskip("sklearn")
    assert (len(images.digits()), len(images.digits("held-out"))) == (1352, 445)


def test_images_cannot_be_reassigned() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.digits().levels = 256


def test_digits_refuse_what_they_do_not_know() -> None:
    with pytest.raises(InvalidInputError, match="split='test', expected 'train', 'held-out' or 'all'"):
        images.digits("test")
    for every in (1, 2.5, True):
        with pytest.raises(InvalidInputError, match="at least 2|expected a whole number"):
            images.digits(held_out_every=every)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "sdegen\[data\]"'):
        images.digits()
