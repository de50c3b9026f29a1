"""The laws of the examples that make pictures of pictures, where the answer is known."""

from __future__ import annotations

import importlib
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdegen as sg

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """A script of examples/ as a module, by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


class Stage(sg.ScoreModel):
    """The exact stage of Gaussian pictures x ~ N(0, C): it is told u = alpha(s) low + sigma(s) noise, and s."""

    def __init__(self, covariance: Tensor, enlarged: Tensor, sde: sg.SDE, side: int) -> None:
        super().__init__(sde, data_mean=0.0, data_std=1.0, event_shape=(1, side, side))
        self.c, self.enlarged, self.side = covariance, enlarged, side

    def condition_names(self) -> set[str]:
        return {"image", "vector", "label"}

    def forward(self, x: Tensor, t: Any, *, image: Tensor, vector: Tensor, label: Tensor) -> sg.Prediction:
        at, s = self.sde.at(torch.as_tensor(t)), self.sde.at(self.sde.time(2 * vector[0, 0]))
        eye = torch.eye(len(self.c), dtype=x.dtype)
        both = torch.cat([at.alpha * eye, s.alpha * self.enlarged])  # of x and u, seen with noise of its own each
        noise = torch.cat([torch.full((len(eye),), float(v) ** 2, dtype=x.dtype) for v in (at.sigma, s.sigma)])
        seen = torch.cat([x, image], 1).flatten(1)
        gain = self.c @ both.mT @ torch.linalg.inv(both @ self.c @ both.mT + noise.diag())
        return sg.Prediction.from_x0(x, (seen @ gain.mT).reshape(x.shape), self.sde, t)


def gaussian_stage(cascade: Any, side: int = 6) -> Stage:
    distance = torch.cdist(*[torch.cartesian_prod(*[torch.arange(float(side))] * 2).double()] * 2)
    basis = torch.eye(side**2, dtype=torch.float64).reshape(-1, 1, side, side)
    enlarged = cascade.larger(cascade.smaller(basis, side // 2), side).flatten(1).mT
    return Stage(torch.exp(-distance / 2), enlarged, sg.VPSDE(), side)


def test_a_stage_of_a_cascade_believes_the_small_picture_at_level_0_and_not_at_all_at_1(example):
    cascade = example("cascade")
    stage, args = gaussian_stage(cascade), Namespace(seed=0, sampling_steps=40)
    root = torch.linalg.cholesky(stage.c)
    x = (torch.randn(16, len(root), generator=torch.Generator().manual_seed(0)).double() @ root.mT).reshape(-1, 1, 6, 6)
    low, label = cascade.smaller(x, 3), torch.zeros(16, dtype=torch.long)
    enlarged = lambda low, s: cascade.enlarge(stage, low, 6, s, label, args)
    found = [cascade.agreement(enlarged(low, s), low) for s in (0.0, 0.1, 1.0)]
    assert found[0] >= 30 > found[1] > found[2], found
    one, other = enlarged(low, 1.0), enlarged(low.flip(0), 1.0)
    assert float((one - other).square().mean().sqrt()) < 0.02
    one, other = enlarged(low, 0.0), enlarged(low.flip(0), 0.0)
    assert float((one - other).square().mean().sqrt()) > 0.5


def test_a_kept_average_is_the_small_picture_whatever_a_stage_has_learned(example):
    """Of an exact stage that is told nothing, and of a network that knows nothing."""
    cascade, args = example("cascade"), Namespace(seed=0, sampling_steps=10)
    stage, low = gaussian_stage(cascade), torch.randn(8, 1, 3, 3, dtype=torch.float64)
    label = torch.zeros(8, dtype=torch.long)
    kept, free = (cascade.enlarge(stage, low, 6, 1.0, label, args, kept=kept) for kept in (True, False))
    assert cascade.agreement(kept, low) > 40 > 20 > cascade.agreement(free, low)
    torch.manual_seed(0)
    blank = sg.Denoiser(cascade.network(8, 1, 10, 4, width=8), sg.VPSDE())
    low = torch.rand(8, 1, 4, 4) * 2 - 1
    x = cascade.enlarge(blank, low, 8, 0.0, label, args, kept=True)
    assert cascade.agreement(x, low) > 40


@pytest.mark.slow
def test_a_learned_stage_agrees_with_the_digit_that_it_is_told(example, tmp_path):
    rows = example("cascade").main(["--out", str(tmp_path), "--n", "200"])
    found = {row[""]: row["agreement, dB"] for row in rows}
    assert found["cascade, s = 0"] >= 30 and found["cascade, s = 1"] < 18
    assert found["cascade, s = 0, average kept"] >= 40


def test_the_level_where_as_many_follow_the_one_as_the_other_is_read_between_levels(example):
    levels = (0.2, 2.0, 20.0)
    shares = (0.9, 0.6, 0.2)
    rows = [{"level": level, "a": share, "b": 1 - share} for level, share in zip(levels, shares, strict=True)]
    assert example("style_mixing").crossing(rows, "a", "b") == pytest.approx(2 * 10 ** (1 / 4))


def test_the_tone_of_ink_is_no_matter_of_how_much_ink_there_is(example):
    brightness = example("style_mixing").brightness
    x = torch.full((2, 1, 8, 8), -1.0)
    x[0, 0, :2], x[1, 0, :6] = 0.6, 0.2
    torch.testing.assert_close(brightness(x), torch.tensor([0.8, 0.6]))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_pairs_of_a_file_are_averaged_to_the_size_that_is_asked_and_never_enlarged(example, tmp_path, size):
    """Picture i of the one kind stays the partner of picture i of the other, those held out are every eighth."""
    a, b = (np.random.default_rng(k).integers(256, size=(24, 8, 8, 3), dtype=np.uint8) for k in (0, 1))
    np.savez(tmp_path / "pairs.npz", a=a, b=b)
    args = Namespace(pairs=[str(tmp_path / "pairs.npz"), "a", "b"], size=size)
    side = min(size, 8)
    for split, rows in (("train", np.arange(24) % 8 != 7), ("held-out", np.arange(24) % 8 == 7)):
        for found, drawn in zip(example("image_to_image").pairs(args, split), (a, b), strict=True):
            blocks = drawn[rows].reshape(-1, side, 8 // side, side, 8 // side, 3).mean((2, 4)) / 127.5 - 1
            torch.testing.assert_close(found, torch.from_numpy(blocks).permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("task", ["larger", "half", "colour"])
def test_a_task_tells_less_than_the_picture_and_is_the_same_of_what_it_told(example, task):
    """Told twice is told once, but for the overshoot of enlarging; and another picture may be meant by it."""
    tell = example("image_to_image").TASKS[task]
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    told = tell(x)
    assert told.shape == x.shape and float((told - x).abs().max()) > 0.1
    if task != "larger":
        torch.testing.assert_close(tell(told), told)
    hidden = {"larger": lambda x: x + 0.5 * (-1.0) ** torch.arange(8), "half": lambda x: x + (torch.arange(8) > 3)}
    hidden["colour"] = lambda x: x + torch.tensor([0.2, -0.1, -0.1])[:, None, None]
    torch.testing.assert_close(tell(hidden[task](x)), told)


def test_the_mean_of_all_answers_is_known_from_a_few(example):
    """Exact answers of N(m, v) to a truth of the same law: one is 3 dB below the mean of all."""
    tasks, draw = example("image_to_image"), torch.Generator().manual_seed(0)
    wanted, *answers = torch.randn(5, 50, 1, 20, 20, generator=draw).unbind()
    found = torch.stack(answers)
    one, few, every = (
        tasks.decibels(found[0], wanted),
        tasks.decibels(found.mean(0), wanted),
        tasks.of_all(found, wanted),
    )
    assert every == pytest.approx(10 * math.log10(4), abs=0.1) and every - one == pytest.approx(3.01, abs=0.1)
    assert every - few == pytest.approx(10 * math.log10(1 + 1 / 4), abs=0.1)
    assert tasks.of_all(found[:1], wanted) == pytest.approx(one)  # of one answer nothing more is known


def test_minimax_says_nothing_where_the_discriminator_is_sure_and_the_others_do(example):
    """The gradient of a generator's loss in D(G), where D is sure that it is false."""
    gans = example("families_gans")
    sure = torch.full((8,), -12.0, requires_grad=True)
    slope = lambda family: float(torch.autograd.grad(family().of_g(sure), sure)[0].sum().abs())
    assert slope(gans.Minimax) < 1e-4
    assert slope(gans.GAN) > 0.9 and slope(gans.LeastSquares) > 1 and slope(gans.Wasserstein) == pytest.approx(1)


