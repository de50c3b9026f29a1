"""Distances between sets of samples: closed forms, other people's code, and laws that hold whatever the samples."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from sdegen.core.errors import InvalidInputError
from sdegen.distributions import distances as distances_module
from sdegen.metrics import (
    energy_distance,
    frechet_bias,
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
    median_distance,
    mmd,
    precision_recall,
    sliced_wasserstein,
)

DISTANCES = {
    "sliced W1": lambda x, y: sliced_wasserstein(x, y, p=1, projections=30),
    "sliced W2": lambda x, y: sliced_wasserstein(x, y, projections=30),
    "energy": energy_distance,
    "mmd": lambda x, y: mmd(x, y, bandwidth=1.5),
    "frechet": frechet_distance,
    "kernel": lambda x, y: kernel_distance(x, y, groups=2).value,
}
distances = pytest.mark.parametrize("name", DISTANCES)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# every distance


@pytest.mark.parametrize("name", [n for n in DISTANCES if n != "kernel"])  # unbiased: its mean is zero
@pytest.mark.parametrize("d", [1, 3, 20])
def test_zero_for_the_same_points_in_any_order(name: str, d: int) -> None:
    x = normals(60, d)
    # a root of rounding; in 20 dimensions |x - x|^2 is |x|^2 + |x|^2 - 2 x.x, itself rounding, and its root enters
    limit = 1e-5 if d == 20 else 1e-7
    assert DISTANCES[name](x, x[torch.randperm(60, generator=torch.Generator().manual_seed(1))]) < limit


@distances
def test_symmetric(name: str) -> None:
    x, y = normals(50, 4), normals(70, 4, seed=1) + 0.3
    assert DISTANCES[name](x, y) == pytest.approx(DISTANCES[name](y, x), rel=1e-10)


@distances
def test_events_are_flattened_and_dtypes_do_not_matter(name: str) -> None:
    x, y = normals(50, 2, 3).float(), normals(40, 2, 3, seed=1).float()
    wanted = DISTANCES[name](x.reshape(50, 6).double(), y.reshape(40, 6).double())
    assert DISTANCES[name](x, y) == pytest.approx(wanted, rel=1e-10)
    assert DISTANCES[name](x.requires_grad_(), y.transpose(1, 2).contiguous().transpose(1, 2)) == pytest.approx(
        wanted, rel=1e-10
    )


@distances
def test_scalars_are_events_too(name: str) -> None:
    x, y = normals(50), normals(40, seed=1)
    assert DISTANCES[name](x, y) == DISTANCES[name](x[:, None], y[:, None])


@pytest.mark.parametrize("name", [n for n in DISTANCES if n != "kernel"])  # a polynomial knows where 0 is
def test_blind_to_a_common_shift(name: str) -> None:
    x, y = normals(50, 20), normals(40, 20, seed=1)
    assert DISTANCES[name](x + 1000, y + 1000) == pytest.approx(DISTANCES[name](x, y), rel=1e-7)


@pytest.mark.parametrize("name", ["sliced W1", "sliced W2", "energy", "mmd"])
def test_repeated_points_are_the_same_distribution(name: str) -> None:
    x, y = normals(30, 3), normals(42, 3, seed=1)
    wanted = DISTANCES[name](x, y)
    assert DISTANCES[name](x.repeat(2, 1), y) == pytest.approx(wanted, rel=1e-9)
    assert DISTANCES[name](x, y.repeat_interleave(3, 0)) == pytest.approx(wanted, rel=1e-9)


@distances
def test_small_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normals(50, 4), normals(70, 4, seed=1)
    wanted = DISTANCES[name](x, y)
    monkeypatch.setattr(distances_module, "CHUNK", 150)
    assert DISTANCES[name](x, y) == pytest.approx(wanted, rel=1e-12)


def test_pairs_are_taken_in_bounded_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, cdist = [], torch.cdist

    def watched(*args, **options) -> Tensor:
        distance = cdist(*args, **options)
        sizes.append(distance.numel())
        return distance

    monkeypatch.setattr(torch, "cdist", watched)
    monkeypatch.setattr(distances_module, "CHUNK", 1000)
    energy_distance(normals(300, 2), normals(200, 2, seed=1))
    assert max(sizes) <= 1000 and sum(sizes) == 300 * 200 + 300**2 + 200**2


WRONG = {
    "shapes": ((torch.zeros(5, 2), torch.zeros(5, 3)), r"\(5, 2\) and y \(5, 3\)"),
    "no batch": ((torch.tensor(1.0), torch.zeros(5)), r"expected \(N, \*event\)"),
    "empty": ((torch.zeros(5, 2), torch.zeros(0, 2)), r"y has shape \(0, 2\): there is nothing to compare"),
    "empty event": ((torch.zeros(5, 0), torch.zeros(4, 0)), r"x has shape \(5, 0\)"),
    "NaN": (
        (torch.tensor([[0.0, math.nan], [1, 1], [math.inf, 0]]), torch.zeros(4, 2)),
        "x holds NaN or infinity in 2 of 3 samples",
    ),
    "complex": (
        (torch.zeros(5, 2), torch.zeros(5, 2, dtype=torch.complex64)),
        "got y=a Tensor .*complex64 .pass real and imaginary parts",
    ),
}


@distances
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input(name: str, wrong: str) -> None:
    samples, message = WRONG[wrong]
    with pytest.raises(InvalidInputError, match=message):
        DISTANCES[name](*samples)


# sliced Wasserstein


@pytest.mark.parametrize(("n", "m"), [(80, 80), (80, 53), (1, 20), (60, 90)])
def test_w1_on_a_line_is_scipy_s(n: int, m: int) -> None:
    x, y = normals(n), 1.7 * normals(m, seed=1) - 0.4
    assert sliced_wasserstein(x, y, p=1) == pytest.approx(
        scipy.stats.wasserstein_distance(x.numpy(), y.numpy()), rel=1e-12
    )


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_wp_on_a_line_by_repeating_points(p: float) -> None:
    """Sets of 12 and 20 as sets of 60 equal weights, paired in order."""
    x, y = normals(12), normals(20, seed=1) + 1
    a, b = x.repeat_interleave(5).sort().values, y.repeat_interleave(3).sort().values
    assert sliced_wasserstein(x, y, p=p) == pytest.approx(float((a - b).abs().pow(p).mean() ** (1 / p)), rel=1e-12)


@pytest.mark.parametrize("d", [2, 5, 64])
def test_shift(d: int) -> None:
    """W2 of a shift along theta is |theta.s|, its mean square |s|^2/d: exactly, over whole frames."""
    x, s = normals(40, d), normals(d, seed=1)
    shifted = (x + s)[torch.randperm(40)]
    assert sliced_wasserstein(x, shifted, projections=3 * d) == pytest.approx(float(s.norm()) / d**0.5, rel=1e-10)


def test_shift_on_average() -> None:
    """One direction at a time: the mean of (theta.s)^2 over 2000 seeds is |s|^2/d within 5 standard errors."""
    x, s = normals(2, 3), normals(3, seed=1)
    squares = np.array([sliced_wasserstein(x, x + s, projections=1, seed=seed) ** 2 for seed in range(2000)])
    assert abs(squares.mean() - float(s @ s) / 3) < 5 * squares.std() / 2000**0.5


def test_scaling() -> None:
    """x and c x, c > 0, are paired in order along every line: SW2^2 = (c - 1)^2 E|x|^2/d."""
    x = normals(40, 5)
    assert sliced_wasserstein(x, 3 * x, projections=50) == pytest.approx(
        2 * float(x.square().sum(1).mean() / 5) ** 0.5, rel=1e-10
    )


def test_directions_are_uniform() -> None:
    """Unit vectors; for any unit e, (theta.e)^2 has the mean 1/d, (theta.e)^4 3/(d (d + 2)) to 5 standard errors."""
    d, n = 4, 40_000
    theta = distances_module._directions(d, n, seed=0)
    torch.testing.assert_close(theta.norm(dim=0), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(theta @ theta.mT / n, torch.eye(d, dtype=torch.float64) / d)
    for fourth in (theta[0] ** 4, theta.sum(0) ** 4 / d**2):
        assert abs(float(fourth.mean()) - 3 / (d * (d + 2))) < 5 * float(fourth.std()) / (n / d) ** 0.5
    assert distances_module._directions(7, 3, seed=0).shape == (7, 3)


def test_directions_follow_the_seed() -> None:
    x, y = normals(40, 3), normals(40, 3, seed=1)
    assert sliced_wasserstein(x, y, projections=5) == sliced_wasserstein(x, y, projections=5, seed=0)
    assert sliced_wasserstein(x, y, projections=5) != sliced_wasserstein(x, y, projections=5, seed=1)


@pytest.mark.parametrize(
    ("options", "message"), [({"p": 0.5}, "p=0.5"), ({"p": math.inf}, "p=inf"), ({"projections": 0}, "projections=0")]
)
def test_sliced_wasserstein_refuses(options: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        sliced_wasserstein(normals(5, 2), normals(5, 2), **options)


# energy distance


@pytest.mark.parametrize(("n", "m"), [(80, 80), (80, 53), (1, 20)])
def test_energy_distance_on_a_line_is_scipy_s(n: int, m: int) -> None:
    x, y = normals(n), 1.7 * normals(m, seed=1) - 0.4
    assert energy_distance(x, y) == pytest.approx(scipy.stats.energy_distance(x.numpy(), y.numpy()), rel=1e-10)


@pytest.mark.parametrize("d", [3, 20])
def test_energy_distance_pair_by_pair(d: int) -> None:
    x, y = normals(9, d).numpy(), normals(13, d, seed=1).numpy() + 0.5

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.linalg.norm(p - q) for p in a for q in b]))

    assert energy_distance(torch.from_numpy(x), torch.from_numpy(y)) ** 2 == pytest.approx(
        2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-6
    )


def test_energy_distance_s_bias_is_the_one_told() -> None:
    """Normal on a line: E|X - X'| = 2/sqrt(pi)."""
    n, m, runs = 20, 30, 400
    squares = np.array([energy_distance(normals(n, seed=2 * k), normals(m, seed=2 * k + 1)) ** 2 for k in range(runs)])
    assert abs(squares.mean() - (1 / n + 1 / m) * 2 / math.pi**0.5) < 5 * squares.std() / runs**0.5


