"""Editing, translation and arcs between latents; conditions that change at a noise level."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SOME_SDES

import sdegen as sg
from sdegen.testing import check_model

F64 = torch.float64
A = sg.GaussianMixture([[0.5, -0.3]], covariances=[[0.8, 0.3], [0.3, 0.5]])
B = sg.GaussianMixture([[-1.0, 1.0]], std=0.3)
MODES = sg.GaussianMixture([[-1.0, -0.5], [1.0, 0.5], [0.5, -1.0]], std=0.2)


def high_noise() -> sg.SDE:
    return sg.EDMSDE(0.002, 1000.0)


def test_gaussian_data_are_translated_by_the_formula():
    """From a to b the coordinates along the axes of a keep their number of standard deviations."""
    a = sg.GaussianMixture([[0.5, -0.3]], covariances=[[0.8, 0.0], [0.0, 0.2]])
    x = a.sample(6, seed=0, dtype=F64)
    found = sg.translate(sg.MixtureModel(a, high_noise()), sg.MixtureModel(B, sg.EDMSDE(0.001, 2000.0)), x, rtol=1e-5)
    expected = B.means + 0.3 * (x - a.means) / a.covariance.diagonal().sqrt()
    torch.testing.assert_close(found.x, expected, rtol=0, atol=2e-3)


def test_gaussians_of_common_axes_are_translated_along_them():
    """m_B + C_B^(1/2) C_A^(-1/2) (x - m_A), where the covariances commute."""
    axes = torch.linalg.qr(torch.tensor([[1.0, 0.4], [-0.7, 1.2]], dtype=F64))[0]
    variances = torch.tensor([[0.9, 0.1], [0.25, 0.64]], dtype=F64)
    a, b = (
        sg.GaussianMixture([mean], covariances=(axes @ v.diag() @ axes.mT)[None])
        for mean, v in zip([[0.5, -0.3], [-1.0, 1.0]], variances, strict=True)
    )
    x = a.sample(6, seed=0, dtype=F64)
    found = sg.translate(sg.MixtureModel(a, high_noise()), sg.MixtureModel(b, high_noise()), x, rtol=1e-5)
    root = axes @ (variances[1] / variances[0]).sqrt().diag() @ axes.mT
    torch.testing.assert_close(found.x, b.mean + (x - a.mean) @ root.mT, rtol=0, atol=2e-3)


@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
@pytest.mark.parametrize("kind", ["modes", "networks"])
def test_there_and_back_again_is_where_it_began_within_the_tolerance(kind, rtol):
    """For any two models, also of unlike laws, and networks that have learned nothing: an error of rtol a step."""
    torch.manual_seed(0)
    if kind == "modes":
        models = [sg.MixtureModel(law, sg.EDMSDE()) for law in (MODES, B)]
    else:
        models = [sg.Denoiser(sg.nets.MLP(2, hidden=16), sg.EDMSDE(), data_std=0.5).double() for _ in range(2)]
        for model in models:
            for weights in model.parameters():
                torch.nn.init.normal_(weights, std=0.3)
    x = MODES.sample(8, seed=3, dtype=F64)
    there = sg.translate(*models, x, rtol=rtol)
    back = sg.translate(*models[::-1], there.x, rtol=rtol)
    assert float((there.x - x).abs().max()) > 1
    assert float((back.x - x).abs().max()) < rtol * float(there.nfe.max()), (back.x - x).abs().max()


@pytest.mark.parametrize("process", ["vp", "edm", "cosine", "trig"])
def test_to_itself_nothing_is_translated(process):
    model = sg.MixtureModel(MODES, SOME_SDES[process], labels=[0, 1, 1])
    x, label = MODES.sample(5, seed=1, dtype=F64), torch.tensor([0, 1, -1, 0, 1])
    found = sg.translate(model, model, x, rtol=1e-6, cond_a={"label": label}, cond_b={"label": label})
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-3)
    up = sg.encode(model, x, rtol=1e-6, label=label)
    assert bool((found.nfe > up.nfe).all()) and found.calls > up.calls
    other = sg.translate(model, model, x, rtol=1e-4, cond_a={"label": label}, cond_b={"label": 1 - label.clamp_min(0)})
    nearest = (other.x[:, None] - MODES.means).square().sum(2).argmin(1)
    assert (nearest > 0).tolist() == (1 - label.clamp_min(0) > 0).tolist()
    assert torch.equal(sg.translate(model, model, x, steps=8, batch_size=2).x, sg.translate(model, model, x, steps=8).x)


def test_an_edit_keeps_or_makes_anew():
    """At little noise x stays, at all of it the law is the model's; the seed and the number decide."""
    model = sg.MixtureModel(MODES, sg.VPSDE())
    x = torch.full((2000, 2), 0.4, dtype=F64)
    near = sg.edit(model, MODES.means[:1].expand(50, 2), 0.01, steps=6, seed=0).x
    assert float((near - MODES.means[0]).abs().max()) < 0.2
    far = sg.edit(model, x, 1.0, rtol=1e-3, seed=0).x
    nearest = (far[:, None] - MODES.means).square().sum(2).argmin(1).bincount(minlength=3) / 2000
    assert float((nearest - 1 / 3).abs().max()) < 4 * math.sqrt(2 / 9 / 2000) + 0.01
    whole = sg.edit(model, x[:5], 0.3, steps=6, seed=3, eta=1.0)
    assert whole.seed == 3 and len(whole.x.unique(dim=0)) == 5
    part = sg.edit(model, x[:2], 0.3, steps=6, seed=3, eta=1.0, index=[4, 1])
    torch.testing.assert_close(part.x, whole.x[[4, 1]], rtol=0, atol=1e-12)
    noisy = sg.edit(model, MODES.sample(4000, seed=2, dtype=F64), 0.4, steps=50, eta=1.0, seed=1).x
    torch.testing.assert_close(noisy.mean(0), MODES.mean, rtol=0, atol=4 * 0.8 / math.sqrt(4000))


