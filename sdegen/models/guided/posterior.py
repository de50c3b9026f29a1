"""A belief that knows what was seen of its sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.errors import InvalidInputError, warn
from ...core.kinds import checked
from ...core.shapes import as_time, check_time, expand
from ..base import ScoreModel, Wrapped
from ..prediction import Prediction
from .gradients import check_signal, differentiable, pulled_back, taken, with_score
from .observation import Map, Observation
from .plain_law import PlainLaw
from .spread import DENSE, solve_spread

_LIKELIHOODS = ("moments", "isotropic", "point", "project")
_NO_TRUST = 1e-4  # the part of a network's derivative that is not worth taking it
_FAR = 30.0  # standard deviations of the data: y farther away than this, all in all, is in other units


class _Update(NamedTuple):
    """What y says at (x, t): the belief before, what its score gains, y - A(x0hat), S^-1 of it, log det S or None."""

    belief: Prediction
    gradient: Tensor
    rest: Tensor
    solved: Tensor
    log_det: Tensor | None


class Posterior(Wrapped):
    """A model's belief given y = A(x0) + std z: the score gains the gradient of log p(y | x), in which x0 given x is
    taken for Gaussian, N(x0hat, V), x0hat = E[x0 | x] and J = d x0hat/dx:

        grad log p(y | x) = J^T A^T S^-1 (y - A(x0hat)),    S = A V A^T + std^2.

        "moments"      V = sigma^2/alpha J, the covariance that the belief itself implies: exact for Gaussian data.
        "isotropic"    V = r^2 s^2/(r^2 + s^2), r = sigma/alpha, s the data's standard deviation: one gradient (PiGDM).
        "point"        V = 0, as if x0hat were x0: biased, and stiff where std is small (DPS).
        "project"      no gradient: what y says is put into x0hat, A^T (A A^T)^-1 (y - A x0hat), whatever std is
                       (replacement, DDNM).

    "moments" asks the belief not at x but where y would have moved it, were the data N(mean, s^2 I): p(x0 | x) times
    exp(l A x0) is p(x0 | x + sigma^2/alpha A^T l), the same belief elsewhere, and what this l leaves of y,
    y - A x0hat - std^2 l, goes by the formula there. For Gaussian data that changes nothing; of others more is known
    there. A function that is not linear counts with its derivative at x0hat, asked at x.

    Above r = 10 s the derivative J of a network fades into that of N(mean, s^2 I), without products with J above 30 s.

    Where the data have several modes all four are biased in the modes' weights, and more steps do not help; noise does.
    So `sample(posterior, n, steps=25, y=y)` draws it unless told eta=0: eta = 2 with an exact score, 1 with a network,
    which also keeps sharp measurements (std far below the data's) stable, where the flow is stiff. Its steps leave a
    Gaussian posterior a twentieth too wide at 25 and a fiftieth at 50: for Gaussian data take the flow. By a tolerance,
    from `x_init` and with log-densities it is the flow as ever, and so it is always for "project".

    Args:
        model: the belief without the observation.
        observation: the measurement, such as `Observation.mask(mask, std=0.05)`.
        likelihood: one of the above.

    The condition y, (B, m) or of the observation's own shape, is added to the model's. Numbers that a mask sees without
    noise are in samples to the bit.

    Raises:
        InvalidInputError: an observation that does not fit the events, "point" with std = 0, "project" of a function;
            before the first call, "point" under a tolerance, the Gaussian start, y missing, of another shape, not
            finite, or far from the data's units; at the call, alpha = 0.

    Source: Boys et al. 2023 (arXiv 2310.06721) and Rozet et al. 2024 (arXiv 2405.13712) for "moments"; Song et al. 2023
    (Pseudoinverse-guided diffusion models, ICLR) for "isotropic"; Chung et al. 2023 (arXiv 2209.14687) for "point";
    Wang et al. 2022 (arXiv 2212.00490) for "project".

    Example:
        >>> import torch, sdegen as sg
        >>> model = sg.MixtureModel(sg.GaussianMixture([[0.0, 0.0]], covariances=[[1.0, 0.9], [0.9, 1.0]]), sg.VPSDE())
        >>> posterior = sg.Posterior(model, sg.Observation.mask([True, False], std=0.1))
        >>> found = sg.sample(posterior, 500, rtol=1e-3, seed=0, y=torch.full((500, 1), 2.0))
        >>> abs(float(found.x[:, 1].mean()) - 0.9 * 2 / 1.01) < 0.1
        True
    """

    @checked
    def __init__(self, model: ScoreModel, observation: Observation, *, likelihood: str = "moments") -> None:
        super().__init__(model, covariance=None)
        if not isinstance(observation, Observation):
            raise InvalidInputError(f"got observation={observation!r}, expected one such as Observation.mask(mask)")
        if likelihood not in _LIKELIHOODS:
            raise InvalidInputError(f"got likelihood={likelihood!r}, expected one of {', '.join(_LIKELIHOODS)}")
        if likelihood == "project" and observation.curved:
            raise InvalidInputError('got likelihood="project" of a function, expected a linear one: use "moments"')
        if likelihood == "point" and observation.std == 0:
            raise InvalidInputError('got likelihood="point" with std=0, expected std above 0, or use "moments"')
        if likelihood == "point":
            warn(
                'likelihood="point" takes E[x0 | x] for x0: samples are biased, also of Gaussian data, and the flow '
                'is stiff where std is small; "moments" is exact for Gaussian data'
            )
        if model.event_shape is not None:
            observation.check_event(model.event_shape)
        self.observation, self.likelihood = observation, likelihood

    conditioned = True  # type: ignore[assignment]

    @property
    def advised_eta(self) -> float:  # type: ignore[override]
        """Noise lets what high noise levels decided be mended at low ones, where the rules are right."""
        if self.likelihood == "project":
            return self.model.advised_eta
        return 2.0 if self.model.smooth else 1.0

    @property
    def needs_grid(self) -> str:  # type: ignore[override]
        stiff = 'likelihood="point" is stiff: use steps=, or likelihood="moments", which is not'
        return stiff if self.likelihood == "point" else self.model.needs_grid

    def settled(self, x0: Tensor, /, *, y: Tensor, **cond: Any) -> Tensor:
        return self.observation.known(self.model.settled(x0, **cond), self.observation.values(y, x0))

    def _facts(self):
        return {**super()._facts(), "observation": self.observation, "likelihood": self.likelihood}

    def forward(self, x: Tensor, t: float | Tensor, *, y: Tensor, **cond: Any) -> Prediction:
        t = as_time(t)
        check_time(t, x)
        self.observation.check_event(tuple(x.shape[1:]))
        level = self.sde.at(t)
        check_signal(self.sde, level, "Posterior")
        y = self.observation.values(y, x)
        if self.likelihood == "project":
            return self._projected(self.model(x, t, **cond), y, level)
        update = self._update(x, t, y, cond, aimed=self.likelihood == "moments" and not self.observation.curved)
        return with_score(update.belief, update.gradient, level, graph=torch.is_grad_enabled())

    def update(self, x: Tensor, t: float | Tensor, *, y: Tensor, **cond: Any) -> tuple[Prediction, Tensor, Tensor]:
        """The belief before anything was seen, what y adds to its score, and log N(y; A(x0hat), S), (B,) float64.

        Raises:
            InvalidInputError: det S is not known ("project", "point", or "moments" of more than 32 numbers).
        """
        t = as_time(t)
        check_time(t, x)
        self.observation.check_event(tuple(x.shape[1:]))
        y = self.observation.values(y, x)
        found = self._update(x, t, y, cond)
        log_det = found.log_det
        if log_det is None and self.likelihood == "isotropic":
            scale = torch.as_tensor(PlainLaw(self.data, self.sde.at(t)).variance, dtype=torch.float64)
            scale = scale.reshape(-1, 1).to(x.device)
            log_det = (scale * self.observation.spectrum(x) + self.observation.std**2).log().sum(1)
        if log_det is None:
            raise InvalidInputError(
                f"got {y.shape[1]} numbers of y, expected at most {DENSE} for the determinant of their covariance: use "
                'likelihood="isotropic"'
            )
        square = (found.rest.double() * found.solved.double()).sum(1)
        return found.belief, found.gradient, -(square + log_det + y.shape[1] * math.log(2 * math.pi)) / 2

    def _update(self, x: Tensor, t: Tensor, y: Tensor, cond: dict[str, Any], *, aimed: bool = False) -> _Update:
        graph, level, observation = torch.is_grad_enabled(), self.sde.at(t), self.observation
        law = PlainLaw(self.data, level)
        with differentiable(x) as state:
            aim = law.aim(observation, state, y) if aimed else None
            asked = (
                state if aim is None else state + expand(level.sigma**2 / level.alpha, x) * observation.adjoint(aim, x)
            )
            belief = self.model(asked, t, **cond)
            x0 = belief.x0
            seen, a, a_transposed = observation.linearised(x0, graph=graph)
            pulled = self._pulling(x0, asked, law, graph=graph)

            def spread(v: Tensor) -> Tensor:  # A V A^T v
                if self.likelihood == "moments":
                    return expand(level.sigma**2 / level.alpha, seen) * a(pulled(a_transposed(v)))
                return expand(law.variance, seen) * a(a_transposed(v))

            rest, log_det = y - seen, None
            if aim is not None:
                rest = rest - observation.std**2 * aim
                noise = belief.noise - expand(level.sigma / level.alpha, x) * observation.adjoint(aim, x)
                belief = Prediction(x0, noise, belief.sde, belief.t)
            rest = rest if graph else rest.detach()
            if self.likelihood == "point":
                solved = rest / observation.std**2
            else:
                solved, log_det = solve_spread(spread, rest, observation.std**2)
            return _Update(belief, pulled(a_transposed(solved)), rest, solved, log_det)

    def _pulling(self, x0: Tensor, state: Tensor, law: PlainLaw, *, graph: bool) -> Map:
        """v -> J^T v; far above the data's scale J is not a network's, see `PlainLaw.trust`."""
        if self.model.smooth:
            return lambda v: pulled_back(x0, state, v, graph=graph)
        trust = law.trust()
        own, plain = expand(trust, x0), expand((1 - trust) * law.share / law.level.alpha, x0)
        if bool((trust < _NO_TRUST).all()):
            return lambda v: plain * v
        return lambda v: own * pulled_back(x0, state, v, graph=graph) + plain * v

    def _projected(self, belief: Prediction, y: Tensor, level: Any) -> Prediction:
        x0, noise = belief.x0, belief.noise
        seen, a, a_transposed = self.observation.linearised(x0, graph=False)
        change = a_transposed(solve_spread(lambda v: a(a_transposed(v)), y - seen, 0.0).value)
        return Prediction(x0 + change, noise - expand(level.alpha / level.sigma, x0) * change, self.sde, belief.t)

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        if "y" in (self.model.condition_names() or ()):
            raise InvalidInputError(
                f"got a {type(self.model).__name__} with a condition y of its own, but y is the measurement here: "
                "expected a model that calls its condition otherwise, such as label"
            )
        y = cond.get("y")
        if not isinstance(y, Tensor):
            raise InvalidInputError(f"got y={y!r}, expected what was seen of each sample, a tensor (B, m)")
        super().check_conditions(cond, batch)
        self.model.check_conditions(taken(self.model, {k: v for k, v in cond.items() if k != "y"}), batch)
        if self.event_shape is None or not batch:
            return
        like = torch.zeros(batch, *self.event_shape, dtype=torch.float64, device=y.device)
        values = self.observation.values(y, like)
        if not bool(torch.isfinite(values).all()):
            raise InvalidInputError("got NaN or infinity in y, expected finite numbers where something was seen")
        mean = 0.0 if self.data.mean is None else self.data.mean.to(like)
        offset = self.observation.in_data_units(values, like, mean)
        far = _FAR * (self.data.scale + self.observation.std)
        if offset is not None and self.data.std is not None and float(offset.square().mean().sqrt()) > far:
            raise InvalidInputError(
                f"got y from {float(values.min()):.3g} to {float(values.max()):.3g}, expected the units of the data, "
                f"whose standard deviation is {self.data.scale:.3g}: scale y as the data were scaled"
            )
