"""Laws of the Brownian tree: one path per sample, whatever is asked of it and in whatever order."""

from __future__ import annotations

import math

import pytest
import torch

from sdegen import InvalidInputError, Noise
from sdegen.noise.brownian import BrownianTree, space_time_increment
from sdegen.noise.purposes import Purpose

D = torch.float64
SPAN = (0.1, 2.3)


def time(*values):
    t = torch.tensor(values, dtype=D)
    return t if len(values) > 1 else t[0]


def tree(seed=0, *, depth=14, index=None):
    return BrownianTree(seed, *SPAN, depth=depth, index=index)


def x_of(*shape, dtype=D):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize("times", [(0.1, 0.4, 2.3), (0.2, 0.20001, 1.7), (2.3, 1.1, 0.3), (1.2, 0.5, 0.49)])
def test_increments_and_integrals_compose(times):
    """W(a, c) = W(a, b) + W(b, c) and Z(a, c) = Z(a, b) + Z(b, c) + W(a, b) |c - b|, both ways of time; to rounding."""
    a, b, c = (time(t) for t in times)
    x, noise = x_of(5, 3), tree()
    (w1, z1), (w2, z2), (w, z) = noise.space_time(a, b, x), noise.space_time(b, c, x), noise.space_time(a, c, x)
    torch.testing.assert_close(w1 + w2, w, rtol=0, atol=1e-14)
    torch.testing.assert_close(z1 + z2 + w1 * (c - b).abs(), z, rtol=0, atol=1e-14)
    torch.testing.assert_close(noise.increment(c, a, x), -w, rtol=0, atol=1e-14)


def test_what_was_told_is_never_changed_by_asking_for_more():
    """The path is a function of time: neither the order nor the company of the questions matters, to the last bit."""
    x, g = x_of(4, 2), torch.Generator().manual_seed(1)
    questions = [tuple(SPAN[0] + (SPAN[1] - SPAN[0]) * torch.rand(2, generator=g, dtype=D)) for _ in range(40)]
    noise = tree()
    first = [noise.space_time(a, b, x) for a, b in questions]
    again = [noise.space_time(a, b, x) for a, b in reversed(questions)][::-1]
    alone = [tree().space_time(a, b, x) for a, b in questions]
    for one, two, three in zip(first, again, alone):
        assert all(torch.equal(p, q) and torch.equal(p, r) for p, q, r in zip(one, two, three))


def test_a_finer_tree_tells_the_same_at_the_coarse_times():
    x = x_of(3, 2)
    for k in range(0, 16):
        a, b = (time(SPAN[0] + (SPAN[1] - SPAN[0]) * j / 16) for j in (k, k + 1))
        for u, v in zip(tree(depth=4).space_time(a, b, x), tree(depth=20).space_time(a, b, x)):
            torch.testing.assert_close(u, v, rtol=0, atol=1e-14)


def test_between_the_finest_times_path_and_integral_agree():
    """There the path is a parabola, whose integral Simpson's rule gives exactly, from any start inside."""
    noise, x = tree(depth=3), x_of(5, 2)
    h = (SPAN[1] - SPAN[0]) / 8
    for u, v in [(0.0, 1.0), (0.2, 0.9), (0.6, 0.1)]:
        a, b = time(SPAN[0] + (3 + u) * h), time(SPAN[0] + (3 + v) * h)
        w, z = noise.space_time(a, b, x)
        middle = noise.increment(a, (a + b) / 2, x)
        torch.testing.assert_close(z, (b - a).abs() * (4 * middle + w) / 6, rtol=0, atol=1e-14)
        assert (middle - w / 2).abs().min() > 1e-4


def covariance_errors(w, z, h):
    """Deviations of the second moments from [[h, h^2/2], [h^2/2, h^3/3]], in standard errors."""
    n = w.numel()
    found = torch.stack([w.square().mean(), (w * z).mean(), z.square().mean()])
    wanted = torch.tensor([h, h**2 / 2, h**3 / 3], dtype=D)
    spread = torch.stack([w.square().std(), (w * z).std(), z.square().std()]) / math.sqrt(n)
    return (found - wanted) / spread


@pytest.mark.parametrize("source", ["tree", "noise"])
@pytest.mark.parametrize("times", [(0.1, 2.3), (2.3, 0.1), (0.6, 0.9), (0.9, 0.6), (0.3, 0.31)])
def test_law_of_increment_and_integral(source, times):
    """Within 4 standard errors, 40,000 draws. Ends inside a finest interval (length e) cost O(e/h): e/h <= 0.014."""
    noise = tree(seed=5) if source == "tree" else Noise(5)
    h = abs(times[1] - times[0])
    w, z = space_time_increment(noise, time(times[0]), time(times[1]), x_of(20_000, 2))
    assert w.mean().abs() < 4 * math.sqrt(h / w.numel())
    assert z.mean().abs() < 4 * math.sqrt(h**3 / 3 / z.numel())
    assert covariance_errors(w, z, h).abs().max() < 4


