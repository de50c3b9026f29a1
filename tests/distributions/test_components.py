"""Sums over many components: products against differences, far from the data and close to them, within their memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdegen.distributions.components import Diagonal, Direct, Isotropic, Shared, components
from sdegen.distributions.mixture import GaussianMixture
from sdegen.models.exact import EmpiricalModel, MixtureModel
from sdegen.processes import EDMSDE, VPSDE

F64 = torch.float64
K, D = 300, 5
KINDS = ("alike", "isotropic", "shared", "diagonal", "one diagonal", "full")
CLASSES = {
    "alike": Shared,
    "isotropic": Isotropic,
    "shared": Shared,
    "diagonal": Diagonal,
    "one diagonal": Shared,
    "full": Direct,
}


def mixture(kind: str) -> GaussianMixture:
    g = torch.Generator().manual_seed(1)
    means = torch.randn(K, D, generator=g, dtype=F64) + 3.0
    roots = torch.randn(K, D, D, generator=g, dtype=F64) * 0.3
    sizes = torch.rand(K, D, generator=g, dtype=F64) * 0.3 + 0.01
    law = {
        "alike": {"std": 0.2},
        "points": {"std": 0.0},
        "isotropic": {"std": sizes[:, 0]},
        "shared": {"covariances": roots[0] @ roots[0].T},
        "diagonal": {"covariances": torch.diag_embed(sizes)},
        "one diagonal": {"covariances": sizes[0].diag()},
        "full": {"covariances": roots @ roots.mT},
    }[kind]
    return GaussianMixture(means, weights=torch.rand(K, generator=g, dtype=F64) + 0.01, **law)


def direct(m: GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return Direct(m.means, m.variances, m.axes).belief(x, alpha[:, None], sigma[:, None], m.log_weights[None])


def states(m: GaussianMixture, alpha: Tensor, sigma: Tensor, far: float) -> Tensor:
    z = torch.randn(24, D, generator=torch.Generator().manual_seed(2), dtype=F64)
    return alpha[:, None] * m.sample(24, seed=3, dtype=F64) + sigma[:, None] * z + far * z.sign()


class Sizes(TorchDispatchMode):
    """The numbers in the largest tensor that is made, and how many have `counted` numbers."""

    def __init__(self, counted: int = -1) -> None:
        super().__init__()
        self.largest, self.counted, self.made = 0, counted, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        view = isinstance(out, Tensor) and any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == out.untyped_storage().data_ptr() for a in args)  # fmt: skip
        if isinstance(out, Tensor) and not view:
            self.largest, self.made = max(self.largest, out.numel()), self.made + (out.numel() == self.counted)
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_covariance_is_recognised(kind):
    m = mixture(kind)
    assert type(m._parts(torch.device("cpu"))) is CLASSES[kind]
    assert type(components(m.means[:3], m.variances[:3], None)) is Direct  # few components: nothing to gain


@pytest.mark.parametrize("far", [0.0, 1e4], ids=["near", "far"])
@pytest.mark.parametrize("own_times", [False, True], ids=["one-time", "own-times"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_differences(kind, own_times, far):
    m = mixture(kind)
    for level in ((1.0, 1e-3), (0.8, 0.6), (1e-4, 1.0), (1.0, 80.0)):
        alpha, sigma = (torch.tensor([c], dtype=F64) for c in level)
        if own_times:
            alpha, sigma = alpha * torch.linspace(0.5, 1, 24, dtype=F64), sigma * torch.linspace(1, 2, 24, dtype=F64)
        x = states(m, alpha.expand(24), sigma.expand(24), far)
        expected = direct(m, x, alpha, sigma)
        found = m.denoise(x, alpha, sigma)
        # float64 knows |x - alpha m|^2/(2 total) to 1e-16 of |x|^2/total, and what the softmax makes of it no better
        blur = 1e-15 * float(x.square().sum(1).max()) / float((alpha**2 * m.variances.min() + sigma**2).min())
        for name, a, b in zip(("log p", "x0", "noise"), found, expected):
            scale = 1 + (float(b.abs().max()) if name != "x0" else float(m.means.abs().max()))
            assert float((a - b).abs().max()) <= (1e-11 + 20 * blur) * scale, (name, level)


@pytest.mark.parametrize("kind", ["points", "alike", "isotropic", "shared", "diagonal", "one diagonal"])
def test_single_precision_loses_nothing_to_cancellation(kind):
    m = mixture(kind)
    for level in ((1.0, 1e-3), (0.8, 0.6), (1.0, 80.0)):
        alpha, sigma = (torch.tensor([c], dtype=F64) for c in level)
        x = states(m, alpha.expand(24), sigma.expand(24), 0.0).float()
        single = m.denoise(x, alpha.float(), sigma.float())
        double = direct(m, x.double(), alpha.float().double(), sigma.float().double())
        for a, b in zip(single, double):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_and_keep_to_their_memory(kind):
    m, labels = mixture(kind), torch.arange(K) % 3
    x = m.sample(64, seed=4, dtype=F64)
    label, t = torch.arange(64) % 4 - 1, torch.linspace(0.1, 0.9, 64, dtype=F64)
    whole = MixtureModel(m, VPSDE(), labels=labels, memory=2**30)
    memory = 2**19 if kind in ("full", "diagonal") else 2**16
    small = MixtureModel(m, VPSDE(), labels=labels, memory=memory)
    for time in (0.3, t):
        expected = whole(x, time, label=label)
        small(x, time, label=label)
        with Sizes() as sizes:
            found = small(x, time, label=label)
        torch.testing.assert_close(found.x0, expected.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.noise, expected.noise, rtol=1e-10, atol=1e-10)
        axes = K * D * D if kind == "full" else 0
        assert sizes.largest * 8 <= max(memory, 8 * axes, 8 * 64 * D)
    torch.testing.assert_close(small.log_prob(x, t, label=label), whole.log_prob(x, t, label=label))


@pytest.mark.parametrize("kind", ["alike", "isotropic", "shared", "diagonal"])
def test_derivatives_of_products_are_those_of_differences(kind):
    m = mixture(kind)
    alpha, sigma = torch.tensor([0.8], dtype=F64), torch.tensor([0.6], dtype=F64)
    x = states(m, alpha.expand(24), sigma.expand(24), 0.0)[:4]
    for part in range(3):
        products = torch.func.jacrev(lambda x, part=part: m.denoise(x, alpha, sigma)[part])(x)
        differences = torch.func.jacrev(lambda x, part=part: direct(m, x, alpha, sigma)[part])(x)
        torch.testing.assert_close(products, differences, rtol=1e-8, atol=1e-8)
    tangent = torch.ones_like(x)
    forward = [torch.func.jvp(f, (x,), (tangent,))[1] for f in (
        lambda x: m.denoise(x, alpha, sigma)[1], lambda x: direct(m, x, alpha, sigma)[1])]  # fmt: skip
    torch.testing.assert_close(*forward, rtol=1e-8, atol=1e-8)


def test_a_data_set_is_a_mixture_of_points_and_is_prepared_once():
    data = torch.randn(400, D, generator=torch.Generator().manual_seed(5)) + 2.0
    model = EmpiricalModel(data, EDMSDE(), memory=2**17)
    points = MixtureModel(GaussianMixture(data.double(), std=0.0), EDMSDE())
    x = data[:20].double() + 0.3
    for t in (0.01, 1.0, torch.linspace(0.1, 5, 20, dtype=F64)):
        torch.testing.assert_close(model(x, t).x0, points(x, t).x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(x, t).noise, points(x, t).noise, rtol=1e-9, atol=1e-9)
    with Sizes(counted=data.numel()) as sizes, torch.no_grad():
        model(x, 1.0)
        before = sizes.made
        model(x, 2.0)
        assert before > 0 and sizes.made == before  # the second call makes no array as large as the data
    assert sizes.largest * 8 <= max(2**17, data.numel() * 8)
    model.samples.add_(1.0)  # written to: prepared again
    torch.testing.assert_close(model(x, 1.0).x0, EmpiricalModel(data, EDMSDE())(x, 1.0).x0)
