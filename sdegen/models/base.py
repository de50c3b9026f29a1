"""Where the belief comes from: ScoreModel, and the same belief along another process."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.cache import Recent, versions_of
from ..core.conditions import check_rows, words_of
from ..core.errors import InvalidInputError, shortened
from ..core.kinds import checked, kind_of, take
from ..core.returned import check_returned
from ..core.shapes import as_time, expand, scaled, time_of
from ..core.show import Shown
from ..processes import SDE, Crossing
from .facts import DataFacts, beside, same_statistic, statistic
from .prediction import FIRST, SECOND, Prediction, check_prediction, some_noise
from .space import LatentSpace

Statistic = float | Sequence[Any] | Tensor | None  # one number, or event-shaped
_STATISTICS = ("data_mean", "data_std", "data_covariance", "data_turn")
_BUFFER = {name: name.replace("data_", "known_") for name in _STATISTICS}
_FACTS = (*_STATISTICS, "event_shape", "smooth")


class ScoreModel(Shown, nn.Module):
    """A belief about the data along a process: (x, t, **cond) -> Prediction.

    Subclasses define `forward`; `sdegen.testing.check_model(model)` proves it. For a model made of another model
    subclass `Wrapped`, which passes on what is known of the data.

    Attributes:
        sde: the process it lives on.
        data: what is known of the data, one frozen value (see `DataFacts`). The attributes from here to `smooth` read
            it, and can be assigned.
        data_mean, data_std: the data's mean and standard deviation, scalar or event-shaped float64 tensors, None where
            unknown. `state_dict()` has them as `known_mean` and `known_std`, NaN where unknown, so that a model always
            has the same buffers. (An average of weights by another library that is updated before they are known keeps
            NaN.)
        data_covariance: the data's covariance, (d, d) over the flattened event, None where unknown.
        data_turn: the noise level sigma/alpha at which the best linear guess of x0 explains half of the data's variance
            (see `turning_level`), from which "auto" and "adams" choose their steps; None where unknown. Buffer
            `known_turn`, NaN where unknown.
        event_shape: the shape of one sample, None where unknown.
        smooth: whether the belief is an analytic function of time, as exact scores are. Networks are rougher in time
            and are solved better at lower orders: "auto" and "adams" choose orders and steps by it. A wrong value makes
            errors at few steps several times larger.
        conditioned: whether samples are distributed differently from the data that `data` describes, as those of a
            guided model are.
        needs_grid: why error control cannot be used, with the cure, as an error message says it; "" where it can.
        parametrization: what a network inside predicts, by which losses choose times and weights; None for others.
        advised_eta: the noise level `eta` of new samples on a fixed grid of "auto", where the user names none.
        space: the `LatentSpace` whose latents the data are; None: the data are what they are.
        solvers: those fitted to it (see `sdegen.fit_solver`), which `sdegen.save` keeps; "auto" takes one that was
            fitted for the request at hand.
    """

    smooth: bool = False
    conditioned: bool = False
    needs_grid: str = ""
    advised_eta: float = 0.0
    parametrization: Any = None
    solvers: tuple[Any, ...] = ()
    sde: SDE
    _space: tuple[LatentSpace, ...] = ()  # in a tuple: it moves with the model, but its weights are not the model's
    _expected = "a ScoreModel: wrap a network as Denoiser(net, sde), or use MixtureModel(mixture, sde)"
    event_shape: tuple[int, ...] | None
    _fixed: tuple[str, ...] = ()  # attributes of subclasses from which the statistics follow

    @checked
    def __init__(
        self,
        sde: SDE,
        *,
        data_mean: Statistic = None,
        data_std: Statistic = None,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.sde = sde
        self._known_facts = Recent(1)
        self.event_shape = None if event_shape is None else tuple(event_shape)
        for name in _STATISTICS:
            self.register_buffer(_BUFFER[name], None)
        self.data_covariance = self.data_turn = None
        self.set_statistics(data_mean, data_std)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What a user's `forward` returns is checked at every call."""
        super().__init_subclass__(**kwargs)
        check_returned(cls, "forward", check_prediction)

    @property
    def data(self) -> DataFacts:
        """What is known of the data."""
        held = tuple(map(self._buffers.__getitem__, _BUFFER.values()))
        state = (*map(id, held), *versions_of(held), self.event_shape, self.smooth)

        def read() -> tuple[DataFacts, Any]:
            mean, std, c, turn = (None if v is None or bool(torch.isnan(v).any()) else v for v in held)
            facts = DataFacts(mean, std, c, self.event_shape, self.smooth, turn)
            return facts, held  # kept, so that no other tensor gets the id of one of them

        return self._known_facts.of(state, read)[0]

    @property
    def space(self) -> LatentSpace | None:
        """The latent space that the data live in."""
        return self._space[0] if self._space else None

    @space.setter
    def space(self, value: LatentSpace | None) -> None: ...  # by __setattr__, as modules are

    def _check_space(self, space: Any) -> None:
        """Raise unless it can be the space of this model's data."""
        if space is None:
            return
        if not isinstance(space, LatentSpace):
            raise InvalidInputError(f"space: got a {type(space).__name__}, expected a LatentSpace")
        channels = self._channels()
        if None not in (channels, space.channels) and channels != space.channels:
            raise InvalidInputError(
                f"space: got one of {space.channels} channels, but the model is for samples of {channels}: build the "
                f"network for {space.channels}, or another autoencoder"
            )

    def _channels(self) -> int | None:
        """Of a sample; None where that is not known."""
        return self.event_shape[0] if self.event_shape else None

    data_mean: Any = property(lambda self: self.data.mean)
    data_std: Any = property(lambda self: self.data.std)
    data_covariance: Any = property(lambda self: self.data.covariance)
    data_turn: Any = property(lambda self: self.data.turn)

    def _facts(self):
        return {
            "sde": self.sde,
            "event_shape": self.event_shape,
            "mean": self.data.mean,
            "std": self.data.std,
            "smooth": self.smooth or None,
        }

    @abstractmethod
    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        """The belief at x (B, *event) and t, a scalar or (B,)."""

    def score(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        """grad_x log p_t(x), (B, *event)."""
        if not isinstance(t, Tensor) or t.ndim == 0:
            some_noise(self.sde.at(t).sigma)
        return self(x, t, **cond).score

    def on(self, sde: SDE) -> ScoreModel:
        """The same belief along another process, narrowed to the noise levels this model knows.

        A belief depends on x/alpha and sigma/alpha alone: at (x', t') of the other process ask this one at the time t
        of equal sigma/alpha and at x = x' alpha(t)/alpha'(t').

        Raises:
            InvalidInputError: the two processes share no noise levels.
        """
        _check_process(sde)
        return self if sde is self.sde else OnPath(self, sde)

    def decode(self, x: Tensor) -> Tensor:
        """What samples show: the data of latents, by `space`; without one the samples themselves.

        Args:
            x: (B, *event), samples of this model.

        Returns:
            what `space.decode` gives, or x.

        Raises:
            InvalidInputError: latents of another shape.
        """
        return x if self.space is None else self.space.decode(x)

    def set_statistics(self, mean: Statistic, std: Statistic) -> None:
        """Store the data's mean and standard deviation, scalars or event-shaped."""
        self.data_mean, self.data_std = mean, std

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "sde":
            _check_process(value)
        elif name in self._fixed and hasattr(self, name):
            kind = type(self).__name__
            raise InvalidInputError(f"{name} of a {kind} cannot be assigned: make another {kind}")
        elif name == "space":
            self._check_space(value)
            name, value = "_space", () if value is None else (value,)
        if name not in _STATISTICS:
            super().__setattr__(name, value)
            return
        tensor = statistic(name.removeprefix("data_"), value, self.event_shape)
        if tensor is None and name != "data_covariance":
            shape = () if name == "data_turn" else self.event_shape or ()
            tensor = torch.full(shape, math.nan, dtype=torch.float64, device="cpu")
        buffers = vars(self)["_buffers"]
        buffers[_BUFFER[name]] = None if tensor is None else beside(buffers[_BUFFER[name]], tensor)

    def _apply(self, fn: Any, recurse: bool = True) -> ScoreModel:
        """Move like any module, but keep what is known of the data, and in float64: half() changes no coefficient, and
        to_empty() forgets nothing."""
        buffers = vars(self)["_buffers"]
        known = {name: buffers.get(name) for name in _BUFFER.values()}
        super()._apply(fn, recurse)
        for name, value in known.items():
            if value is not None:
                buffers[name] = value if buffers[name].is_meta else beside(buffers[name], value)
        for space in self._space:
            space._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Statistics come from the dict where it has them; those of dicts that have none stay as they are."""
        buffers, missing, errors = vars(self)["_buffers"], rest[2], rest[4]
        names = [name for name in _BUFFER.values() if name in buffers]
        if self._fixed and not all(same_statistic(buffers[n], state_dict.get(prefix + n, buffers[n])) for n in names):
            errors.append(
                f"got statistics of other data, expected those of {prefix}{self._fixed[0]}: make another model"
            )
            return
        for name in names:
            if prefix + name in state_dict:  # of another shape, or None, before it was known
                buffers[name] = beside(buffers[name], state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *rest)
        missing[:] = [key for key in missing if key not in [prefix + name for name in names]]

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation as one number: the root mean square of `data_std`, 1 where unknown."""
        return self.data.scale

    def warm(self, ts: Tensor) -> None:
        """Compute the coefficients at all of these times in one go, before a fixed grid is walked."""
        self.sde.warm(ts)

    def evaluations(self, t: Tensor) -> int | Tensor:
        """How many evaluations of networks a call at t is, for each sample: a number, or (B,) where t is and they
        differ. What a model made of several models says here is what `Solution.nfe` counts."""
        return 1

    def breaks(self) -> tuple[float, ...]:
        """The noise levels sigma/alpha at which the belief jumps. Error control steps up to them and begins anew."""
        return ()

    def settled(self, x0: Tensor, /, **cond: Any) -> Tensor:
        """What samples become after the final denoising: themselves, unless some of their numbers are known."""
        return x0

    @property
    def asks_once(self) -> bool:
        """Whether every call is one evaluation, at all times."""
        return type(self).evaluations is ScoreModel.evaluations

    def condition_names(self) -> set[str] | None:
        """The words this model takes as conditions; None: any."""
        explicit, any_more = words_of(self.forward)
        return None if any_more else explicit

    def check_conditions(self, cond: Mapping[str, Any], batch: int) -> None:
        """Raise on a word that the model does not take, and on a tensor whose first axis is not the batch."""
        known = self.condition_names() if cond else None
        for name, value in cond.items():
            if name in ("self", "x", "t"):
                raise InvalidInputError(
                    f"condition {name!r} has the name of an argument that every model has, model(x, t): give it "
                    "another one"
                )
            if known is not None and name not in known:
                takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
                raise InvalidInputError(f"condition {shortened(name)} is unknown to the model: {takes}")
            check_rows(name, value, batch)


class Wrapped(ScoreModel):
    """A belief made of another one: what is known of the data, and which conditions it takes, are passed on.

    Subclass it and write `forward` (by default that of the model inside, `self.model`). Say in `super().__init__` what
    changes, and nothing else: `super().__init__(model, smooth=False)`. `sdegen.testing.check_wrapper(outer, inner)`
    proves the rest.

    A solver that was fitted to the model inside (`fit_solver`) is taken by a wrapper without a `forward` of its own
    alone: another belief may need other weights. Fit one to the wrapper.

    Args:
        model: the one inside.
        sde: another process to live on; None: its own.
        **facts: what the wrapper changes of `model.data`: mean, std, covariance, event_shape, smooth or turn.

    Raises:
        InvalidInputError: a model that is no ScoreModel, facts that cannot be known.

    Example:
        >>> import torch, sdegen as sg
        >>> class Moved(sg.Wrapped):  # the same data, moved by `by`
        ...     def __init__(self, model, by):
        ...         super().__init__(model, mean=model.data.mean + by)
        ...         self.by = by
        ...     def forward(self, x, t, **cond):
        ...         alpha = self.sde.alpha(t).to(x).reshape(-1, 1)  # t is a number, or one for each sample
        ...         belief = self.model(x - alpha * self.by, t, **cond)
        ...         return sg.Prediction.from_x0(x, belief.x0 + self.by, self.sde, t)
        >>> inner = sg.MixtureModel(sg.GaussianMixture([[-1.0], [1.0]], std=0.1), sg.VPSDE())
        >>> moved = sg.sample(Moved(inner, 5.0), 4, rtol=1e-3, seed=0).x
        >>> torch.allclose(moved, sg.sample(inner, 4, rtol=1e-3, seed=0).x + 5)
        True
    """

    @checked
    def __init__(self, model: ScoreModel, *, sde: SDE | None = None, **facts: Any) -> None:
        nn.Module.__init__(self)
        self.model = model
        if sde is not None:
            _check_process(sde)
        self._own_sde = sde
        stated = {name: getattr(type(self), name) for name in _FACTS}  # by a subclass, as `smooth = True`
        self._changed_facts = {**{n: v for n, v in stated.items() if not isinstance(v, property)}, **facts}
        self._known_facts = Recent(1, operator.is_)
        self.data  # noqa: B018 (checks the facts)

    def _facts(self):
        return {"model": self.model, "sde": None if self._own_sde is None else self.sde}

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        model = self.model if self._own_sde is None else self.model.on(self.sde)
        return model(x, t, **cond)

    @property
    def data(self) -> DataFacts:
        inner = self.model.data
        if not self._changed_facts:
            return inner
        return self._known_facts.of(inner, lambda: self._facts_from(inner))

    def _change_facts(self, changed: dict[str, Any]) -> None:
        self._changed_facts, self._known_facts = changed, Recent(1, operator.is_)

    def _facts_from(self, inner: DataFacts) -> DataFacts:
        """What is known, given what the model inside knows."""
        return inner.but(**self._changed_facts)

    @property
    def sde(self) -> SDE:  # type: ignore[override]
        return self.model.sde if self._own_sde is None else self._own_sde

    @property
    def solvers(self) -> tuple[Any, ...]:  # type: ignore[override]
        return self.model.solvers

    @solvers.setter
    def solvers(self, value: tuple[Any, ...]) -> None:
        self.model.solvers = value

    @property
    def space(self) -> LatentSpace | None:
        return self.model.space

    @space.setter
    def space(self, value: LatentSpace | None) -> None: ...

    event_shape = property(lambda self: self.data.event_shape)  # type: ignore[assignment]
    smooth = property(lambda self: self.data.smooth)  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FACTS:
            self._change_facts({**self._changed_facts, name: value})
        elif name == "sde":
            _check_process(value)
            self._own_sde = value
        elif name == "space":
            self.model.space = value
        else:
            if name == "model":
                take(value, "model", kind_of(ScoreModel))
            nn.Module.__setattr__(self, name, value)

    def warm(self, ts: Tensor) -> None:
        if self._own_sde is None:
            self.model.warm(ts)
        else:
            super().warm(ts)  # which times of its own process the model is asked at, only `forward` knows

    def evaluations(self, t: Tensor) -> int | Tensor:
        model = self.model if self._own_sde is None or self.model.asks_once else self.model.on(self.sde)
        return model.evaluations(t)

    conditioned = property(lambda self: self.model.conditioned)  # type: ignore[assignment]
    needs_grid = property(lambda self: self.model.needs_grid)  # type: ignore[assignment]
    advised_eta = property(lambda self: self.model.advised_eta)  # type: ignore[assignment]
    parametrization = property(lambda self: self.model.parametrization)

    def breaks(self) -> tuple[float, ...]:
        return self.model.breaks()

    def settled(self, x0: Tensor, /, **cond: Any) -> Tensor:
        return self.model.settled(x0, **cond)

    @property
    def asks_once(self) -> bool:
        return type(self).evaluations is Wrapped.evaluations and self.model.asks_once

    def condition_names(self) -> set[str] | None:
        """The words of the wrapper's own `forward`, and where that takes **cond those of the model inside."""
        explicit, any_more = words_of(self.forward)
        if not any_more:
            return explicit
        inner = self.model.condition_names()
        return None if inner is None else explicit | inner


class OnPath(Wrapped):
    """A model's belief along another process, about x0 - centre: see `ScoreModel.on`.

    At (x', t') the model is asked at the time t of equal sigma/alpha and at x = r x' + alpha centre,
    r = alpha(t)/alpha'(t'). With the data's mean for a centre, solvers that are exact for centred Gaussian data become
    exact for any.

    Args:
        model: whose belief.
        sde: the other process; it is narrowed to the noise levels that the model knows.
        centre: event-shaped or a scalar; None: 0.

    Raises:
        InvalidInputError: the two processes share no noise level.
    """

    def __init__(self, model: ScoreModel, sde: SDE, centre: Tensor | None = None) -> None:
        self._shared: tuple[SDE, SDE | None, Crossing] | None = None  # the model's process, ours, and between them
        self._centred: dict[str, Tensor] | None = None  # what the centre changes
        super().__init__(model, sde=sde)
        if centre is not None:
            self._changed_facts = self._centred = {"mean": torch.zeros_like(centre)}
        self.register_buffer("centre", centre, persistent=False)
        self.sde  # noqa: B018 (checks that levels are shared)

    @property
    def sde(self) -> SDE:  # type: ignore[override]
        """The other process, narrowed to what the model knows now: its own process may be assigned later."""
        return self.crossing.sde

    @property
    def crossing(self) -> Crossing:
        """Between the other process and the model's."""
        known, own, shared = vars(self)["_modules"]["model"].sde, self._own_sde, self._shared
        if shared is None or shared[0] is not known or shared[1] is not own:
            shared = self._shared = known, own, Crossing.between(own or known, known)
        return shared[2]

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Prediction:
        t, crossing = time_of(t, x), self.crossing
        there, ratio, alpha = crossing.to_known(t)
        if isinstance(there, Tensor):
            ratio, alpha = expand(ratio, x), expand(alpha, x)
        else:
            there = torch.scalar_tensor(there, dtype=torch.float64, device="cpu")
        x, centre = scaled(ratio, x), self._buffers["centre"]
        if centre is None:
            return vars(self)["_modules"]["model"](x, there, **cond).on(crossing.sde, t)
        centre = centre.to(x)
        belief = self.model(x + alpha * centre, there, **cond)
        return Prediction.spanned(belief.x0 - centre, belief.noise, FIRST, SECOND, crossing.sde, t)

    def _facts_from(self, inner):
        as_made = self._changed_facts is self._centred and self.centre is inner.mean
        return inner.centred if as_made else super()._facts_from(inner)

    def evaluations(self, t):
        return self.model.evaluations(as_time(self.crossing.to_known(t)[0]))

    @property
    def asks_once(self) -> bool:
        return self.model.asks_once

    def on(self, sde):
        return self.model if sde is self.model.sde and self.centre is None else super().on(sde)

    def warm(self, ts):
        self.model.warm(self.crossing.warm(ts))


def _check_process(sde: Any) -> None:
    if not isinstance(sde, SDE):  # every view of a model asks
        take(sde, "sde", kind_of(SDE))
