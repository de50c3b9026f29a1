"""Potentials: where they are Gaussian or linear, the product with the data's law is known."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SOME_SDES
from torch import Tensor, nn

import sdegen as sg
from sdegen.testing import check_model

F64 = torch.float64
MIXTURE = sg.GaussianMixture([[2.0, 0.5], [-1.5, 1.0], [0.2, -2.0]], std=[0.3, 0.5, 0.4], weights=[1, 2, 3])
C = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=F64)
A, STD = torch.tensor([[1.0, -0.5]], dtype=F64), 0.3
Y = torch.tensor([[0.5], [-1.0], [2.0], [0.0], [1.0]], dtype=F64)
WITH_SIGNAL = {name: sde for name, sde in SOME_SDES.items() if float(sde.alpha(sde.t_max)) > 0}


def states(sde: sg.SDE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=F64)
    return sde.perturb(MIXTURE.sample(5, seed=1, dtype=F64), t, torch.randn(5, 2, dtype=F64, generator=generator)), t


def same(got: sg.Prediction, expected: sg.Prediction, tol: float = 1e-9) -> None:
    for name in ("x0", "noise"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=tol, atol=tol)


class Seen:
    """log p(y | x_t) of y = A x0 + noise, per component in closed form: a Gaussian potential of clean data, smoothed."""

    def __init__(self, mixture: sg.GaussianMixture, sde: sg.SDE) -> None:
        self.m, self.sde = mixture, sde

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = (
            torch.as_tensor(c, dtype=F64).expand(len(x))[:, None] for c in (self.sde.alpha(t), self.sde.sigma(t))
        )
        c = self.m.variances[:, 0]  # isotropic components
        total = alpha**2 * c + sigma**2  # (B, K)
        offset = x[:, None] - alpha[..., None] * self.m.means
        log_k = self.m.weights.log() - offset.square().sum(2) / (2 * total) - total.log()
        mean = self.m.means + (alpha * c / total)[..., None] * offset
        variance = (c * sigma**2 / total) * A.square().sum() + STD**2
        log_y = -((y - mean @ A[0]) ** 2) / (2 * variance) - (2 * math.pi * variance).log() / 2
        return (log_k.log_softmax(1) + log_y).logsumexp(1)


@pytest.mark.parametrize("process", WITH_SIGNAL)
def test_a_gaussian_potential_gives_the_product(process):
    """at="xt", f(x, t) = E[f(x0) | x]: the score of the posterior mixture, one for each sample."""
    sde = WITH_SIGNAL[process]
    tilted = sg.Tilted(sg.MixtureModel(MIXTURE, sde), Seen(MIXTURE, sde), at="xt")
    x, t = states(sde)
    got = tilted(x, t, y=Y)
    for i in range(5):
        exact = sg.MixtureModel(MIXTURE.posterior(A, Y[i], STD), sde)(x[i : i + 1], t[i])
        same(sg.Prediction(got.x0[i : i + 1], got.noise[i : i + 1], sde, t[i]), exact, 1e-7)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("process", WITH_SIGNAL)
def test_a_linear_potential_of_gaussian_data_moves_their_mean(process, scale):
    """at="x0": N(m, C) times exp(scale a.x0) is N(m + scale C a, C), exactly, for the spread given x is one for all x."""
    sde, a, m = WITH_SIGNAL[process], torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([0.5, -1.0], dtype=F64)
    model = sg.MixtureModel(sg.GaussianMixture(m[None], covariances=C), sde)
    exact = sg.MixtureModel(sg.GaussianMixture((m + scale * C @ a)[None], covariances=C), sde)
    x, t = states(sde)
    same(sg.Tilted(model, lambda x0: x0 @ a, scale=scale)(x, t), exact(x, t), 1e-7)


def test_samples_and_densities_are_those_of_the_product():
    sde = sg.VPSDE()
    tilted, posterior = (
        sg.Tilted(sg.MixtureModel(MIXTURE, sde), Seen(MIXTURE, sde), at="xt"),
        MIXTURE.posterior(A, Y[0], STD),
    )
    x = posterior.sample(6, seed=0, dtype=F64)
    got = sg.log_prob(tilted, x, rtol=1e-5, y=Y[:1].expand(6, 1)).nats
    torch.testing.assert_close(got, sg.MixtureModel(posterior, sde).log_prob(x, sde.t_min), rtol=0, atol=2e-2)


def test_it_is_a_model_that_leaves_parameters_and_modes_alone():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3).double()

        def forward(self, x, t, label):
            logits = self.layer(x.double()).log_softmax(1)
            return logits.gather(1, label[:, None])[:, 0].to(x)

    model = sg.MixtureModel(MIXTURE, sg.VPSDE(), labels=[0, 1, 2])
    label = torch.tensor([0, 1, 2, 0])
    tilted = sg.Tilted(model, Classifier(), scale=2.0, at="xt")
    check_model(tilted, label=label)
    check_model(sg.Tilted(model, lambda x0, y: -((x0 - y) ** 2).sum(1)), label=label, y=torch.ones(4, 2, dtype=F64))
    assert len(list(tilted.parameters())) == 2
    with torch.no_grad():
        found = tilted(torch.zeros(4, 2), 0.5, label=label)
        assert not torch.is_grad_enabled() and not found.x0.requires_grad
    with torch.inference_mode():
        tilted(torch.zeros(4, 2), 0.5, label=label)
    assert all(p.grad is None for p in tilted.parameters())


def test_wrong_input():
    model = sg.MixtureModel(MIXTURE, sg.VPSDE())
    for wrong, said in [
        (dict(log_potential=3.0), "got log_potential=3.0"),
        (dict(log_potential=Tensor.sum, at="x1"), "got at='x1'"),
        (dict(log_potential=Tensor.sum, scale=math.nan), "got scale=nan"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            sg.Tilted(model, **wrong)
    for potential, cond, said in [
        (lambda x0: x0, {}, "expected a number for each sample"),
        (lambda x0: x0.detach().sum(1), {}, "carries none"),
        (lambda x0, y: x0.sum(1), {}, "got no y="),
        (lambda x0, y: x0.sum(1), {"y": Y[:4], "z": Y[:4]}, "'z' is unknown"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            sg.sample(sg.Tilted(model, potential), 4, steps=4, **cond)
    blind = sg.Tilted(sg.MixtureModel(MIXTURE, sg.LinearPathSDE(t_max=1.0)), lambda x0: x0.sum(1))
    with pytest.raises(sg.InvalidInputError, match="no signal"):
        sg.sample(blind, 4, steps=4, solver="euler")
    sg.sample(blind, 4, steps=4, solver="euler", t_span=(0.9, 0.0))
