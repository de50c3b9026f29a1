"""Where samples begin: the law of the process at the first time, with all that is known of the data."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BUILT_IN, DISTINCT

import sdegen as sg

F64 = torch.float64
N = 20_000  # standard errors: 0.007 of a mean in standard deviations, 0.5 % of a standard deviation
FAR = sg.GaussianMixture([[300.0, -40.0]], covariances=[[[25.0, 12.0], [12.0, 9.0]]])


def check_law(x: torch.Tensor) -> None:
    """Mean to 0.05 standard deviations, standard deviation to 2 %, correlation to 0.02."""
    mean, std = FAR.mean, FAR.covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() < 0.05 * std).all(), x.mean(0)
    assert ((x.std(0) / std - 1).abs() < 0.02).all(), x.std(0)
    assert abs(float(torch.corrcoef(x.T)[0, 1]) - 12 / 15) < 0.02


@pytest.mark.parametrize(
    "how", [{"steps": 16}, {"rtol": 1e-2}, {"eta": 1.0, "steps": 60}], ids=["flow", "tolerance", "sde"]
)
@pytest.mark.parametrize("name", [name for name in BUILT_IN if "endless" not in name])
def test_data_far_from_the_origin_come_out_where_they_are(name, how):
    """Exact scores of N((300, -40), C): N(0, sigma^2) would be wrong by up to two standard deviations of the noise."""
    check_law(sg.sample(sg.MixtureModel(FAR, BUILT_IN[name]), N, seed=1, dtype=F64, **how).x)


@pytest.mark.parametrize("name", ["vp", "linear-path", "ve", "edm"])
@pytest.mark.parametrize("solver", ["ddim", "ancestral", "dpm++2m-sde", "heun", "torchdiffeq:dopri5"])
def test_so_they_do_by_other_solvers(name, solver):
    how = {"rtol": 1e-3} if solver.startswith("torchdiffeq") else {"steps": 600 if solver == "ancestral" else 200}
    check_law(sg.sample(sg.MixtureModel(FAR, DISTINCT[name]), N, solver=solver, seed=2, dtype=F64, **how).x)


LOW_ORDER = ("euler", "euler-maruyama", "heun-sde", "reverse-diffusion", "predictor-corrector", "torchsde:euler")


@pytest.mark.parametrize("name", ["vp", "linear-path", "ve", "edm"])
@pytest.mark.parametrize("solver", LOW_ORDER)
def test_where_data_are_makes_no_error_of_a_step(name, solver):
    """The samples of N(m, C) are those of N(0, C) moved by m, by solvers that would follow alpha m step by step."""
    centred = sg.GaussianMixture([[0.0, 0.0]], covariances=[[[25.0, 12.0], [12.0, 9.0]]])
    how = {"solver": solver, "steps": 40, "seed": 2, "dtype": F64, "progress": False}
    moved, still = (sg.sample(sg.MixtureModel(of, DISTINCT[name]), 50, **how).x for of in (FAR, centred))
    torch.testing.assert_close(moved - FAR.mean, still, rtol=1e-6, atol=1e-6)


class Told(sg.ScoreModel):
    """The score of one Gaussian for each coordinate, and as much said of the data as is asked for."""

    def __init__(self, sde, mean, std, **known):
        super().__init__(sde, event_shape=(2,), **known)
        self.mean, self.std = mean, std

    def forward(self, x, t, **cond):
        alpha, sigma = float(self.sde.alpha(t)), float(self.sde.sigma(t))
        total = (alpha * self.std) ** 2 + sigma**2
        return sg.Prediction.from_x0(x, self.mean + alpha * self.std**2 / total * (x - alpha * self.mean), self.sde, t)


MEAN, STD = torch.tensor([3.0, -1.0], dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
SAID = {
    "nothing": ({}, torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)),
    "mean": ({"data_mean": MEAN}, MEAN, torch.zeros(2, dtype=F64)),
    "one std": ({"data_mean": MEAN, "data_std": 1.5}, MEAN, torch.full((2,), 1.5, dtype=F64)),
    "a std each": ({"data_mean": MEAN, "data_std": STD}, MEAN, STD),
}


@pytest.mark.parametrize("name", SAID)
def test_the_start_is_the_law_that_is_known(name):
    """x = alpha mean + sqrt(alpha^2 C + sigma^2) z with the seed's own z, at whatever time the samples begin."""
    known, mean, std = SAID[name]
    sde = sg.VPSDE()
    model = Told(sde, MEAN, STD, **known)
    z = sde.prior((5, 2), seed=3, dtype=F64) / float(sde.sigma(sde.t_max))
    for t in (sde.t_max, 0.3):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        path = sg.sample(model, 5, solver="heun", steps=[t, t / 2], save="all", seed=3, dtype=F64)
        wanted = alpha * mean + ((alpha * std) ** 2 + sigma**2).sqrt() * z
        torch.testing.assert_close(path.xs[0], wanted, rtol=1e-9, atol=1e-12)


def test_samples_of_any_batch_size_and_number_begin_alike():
    model = sg.MixtureModel(FAR, sg.VPSDE())
    whole = sg.sample(model, 7, steps=4, seed=5, dtype=F64).x
    torch.testing.assert_close(
        sg.sample(model, 7, steps=4, seed=5, batch_size=3, dtype=F64).x, whole, rtol=1e-12, atol=0
    )
    one = sg.sample(model, 1, steps=4, seed=5, index=[4], dtype=F64).x
    torch.testing.assert_close(one, whole[4:5], rtol=1e-12, atol=0)


def test_dark_pictures_stay_dark():
    """A network that knows as much as the statistics of its data, as any does at high noise."""
    torch.manual_seed(0)
    dark = -0.6 + 0.1 * torch.randn(2000, 1, 4, 4, dtype=F64)
    sde = sg.VPSDE()

    class Zero(torch.nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    # "edm": x0 = c_skip x of centred data; the network's part is 0 where data are Gaussian about 0
    model = sg.Denoiser(Zero(), sde, data_mean=dark.mean(0), data_std=dark.std(0))
    start = sg.sample(model, (4000, 1, 4, 4), steps=[1.0, 0.999], save="all", seed=0, solver="heun").xs[0]
    offset = float(sde.alpha(1.0)) * -0.6
    assert abs(float(start.mean()) - offset) < 4 / math.sqrt(start.numel())


@pytest.mark.parametrize("recipe", ["ddpm", "ddim"])
def test_the_papers_recipes_start_from_the_papers_noise(recipe):
    sde = sg.TabulatedVPSDE(sg.discrete.betas("linear", 50))
    model = sg.MixtureModel(FAR, sde)
    path = getattr(sg.discrete, recipe)(model, 6, seed=4, save="all", dtype=F64)
    torch.testing.assert_close(path.xs[0], sde.prior((6, 2), seed=4, dtype=F64), rtol=1e-12, atol=0)
    assert path.seed == 4