# maximum mean discrepancy


def test_mmd_of_two_points() -> None:
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert mmd(x, y, bandwidth=2.0) == pytest.approx(math.sqrt(2 - 2 * math.exp(-25 / 8)), rel=1e-12)


def test_mmd_of_normals() -> None:
    """N(0, I) and N(s, I) in d dimensions, c = h^2/(h^2 + 2): MMD^2 = 2 c^(d/2) (1 - exp(-|s|^2/(2 (h^2 + 2)))).

    With the bias told, within 5 standard errors.
    """
    n, d, h, shift, runs = 50, 3, 1.3, 0.8, 200
    same = (h**2 / (h**2 + 2)) ** (d / 2)
    wanted = 2 * same * (1 - math.exp(-d * shift**2 / (2 * (h**2 + 2)))) + 2 / n * (1 - same)
    pairs = [(normals(n, d, seed=2 * k), normals(n, d, seed=2 * k + 1) + shift) for k in range(runs)]
    squares = np.array([mmd(x, y, bandwidth=h) ** 2 for x, y in pairs])
    assert abs(squares.mean() - wanted) < 5 * squares.std() / runs**0.5


def test_mmd_s_bias_is_the_one_told() -> None:
    n, m, d, h, runs = 20, 30, 2, 1.0, 400
    squares = np.array(
        [mmd(normals(n, d, seed=2 * k), normals(m, d, seed=2 * k + 1), bandwidth=h) ** 2 for k in range(runs)]
    )
    assert abs(squares.mean() - (1 / n + 1 / m) * (1 - 1 / 3)) < 5 * squares.std() / runs**0.5