def test_law_at_every_level_is_exact_at_dyadic_times():
    """At each depth 1..8 one interval in the middle of the tree: its own law, and no correlation with its neighbour."""
    noise, x, n = tree(seed=9, depth=8), x_of(20_000, 2), 40_000
    for level in range(1, 9):
        h = (SPAN[1] - SPAN[0]) * 2.0**-level
        a = SPAN[0] + h * (2 ** (level - 1) - 1)
        w, z = noise.space_time(time(a), time(a + h), x)
        w2, z2 = noise.space_time(time(a + h), time(a + 2 * h), x)
        assert covariance_errors(w, z, h).abs().max() < 4, level
        assert covariance_errors(w2, z2, h).abs().max() < 4, level
        for p, q in [(w, w2), (w, z2), (z, w2), (z, z2)]:
            assert (p * q).mean().abs() < 4 * (p.std() * q.std()) / math.sqrt(n), level
    w = noise.increment(time(SPAN[0]), time(SPAN[0] + h), x)
    assert abs((w[:, 0] * w[:, 1]).mean()) < 4 * h / math.sqrt(20_000), "elements of one sample"
    assert abs((w[:-1, 0] * w[1:, 0]).mean()) < 4 * h / math.sqrt(20_000), "neighbouring samples"


def test_samples_keep_their_paths_in_any_batch():
    x = x_of(7, 2, 3)
    a, b = time(0.3), time(1.234)
    whole = tree().space_time(a, b, x)
    for parts in ([3, 4], [1] * 7):
        at, pieces = 0, []
        for size in parts:
            noise = tree(index=torch.arange(at, at + size))
            pieces.append(noise.space_time(a, b, x[at : at + size]))
            at += size
        for k in range(2):
            assert torch.equal(torch.cat([p[k] for p in pieces]), whole[k])
    keep = torch.tensor([5, 0, 2])
    chosen = tree().select(keep)
    assert isinstance(chosen, BrownianTree)
    assert torch.equal(chosen.increment(a, b, x[keep]), whole[0][keep])
    assert torch.equal(chosen.select(torch.tensor([1])).increment(a, b, x[:1]), whole[0][:1])
    assert not torch.equal(tree(seed=1).increment(a, b, x), whole[0])


def test_times_per_sample_equal_one_time_for_all():
    x = x_of(6, 2)
    a, b = time(0.1, 0.65, 0.7, 1.2, 1.25, 2.3), time(0.65, 0.1, 1.1, 1.9, 1.2000001, 0.1)
    own = tree().space_time(a, b, x)
    shared = tree()
    for i in range(6):
        for u, v in zip(own, shared.space_time(a[i], b[i], x)):
            torch.testing.assert_close(u[i], v[i], rtol=0, atol=1e-14)
    mixed = tree().space_time(a, time(0.9), x)  # one of the two may be shared
    torch.testing.assert_close(mixed[0][1], shared.increment(a[1], time(0.9), x)[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("event", [(), (1,), (3,), (1, 4, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_shapes_and_dtypes(event, dtype):
    x = x_of(3, *event, dtype=dtype)
    w, z = tree().space_time(time(0.2), time(0.4), x)
    assert w.shape == z.shape == x.shape and w.dtype == z.dtype == dtype
    exact = tree().increment(time(0.2), time(0.4), x.double())
    torch.testing.assert_close(w.double(), exact, rtol=1e-6, atol=1e-7)
    assert tree().increment(time(0.2), time(0.4), x[:0]).shape == (0, *event)


def test_it_is_a_noise():
    """Increments over the root of the length; other purposes draw as Noise does, independently of the path."""
    x, a, b = x_of(4, 2), time(0.2), time(0.7)
    noise = tree()
    torch.testing.assert_close(noise.standard(a, b, x), noise.increment(a, b, x) / math.sqrt(0.5))
    assert torch.equal(
        noise.increment(a, b, x, purpose=Purpose.CORRECTOR), Noise(0).increment(a, b, x, purpose=Purpose.CORRECTOR)
    )
    assert torch.equal(
        noise.standard(a, b, x, purpose=Purpose.CORRECTOR), Noise(0).standard(a, b, x, purpose=Purpose.CORRECTOR)
    )


def test_impossible_questions_are_refused():
    with pytest.raises(InvalidInputError, match="outside"):
        tree().increment(time(0.2), time(2.4), x_of(2, 2))
    with pytest.raises(InvalidInputError, match="outside"):
        tree().increment(time(0.2), time(float("nan")), x_of(2, 2))
    with pytest.raises(InvalidInputError, match="two different"):
        BrownianTree(0, 1.0, 1.0)
    with pytest.raises(InvalidInputError, match="depth"):
        BrownianTree(0, 0.0, 1.0, depth=0)
