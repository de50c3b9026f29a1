"""Wrong calls, over the whole front door: each raises before the network is called and says what would be right.

The calls people make most, and the corners: numbers that are words, tensors that are lists, shapes off by one, times
that turn, devices that differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sdegen as sg

F64 = torch.float64


class Net(torch.nn.Module):
    """A network of points in the plane that counts its calls."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.scale, self.answer, self.calls = torch.nn.Parameter(torch.tensor(0.1)), answer, 0

    def forward(self, x, t, label=None):
        self.calls += 1
        return self.scale * self.answer(x)


class NoPrediction(sg.ScoreModel):
    def forward(self, x, t):
        return x


class Endless(sg.Term):
    def drift(self, x, t):
        return -x


NET, VP = Net(), sg.VPSDE()
MODEL = sg.Denoiser(NET, VP, data_mean=0.0, data_std=1.0)
MODEL.event_shape = (2,)
SHAPELESS = sg.Denoiser(NET, VP, data_std=1.0)
ELSEWHERE = sg.Denoiser(Net().to("meta"), VP, data_std=1.0)  # the only other device there always is
POINT = sg.GaussianMixture([[0.0, 1.0]], std=0.5)
EXACT = sg.MixtureModel(POINT, VP)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
FLOW, REVERSE = sg.ProbabilityFlow(MODEL), sg.ReverseSDE(MODEL)
NAN, INF = math.nan, math.inf


def draw(**how: Any) -> Callable[[], Any]:
    return lambda: sg.sample(MODEL, 4, **{"solver": "heun", **how})


def mix(means: Any, **how: Any) -> Callable[[], Any]:
    return lambda: sg.GaussianMixture(means, **how)


