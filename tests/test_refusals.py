"""Wrong calls: each is refused before the first network call, saying what came, what was wanted and the cure."""

import pytest
import torch

import sdegen as sg


class Net(torch.nn.Module):
    """A network of points in the plane that counts its calls."""

    def __init__(self, answer=lambda x: x) -> None:
        super().__init__()
        self.scale, self.answer, self.calls = torch.nn.Parameter(torch.tensor(0.1)), answer, 0

    def forward(self, x, t, label=None):
        self.calls += 1
        return self.scale * self.answer(x)


VP = sg.VPSDE()
NET = Net()
MODEL = sg.Denoiser(NET, VP, data_mean=0.0, data_std=1.0)
MODEL.event_shape = (2,)
EXACT = sg.MixtureModel(sg.GaussianMixture([[0.0, 1.0]], std=0.5), VP)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
FLOW, REVERSE = sg.ProbabilityFlow(MODEL), sg.ReverseSDE(MODEL)
NAN = torch.tensor([[1.0, float("nan")]])

# (what is wrong, the call, words of the message)
CALLS = [
    ("negative beta", lambda: sg.VPSDE(beta_min=-1.0), ["beta_min=-1", "wanted"]),
    ("betas swapped", lambda: sg.VPSDE(beta_min=20.0, beta_max=0.1), ["beta_max=0.1", "wanted"]),
    ("t_min of 0", lambda: sg.VPSDE(t_min=0.0), ["0", "wanted 0 < t_min"]),
    ("cosine to 1", lambda: sg.CosineSDE(t_max=1.0), ["t_max=1", "0.9946"]),
    ("a straight path beyond 1", lambda: sg.LinearPathSDE(t_max=1.5), ["t_max=1.5"]),
    ("sigmas swapped", lambda: sg.VESDE(50.0, 0.01), ["sigma_min=50", "wanted"]),
    ("sigma_data of 0", lambda: sg.TrigSDE(0.0), ["sigma_data=0", "positive"]),
    ("a beta above 1", lambda: sg.TabulatedVPSDE([0.1, 1.5, 0.2]), ["betas", "wanted"]),
    ("sigmas from large to small", lambda: sg.TabulatedVESDE([10.0, 1.0, 0.1]), ["increasing", "flipped"]),
    ("an empty table", lambda: sg.TabulatedVPSDE([]), ["betas", "(0,)", "wanted"]),
    (
        "noise that falls",
        lambda: sg.PathSDE(lambda t: 0.1 + t, lambda t: 1.1 - t),
        ["signal-to-noise", "does not fall"],
    ),
    (
        "negative diffusion",
        lambda: sg.CoefficientSDE(lambda t: -t, lambda t: -torch.ones_like(t)),
        ["= -1", "at least 0"],
    ),
    ("a path of numbers", lambda: sg.PathSDE(1.0, 2.0), ["alpha", "function"]),
    ("a mixture without widths", lambda: sg.GaussianMixture([[0.0, 1.0]]), ["exactly one of std=", "covariances="]),
    ("negative weights", lambda: sg.GaussianMixture([[0.0], [1.0]], std=1.0, weights=[1, -1]), ["weights", "positive"]),
    (
        "a skew covariance",
        lambda: sg.GaussianMixture([[0.0, 1.0]], covariances=[[1.0, 0.5], [0.0, 1.0]]),
        ["symmetric"],
    ),
    ("an unknown parametrization", lambda: sg.Denoiser(NET, VP, parametrization="eps"), ["'eps'", "'noise'"]),
    ("a process that is none", lambda: sg.Denoiser(NET, "vp"), ["'vp'", "VPSDE()"]),
    ("no shared noise level", lambda: EXACT.on(sg.EDMSDE(1e4, 1e5)), ["share no noise level"]),
    ("a bare network", lambda: sg.sample(NET, 4), ["Net", "Denoiser("]),
    ("a shape of words", lambda: sg.sample(MODEL, "four"), ["'four'", "wanted"]),
    ("another event shape", lambda: sg.sample(MODEL, (4, 3)), ["(4, 3)", "(2,)"]),
    ("a negative batch", lambda: sg.sample(MODEL, -1), ["-1", "wanted"]),
    ("an unknown solver", lambda: sg.sample(MODEL, 4, solver="dmp++2m"), ["'dmp++2m'", "did you mean 'dpm++2m'"]),
    ("steps and a tolerance", lambda: sg.sample(MODEL, 4, steps=5, rtol=1e-3), ["both", "give one"]),
    (
        "a tolerance without an estimate",
        lambda: sg.sample(MODEL, 4, solver="ddim", rtol=1e-3),
        ["'ddim'", "error estimate", "steps=50"],
    ),
    ("a negative tolerance", lambda: sg.sample(MODEL, 4, rtol=-1e-3), ["rtol=-0.001", "at least 0"]),
    ("a tolerance of 0", lambda: sg.sample(MODEL, 4, rtol=0.0), ["rtol=0", "such as rtol"]),
    ("no steps", lambda: sg.sample(MODEL, 4, solver="ddim", steps=0), ["steps=0", "at least 1"]),
    ("half a step", lambda: sg.sample(MODEL, 4, solver="ddim", steps=2.5), ["steps=2.5", "wanted"]),
    (
        "noise for a flow solver",
        lambda: sg.sample(MODEL, 4, solver="heun", eta=1.0),
        ["'heun'", "without noise", "'ancestral'"],
    ),
    ("a negative eta", lambda: sg.sample(MODEL, 4, solver="ancestral", eta=-0.5), ["eta=-0.5", "at least 0"]),
    ("rising times", lambda: sg.sample(MODEL, 4, solver="ddim", steps=[0.1, 0.5, 1.0]), ["rise", "sample"]),
    ("repeated times", lambda: sg.sample(MODEL, 4, solver="ddim", steps=[1.0, 0.5, 0.5, 0.1]), ["repeats"]),
    (
        "times beyond the process",
        lambda: sg.sample(MODEL, 4, solver="ddim", steps=[2.0, 1.0, 0.1]),
        ["2", "[0.001, 1]"],
    ),
    ("times below t_min", lambda: sg.sample(MODEL, 4, solver="ddim", t_span=(1.0, 1e-5)), ["1e-05", "exactly 0"]),
    ("a span of words", lambda: sg.sample(MODEL, 4, t_span="all"), ["t_span", "(from, to)"]),
    ("an unknown failure", lambda: sg.sample(MODEL, 4, on_failure="ignore"), ["'ignore'", "'mark'"]),
    ("no batch", lambda: sg.sample(MODEL, 4, batch_size=0), ["batch_size=0", "positive"]),
    ("a seed of words", lambda: sg.sample(MODEL, 4, seed="today"), ["'today'", "integer"]),
    ("too few numbers", lambda: sg.sample(MODEL, 4, index=[1, 2]), ["index", "4"]),
    ("an unknown save", lambda: sg.sample(MODEL, 4, save="some"), ["save", "'all'"]),
    ("a time that is no node", lambda: sg.sample(MODEL, 4, solver="ancestral", steps=5, save=[0.3333]), ["nodes"]),
    ("a start of another shape", lambda: sg.sample(MODEL, 4, x_init=torch.zeros(3, 2)), ["(3, 2)", "(4, 2)"]),
    ("an integer dtype", lambda: sg.sample(MODEL, 4, dtype=torch.int64), ["int64", "float32"]),
    ("an unknown condition", lambda: sg.sample(MODEL, 4, colour=1), ["'colour'", "label"]),
    ("a short condition", lambda: sg.sample(MODEL, 4, label=torch.zeros(3)), ["'label'", "(3,)", "4"]),
    ("integers to encode", lambda: sg.encode(MODEL, torch.ones(2, 2, dtype=torch.int64)), ["int64", "float"]),
    ("NaN to encode", lambda: sg.encode(MODEL, NAN), ["NaN", "0"]),
    ("a list to encode", lambda: sg.encode(MODEL, [[0.0, 1.0]]), ["list", "torch.Tensor"]),
    ("encoding downwards", lambda: sg.encode(MODEL, X, t_span=(1.0, 0.1)), ["fall", "encode"]),
    ("encoding with noise", lambda: sg.encode(MODEL, X, solver="langevin"), ["langevin"]),
    ("a model as a term", lambda: sg.solve(MODEL, X), ["Denoiser", "ProbabilityFlow(model)"]),
    ("forward in reverse", lambda: sg.solve(sg.ForwardSDE(VP), X, t_span=(1.0, 0.1)), ["rising", "swap"]),
    ("reverse in forward", lambda: sg.solve(REVERSE, X, t_span=(0.1, 1.0)), ["falling", "swap"]),
    ("a belief without a model", lambda: sg.solve(sg.ForwardSDE(VP), X, solver="ancestral"), ["no model"]),
    ("too many steps", lambda: sg.solve(FLOW, X, solver="ddim", steps=50, max_steps=10), ["50", "max_steps=10"]),
    ("another event", lambda: sg.solve(FLOW, torch.zeros(4, 3), solver="ddim"), ["(3,)", "(2,)"]),
    ("an unknown grid", lambda: sg.grid(MODEL, 5, kind="cosine"), ["'cosine'", "'karras'"]),
    ("a grid of none", lambda: sg.grid(MODEL, 0, kind="karras"), ["0", "at least 1"]),
    ("an unknown option", lambda: sg.make_solver("heun", snr=0.1), ["'heun'", "snr"]),
    ("an impossible option", lambda: sg.make_solver("predictor-corrector", snr=-1.0), ["snr=-1", "wanted"]),
    ("an index table", lambda: sg.Noise(0, index=torch.zeros(2, 2)), ["(2, 2)", "(B,)"]),
    ("no data", lambda: sg.fit(MODEL, torch.zeros(0, 2), steps=1), ["empty"]),
    ("NaN in the data", lambda: sg.fit(MODEL, NAN, steps=1), ["NaN"]),
    ("no training steps", lambda: sg.fit(MODEL, X, steps=0), ["steps=0", "at least 1"]),
    ("an unknown weight", lambda: sg.dsm_loss(MODEL, X, weight="snr"), ["'snr'", "'min-snr'"]),
    ("an unknown law", lambda: sg.dsm_loss(MODEL, X, t="normal"), ["'normal'", "'log-normal'"]),
    ("nothing saved there", lambda: sg.load("no/such/model"), ["no checkpoint"]),
    ("a path that was not kept", lambda: sg.plot.trajectories(sg.sample(EXACT, 4, steps=3)), ["save='all'"]),
]


@pytest.mark.parametrize(("what", "call", "words"), CALLS, ids=[c[0] for c in CALLS])
def test_a_wrong_call_is_refused_at_once(what, call, words):
    NET.calls = 0
    with pytest.raises(sg.SdegenError) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert NET.calls == 0, "refused after the network was called"


def test_there_are_enough():
    assert len(CALLS) >= 60


def test_a_network_that_answers_in_another_shape_is_named_at_its_first_call():
    net = Net(lambda x: x[:, :1])
    with pytest.raises(sg.InvalidInputError, match=r"returned \(4, 1\) for an input of shape \(4, 2\)"):
        sg.sample(sg.Denoiser(net, VP, data_std=1.0), (4, 2), steps=5)
    assert net.calls == 1