def test_a_critic_stays_within_its_bounds(example):
    family = example("families_gans").Wasserstein()
    data = torch.randn(40, 1, 8, 8)
    for _ in range(3):
        family.step(data[:16], torch.zeros(16, dtype=torch.long), family.optimisers(1e-2), 0.0, data)
    assert max(float(p.detach().abs().max()) for p in family.d.parameters()) <= 0.01


def test_a_prior_sees_only_the_codes_before(example):
    family = example("families_models").Codes().eval()
    codes = torch.randint(64, (3, 16))
    other = codes.clone()
    other[:, 9:] = (codes[:, 9:] + 1) % 64
    one, two = family.logits(codes), family.logits(other)
    torch.testing.assert_close(one[:, :9], two[:, :9])
    assert float((one - two)[:, 9:].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["Pixels", "ConditionalPixels", "Clean", "Latents"])
def test_a_family_whose_samples_run_away_is_infinitely_far(example, kind):
    families, family = example("families"), getattr(example("families_models"), kind)()
    judge = families.Judge(20, smoke=True)
    for p in family.model.parameters():
        p.data.fill_(math.nan)
    if kind == "Latents":
        family.std.fill_(1.0)  # as it is once the autoencoder is trained
    assert judge.distance(families.draw(family, judge.labels, 0)) == math.inf