# the call, and what its message must say
CALLS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    # processes
    "beta of words": (lambda: sg.VPSDE("a", 2.0), ("beta_min='a'", "number")),
    "beta of nan": (lambda: sg.VPSDE(NAN, 2.0), ("beta_min=nan", "a number")),
    "t_max without end": (lambda: sg.VPSDE(t_max=INF), ("inf", "finite")),
    "t_min above t_max": (lambda: sg.VPSDE(t_min=2.0), ("[2, 1]", "t_min < t_max")),
    "t_min of words": (lambda: sg.EDMSDE(sigma_min="small"), ("sigma_min='small'", "number")),
    "cosine offset": (lambda: sg.CosineSDE(s=-1.0), ("s=-1", "positive")),
    "cosine of words": (lambda: sg.CosineSDE(s="a"), ("s='a'", "number")),
    "straight path of words": (lambda: sg.LinearPathSDE(t_max="one"), ("t_max='one'", "number")),
    "no smallest noise": (lambda: sg.VESDE(0.0, 1.0), ("sigma_min=0", "0 < sigma_min")),
    "scale of none": (lambda: sg.TrigSDE(None), ("sigma_data=None", "number")),
    "a table of words": (lambda: sg.TabulatedVPSDE("abc"), ("betas", "numbers")),
    "a table of tables": (lambda: sg.TabulatedVPSDE([[0.1, 0.2]]), ("[[0.1, 0.2]]", "a list of numbers")),
    "a table with nan": (lambda: sg.TabulatedVPSDE([0.1, NAN]), ("NaN", "a list of numbers")),
    "signal lost too early": (lambda: sg.TabulatedVPSDE([0.1, 1.0, 0.2]), ("beta < 1", "last may be 1")),
    "negative sigmas": (lambda: sg.TabulatedVESDE([-1.0, 1.0]), ("positive", "flipped")),
    "a path of another shape": (
        lambda: sg.PathSDE(lambda t: torch.ones(3), lambda t: t),
        ("alpha(t)", "(3,)", "one value per time"),
    ),
    "a path of numpy": (lambda: sg.PathSDE(lambda t: np.cos(t), lambda t: t), ("alpha(t) failed", "torch functions")),
    "a negative path": (lambda: sg.PathSDE(lambda t: 0.5 - t, lambda t: t), ("alpha(0.5", "positive", "narrow")),
    "drift that is infinite": (lambda: sg.CoefficientSDE(lambda t: t / 0, lambda t: 1 + 0 * t), ("drift(", "finite")),
    "no diffusion": (lambda: sg.CoefficientSDE(lambda t: -t, lambda t: 0 * t), ("sigma(", "positive")),
    "times for other samples": (lambda: VP.perturb(X, torch.ones(3), X), ("(3,)", "4 samples", "(4,)")),
    "noise for other samples": (lambda: VP.perturb(X, 0.5, X[:2]), ("(2, 2)", "(4, 2)")),
    "a transition backward": (lambda: VP.transition(X, 0.5, 0.2, X), ("0.5", "0.2", "t <= t_next")),
    "half a sample of the prior": (lambda: VP.prior(4.5), ("4.5", "a list of whole numbers")),
    "a negative event": (lambda: VP.prior((4, -1)), ("(4, -1)", "at least 0")),
    "negative beta": (lambda: sg.VPSDE(beta_min=-1.0), ("beta_min=-1", "expected")),
    "betas swapped": (lambda: sg.VPSDE(beta_min=20.0, beta_max=0.1), ("beta_max=0.1", "expected")),
    "t_min of 0": (lambda: sg.VPSDE(t_min=0.0), ("0", "expected 0 < t_min")),
    "cosine to 1": (lambda: sg.CosineSDE(t_max=1.0), ("t_max=1", "0.9946")),
    "a straight path beyond 1": (lambda: sg.LinearPathSDE(t_max=1.5), ("t_max=1.5",)),
    "sigmas swapped": (lambda: sg.VESDE(50.0, 0.01), ("sigma_min=50", "expected")),
    "sigma_data of 0": (lambda: sg.TrigSDE(0.0), ("sigma_data=0", "positive")),
    "a beta above 1": (lambda: sg.TabulatedVPSDE([0.1, 1.5, 0.2]), ("betas", "expected")),
    "sigmas from large to small": (lambda: sg.TabulatedVESDE([10.0, 1.0, 0.1]), ("increasing", "flipped")),
    "an empty table": (lambda: sg.TabulatedVPSDE([]), ("betas", "(0,)", "expected")),
    "noise that falls": (
        lambda: sg.PathSDE(lambda t: 0.1 + t, lambda t: 1.1 - t),
        ("signal-to-noise", "does not fall"),
    ),
    "negative diffusion": (
        lambda: sg.CoefficientSDE(lambda t: -t, lambda t: -torch.ones_like(t)),
        ("= -1", "at least 0"),
    ),
    "a path of numbers": (lambda: sg.PathSDE(1.0, 2.0), ("alpha", "function")),
    # mixtures and models
    "means in one row": (mix([1.0, 2.0], std=1.0), ("(2,)", "(K, d)")),
    "ragged means": (mix([[1.0], [1.0, 2.0]], std=1.0), ("means", "numbers")),
    "means of nan": (mix([[NAN]], std=1.0), ("means", "NaN")),
    "two kinds of width": (mix([[1.0]], std=1.0, covariances=[[1.0]]), ("exactly one", "std=", "covariances=")),
    "negative width": (mix([[1.0]], std=-1.0), ("std", "not negative")),
    "covariance of another size": (mix([[1.0, 2.0]], covariances=[[1.0]]), ("(1, 1)", "(2, 2)")),
    "a covariance that is none": (mix([[1.0, 2.0]], covariances=[[1.0, 2.0], [2.0, 1.0]]), ("negative eigenvalue",)),
    "weights for other parts": (mix([[1.0]], std=1.0, weights=[1, 2]), ("(2,)", "(1,)")),
    "density of another dimension": (lambda: POINT.log_prob(torch.zeros(3, 3)), ("(3, 3)", "(B, 2)")),
    "a negative count": (lambda: POINT.sample(-1), ("-1", "at least 0")),
    "a mixture of lists": (lambda: sg.MixtureModel([[1.0]], VP), ("[[1.0]]", "GaussianMixture")),
    "a mixture and a process swapped": (lambda: sg.MixtureModel(VP, POINT), ("VPSDE", "expected a GaussianMixture")),
    "data as a list": (lambda: sg.EmpiricalModel([[1.0]], VP), ("data=[[1.0]]", "torch.Tensor")),
    "no data": (lambda: sg.EmpiricalModel(torch.zeros(0, 2), VP), ("empty", "at least one")),
    "data with nan": (lambda: sg.EmpiricalModel(X * NAN, VP), ("NaN", "4 samples", "clean")),
    "integer data": (lambda: sg.EmpiricalModel(X.long(), VP), ("int64", "data / (L - 1)")),
    "a network that is a number": (lambda: sg.Denoiser(3, VP), ("net=3", "torch.nn.Module")),
    "no spread": (lambda: sg.Denoiser(NET, VP, data_std=0.0), ("data_std = 0", "not all 0")),
    "negative spread": (lambda: sg.Denoiser(NET, VP, data_std=-1.0), ("data_std = -1", "not negative")),
    "a mean of nan": (lambda: sg.Denoiser(NET, VP, data_mean=NAN), ("data_mean=nan", "a number")),
    "a spread of words": (lambda: sg.Denoiser(NET, VP, data_std="one"), ("data_std='one'", "a number")),
    "a belief at times of others": (lambda: EXACT(X, torch.ones(3)), ("(3,)", "4 samples")),
    "a belief about a list": (lambda: EXACT([[1.0, 2.0]], 0.5), ("[[1.0, 2.0]]", "torch.Tensor")),
    "a belief in another dimension": (lambda: EXACT(torch.zeros(4, 3), 0.5), ("(4, 3)", "(B, 2)")),
    "along a word": (lambda: EXACT.on("edm"), ("'edm'", "expected a process")),
    "a model that makes no prediction": (
        lambda: sg.sample(NoPrediction(VP), (3, 2), steps=3),
        ("NoPrediction", "Tensor", "Prediction"),
    ),
    "a mixture without widths": (lambda: sg.GaussianMixture([[0.0, 1.0]]), ("exactly one of std=", "covariances=")),
    "negative weights": (lambda: sg.GaussianMixture([[0.0], [1.0]], std=1.0, weights=[1, -1]), ("weights", "positive")),
    "a skew covariance": (
        lambda: sg.GaussianMixture([[0.0, 1.0]], covariances=[[1.0, 0.5], [0.0, 1.0]]),
        ("symmetric",),
    ),
    "an unknown parametrization": (lambda: sg.Denoiser(NET, VP, parametrization="eps"), ("'eps'", "'noise'")),
    "a process that is none": (lambda: sg.Denoiser(NET, "vp"), ("'vp'", "VPSDE()")),
    "no shared noise level": (lambda: EXACT.on(sg.EDMSDE(1e4, 1e5)), ("share no noise level",)),
    # terms and noise
    "a model as a process": (lambda: sg.ForwardSDE(EXACT), ("MixtureModel", "VPSDE()")),
    "a process as a model": (lambda: sg.ReverseSDE(VP), ("VPSDE", "ScoreModel", "Denoiser")),
    "a network as a model": (lambda: sg.ProbabilityFlow(NET), ("Net", "ScoreModel", "Denoiser")),
    "a noise level of nan": (lambda: sg.ReverseSDE(EXACT, eta=NAN), ("eta=nan", "a number")),
    "a noise level of words": (lambda: sg.ReverseSDE(EXACT, eta="half"), ("eta=", "half", "a number")),
    "a word the model does not know": (lambda: sg.solve(sg.ReverseSDE(EXACT, colour=1), X), ("'colour'", "none")),
    "a seed that is true": (lambda: sg.Noise(True), ("True", "integer")),
    "numbers that are words": (lambda: sg.Noise(0, index="ab"), ("index", "integers")),
    "an index table": (lambda: sg.Noise(0, index=torch.zeros(2, 2)), ("(2, 2)", "(B,)")),
    # solve
    "a state of lists": (lambda: sg.solve(FLOW, [[1.0, 2.0]]), ("[[", "torch.Tensor")),
    "a state without a batch": (lambda: sg.solve(FLOW, torch.tensor(1.0)), ("batch axis", "x[None]")),
    "a state of integers": (lambda: sg.solve(FLOW, X.int()), ("int32", "x / (L - 1)", "x.double()")),
    "an infinite state": (lambda: sg.solve(FLOW, X * INF), ("infinity", "4 samples")),
    "a model on another device": (lambda: sg.solve(sg.ProbabilityFlow(ELSEWHERE), X), ("cpu", "meta", ".to()")),
    "a term without an end": (lambda: sg.solve(Endless(), X), ("Endless", "t_span=(from, to)")),
    "times and a span": (lambda: sg.solve(FLOW, X, steps=[1.0, 0.5], t_span=(1.0, 0.5)), ("t_span=", "give one")),
    "noise for other samples of a solve": (
        lambda: sg.solve(REVERSE, X, steps=3, noise=sg.Noise(0, index=[1])),
        ("1 samples", "4", "one number per sample"),
    ),
    "noise of words": (lambda: sg.solve(REVERSE, X, steps=3, noise="a"), ("'a'", "integer")),
    "on_failure of true": (lambda: sg.solve(FLOW, X, on_failure=True), ("on_failure=True", "'mark'")),
    "a grid solver by tolerance": (lambda: sg.solve(FLOW, X, solver="dpm++2m", rtol=1e-3), ("'dpm++2m'", "steps=50")),
    "noise without a solver for it": (lambda: sg.solve(sg.ForwardSDE(VP), X, solver="heun"), ("'heun'", "noise")),
    "a reverse step of a forward term": (
        lambda: sg.solve(sg.ForwardSDE(VP), X, solver="reverse-diffusion"),
        ("'reverse-diffusion'", "no model"),
    ),
    "a model as a term": (lambda: sg.solve(MODEL, X), ("Denoiser", "ProbabilityFlow(model)")),
    "forward in reverse": (lambda: sg.solve(sg.ForwardSDE(VP), X, t_span=(1.0, 0.1)), ("rising", "swap")),
    "reverse in forward": (lambda: sg.solve(REVERSE, X, t_span=(0.1, 1.0)), ("falling", "swap")),
    "a belief without a model": (lambda: sg.solve(sg.ForwardSDE(VP), X, solver="ancestral"), ("no model",)),
    "too many steps": (lambda: sg.solve(FLOW, X, solver="ddim", steps=50, max_steps=10), ("50", "max_steps=10")),
    "another event": (lambda: sg.solve(FLOW, torch.zeros(4, 3), solver="ddim"), ("(3,)", "(2,)")),
    # sample
    "times and a span to sample": (draw(steps=[1.0, 0.5], t_span=(1.0, 0.5)), ("t_span=", "give one")),
    "three ends": (draw(t_span=(1.0, 0.5, 0.1)), ("(1.0, 0.5, 0.1)", "two times")),
    "one end": (draw(t_span=(1.0,)), ("(1.0,)", "two times")),
    "an end of none": (draw(t_span=(1.0, None)), ("None", "two times")),
    "an end that is nan": (draw(t_span=(NAN, 0.5)), ("nan", "finite")),
    "a span that is a time": (draw(t_span=1.0), ("t_span=1.0", "two times")),
    "a span of nothing": (draw(t_span=(0.5, 0.5)), ("[0.5, 0.5]", "without repeats")),
    "a span beyond the process": (draw(t_span=(5.0, 0.0)), ("time 5", "[0.001, 1]")),
    "a span upward": (draw(t_span=(0.1, 1.0)), ("rise", "encode")),
    "a time of nan": (draw(steps=[1.0, NAN, 0.1]), ("NaN", "steps")),
    "times that turn": (draw(steps=[1.0, 0.2, 0.5]), ("rise or fall", "0.2")),
    "zero in the middle": (draw(steps=[1.0, 0.0, 0.5]), ("time 0", "exactly 0")),
    "steps that are a dict": (draw(steps={"a": 1}), ("steps={'a': 1}", "number of steps")),
    "steps of words": (draw(steps="many"), ("steps='many'", "number of steps")),
    "steps that are true": (draw(steps=True), ("steps=True", "number of steps")),
    "one time": (draw(steps=[1.0]), ("1 times", "at least 2")),
    "fewer than no steps": (draw(steps=-5), ("steps=-5", "at least 1")),
    "steps of each sample": (draw(steps=torch.rand(4, 3)), ("(4, 3)", "shared")),
    "a tolerance of words": (draw(solver="dopri5", rtol="tight"), ("rtol='tight'", "1e-3")),
    "a tolerance of nan": (draw(solver="dopri5", rtol=NAN), ("rtol=nan", "at least 0")),
    "an imaginary tolerance": (draw(solver="dopri5", rtol=1j), ("rtol=1j", "at least 0")),
    "a negative absolute one": (draw(solver="dopri5", rtol=1e-3, atol=-1.0), ("atol=-1", "at least 0")),
    "no step at all": (draw(max_steps=0), ("max_steps=0", "a whole number from 1")),
    "half a most": (draw(max_steps=10.5), ("max_steps=10.5", "a whole number from 1")),
    "to save nothing": (draw(steps=4, save=[]), ("save=[]", "inside the span")),
    "to save outside": (draw(steps=4, save=[3.0]), ("save=[3.0]", "between 1 and 0")),
    "to save below the span": (draw(steps=4, t_span=(1.0, 0.5), save=[0.2]), ("[0.2]", "between 1 and 0.5")),
    "to save words": (draw(steps=4, save=["a"]), ("save=['a']", "'last'")),
    "to save none": (draw(steps=4, save=None), ("save=None", "'last'")),
    "to save nan": (draw(steps=4, save=[NAN]), ("nan", "inside the span")),
    "an event nobody knows": (lambda: sg.sample(SHAPELESS, 4, steps=3), ("event shape", "(4, 2)")),
    "a shape of halves": (lambda: sg.sample(MODEL, (4.5, 2)), ("(4.5, 2)", "integers")),
    "a shape of none": (lambda: sg.sample(MODEL, None), ("shape=None", "(B, *event)")),
    "a shape without a batch": (lambda: sg.sample(MODEL, ()), ("shape=()", "(B, *event)")),
    "a shape that is true": (lambda: sg.sample(MODEL, True), ("shape=True", "(B, *event)")),
    "a start of integers": (draw(x_init=X.long()), ("x_init", "int64")),
    "a start with nan": (draw(x_init=X * NAN), ("x_init", "NaN")),
    "a start of another event": (draw(x_init=torch.ones(4, 3)), ("x_init", "(3,)", "(2,)")),
    "a start that is a list": (draw(x_init=[[1.0, 2.0]] * 4), ("x_init=[[", "torch.Tensor")),
    "a dtype of words": (draw(dtype="float32"), ("'float32'", "torch.float32")),
    "a complex dtype": (draw(dtype=torch.complex64), ("complex64", "torch.float32")),
    "numbers that are halves": (draw(index=[0.5, 1, 2, 3]), ("float32", "integers")),
    "numbers in a table": (draw(index=[[1], [2], [3], [4]]), ("(4, 1)", "(B,)")),
    "one number for all": (draw(index=3), ("index", "(B,)")),
    "half a seed": (draw(seed=1.5), ("1.5", "integer")),
    "eta of words": (draw(eta="half"), ("eta='half'", "at least 0")),
    "eta of nan": (draw(eta=NAN), ("eta=nan", "at least 0")),
    "more noise than ddim has": (draw(solver="ddim", eta=1.5, steps=3), ("eta=1.5", "[0, 1]", "'ancestral'")),
    "eta for langevin": (draw(solver="langevin", eta=0.5, steps=3), ("'langevin'", "eta=None")),
    "eta for churn": (draw(solver="karras-sde", eta=0.5, steps=3), ("'karras-sde'", "churn")),
    "half a chunk": (draw(batch_size=1.5), ("batch_size=1.5", "a whole number from 1")),
    "a negative chunk": (draw(batch_size=-1), ("batch_size=-1", "a whole number from 1")),
    "a condition elsewhere": (draw(label=torch.zeros(4, device="meta")), ("'label'", "meta", ".to()")),
    "a condition without a batch": (draw(label=torch.tensor(1.0)), ("'label'", "()", "Python number")),
    "a solver that is a number": (draw(solver=3), ("solver=3", "solvers()")),
    "a solver that is a class": (draw(solver=sg.Solver), ("Solver", "'auto'")),
    "a solver in a list": (draw(solver=["heun"]), ("['heun']", "'auto'")),
    "a bare network": (lambda: sg.sample(NET, 4), ("Net", "Denoiser(")),
    "a shape of words": (lambda: sg.sample(MODEL, "four"), ("'four'", "expected")),
    "another event shape": (lambda: sg.sample(MODEL, (4, 3)), ("(4, 3)", "(2,)")),
    "a negative batch": (lambda: sg.sample(MODEL, -1), ("-1", "expected")),
    "an unknown solver": (lambda: sg.sample(MODEL, 4, solver="dmp++2m"), ("'dmp++2m'", "did you mean 'dpm++2m'")),
    "steps and a tolerance": (lambda: sg.sample(MODEL, 4, steps=5, rtol=1e-3), ("both", "give one")),
    "a tolerance without an estimate": (
        lambda: sg.sample(MODEL, 4, solver="ddim", rtol=1e-3),
        ("'ddim'", "error estimate", "steps=50"),
    ),
    "a negative tolerance": (lambda: sg.sample(MODEL, 4, rtol=-1e-3), ("rtol=-0.001", "at least 0")),
    "a tolerance of 0": (lambda: sg.sample(MODEL, 4, rtol=0.0), ("rtol=0", "such as rtol")),
    "no steps": (lambda: sg.sample(MODEL, 4, solver="ddim", steps=0), ("steps=0", "at least 1")),
    "half a step": (lambda: sg.sample(MODEL, 4, solver="ddim", steps=2.5), ("steps=2.5", "expected")),
    "noise for a flow solver": (
        lambda: sg.sample(MODEL, 4, solver="heun", eta=1.0),
        ("'heun'", "without noise", "'ancestral'"),
    ),
    "a negative eta": (lambda: sg.sample(MODEL, 4, solver="ancestral", eta=-0.5), ("eta=-0.5", "at least 0")),
    "rising times": (lambda: sg.sample(MODEL, 4, solver="ddim", steps=[0.1, 0.5, 1.0]), ("rise", "sample")),
    "repeated times": (lambda: sg.sample(MODEL, 4, solver="ddim", steps=[1.0, 0.5, 0.5, 0.1]), ("repeats",)),
    "times beyond the process": (
        lambda: sg.sample(MODEL, 4, solver="ddim", steps=[2.0, 1.0, 0.1]),
        ("2", "[0.001, 1]"),
    ),
    "times below t_min": (lambda: sg.sample(MODEL, 4, solver="ddim", t_span=(1.0, 1e-5)), ("1e-05", "exactly 0")),
    "a span of words": (lambda: sg.sample(MODEL, 4, t_span="all"), ("t_span", "(from, to)")),
    "an unknown failure": (lambda: sg.sample(MODEL, 4, on_failure="ignore"), ("'ignore'", "'mark'")),
    "no batch": (lambda: sg.sample(MODEL, 4, batch_size=0), ("batch_size=0", "a whole number from 1")),
    "a seed of words": (lambda: sg.sample(MODEL, 4, seed="today"), ("'today'", "integer")),
    "too few numbers": (lambda: sg.sample(MODEL, 4, index=[1, 2]), ("index", "4")),
    "an unknown save": (lambda: sg.sample(MODEL, 4, save="some"), ("save", "'all'")),
    "a time that is no node": (lambda: sg.sample(MODEL, 4, solver="ancestral", steps=5, save=[0.3333]), ("nodes",)),
    "a start of another shape": (lambda: sg.sample(MODEL, 4, x_init=torch.zeros(3, 2)), ("(3, 2)", "(4, 2)")),
    "an integer dtype": (lambda: sg.sample(MODEL, 4, dtype=torch.int64), ("int64", "float32")),
    "an unknown condition": (lambda: sg.sample(MODEL, 4, colour=1), ("'colour'", "label")),
    "a short condition": (lambda: sg.sample(MODEL, 4, label=torch.zeros(3)), ("'label'", "(3,)", "4")),
    # encode, grid, make_solver
    "a process to encode with": (lambda: sg.encode(VP, X), ("VPSDE", "Denoiser")),
    "encoding with both": (lambda: sg.encode(MODEL, X, steps=3, rtol=0.1), ("both", "give one")),
    "encoding from zero": (lambda: sg.encode(MODEL, X, steps=3, t_span=(0.0, 1.0)), ("time 0", "[0.001, 1]")),
    "encoding of an unknown word": (lambda: sg.encode(MODEL, X, colour=1), ("'colour'", "label")),
    "encoding of one number": (lambda: sg.encode(MODEL, torch.tensor(0.0)), ("batch axis", "x[None]")),
    "a grid of none": (lambda: sg.grid(MODEL, 5, kind=None), ("None", "'karras'")),
    "half a grid": (lambda: sg.grid(MODEL, 5.5, kind="karras"), ("5.5", "a whole number from 1")),
    "a grid beyond": (lambda: sg.grid(MODEL, 5, kind="karras", t_span=(3.0, 0.0)), ("time 3", "[0.001, 1]")),
    "a grid from zero": (lambda: sg.grid(MODEL, 5, kind="lambda", t_span=(0.0, 1.0)), ("time 0", "[0.001, 1]")),
    "a grid of a network": (lambda: sg.grid(NET, 5, kind="karras"), ("Net", "ScoreModel")),
    "a solver of none": (lambda: sg.make_solver(None), ("None", "one of euler")),
    "a list of solvers": (lambda: sg.make_solver(["heun"]), ("['heun']", "one of euler")),
    "an order of 99": (lambda: sg.make_solver("dpm++2m", order=99), ("order=99", "1 to 8")),
    "nothing is accepted": (lambda: sg.make_solver("adams", accept=0.0), ("accept=0", "0 < aim < accept")),
    "an aim above what is accepted": (lambda: sg.make_solver("adams", aim=3.0), ("aim=3.0, accept=2", "aim < accept")),
    "a gauge that is none": (lambda: sg.make_solver("dpm++2m", gauge="x"), ("gauge='x'", "'data'")),
    "a rule that is none": (lambda: sg.make_solver("predictor-corrector", rule="x"), ("rule='x'", "'level'")),
    "half a correction": (lambda: sg.make_solver("predictor-corrector", corrections=1.5), ("1.5", "whole number")),
    "corrections of words": (
        lambda: sg.make_solver("langevin", corrections="many"),
        ("corrections='many'", "whole number"),
    ),
    "a step of nothing": (lambda: sg.make_solver("langevin", epsilon=0.0), ("epsilon=0", "above 0")),
    "orders beyond": (lambda: sg.make_solver("adams", max_order=20), ("max_order=20", "1 to 8")),
    "to aim above what is accepted": (lambda: sg.make_solver("adams", aim=10.0), ("aim=10", "aim < accept")),
    "negative churn": (lambda: sg.make_solver("karras-sde", churn=-1.0), ("churn=-1", "churn >= 0")),
    "an outside method that is none": (
        lambda: sg.make_solver("torchdiffeq:nothing"),
        ("'torchdiffeq:nothing'", "mean"),
    ),
    "integers to encode": (lambda: sg.encode(MODEL, torch.ones(2, 2, dtype=torch.int64)), ("int64", "float")),
    "NaN to encode": (lambda: sg.encode(MODEL, X * NAN), ("NaN", "0")),
    "a list to encode": (lambda: sg.encode(MODEL, [[0.0, 1.0]]), ("[[", "torch.Tensor")),
    "encoding downwards": (lambda: sg.encode(MODEL, X, t_span=(1.0, 0.1)), ("fall", "encode")),
    "encoding with noise": (lambda: sg.encode(MODEL, X, solver="langevin"), ("langevin",)),
    "an unknown grid": (lambda: sg.grid(MODEL, 5, kind="cosine"), ("'cosine'", "'karras'")),
    "a grid of no steps": (lambda: sg.grid(MODEL, 0, kind="karras"), ("0", "a whole number from 1")),
    "an unknown option": (lambda: sg.make_solver("heun", snr=0.1), ("'heun'", "snr")),
    "an impossible option": (lambda: sg.make_solver("predictor-corrector", snr=-1.0), ("snr=-1", "expected")),
    # fit, losses, checkpoints, pictures
    "no data to fit": (lambda: sg.fit(MODEL, torch.zeros(0, 2), steps=1), ("empty",)),
    "NaN in the data": (lambda: sg.fit(MODEL, X * NAN, steps=1), ("NaN",)),
    "no training steps": (lambda: sg.fit(MODEL, X, steps=0), ("steps=0", "at least 1")),
    "an unknown weight": (lambda: sg.dsm_loss(MODEL, X, weight="snr"), ("'snr'", "'min-snr'")),
    "an unknown law": (lambda: sg.dsm_loss(MODEL, X, t="normal"), ("'normal'", "'log-normal'")),
    "nothing saved there": (lambda: sg.load("no/such/model"), ("no checkpoint",)),
    "a path that was not kept": (lambda: sg.plot.trajectories(sg.sample(EXACT, 4, steps=3)), ("save='all'",)),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_wrong_call_says_what_would_be_right_before_any_work(what):
    call, words = CALLS[what]
    NET.calls = 0
    with pytest.raises(sg.CheckpointError if what == "nothing saved there" else sg.InvalidInputError) as caught:
        call()
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert NET.calls == 0, "the network had been called"


