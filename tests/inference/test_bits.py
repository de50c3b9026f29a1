"""Bounds in bits per dimension against probabilities in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdegen as sg
from sdegen.core.errors import InvalidInputError
from sdegen.inference import bits as dequantisation
from sdegen.inference.bits import BitsPerDim, bits_per_dim
from sdegen.models.exact import MixtureModel
from sdegen.processes import EDMSDE, VPSDE

F64 = torch.float64
LEVELS = 9
X = torch.linspace(-1, 1, LEVELS, dtype=F64)
MIX = sg.GaussianMixture([[-0.5], [0.5]], std=[0.2, 0.3], weights=[1, 2])
KINDS = ("uniform", "truncated-normal")


def probabilities(model: MixtureModel) -> Tensor:
    """The law of x_t/alpha at t_min, integrated over the bins of the levels."""
    ratio = float(model.sde.sigma(model.sde.t_min) / model.sde.alpha(model.sde.t_min))
    std = (model.mixture.variances[:, 0] + ratio**2).sqrt()
    law = torch.distributions.Normal(model.mixture.means[:, 0], std)
    half = 1 / (LEVELS - 1)
    return ((law.cdf(X[:, None] + half) - law.cdf(X[:, None] - half)) * model.mixture.weights).sum(1)


class Nodes:
    """Stands for the noise: all draws z that there are, equally spaced."""

    z = torch.linspace(-8.2, 8.2, 201, dtype=F64)
    share = (z[1] - z[0]) * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)  # of a standard normal, sums to 1

    def __init__(self, seed, index):
        pass

    def normal(self, shape, *address, **how):
        return self.z[:, None]


@pytest.mark.parametrize("sigma_min", [0.02, 0.1, 0.5])  # less noise than a bin is wide; about as much; more
@pytest.mark.parametrize("kind", KINDS)
def test_one_draw_is_unbiased_for_the_probability(kind, sigma_min, monkeypatch):
    """E[p(v)/q(v)] = P(u), the mean over all draws taken by the trapezoidal rule, which sees tails as they are."""
    model = MixtureModel(MIX, EDMSDE(sigma_min=sigma_min))
    monkeypatch.setattr(dequantisation, "Noise", Nodes)
    for i in (1, 4):
        x = X[i].expand(len(Nodes.z), 1)
        bits = bits_per_dim(model, x, levels=LEVELS, dequantisation=kind, seed=i, rtol=1e-6).bits
        wanted = float(probabilities(model)[i])
        assert float((Nodes.share * 2.0**-bits).sum()) == pytest.approx(wanted, rel=1e-5)
        assert float((Nodes.share * bits).sum()) > -math.log2(wanted)


# A normal much narrower than its bin has weights whose mean lies in a tail that no number of draws sees.
@pytest.mark.parametrize("kind, sigma_min", [("uniform", 0.02), *((kind, s) for kind in KINDS for s in (0.1, 0.5))])
def test_draws_are_unbiased_for_the_probability(kind, sigma_min):
    """The same mean over draws as they come, to four standard errors."""
    model = MixtureModel(MIX, EDMSDE(sigma_min=sigma_min))
    n = 1500
    for i in (1, 4):
        found = bits_per_dim(
            model, X[i].expand(n, 1), levels=LEVELS, dequantisation=kind, seed=i, solver="rk4", steps=20
        )
        weights = 2.0**-found.bits
        wanted = probabilities(model)[i]
        error = float(weights.std()) / math.sqrt(n)
        assert abs(float(weights.mean() - wanted)) < 4 * error + 1e-3 * float(wanted)  # the second: the solver's own
        assert float(found.bits.mean()) > -math.log2(float(wanted)) - 4 * float(found.bits.std()) / math.sqrt(n)


@pytest.mark.parametrize("kind", KINDS)
def test_more_draws_tighten_the_bound(kind):
    model = MixtureModel(MIX, VPSDE(t_min=0.05))
    exact = -probabilities(model).log2()
    x = X[:, None].expand(-1, 60).reshape(-1, 1)
    gaps = []
    for draws in (1, 16):
        found = bits_per_dim(model, x, levels=LEVELS, draws=draws, dequantisation=kind, seed=0, solver="rk4", steps=10)
        gaps.append(found.bits.reshape(LEVELS, 60).mean(1) - exact)
        assert bool(found.stderr.isnan().all()) == (draws == 1)
    assert float(gaps[0].mean()) > 0 and float(gaps[1].abs().mean()) < 0.3 * float(gaps[0].abs().mean()) + 1e-3
    # with 16 draws the standard error is the spread over samples of the same level
    spread = (gaps[1][:, None] + exact[:, None] - found.bits.reshape(LEVELS, 60)).square().mean().sqrt()
    assert float(found.stderr.square().mean().sqrt()) == pytest.approx(float(spread), rel=0.2)


def test_draws_depend_on_seed_and_number_alone():
    model = MixtureModel(MIX, VPSDE())
    x = X[[2, 5, 7], None]
    how = {"levels": LEVELS, "draws": 2, "seed": 7, "rtol": 1e-2}
    whole = bits_per_dim(model, x, **how)
    assert isinstance(whole, BitsPerDim) and whole.seed == 7 and set(whole.errors) == {"solver", "prior", "probes"}
    torch.testing.assert_close(bits_per_dim(model, x, batch_size=2, **how).bits, whole.bits, rtol=1e-12, atol=1e-12)
    alone = bits_per_dim(model, x[[1]], index=[1], **how)
    torch.testing.assert_close(alone.bits, whole.bits[[1]], rtol=1e-12, atol=1e-12)
    assert torch.equal(alone.nfe, whole.nfe[[1]])


def test_images_of_8_bits_are_log2_of_255_less_1_above_their_density():
    """Uniform dequantisation of 256 levels at 2 u/255 - 1: bins are 2/255 wide."""
    model = MixtureModel(sg.GaussianMixture(torch.zeros(1, 4), std=30.0), EDMSDE())  # flat over a bin
    x = (2 * torch.randint(0, 256, (3, 4), dtype=torch.uint8).double() / 255 - 1).float()
    found = bits_per_dim(model, x, levels=256, dequantisation="uniform", steps=3, seed=0)
    flat = sg.log_prob(model, x.double(), steps=3).bits_per_dim()
    torch.testing.assert_close(found.bits, flat + math.log2(255) - 1, rtol=0, atol=1e-4)


WRONG = {
    "off the levels": (lambda m, x: bits_per_dim(m, x + 0.01, levels=LEVELS), "not on 9 levels"),
    "beyond the levels": (lambda m, x: bits_per_dim(m, x * 2, levels=LEVELS), "not on 9 levels"),
    "other levels": (lambda m, x: bits_per_dim(m, x, levels=8), "not on 8 levels"),
    "levels": (lambda m, x: bits_per_dim(m, x, levels=1), "levels=1"),
    "draws": (lambda m, x: bits_per_dim(m, x, levels=LEVELS, draws=0), "draws=0"),
    "kind": (lambda m, x: bits_per_dim(m, x, levels=LEVELS, dequantisation="normal"), "expected 'truncated-normal' or"),
    "draws with probes": (
        lambda m, x: bits_per_dim(m, x, levels=LEVELS, draws=2, divergence="rademacher"),
        "pass divergence='exact'",
    ),
    "gradients": (lambda m, x: bits_per_dim(m, x, levels=LEVELS, grad=True), "no meaning"),
    "integers": (lambda m, x: bits_per_dim(m, x.long(), levels=LEVELS), "floating"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_before_the_first_call(name, monkeypatch):
    call, said = WRONG[name]
    model, calls = MixtureModel(MIX, VPSDE()), []
    monkeypatch.setattr(MixtureModel, "forward", lambda self, *args: calls.append(args))
    with pytest.raises(InvalidInputError, match=said):
        call(model, X[:, None])
    assert not calls