def test_median_distance() -> None:
    x, y = normals(10, 3), normals(15, 3, seed=1)
    pool = torch.cat([x, y]).numpy()
    pairs = [np.linalg.norm(pool[i] - pool[j]) for i in range(25) for j in range(i)]
    assert median_distance(x, y) == pytest.approx(
        float(np.median(pairs)), abs=0.02
    )  # torch takes the lower of two middles
    assert mmd(x, y) == mmd(x, y, bandwidth=median_distance(x, y))
    assert median_distance(x, y, rows=5) == median_distance(x[[0, 2, 4, 7, 9]], y[[0, 4, 7, 10, 14]])


def test_mmd_refuses() -> None:
    with pytest.raises(InvalidInputError, match="most points coincide: pass bandwidth="):
        mmd(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(InvalidInputError, match="bandwidth=-1.0, expected a positive number"):
        mmd(normals(5, 2), normals(5, 2), bandwidth=-1.0)


# Frechet distance


def covariance(d: int, seed: int, rank: int | None = None) -> Tensor:
    a = normals(d, rank or 2 * d, seed=seed)
    return a @ a.mT / a.shape[1]


def test_frechet_distance_of_commuting_covariances() -> None:
    """C1 = V a V^T and C2 = V b V^T: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2, with a 0 and a 1e-12 too."""
    v = torch.linalg.qr(normals(5, 5)).Q
    a, b = torch.tensor([0, 1e-12, 1, 2, 9.0]).double(), torch.tensor([3, 4, 1e-12, 2, 0.25]).double()
    m1, m2 = normals(5, seed=1), normals(5, seed=2)
    wanted = float((m1 - m2).square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance_of_moments(m1, v * a @ v.mT, m2, v * b @ v.mT) == pytest.approx(wanted, rel=1e-7)


def test_frechet_distance_in_two_dimensions() -> None:
    """Tr (C1 C2)^(1/2) = sqrt(Tr C1 C2 + 2 sqrt(det C1 det C2))."""
    c1, c2 = covariance(2, 0), covariance(2, 1)
    root = (torch.trace(c1 @ c2) + 2 * (c1.det() * c2.det()).sqrt()).sqrt()
    zero = torch.zeros(2)
    assert frechet_distance_of_moments(zero, c1, zero, c2) == pytest.approx(
        float(c1.trace() + c2.trace() - 2 * root), rel=1e-10
    )


def test_frechet_distance_by_scipy_s_square_root() -> None:
    c1, c2, zero = covariance(12, 0), covariance(12, 1), torch.zeros(12)
    wanted = float(c1.trace() + c2.trace()) - 2 * scipy.linalg.sqrtm((c1 @ c2).numpy()).real.trace()
    assert frechet_distance_of_moments(zero, c1, zero, c2) == pytest.approx(wanted, rel=1e-8)


def test_frechet_distance_takes_the_samples_moments() -> None:
    x, y = normals(50, 6) @ normals(6, 6, seed=9), normals(80, 6, seed=1) + 0.2
    m1, m2, c1, c2 = x.mean(0), y.mean(0), np.cov(x.numpy().T), np.cov(y.numpy().T)
    wanted = frechet_distance_of_moments(m1, torch.from_numpy(c1), m2, torch.from_numpy(c2))
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-10)


def test_frechet_distance_of_fewer_samples_than_features() -> None:
    """A shift alone changes the mean alone, whatever the covariance's rank: no digits are lost to its null space."""
    x, s = normals(20, 100), normals(100, seed=1)
    with pytest.warns(RuntimeWarning, match="20 and 20 samples in 100 dimensions"):
        assert frechet_distance(x, x) < 1e-12
        assert frechet_distance(x, x + s) == pytest.approx(float(s @ s), rel=1e-12)


def test_frechet_distance_warns_where_a_covariance_is_singular() -> None:
    """From as many samples as dimensions down, in whichever set; the bias it names is that of the value."""
    d = 10
    for n, m in ((d, 50), (50, d), (d - 3, d - 2)):
        with pytest.warns(RuntimeWarning, match=f"{n} and {m} samples in {d} dimensions") as told:
            values = [frechet_distance(normals(n, d, seed=2 * k), normals(m, d, seed=2 * k + 1)) for k in range(20)]
        named = float(re.findall(r"by roughly (\S+) where", str(told[0].message))[0])
        assert 0.5 < named / np.mean(values) < 2.5, (n, m)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(normals(d + 1, d), normals(d + 1, d, seed=1))


def test_frechet_distance_s_bias_is_the_one_told() -> None:
    n, m, d, runs = 1000, 1500, 8, 40
    values = np.array([frechet_distance(normals(n, d, seed=2 * k), normals(m, d, seed=2 * k + 1)) for k in range(runs)])
    assert abs(values.mean() - (d + d * (d + 1) / 4) * (1 / n + 1 / m)) < 5 * values.std() / runs**0.5


def test_frechet_distance_refuses() -> None:
    with pytest.raises(InvalidInputError, match="two samples or more: got 1 and 5"):
        frechet_distance(normals(1, 2), normals(5, 2))
    m, c = torch.zeros(2), torch.eye(2)
    with pytest.raises(InvalidInputError, match=r"shapes \(2,\), \(2, 2\), \(2,\), \(3, 3\)"):
        frechet_distance_of_moments(m, c, m, torch.eye(3))
    with pytest.raises(InvalidInputError, match="NaN"):
        frechet_distance_of_moments(m, c * math.nan, m, c)
    with pytest.raises(InvalidInputError, match="eigenvalue -1"):
        frechet_distance_of_moments(m, -c, m, c)


@pytest.mark.parametrize("spectrum", ["white", "steep"])
def test_frechet_bias_is_the_mean_distance_of_equal_laws(spectrum: str) -> None:
    """Gaussian sets; white features give the closed form d + d(d+1)/4 as well."""
    n, m, d, runs = 2000, 1200, 6, 60
    scale = torch.ones(d, dtype=torch.float64) if spectrum == "white" else 2.0 ** -torch.arange(d).double()
    told = frechet_bias(normals(200_000, d, seed=10_000) * scale, n, m)
    if spectrum == "white":
        assert told == pytest.approx((d + d * (d + 1) / 4) * (1 / n + 1 / m), rel=0.01)
    turn = torch.linalg.qr(normals(d, d)).Q
    pairs = [(normals(n, d, seed=2 * k), normals(m, d, seed=2 * k + 1)) for k in range(runs)]
    values = np.array([frechet_distance(x * scale @ turn, y * scale @ turn) for x, y in pairs])
    assert abs(values.mean() - told) < 5 * values.std() / runs**0.5 + 0.01 * told


def test_frechet_bias_of_features_that_are_constant() -> None:
    assert frechet_bias(torch.ones(10, 3), 5, 5) == 0
    with pytest.raises(InvalidInputError, match="two samples or more: got 10, n=1"):
        frechet_bias(normals(10, 3), 1, 5)


# kernel distance


def test_kernel_distance_pair_by_pair() -> None:
    x, y = normals(11, 3), normals(14, 3, seed=1) + 0.3

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    wanted = xx + yy - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y, groups=5).value == pytest.approx(wanted, rel=1e-10)


