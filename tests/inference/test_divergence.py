"""The divergence by automatic differentiation: exact on any event shape, and the laws of its estimates."""

from __future__ import annotations

import pytest
import torch

from sdegen.core.errors import InvalidInputError
from sdegen.inference import divergence as module
from sdegen.inference.divergence import Probes, choose_divergence, divergence, draw_probes
from sdegen.noise.white import Noise

F64 = torch.float64
KINDS = ("rademacher", "gaussian", "hutch++")


def linear(j: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """h = J x on b equal samples, and x."""
    x = torch.zeros(b, j.shape[0], dtype=F64).requires_grad_()
    return x @ j.T, x


def matrix(d: int = 5) -> torch.Tensor:
    """Not symmetric, and not small off the diagonal."""
    return torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(3))


def convolution() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3, padding=1),
        torch.nn.GroupNorm(2, 6),
        torch.nn.SiLU(),
        torch.nn.Conv2d(6, 2, 3, padding=1),
    ).double()


@pytest.mark.parametrize("most", [2**22, 200])  # all one-hot vectors at once; a few at a time
def test_exact_divergence_of_an_image_is_the_trace_of_its_jacobian(monkeypatch, most):
    monkeypatch.setattr(module, "_MOST", most)
    net, x = convolution(), torch.randn(3, 2, 4, 4, dtype=F64)
    jacobians = [torch.autograd.functional.jacobian(lambda y: net(y[None])[0], row).reshape(32, 32) for row in x]
    x.requires_grad_()
    found = divergence(net(x), x)
    assert found.shape == (3, 1)
    torch.testing.assert_close(found[:, 0], torch.stack([j.trace() for j in jacobians]), rtol=1e-12, atol=1e-12)


def test_scalars_are_events_too():
    x = torch.linspace(-1, 1, 7, dtype=F64).requires_grad_()
    torch.testing.assert_close(divergence(x**3, x)[:, 0], 3 * x.detach() ** 2)
    probes = draw_probes("rademacher", x, 2, Noise(0))
    torch.testing.assert_close(divergence(x**3, x, probes), 3 * x.detach()[:, None].expand(-1, 2) ** 2)


def test_a_field_that_does_not_depend_on_x_has_none():
    x = torch.randn(4, 3).requires_grad_()
    assert divergence(torch.ones(4, 3), x).tolist() == [[0.0]] * 4
    h = torch.ones(4, 3, requires_grad=True) * 2  # a graph, but not one with x in it
    assert divergence(h, x, draw_probes("gaussian", x, 2, Noise(0))).tolist() == [[0.0, 0.0]] * 4


class Unbatched(torch.autograd.Function):
    """x^2 with a backward pass that vmap cannot take apart."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if float(g.sum()) > 1e9:
            raise RuntimeError
        return 2 * x * g


def test_a_network_without_a_batched_backward_pass_will_do():
    x = torch.randn(3, 6, dtype=F64).requires_grad_()
    torch.testing.assert_close(divergence(Unbatched.apply(x), x)[:, 0], 2 * x.detach().sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_have_the_right_mean(kind):
    j = matrix()
    h, x = linear(j, 40_000)
    found = divergence(h, x, draw_probes(kind, x, 3, Noise(0))).mean(1)
    assert float((found.mean() - j.trace()).abs() / (found.std() / 200)) < 4  # Monte Carlo, four standard errors


@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_variance_is_hutchinsons(kind):
    j = matrix()
    a = (j + j.T) / 2
    wanted = 2 * a.square().sum() - (2 * a.diagonal().square().sum() if kind == "rademacher" else 0)
    h, x = linear(j, 40_000)
    found = divergence(h, x, draw_probes(kind, x, 1, Noise(1)))[:, 0]
    fourth = ((found - found.mean()) ** 4).mean()
    error = ((fourth - found.var() ** 2) / 40_000).sqrt()  # of a variance
    assert abs(float((found.var() - wanted) / error)) < 4


def test_a_sketch_that_covers_all_leaves_no_noise():
    """J = c + a matrix of low rank: the subspace is found, and what is left outside is c, which is left out."""
    u = torch.randn(8, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    j = 0.7 * torch.eye(8, dtype=F64) + u @ u.T
    h, x = linear(j, 50)
    # c is read off the sketch, so the level is only nearly 0.7: rank 2 + the rest of the level
    few = divergence(h, x, draw_probes("hutch++", x, 15, Noise(0)))
    plain = divergence(h, x, draw_probes("rademacher", x, 15, Noise(0)))
    assert few.shape == (50, 5) and plain.shape == (50, 15)
    whole = divergence(h, x, draw_probes("hutch++", x, 24, Noise(0)))
    torch.testing.assert_close(whole, torch.full_like(whole, float(j.trace())), rtol=1e-10, atol=1e-10)
    assert float(few.mean(1).std()) < 0.7 * float(plain.mean(1).std())


def test_results_can_be_differentiated():
    x = torch.randn(3, 4, dtype=F64).requires_grad_()
    (g,) = torch.autograd.grad(divergence(x**3, x, create_graph=True).sum(), x)
    torch.testing.assert_close(g, 6 * x.detach())


def test_probes_depend_on_seed_and_number_alone():
    x = torch.zeros(6, 2, 3, dtype=F64)
    whole = draw_probes("gaussian", x, 2, Noise(4))
    part = draw_probes("gaussian", x[:2], 2, Noise(4, index=[5, 1]))
    assert isinstance(whole, Probes) and isinstance(part, Probes)
    assert torch.equal(part.vectors, whole.vectors[[5, 1]])
    more = draw_probes("gaussian", x, 5, Noise(4))
    assert more is not None and torch.equal(more.vectors[:, :2], whole.vectors)
    signs = draw_probes("rademacher", x, 2, Noise(4))
    assert signs is not None and set(signs.vectors.flatten().tolist()) == {-1.0, 1.0}


def test_auto_is_exact_up_to_64_dimensions():
    assert choose_divergence("auto", 64, 1) == "exact"
    assert choose_divergence("auto", 65, 1) == "rademacher"
    assert choose_divergence("hutchinson", 2, 1) == "rademacher"


@pytest.mark.parametrize(
    "kind, probes, said",
    [("skilling", 1, "expected 'auto', 'exact'"), ("exact", 0, "number from 1 to"), ("exact", 1.5, "number from 1 to"),
     ("hutch++", 2, "at least 3")],
)  # fmt: skip
def test_wrong_choices_say_what_was_wanted(kind, probes, said):
    with pytest.raises(InvalidInputError, match=said):
        choose_divergence(kind, 2, probes)