def test_wrong_input_is_a_value_error_and_there_are_enough_of_them():
    assert issubclass(sg.InvalidInputError, ValueError) and len(CALLS) >= 200


def test_a_network_that_answers_in_another_shape_is_named_at_its_first_call():
    net = Net(lambda x: x[:, :1])
    with pytest.raises(sg.InvalidInputError, match=r"returned \(4, 1\) for an input of shape \(4, 2\)"):
        sg.sample(sg.Denoiser(net, VP, data_std=1.0), (4, 2), steps=5)
    assert net.calls == 1


def test_wrong_calls_leave_the_model_as_it_was():
    MODEL.train()
    for what in ("times that turn", "to save words", "a condition elsewhere", "more noise than ddim has"):
        with pytest.raises(sg.InvalidInputError):
            CALLS[what][0]()
        assert MODEL.training and NET.training


def test_what_may_be_said_in_several_ways_is_not_wrong():
    """Numbers from NumPy, times as lists, arrays or tensors, shapes as torch.Size."""
    came = sg.sample(EXACT, torch.Size([3, 2]), steps=np.int64(4), seed=np.int64(7), rtol=None, solver="ddim")
    same = sg.sample(EXACT, (np.int32(3), 2), steps=4, seed=7, solver="ddim")
    assert torch.equal(came.x, same.x)
    by_list = sg.sample(EXACT, [3, 2], steps=[1.0, 0.5, 0], seed=7, solver="ddim")
    for times in (np.array([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.5, 0.0]), (1, 0.5, 0)):
        assert torch.equal(sg.sample(EXACT, 3, steps=times, seed=7, solver="ddim").x, by_list.x)
    sg.sample(EXACT, 3, rtol=np.float32(1e-3), seed=7)
    sg.sample(EXACT, 3, steps=3, t_span=np.array([1.0, 0.0]), seed=7, index=np.arange(3))


