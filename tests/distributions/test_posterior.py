"""The exact posterior of a mixture under a linear observation, and mixtures whose components have labels."""

from __future__ import annotations

import pytest
import torch
from cases import MIXTURES, SOME_SDES

import sdegen as sg
from sdegen.testing import check_model

F64 = torch.float64


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


MIXED = sg.GaussianMixture(
    [[2.0, 0.5, -1.0], [-1.5, 1.0, 0.3], [0.2, -2.0, 1.0]],
    covariances=[
        (a @ a.mT / 3 + 0.05 * torch.eye(3, dtype=F64)).tolist() for a in (normals(3, 3, seed=s) for s in (1, 2, 3))
    ],
    weights=[1, 2, 3],
)
A = normals(2, 3, seed=5)
Y = torch.tensor([0.7, -0.4], dtype=F64)


def gradient(f, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


@pytest.mark.parametrize("far", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("std", [0.01, 0.1, 3.0])
def test_its_score_is_that_of_the_joint_density(std, far):
    """grad log p(x | y) = grad log p(x) + grad log p(y | x), near the data and where all weights underflow."""
    posterior = MIXED.posterior(A, Y * far, std)
    x = posterior.means.mean(0) + far * normals(20, 3)
    got = gradient(posterior.log_prob, x)
    expected = gradient(MIXED.log_prob, x) - (x @ A.mT - Y * far) @ A / std**2
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


def test_its_density_is_bayes_rule():
    """log p(x | y) - log p(x) - log p(y | x) is one number, -log p(y), whatever x is."""
    posterior, x = MIXED.posterior(A, Y, 0.3), normals(50, 3) * 2
    likelihood = torch.distributions.Normal(x @ A.mT, torch.tensor(0.3, dtype=F64)).log_prob(Y).sum(1)
    seen = sg.GaussianMixture(
        MIXED.means @ A.mT,
        covariances=A @ (MIXED.axes @ torch.diag_embed(MIXED.variances) @ MIXED.axes.mT) @ A.mT
        + 0.09 * torch.eye(2, dtype=F64),
        weights=MIXED.weights,
    )
    expected = MIXED.log_prob(x) + likelihood - seen.log_prob(Y[None])
    torch.testing.assert_close(posterior.log_prob(x), expected, rtol=1e-10, atol=1e-10)


def test_weights_that_underflow_are_known_by_their_logarithms():
    m = sg.GaussianMixture([[0.0, 0.0], [100.0, 0.0]], std=0.1, weights=[1, 3])
    posterior = m.posterior([[1.0, 0.0]], [0.0], 0.1)
    assert float(posterior.weights[1]) == 0 and posterior.weights.sum() == 1
    exact = torch.tensor(3.0, dtype=F64).log() - 100.0**2 / (2 * 0.02)
    torch.testing.assert_close(posterior.log_weights[1] - posterior.log_weights[0], exact)
    again = posterior.posterior([[1.0, 0.0]], [100.0], 0.1)  # two observations at once: halfway
    both = m.posterior([[1.0, 0.0], [1.0, 0.0]], [0.0, 100.0], 0.1)
    torch.testing.assert_close(again.log_weights, both.log_weights)
    torch.testing.assert_close(again.weights, torch.tensor([0.25, 0.75], dtype=F64), rtol=1e-8, atol=0)


def test_without_noise_what_was_seen_is_certain():
    posterior = MIXED.posterior(A, Y, 0.0)
    x = posterior.sample(100, seed=0, dtype=F64)
    torch.testing.assert_close(x @ A.mT, Y.expand(100, 2), rtol=0, atol=1e-6)


def test_wrong_observations():
    for wrong, match in [
        (dict(A=normals(2, 2), y=Y, std=1.0), "got A of shape"),
        (dict(A=A, y=[1.0], std=1.0), "got y of shape"),
        (dict(A=A, y=Y, std=-1.0), "got std=-1.0"),
        (dict(A=A, y=Y, std=float("nan")), "got std=nan"),
        (dict(A=torch.cat([A, A[:1]]), y=[0.0, 0.0, 0.0], std=0.0), "no density"),
    ]:
        with pytest.raises(sg.InvalidInputError, match=match):
            MIXED.posterior(**wrong)


# ---- labels


@pytest.mark.parametrize("process", SOME_SDES)
def test_a_label_picks_its_components(process):
    sde = SOME_SDES[process]
    model = sg.MixtureModel(MIXED, sde, labels=[0, 1, 0])
    parts = {-1: [0, 1, 2], 0: [0, 2], 1: [1]}
    label = torch.tensor([0, 1, -1, 1, 0])
    t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=F64)
    x = sde.perturb(MIXED.sample(5, seed=1, dtype=F64), t, normals(5, 3))
    got, log_p = model(x, t, label=label), model.log_prob(x, t, label)
    for i, which in enumerate(label.tolist()):
        rows = parts[which]
        covariances = MIXED.axes[rows] @ torch.diag_embed(MIXED.variances[rows]) @ MIXED.axes[rows].mT
        own = sg.MixtureModel(
            sg.GaussianMixture(MIXED.means[rows], covariances=covariances, weights=MIXED.weights[rows]), sde
        )
        alone = own(x[i : i + 1], t[i])
        for name in ("x0", "noise"):
            torch.testing.assert_close(getattr(got, name)[i : i + 1], getattr(alone, name), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_p[i : i + 1], own.log_prob(x[i : i + 1], t[i]), rtol=1e-9, atol=1e-9)


def test_it_is_a_model_with_a_condition():
    model = sg.MixtureModel(MIXED, sg.VPSDE(), labels=torch.tensor([0, 1, 0]))
    assert model.condition_names() == {"label"} and sg.MixtureModel(MIXED, sg.VPSDE()).condition_names() == set()
    check_model(model, label=torch.tensor([0, 1, -1, 0]))
    found = sg.sample(model, 3, rtol=1e-3, seed=0, label=torch.tensor([1, 1, 1]))
    assert bool((found.x - MIXED.means[1]).norm(dim=1).lt(6 * MIXED.variances[1].max().sqrt()).all())


def test_a_subclass_may_take_conditions_of_its_own():
    class Shifted(sg.MixtureModel):
        def forward(self, x, t, shift=0.0):
            return super().forward(x + shift, t)

    assert Shifted(MIXED, sg.VPSDE()).condition_names() == {"shift"}
    sg.sample(Shifted(MIXED, sg.VPSDE()), 2, steps=4, shift=0.5)


def test_wrong_labels():
    for wrong in ([0, 1], [0, 2, 0], [0.0, 1.0, 0.0], [-1, 0, 1], "abc"):
        with pytest.raises(sg.InvalidInputError, match="got labels"):
            sg.MixtureModel(MIXED, sg.VPSDE(), labels=wrong)
    model = sg.MixtureModel(MIXED, sg.VPSDE(), labels=[0, 1, 0])
    for wrong in (torch.tensor([0, 2]), torch.tensor([-2, 0]), torch.tensor([0.0, 1.0]), 1):
        with pytest.raises(sg.InvalidInputError, match="got label"):
            sg.sample(model, 2, steps=4, label=wrong)
    with pytest.raises(sg.InvalidInputError, match="'label' is unknown"):
        sg.sample(sg.MixtureModel(MIXTURES["plane"], sg.VPSDE()), 2, steps=4, label=torch.tensor([0, 0]))
