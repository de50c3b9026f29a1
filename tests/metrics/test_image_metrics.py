"""Metrics of pictures: PSNR and SSIM against their formulas, the classifier whose features stand in for Inception's."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdegen import metrics
from sdegen.core.errors import CorruptCheckpointError, InvalidInputError
from sdegen.data import load_images


def pictures(n: int, *, c: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


# PSNR and SSIM


def test_psnr() -> None:
    """A constant error e has 20 log10(2/e) decibels; each image counts for itself."""
    x = pictures(3)
    e = torch.tensor([0.1, 0.01, 0.5]).double()
    y = x + e[:, None, None, None]
    assert metrics.psnr(y, x).tolist() == pytest.approx([20 * math.log10(2 / v) for v in e.tolist()])
    assert metrics.psnr(y / 2, x / 2, data_range=1.0).tolist() == pytest.approx(metrics.psnr(y, x).tolist())
    assert metrics.psnr(x, x).tolist() == [math.inf] * 3


def ssim_of(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """Wang et al. 2004, eq. 13, the mean over pixels whose window fits, for each channel."""

    def smooth(a: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(a, sigma, truncate=3.5)

    values, r = [], int(3.5 * sigma + 0.5)
    for a, b in zip(x, y, strict=True):
        ma, mb = smooth(a), smooth(b)
        va, vb, vab = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        s = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        values.append(s[r:-r, r:-r].mean())
    return float(np.mean(values))


@pytest.mark.parametrize(("sigma", "side"), [(1.5, 16), (0.5, 8)])
def test_ssim(sigma: float, side: int) -> None:
    x = pictures(3, side=side)
    y = (x + 0.3 * pictures(3, side=side, seed=1)).clamp(-1, 1)
    found = metrics.ssim(y, x, sigma=sigma)
    assert found.tolist() == pytest.approx([ssim_of(a.numpy(), b.numpy(), sigma) for a, b in zip(y, x)], rel=1e-6)
    assert metrics.ssim(x, x, sigma=sigma).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("function", [metrics.psnr, metrics.ssim])
def test_a_score_does_not_depend_on_how_pictures_are_scaled(function) -> None:
    """Bytes and every range that is said give one number (SSIM: every range from 0); no other range is guessed."""
    u = (pictures(3) + 1).mul(127.5).round()
    v = (u + 20 * pictures(3, seed=1)).clamp(0, 255).round()
    wanted = function(v.byte(), u.byte())
    for found in (
        function(v / 127.5 - 1, u / 127.5 - 1) if function is metrics.psnr else wanted,
        function(v / 255, u / 255, data_range=1.0),
        function(v, u, data_range=255.0),
        function(v.int(), u.int(), data_range=255),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    for scale, shift in ((1 / 255, 0.0), (1.0, 0.0), (1.0, -127.5), (2 / 255, -0.5)):
        with pytest.raises(InvalidInputError, match=r"pass data_range=.*1.0 in \[0, 1\]"):
            function(v * scale + shift, u * scale + shift)
    for kind in (torch.uint16, torch.int32, torch.int64):  # which hold 8, 10, 12, 14 or 16 bits
        with pytest.raises(InvalidInputError, match="pass data_range="):
            function(v.to(kind), u.to(kind))
        torch.testing.assert_close(function(v.to(kind), u.to(kind), data_range=255), wanted, rtol=1e-6, atol=0)
    with pytest.raises(InvalidInputError, match="data_range=1, but the reference has values from -1 to 1"):
        function(v / 127.5 - 1, u / 127.5 - 1, data_range=1.0)
    with pytest.raises(InvalidInputError, match="scale both alike"):
        function(v / 127.5 - 1, u.byte())


def test_pairs_refuse() -> None:
    for function in (metrics.psnr, metrics.ssim):
        with pytest.raises(InvalidInputError, match=r"\(3, 3, 16, 16\) and reference \(2, 3, 16, 16\)"):
            function(pictures(3), pictures(2))
        with pytest.raises(InvalidInputError, match="data_range=0"):
            function(pictures(3), pictures(3), data_range=0)
    with pytest.raises(InvalidInputError, match="8x8 are smaller than the window of 11x11"):
        metrics.ssim(pictures(1, side=8), pictures(1, side=8))


# a classifier's features


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train, held_out = load_images("digits"), load_images("digits", split="held-out")
    assert train.labels is not None and held_out.labels is not None
    return train.images, train.labels, held_out.images, held_out.labels


@pytest.fixture(scope="module")
def classifier(digits: tuple) -> metrics.Classifier:
    return metrics.train_classifier(digits[0], digits[1], steps=80)


def test_it_knows_digits_it_has_not_seen(classifier: metrics.Classifier, digits: tuple) -> None:
    assert classifier.accuracy(digits[2], digits[3]) > 0.93
    probabilities = classifier.probabilities(digits[2])
    assert probabilities.shape == (445, 10) and torch.allclose(probabilities.sum(1), torch.ones(445))


def test_its_features_order_sets_by_how_spoiled_they_are(classifier: metrics.Classifier, digits: tuple) -> None:
    """By all three distances; blank images, one class, and noise in three strengths, against real ones."""
    real, held_out = classifier(digits[0][:445]), classifier(digits[2])
    z = torch.randn(digits[2].shape, generator=torch.Generator().manual_seed(0))
    spoiled = [classifier((digits[0][500:945] + s * z).clamp(-1, 1)) for s in (0.0, 0.3, 0.6, 1.2)]
    for distance in (metrics.frechet_distance, lambda x, y: metrics.kernel_distance(x, y).value):
        values = [distance(f, held_out) for f in spoiled]
        assert values == sorted(values) and values[3] > 5 * values[1] > 0
        assert distance(real, held_out) < values[1]
        zeros = classifier(digits[2][digits[3] == 0].repeat(11, 1, 1, 1)[:445])
        assert distance(zeros, held_out) > values[1]
    assert (
        metrics.precision_recall(zeros, held_out).precision
        > 0.8
        > 0.2
        > metrics.precision_recall(zeros, held_out).recall
    )


def test_features_of_an_image_do_not_depend_on_the_others(classifier: metrics.Classifier, digits: tuple) -> None:
    x = digits[2][:7]
    alone = torch.cat([classifier(x[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(classifier(x), alone, rtol=0, atol=1e-5)
    assert classifier(x).shape == (7, 64) and classifier(x[:0]).shape == (0, 64)
    assert not classifier(x.requires_grad_()).requires_grad


def test_same_arguments_same_features(digits: tuple) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again = (metrics.train_classifier(digits[0], digits[1], steps=8) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first(digits[2]), again(digits[2]))
    other = metrics.train_classifier(digits[0][:, :, :, :6], digits[1], steps=2, seed=1)
    assert other.shape == (1, 8, 6)


def test_kept_in_a_file(digits: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, path = digits[0], digits[1], tmp_path / "kept" / "digits.safetensors"
    first = metrics.train_classifier(x, y, path=path, steps=2)
    monkeypatch.setattr("sdegen.metrics.classifier.fit", None)  # must not be called again
    assert torch.equal(metrics.train_classifier(x, y, path=path, steps=2)(x), first(x))
    for options in ({"steps": 3}, {"steps": 2, "seed": 1}):
        with pytest.raises(InvalidInputError, match="other images or options"):
            metrics.train_classifier(x, y, path=path, **options)
    with pytest.raises(InvalidInputError, match="other images or options"):
        metrics.train_classifier(x.flip(0), y, path=path, steps=2)
    content = path.read_bytes()
    for place in (20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises((CorruptCheckpointError, InvalidInputError), match="damaged|remove it"):
            metrics.train_classifier(x, y, path=path, steps=2)
    path.write_bytes(content[:100])
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        metrics.train_classifier(x, y, path=path, steps=2)
    assert [p.name for p in path.parent.iterdir()] == ["digits.safetensors"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 12, 20), (1, 28, 28), (2, 3, 5), (3, 64, 96)])
def test_any_shape(shape: tuple[int, int, int]) -> None:
    net = metrics.Classifier(shape, 3)
    assert net(torch.zeros(2, *shape)).shape == (2, 64)
    assert max(net.convolutions(torch.zeros(1, *shape)).shape[2:]) <= 6  # a mean over few places
    with pytest.raises(InvalidInputError, match="this classifier learned images"):
        net(torch.zeros(2, 1, 7, 7))


def test_classifier_refuses() -> None:
    x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    for images, labels, message in (
        (x[0], y, r"shape \(1, 8, 8\), expected floating numbers \(N, C, H, W\)"),
        (x.to(torch.uint8), y, "torch.uint8"),
        (x, None, "got labels=None, expected a torch.Tensor"),
        (x, y[:3], "expected whole numbers"),
        (x, y - 1, "from 0"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            metrics.train_classifier(images, labels, steps=1)


@pytest.mark.slow
def test_fashion_mnist() -> None:
    """The defaults take seconds and know five in six of the classes of clothes."""
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("needs the package dataset-fashion-mnist")
    train, test = load_images("fashion-mnist"), load_images("fashion-mnist", split="held-out")
    assert train.labels is not None and test.labels is not None
    assert metrics.train_classifier(train.images, train.labels).accuracy(test.images, test.labels) > 0.84


# FID


def test_fid_hands_bytes_to_torch_fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict = {}

    def calculate_metrics(**options) -> dict[str, float]:
        asked.update(options)
        return {"frechet_inception_distance": 12.5}

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(calculate_metrics=calculate_metrics))
    x = torch.linspace(-1.1, 1.1, 2 * 16).reshape(2, 1, 4, 4)
    with pytest.warns(RuntimeWarning, match="FID of 2 images in 2048 dimensions"):
        assert metrics.fid(x, tmp_path, weights=tmp_path / "w.pth", device="cpu", batch_size=7) == 12.5
    assert asked["fid"] is True and asked["cuda"] is False and asked["batch_size"] == 7
    assert asked["input2"] == str(tmp_path) and asked["feature_extractor_weights_path"] == str(tmp_path / "w.pth")
    given = asked["input1"]
    assert isinstance(given, Dataset) and len(given) == 2 and given[0].shape == (3, 4, 4)  # type: ignore[arg-type]
    u = torch.stack([given[0], given[1]])
    assert u.dtype == torch.uint8 and torch.equal(u[:, 0], u[:, 2])
    assert torch.equal(u[:, :1].float(), ((x.clamp(-1, 1) + 1) * 127.5).round())


def test_libraries_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ImportError, match=r"pip install \"sdegen\[fid\]\""):
        metrics.fid(x, x)
    for function in (metrics.psnr, metrics.ssim):
        with pytest.raises(ImportError, match=r"pip install \"sdegen\[metrics\]\""):
            function(x - 1, x - 1)
    for wrong in (x[:, :2], x[0], x[:1], x.to(torch.uint8), 3):
        with pytest.raises(InvalidInputError, match="expected two or more|expected a torch.Tensor or a path"):
            metrics.fid(wrong, x)