def test_kernel_distance_is_unbiased_at_any_size() -> None:
    """N(0, 1) and N(s, 1) on a line: E (XY + 1)^3 = 1 + 3 E X E Y + 3 E X^2 E Y^2 + E X^3 E Y^3, moments of each."""
    s, n, m, runs = 0.7, 5, 7, 400
    one, two, three = (0.0, s), (1.0, 1 + s**2), (0.0, s**3 + 3 * s)

    def expected(i: int, j: int) -> float:
        return 1 + 3 * one[i] * one[j] + 3 * two[i] * two[j] + three[i] * three[j]

    wanted = expected(0, 0) + expected(1, 1) - 2 * expected(0, 1)
    x, y = normals(runs, n), normals(runs, m, seed=1) + s
    values = np.array([kernel_distance(a, b, groups=2).value for a, b in zip(x, y, strict=True)])
    assert abs(values.mean() - wanted) < 5 * values.std() / runs**0.5
    same = np.array([kernel_distance(a[:4], a[4:], groups=2).value for a in normals(runs, 9)])
    assert abs(same.mean()) < 5 * same.std() / runs**0.5 and same.min() < 0


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_s_standard_error(shift: float) -> None:
    """It is the spread over sets for different laws (to 20 %, Monte Carlo 7 %), and at least that for equal ones."""
    found = [kernel_distance(normals(200, 4, seed=2 * k), normals(300, 4, seed=2 * k + 1) + shift) for k in range(100)]
    told, spread = np.mean([f.stderr for f in found]), np.std([f.value for f in found])
    assert told > 0.8 * spread
    assert told < (1.25 if shift else 3) * spread


