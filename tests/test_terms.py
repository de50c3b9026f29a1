"""The flow handed to other libraries: the same end, in fewer evaluations, never asked outside its span."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

import sdegen as sg


class Watched(sg.ScoreModel):
    """Notes the times a model is asked at."""

    def __init__(self, model):
        super().__init__(model.sde, data_mean=model.data_mean, data_std=model.data_std, event_shape=model.event_shape)
        self.model, self.times = model, []

    def forward(self, x, t):
        self.times += torch.as_tensor(t).flatten().tolist()
        return self.model(x, t)


def model_of(sde):
    return Watched(sg.MixtureModel(sg.GaussianMixture([[-1.0, 0.3], [1.5, -0.4]], std=0.3, weights=[0.7, 0.3]), sde))


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.SubVPSDE(), sg.LinearPathSDE(), sg.VESDE()], ids=repr)
@pytest.mark.parametrize("upward", [False, True])
def test_ends_where_sample_and_encode_end(sde, upward):
    model = model_of(sde)
    ends = (sde.t_min, sde.t_max) if upward else (sde.t_max, sde.t_min)
    x = sde.prior((4, 2), seed=0, dtype=torch.float64)
    if upward:
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        exact = sg.encode(model, x, solver="dopri5", rtol=1e-11).x
    else:
        exact = sg.sample(model, (4, 2), solver="dopri5", rtol=1e-11, x_init=x, t_span=ends).x
    scale = float(exact.abs().max())
    ode = sg.ProbabilityFlow(model).as_ode(ends)
    model.times.clear()
    got = ode.out(odeint(ode.rhs, ode.into(x), torch.tensor(ode.span, dtype=torch.float64), rtol=1e-10, atol=1e-10)[-1])
    torch.testing.assert_close(got, exact, rtol=1e-7, atol=1e-7 * scale)
    assert sde.t_min <= min(model.times) and max(model.times) <= sde.t_max

    ode = sg.ProbabilityFlow(model).as_ode(ends, like=x)
    model.times.clear()
    solved = solve_ivp(ode.rhs, ode.span, ode.into(x), method="DOP853", rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ode.out(solved.y[:, -1]), exact, rtol=1e-7, atol=1e-7 * scale)
    assert sde.t_min <= min(model.times) and max(model.times) <= sde.t_max


def test_gaussian_data_of_the_data_s_scale_do_not_move():
    """N(m, s^2 I): rhs is 0 all along, so that one Euler step is exact."""
    model = sg.MixtureModel(sg.GaussianMixture([[3.0, -1.0]], std=0.5), sg.VPSDE())
    x = model.sde.prior((5, 2), seed=0, dtype=torch.float64)
    rhs, span, into, out = sg.ProbabilityFlow(model).as_ode()
    y = into(x)
    assert float(rhs(0.5, y).abs().max()) < 1e-12
    alpha, sigma = (float(f(model.sde.t_max)) for f in (model.sde.alpha, model.sde.sigma))
    a, b = (float(f(model.sde.t_min)) for f in (model.sde.alpha, model.sde.sigma))
    m = torch.tensor([3.0, -1.0], dtype=torch.float64)
    exact = a * m + math.sqrt((a**2 / 4 + b**2) / (alpha**2 / 4 + sigma**2)) * (x - alpha * m)
    torch.testing.assert_close(out(y), exact, rtol=1e-12, atol=1e-12)


def test_a_solver_off_the_shelf_needs_fewer_evaluations_there():
    model = model_of(sg.EDMSDE())
    x = model.sde.prior((16, 2), seed=1, dtype=torch.float64)
    ends = (model.sde.t_max, model.sde.t_min)
    ode = sg.ProbabilityFlow(model).as_ode(ends)
    odeint(ode.rhs, ode.into(x), torch.tensor(ode.span, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    there = len(model.times)
    model.times.clear()
    flow = sg.ProbabilityFlow(model)
    odeint(
        lambda t, y: flow.drift(y, t.clamp(*sorted(ends))),
        x,
        torch.tensor(ends, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-5,
    )
    assert there < 0.5 * len(model.times)


@pytest.mark.parametrize("span", [(1.0, 0.0), (2.0, 0.001), (0.5, 0.5), (float("nan"), 0.1), 3, "ab", (1.0,)])
def test_wrong_spans(span):
    with pytest.raises(sg.InvalidInputError, match="t_span"):
        sg.ProbabilityFlow(model_of(sg.VPSDE())).as_ode(span)


@pytest.mark.parametrize("kind", [sg.ReverseSDE, sg.ProbabilityFlow])
def test_what_a_term_is_made_of_does_not_change_under_it(kind):
    model = sg.Denoiser(sg.nets.MLP(2, hidden=8, layers=1), sg.VPSDE(), data_std=1.0)
    x, t = torch.zeros(3, 2), torch.tensor(0.5)
    term, calls = kind(model), []
    how = {"steps": 3} if kind is sg.ProbabilityFlow else {"solver": "euler-maruyama", "steps": 3, "noise": 0}
    sg.solve(term, x, **how)
    with pytest.raises(sg.InvalidInputError, match="eta of a .* cannot be assigned"):
        term.eta = 0.5
    model.sde = sg.CosineSDE()
    model.net.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(sg.InvalidInputError, match="the model is along Cosine.* make another"):
        sg.solve(term, x, **how)
    assert not calls
    with pytest.raises(sg.InvalidInputError, match="make another"):
        term.drift(x, t)
    sg.solve(kind(model), x, **how)
