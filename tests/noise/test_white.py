"""Noise by address: the same for a sample whatever stands beside it, independent for any two addresses, and normal.

Thresholds on chance: with the seeds fixed here a test gives the same answer on every run; it was asked that a correct
generator fail each less than once in ten thousand choices of seeds (correlations within 4.5 standard errors,
Kolmogorov-Smirnov p-values above 1e-4).
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from sdegen.core.errors import InvalidInputError
from sdegen.noise.brownian import BrownianTree
from sdegen.noise.purposes import Purpose
from sdegen.noise.white import Noise, check_seed

F64 = torch.float64
PURPOSES = (Purpose.PRIOR, Purpose.STEP, Purpose.CORRECTOR, Purpose.PROBE, Purpose.DEQUANTISE)


def normals(seed: int, n: int, *address, index=None, event=(1,)) -> Tensor:
    return Noise(seed, index=index).normal((n, *event), *(address or (Purpose.STEP,)), dtype=F64, device="cpu")


def assert_normal(z: Tensor) -> None:
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-4


def assert_unrelated(a: Tensor, b: Tensor) -> None:
    """Neither the values nor their squares nor their signs go together."""
    a, b = a.flatten(), b.flatten()
    for f in (lambda z: z, lambda z: z**2 - 1, torch.sign):
        u, v = f(a), f(b)
        assert abs(float((u * v).mean() / (u.std() * v.std()))) < 4.5 / math.sqrt(len(a))


# ---- a sample's own


@pytest.mark.parametrize("event", [(), (1,), (2,), (3,), (2, 3, 5)])
@pytest.mark.parametrize("own_times", [False, True])
def test_a_sample_draws_the_same_in_any_batch(event, own_times):
    n = 12
    x = torch.zeros(n, *event, dtype=F64)
    t = torch.rand(n, dtype=F64) if own_times else torch.tensor(0.7, dtype=F64)
    t_next = t / 2
    whole = Noise(5).increment(t, t_next, x)

    def part(rows: Tensor) -> Tensor:
        times = (t[rows], t_next[rows]) if own_times else (t, t_next)
        return Noise(5, index=rows).increment(*times, x[rows])

    for size in (1, 2, 5, 8):
        chunks = [part(rows) for rows in torch.arange(n).split(size)]
        assert torch.equal(torch.cat(chunks), whole)
    order = torch.randperm(n)
    assert torch.equal(part(order), whole[order])
    assert torch.equal(part(torch.tensor([7, 7, 3])), whole[[7, 7, 3]])
    assert part(torch.arange(0)).shape == (0, *event)
    for keep in (torch.tensor([2, 9]), torch.arange(n) % 3 == 0):
        rows = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        times = (t[rows], t_next[rows]) if own_times else (t, t_next)
        assert torch.equal(Noise(5).select(keep).increment(*times, x[rows]), whole[rows])
        chosen = Noise(5, index=torch.arange(n) + 100).select(keep)
        assert chosen.index is not None and chosen.index.tolist() == (rows + 100).tolist()


def test_a_time_of_all_is_the_same_address_as_that_time_for_each():
    x = torch.zeros(4, 3, dtype=F64)
    each = torch.full((4,), 0.3, dtype=F64)
    wanted = Noise(1).increment(0.3, 0.2, x)
    for t, t_next in (
        (each, each - 0.1),
        (each, torch.tensor(0.2, dtype=F64)),
        (0.3, torch.full((4,), 0.2, dtype=F64)),
    ):
        same = (t_next if isinstance(t_next, Tensor) else torch.tensor(t_next)).eq(0.2).all()
        came = Noise(1).increment(t, t_next, x)
        assert torch.equal(came, wanted) == bool(same)
    one = torch.tensor([1, 2, 1, 2])
    mixed = Noise(1).normal((4, 3), Purpose.STEP, one, dtype=F64, device="cpu")
    assert torch.equal(mixed[0], Noise(1).normal((4, 3), Purpose.STEP, 1, dtype=F64, device="cpu")[0])
    assert torch.equal(mixed[1], Noise(1).normal((4, 3), Purpose.STEP, 2, dtype=F64, device="cpu")[1])
    zero, minus = (Noise(1).increment(z, 1.0, x) for z in (0.0, -0.0))
    assert torch.equal(zero, minus)


def test_asking_again_in_any_order_changes_nothing():
    x, noise = torch.zeros(3, 2, dtype=F64), Noise(3)
    first = [noise.increment(t, t + 0.1, x) for t in (0.1, 0.2, 0.3)]
    noise.normal((3, 5), Purpose.PRIOR, dtype=F64, device="cpu")  # another shape in between
    again = [noise.increment(t, t + 0.1, x) for t in (0.3, 0.2, 0.1)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_the_rounded_float64(dtype):
    wanted = Noise(2).normal((50, 7), Purpose.STEP, 0.5, dtype=F64, device="cpu")
    came = Noise(2).normal((50, 7), Purpose.STEP, 0.5, dtype=dtype, device="cpu")
    assert came.dtype == dtype and torch.equal(came, wanted.to(dtype))


def test_a_sample_s_elements_are_those_of_the_flat_event():
    flat = normals(4, 5, event=(12,))
    for event in ((12,), (3, 4), (2, 1, 6)):
        assert torch.equal(normals(4, 5, event=event).reshape(5, 12), flat)
    # elements are numbered from the front, so a longer event begins like a shorter one
    assert torch.equal(normals(4, 5, event=(7,)), flat[:, :7])


def test_the_layout_of_x_does_not_matter():
    x = torch.zeros(4, 3, 2, dtype=F64)
    for strided in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.zeros(4, 2, 3, dtype=F64).mT,
        x[:, :1].expand(4, 3, 2),
    ):
        assert torch.equal(Noise(0).increment(0.1, 0.2, strided), Noise(0).increment(0.1, 0.2, x))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 2, 2), (2, 0, 3)])
def test_nothing_to_draw(shape):
    assert Noise(0).normal(shape, Purpose.STEP, dtype=F64, device="cpu").shape == shape
    assert Noise(0).increment(0.1, 0.2, torch.zeros(shape)).shape == shape


# ---- the law


def test_normal_over_samples_elements_seeds_times_and_purposes():
    n, m = 4000, 600
    assert_normal(normals(0, n))
    assert_normal(normals(0, 1, event=(n,)))
    assert_normal(normals(7, n, index=torch.arange(n) * 2**40))
    assert_normal(normals(7, n, index=-torch.arange(n)))
    assert_normal(torch.cat([normals(seed, 1) for seed in range(m)]))
    assert_normal(torch.cat([normals(-seed, 1, index=[10**12]) for seed in range(m)]))
    assert_normal(torch.cat([normals(0, 1, purpose) for purpose in range(m)]))
    t = torch.arange(n, dtype=F64) / n  # a time per sample, of one sample number
    one = torch.zeros(n, dtype=torch.int64)
    assert_normal(Noise(0, index=one).standard(t, t + 1 / n, torch.zeros(n, dtype=F64)))


def test_moments_and_tails_of_a_million():
    z = normals(123, 500_000, event=(2,)).flatten()
    n = len(z)
    for power, wanted, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - wanted) < 4.5 * math.sqrt(variance / n)
    for level in (2.0, 3.0, 4.0):
        p = math.erfc(level / math.sqrt(2)) / 2
        for side in (z > level, z < -level):
            assert abs(float(side.sum()) - n * p) < 4.5 * math.sqrt(n * p) + 1
    assert float(z.abs().max()) < 6.3  # 32 bits end there; a million normals reach 4.9


def test_the_two_of_a_pair_are_unrelated():
    z = normals(9, 40_000, event=(2,))
    assert_unrelated(z[:, 0], z[:, 1])
    assert_normal((z[:, 0] + z[:, 1])[:4000] / math.sqrt(2))
    assert_normal((z[:, 0] - z[:, 1])[:4000] / math.sqrt(2))


def test_different_addresses_are_unrelated():
    n, t = 40_000, torch.tensor(0.5, dtype=F64)
    base = normals(1, n, Purpose.STEP, 0.5, 0.4)
    for other in (
        normals(2, n, Purpose.STEP, 0.5, 0.4),
        normals(-1, n, Purpose.STEP, 0.5, 0.4),
        normals(1 + 2**64, n, Purpose.STEP, 0.5, 0.4),
        normals(1, n, Purpose.CORRECTOR, 0.5, 0.4),
        normals(1, n, Purpose.STEP, 0.4, 0.5),
        normals(1, n, Purpose.STEP, 0.5, 0.3),
        normals(1, n, Purpose.STEP, float(torch.nextafter(t, 2 * t)), 0.4),
        normals(1, n, Purpose.STEP, 0.5),
        normals(1, n, Purpose.STEP, 0.5, 0.4, 0),
        normals(1, n, Purpose.STEP, -0.5, 0.4),
        base.roll(1),
        base.roll(2),
        normals(1, n, Purpose.STEP, 0.5, 0.4, index=torch.arange(n) + 2**32),
        normals(1, n, Purpose.STEP, 0.5, 0.4, index=torch.arange(n) ^ 1),
    ):
        assert not torch.equal(other, base)
        if other.shape == base.shape and float((other - base).abs().max()) > 0:
            assert_unrelated(other, base)


def test_no_two_of_many_addresses_collide():
    """100,000 addresses of neighbouring seeds, samples, elements, purposes and times: all pairs of normals differ.

    Each pair comes from 64 bits; the chance of any coincidence is 3e-10.
    """
    x = torch.zeros(10, 10, dtype=F64)
    values = [
        Noise(seed).increment(t, t_next, x, purpose=purpose) / math.sqrt(abs(t_next - t))
        for seed in (-2, -1, 0, 1, 2, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
        for purpose in PURPOSES
        for t in (0.0, 1.0, 2.0, 0.5)
        for t_next in (0.25, 3.0, 1e-300, -1.0, 4.0, 8.0, 16.0, 1e300, 0.1, 0.2)
    ]
    pairs = torch.cat([v.reshape(-1, 2) for v in values])
    assert len(pairs) == 100_000 and len(pairs.unique(dim=0)) == len(pairs)


# ---- Brownian increments


def test_increments_have_the_length_of_the_interval_as_their_variance():
    n = 40_000
    x = torch.zeros(n, dtype=F64)
    for t, t_next in ((0.5, 0.2), (0.2, 0.5), (1.0, 1.0 + 1e-6), (80.0, 0.002)):
        dw = Noise(3).increment(t, t_next, x)
        length = abs(t_next - t)
        assert abs(float(dw.var()) / length - 1) < 4.5 * math.sqrt(2 / n)
        assert abs(float(dw.mean())) < 4.5 * math.sqrt(length / n)
    t = torch.linspace(0.1, 2.0, n, dtype=F64)
    dw = Noise(3).increment(t, 3 * t, x)
    assert_normal((dw / torch.sqrt(2 * t))[::10])
    assert torch.equal(Noise(3).increment(0.4, 0.4, x), torch.zeros(n, dtype=F64))
    z = Noise(3).standard(t, 3 * t, x)
    torch.testing.assert_close(dw, z * torch.sqrt(2 * t))


def test_disjoint_intervals_add_up_like_a_brownian_path():
    n, steps = 20_000, 16
    t = torch.linspace(0, 1, steps + 1, dtype=F64)
    noise, x = Noise(8), torch.zeros(n, dtype=F64)
    dw = torch.stack([noise.increment(a, b, x) for a, b in zip(t[:-1], t[1:], strict=True)])
    assert abs(float(dw.sum(0).var()) - 1) < 4.5 * math.sqrt(2 / n)
    assert_normal(dw.sum(0)[:4000])
    off = (dw @ dw.T / n * steps - torch.eye(steps, dtype=F64)).abs()
    assert float(off.max()) < 5.2 * math.sqrt(2 / n)  # the largest of 136


# ---- seeds and wrong input


def test_seeds_of_any_size_and_kind():
    seeds = [0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**64), 10**40, -(10**40)]
    first = torch.stack([normals(seed, 3)[:, 0] for seed in seeds])
    assert len(first.unique()) == first.numel()
    import numpy as np

    assert torch.equal(normals(np.int64(7), 3), normals(7, 3))
    assert torch.equal(normals(torch.tensor(7), 3), normals(7, 3))  # type: ignore[arg-type]


def test_no_seed_takes_one_from_torch():
    torch.manual_seed(4)
    a, b = check_seed(None), check_seed(None)
    torch.manual_seed(4)
    assert a != b and check_seed(None) == a and isinstance(a, int)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Noise(0.5), "seed=0.5, expected an integer"),
        (lambda: Noise("a"), "seed='a'"),
        (lambda: Noise(True), "seed=True"),
        (lambda: Noise(0, index=[0.5, 1.0]), "index has dtype torch.float32: expected integers"),
        (lambda: Noise(0, index=[True, False]), "index has dtype torch.bool"),
        (lambda: Noise(0, index=[[1, 2]]), r"index has shape \(1, 2\)"),
        (lambda: Noise(0, index="ab"), "could not be read"),
        (
            lambda: Noise(0, index=[1, 2]).normal((3, 2), Purpose.STEP, dtype=F64, device="cpu"),
            "index names 2 samples, but the batch has 3",
        ),
        (lambda: Noise(0).normal((), Purpose.STEP, dtype=F64, device="cpu"), r"shape is \(\): expected \(B, \*event\)"),
        (lambda: Noise(0).normal((2.5,), Purpose.STEP, dtype=F64, device="cpu"), "integers of at least 0"),
        (lambda: Noise(0).normal((-1, 2), Purpose.STEP, dtype=F64, device="cpu"), "integers of at least 0"),
    ],
)
def test_wrong_input(call, words):
    with pytest.raises(InvalidInputError, match=words):
        call()


@pytest.mark.parametrize("event", [(), (1,), (3,), (2, 2)])
def test_a_uniform_number_is_the_probability_of_the_normal_at_its_address(event):
    noise, words = Noise(5, index=[3, 1, 4, 1000]), dict(dtype=torch.float64, device="cpu")
    u, z = noise.uniform((4, *event), 7, **words), noise.normal((4, *event), 7, **words)
    assert u.shape == (4, *event)
    torch.testing.assert_close(u, torch.special.ndtr(z), rtol=1e-9, atol=1e-15)


def test_uniform_numbers_are_contiguous_whatever_their_shape():
    """Half of a word is dropped of odd events: a view of the rest would be slow to search in."""
    for shape in ((7,), (7, 1), (7, 3), (7, 4)):
        assert Noise(0).uniform(shape, 5, dtype=torch.float64, device="cpu").is_contiguous()


@pytest.mark.parametrize("make", [Noise, lambda seed, **k: BrownianTree(seed, 0.0, 1.0, **k)], ids=["white", "tree"])
def test_what_was_drawn_from_cannot_change(make):
    """Neither by assigning nor through the numbers that were handed in."""
    index = torch.tensor([3, 4])
    noise, x = make(0, index=index), torch.zeros(2, 1, dtype=F64)
    before = noise.increment(0.2, 0.4, x)
    index += 5
    assert noise.index.tolist() == [3, 4]
    for name, value in vars(noise).items():
        if not name.startswith("_"):
            with pytest.raises(InvalidInputError, match=f"{name} cannot be assigned"):
                setattr(noise, name, value)
    again = make(0, index=[3, 4]).increment(0.2, 0.4, x)
    assert torch.equal(noise.increment(0.2, 0.4, x), before) and torch.equal(again, before)