def test_kernel_distance_refuses() -> None:
    for groups in (1, 2.0, True):
        with pytest.raises(InvalidInputError, match="at least 2|expected a whole number"):
            kernel_distance(normals(50, 2), normals(50, 2), groups=groups)
    with pytest.raises(InvalidInputError, match="20 groups need 40 samples or more: got 39 and 50"):
        kernel_distance(normals(39, 2), normals(50, 2))


# precision and recall


def test_precision_and_recall_of_overlapping_squares() -> None:
    """Uniform on [0, 1] x [0, 1] and [1 - a, 2 - a] x [0, 1]: both are the overlap a, and the rim that balls reach."""
    real, x = torch.special.ndtr(normals(2000, 2)), torch.special.ndtr(normals(2000, 2, seed=1))
    for a in (1.0, 0.5, 0.2):
        found = precision_recall(x + torch.tensor([1 - a, 0.0]), real)
        assert found.precision == pytest.approx(a, abs=0.06) and found.recall == pytest.approx(a, abs=0.06)
    assert precision_recall(x + 5, real) == (0, 0)


def test_precision_and_recall_tell_missing_modes_from_bad_samples() -> None:
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0]]).double()
    real = modes.repeat_interleave(300, 0) + 0.5 * normals(600, 2)
    one_mode = 0.5 * normals(600, 2, seed=1)
    assert precision_recall(one_mode, real).precision > 0.9 and 0.4 < precision_recall(one_mode, real).recall < 0.5
    half_noise = torch.cat([real[::2] + 0.5 * normals(300, 2, seed=2), modes[0] + 100 * normals(300, 2, seed=3)])
    assert precision_recall(half_noise, real).precision < 0.5


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_ball_by_ball(k: int) -> None:
    x, real = normals(17, 3), normals(23, 3, seed=1) + 0.8

    def share(points: Tensor, centres: Tensor) -> float:
        inside = 0
        for p in points:
            inside += any(
                float((p - c).norm()) <= sorted(float((c - o).norm()) for o in centres)[k]  # 0 is itself
                for c in centres
            )
        return inside / len(points)

    assert precision_recall(x, real, k=k) == pytest.approx((share(x, real), share(real, x)))
    distances_module_chunk = distances_module.CHUNK
    distances_module.CHUNK = 50
    try:
        assert precision_recall(x, real, k=k) == pytest.approx((share(x, real), share(real, x)))
    finally:
        distances_module.CHUNK = distances_module_chunk


def test_precision_and_recall_refuse() -> None:
    for k in (0, 5, 1.0, True):
        with pytest.raises(InvalidInputError, match="expected a whole number( from 1 to 4)?"):
            precision_recall(normals(5, 2), normals(9, 2), k=k)