def test_arcs_keep_lengths_and_even_angles():
    z = torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    unit = z / z.flatten(1).norm(dim=1)[:, None, None]
    w = torch.linspace(0, 1, 5, dtype=F64)
    arc = sg.slerp(unit[:2], unit[1:], w)
    assert arc.shape == (5, 2, 2, 4)
    torch.testing.assert_close(arc.flatten(2).norm(dim=2), torch.ones(5, 2, dtype=F64))
    angles = (arc[1:] * arc[:-1]).flatten(2).sum(2).acos()
    torch.testing.assert_close(angles, angles[:1].expand(4, 2))
    torch.testing.assert_close(sg.slerp(z[:2], z[1:], 0.0), z[:2])
    torch.testing.assert_close(sg.slerp(z[:2], z[1:], 1), z[1:])
    torch.testing.assert_close(sg.slerp(z, z, 0.3), z)
    assert sg.slerp(z.float(), z.float(), 0.5).dtype == torch.float32


def test_conditions_change_at_a_level():
    """Above the level the model hears the one, at it and below the other; each sample at its own time."""
    sde = sg.VPSDE()
    model = sg.MixtureModel(MODES, sde, labels=[0, 1, 1])
    switched = sg.Switched(model, 0.7, {"label": "style"})
    t0 = float(sde.time(torch.tensor(-math.log(0.7), dtype=F64)))
    t = torch.tensor([t0 * 1.001, t0 * 0.999, 0.9, 0.01], dtype=F64)
    x, label, style = torch.randn(4, 2, dtype=F64), torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 1])
    got = switched(x, t, label=label, style=style)
    torch.testing.assert_close(got.x0, model(x, t, label=torch.tensor([0, 1, 0, 1])).x0)
    torch.testing.assert_close(switched(x, t[1], label=label, style=style).x0, model(x, t[1], label=style).x0)
    torch.testing.assert_close(switched(x, t).x0, model(x, t).x0)
    check_model(switched, label=torch.tensor([0, 1, -1, 0]), style=torch.tensor([1, -1, 0, 0]))
    same = sg.sample(switched, 4, rtol=1e-3, seed=0, label=label, style=label).x
    torch.testing.assert_close(same, sg.sample(model, 4, rtol=1e-3, seed=0, label=label).x, rtol=0, atol=0.02)


def test_wrong_calls_are_refused():
    model = sg.MixtureModel(MODES, sg.VPSDE(), labels=[0, 1, 1])
    plain, x = sg.MixtureModel(B, sg.VPSDE()), torch.zeros(2, 2)
    wide = sg.MixtureModel(sg.GaussianMixture(torch.zeros(1, 3), std=1.0), sg.VPSDE())
    z = torch.ones(2, 3)
    for call, said in [
        (lambda: sg.edit(model, x, 2.0), "got t=2"),
        (lambda: sg.edit(model, x, "half"), "got t='half'"),
        (lambda: sg.edit(model, x, 1e-6), "more than t_min"),
        (lambda: sg.edit(model, torch.zeros(2, 3), 0.5), "event shape"),
        (lambda: sg.edit(model, x, 0.5, t_spam=1), "t_spam"),
        (lambda: sg.edit(model, x, 0.5, x_init=x), "x_init"),
        (lambda: sg.translate(model, "b", x), "got model=.b., expected a ScoreModel"),
        (lambda: sg.translate(model, wide, x), "expected the same"),
        (lambda: sg.translate(plain, plain, x, cond_b={"label": torch.zeros(2)}), "'label' is unknown"),
        (lambda: sg.translate(plain, plain, x, steps=[0.1, 0.5]), "expected a number"),
        (lambda: sg.translate(plain, sg.MixtureModel(B, sg.EDMSDE(0.1, 1.0)), x), "narrower_process"),
        (lambda: sg.translate(plain, plain, x, solver="karras-sde"), "follows the flow"),
        (lambda: sg.slerp(z, z[:1], 0.5), "expected the same"),
        (lambda: sg.slerp(z, -z, 0.5), "opposite"),
        (lambda: sg.slerp(z, 0 * z, 0.5), "length 0"),
        (lambda: sg.slerp(z, z, math.nan), "got w=nan"),
        (lambda: sg.Switched(model, 0.0, {"label": "style"}), "got level=0"),
        (lambda: sg.Switched(model, 1.0, {"text": "style"}), "a condition of the model"),
        (lambda: sg.Switched(model, 1.0, "style"), "got below='style'"),
        (
            lambda: sg.sample(sg.Switched(model, 1.0, {"label": "style"}), 2, label=torch.zeros(2).long()),
            "without style=",
        ),
    ]:
        with pytest.raises(sg.InvalidInputError, match=said):
            call()