BYTES = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PICTURES = sg.Denoiser(Net(), VP, data_mean=0.0, data_std=0.5)
PICTURES.event_shape = (1, 8, 8)
TAKES_PICTURES = {
    "fit": lambda u: sg.fit(PICTURES, u, steps=1, device="cpu"),
    "fit of an array": lambda u: sg.fit(PICTURES, u.numpy(), steps=1, device="cpu"),
    "fit of a Dataset": lambda u: sg.fit(PICTURES, torch.utils.data.TensorDataset(u), steps=1, device="cpu"),
    "fit of a list": lambda u: sg.fit(PICTURES, list(u), steps=1, device="cpu"),
    "fit of batches": lambda u: sg.fit(PICTURES, iter([u]), steps=1, device="cpu"),
    "sample": lambda u: sg.sample(PICTURES, len(u), steps=4, x_init=u),
    "encode": lambda u: sg.encode(PICTURES, u, steps=4),
    "log_prob": lambda u: sg.log_prob(PICTURES, u, rtol=1e-1),
    "bits_per_dim": lambda u: sg.bits_per_dim(PICTURES, u, levels=256, rtol=1e-1),
    "solve": lambda u: sg.solve(sg.ProbabilityFlow(PICTURES), u, solver="euler", steps=4),
    "dsm_loss": lambda u: sg.dsm_loss(PICTURES, u),
    "EmpiricalModel": lambda u: sg.EmpiricalModel(u, VP),
}


@pytest.mark.parametrize("name", TAKES_PICTURES)
def test_raw_pictures_are_to_be_scaled_and_not_only_converted(name):
    """Bytes, masks and deeper pixels: converted alone they would train on 0 ... 255; what is advised lies in [-1, 1]."""
    for u in (BYTES, BYTES > 127, BYTES.to(torch.uint16), BYTES.to(torch.int64)):
        calls = PICTURES.net.calls
        with pytest.raises(sg.InvalidInputError) as raised:
            TAKES_PICTURES[name](u)
        message = str(raised.value)
        assert ".float()" not in message and "[-1, 1]" in message, message
        assert PICTURES.net.calls == calls
        words = message.split("scaled to [-1, 1] as ")[1]
        advised = words.split(",")[0].split(" and sdegen")[0]
        x = eval(advised, {"data": u, "x": u, "x0": u, "x_init": u, "L": 256})
        assert x.is_floating_point() and float(x.min()) >= -1 and 0 < float(x.max()) <= 1, advised
