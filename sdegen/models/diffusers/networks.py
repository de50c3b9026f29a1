"""A network of diffusers called as net(x, t, **cond)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.errors import InvalidInputError
from ...nets.conditions import INTEGERS
from ..networks import SaysConditions, unwrapped
from .forms import FORMS, Condition, Config, Form

_NOT_CONDITIONS = ("timestep", "return_dict")


class Network(SaysConditions):
    """A network of diffusers called as net(x, t, **cond); conditions keep the names that they have there.

    Args:
        unet: the network, wrapped or not.
        channels: of a sample.
        out_channels: of what is passed on: as many, or twice as many where the second half is a variance.

    Attributes:
        unet: the network itself. (Its name in files, whatever its class.)
        patch: pixels that become one token, side by side.
        event_shape: of a sample, None where any size will do.
    """

    time_dtype = torch.float32  # timesteps up to 999 have no place in half precision

    def __init__(self, unet: nn.Module, channels: int, out_channels: int) -> None:
        super().__init__()
        inner: Any = unwrapped(unet)
        self.unet, self.channels, self.out_channels = unet, channels, out_channels
        self._class, form = form_of(inner)
        self._words = list(inspect.signature(inner.forward).parameters)
        self._conditions = {k: c for k, c in form.conditions(inner.config).items() if k in self._words}
        extra = _in_channels(inner.config) // form.patch**2 - channels
        if extra and "in_channels" in inner.config:
            self._conditions["image"] = Condition((extra, None, None))
        self._always, self._time, self.patch = form.always(inner.config), form.time(inner.config), form.patch
        self.event_shape = form.event(inner.config, channels)

    @property
    def classes(self) -> int | None:
        """How many numbers `class_labels` may be, None where it is no such condition."""
        labels = self._conditions.get("class_labels")
        return labels.below if isinstance(labels, Condition) else None

    def condition_names(self) -> set[str]:
        return set(self._conditions)

    def check_conditions(self, batch: int, event_shape: tuple[int, ...] | None, cond: Mapping[str, Any]) -> None:
        """Refuse conditions that are lacking or do not fit."""
        self._check_lacking(cond)
        for name, value in cond.items():
            asked = self._conditions[name]
            if isinstance(asked, dict):
                _check_dict(name, value, asked, batch)
                continue
            if name == "image" and event_shape is not None:
                asked = Condition((asked.shape[0], *event_shape[1:]))
            _check(name, value, asked, batch)
        tokens, mask = (cond.get(name) for name in ("encoder_hidden_states", "encoder_attention_mask"))
        if tokens is not None and mask is not None and tokens.shape[1] != mask.shape[1]:
            raise InvalidInputError(
                f"encoder_attention_mask: got {mask.shape[1]} tokens, expected those of encoder_hidden_states, "
                f"{tokens.shape[1]}"
            )
        if "added_cond_kwargs" in cond:
            _check_added(unwrapped(self.unet).config, cond["added_cond_kwargs"])

    def _check_lacking(self, cond: Mapping[str, Any]) -> None:
        for name, asked in self._conditions.items():
            if cond.get(name) is None and (isinstance(asked, dict) or asked.required):
                raise InvalidInputError(f"got no {name}=, expected {_told(asked)}: this {self._class} is told it")

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self._check_lacking(cond)
        cond = {name: self._as_told(value, self._conditions.get(name), x) for name, value in cond.items()}
        if (image := cond.pop("image", None)) is not None:
            x = torch.cat([x, image], 1)
        for name in ("encoder_hidden_states", "class_labels"):
            if name in self._words and name not in cond:
                cond[name] = None
        time = "timestep" if "timestep" in self._words else self._words[1]
        words = {self._words[0]: x, time: t * self._time, "return_dict": False, **self._always, **cond}
        if self.patch == 1:
            return self.unet(**words)[0][:, : self.out_channels]
        return _as_tokens(self.unet, self._words[0], words, self.patch)

    def _as_told(self, value: Any, asked: Condition | dict[str, Condition] | None, x: Tensor) -> Any:
        """A condition as the network gets it: rows for what all share, and in the network's dtype."""
        if isinstance(asked, dict):
            return {name: self._as_told(inner, asked.get(name), x) for name, inner in value.items()}
        if isinstance(value, Real):
            return torch.full((len(x),), value, device=x.device)  # type: ignore[arg-type]
        if asked is not None and not asked.exact and isinstance(value, Tensor) and value.is_floating_point():
            return value.to(x.dtype)
        return value


def is_network(net: Any) -> bool:
    """Whether this is a network of diffusers as `from_diffusers` takes it, and not yet what a model calls."""
    return _name_of(unwrapped(net)) is not None


def as_network(net: Any, *, learned_variance: bool, channels: int | None = None) -> Network:
    """A network of diffusers called as net(x, t, **cond).

    Args:
        net: the network, wrapped or not.
        learned_variance: whether its second half of channels, if there is one, is passed on.
        channels: of a sample; None: as many as it takes, and the half of what it returns where that is twice as many.

    Raises:
        InvalidInputError: a network that cannot be called so.
    """
    inner = unwrapped(net)
    _, form = form_of(inner)
    taken, out = _in_channels(inner.config) // form.patch**2, _out_channels(inner.config) // form.patch**2
    if channels is None:
        channels = out // 2 if out == 2 * taken else out
    if channels > taken or out not in (channels, 2 * channels):
        raise InvalidInputError(
            f"the {type(inner).__name__} takes {taken} channels and returns {out}: expected as many, twice as many "
            "with a learned variance, or fewer where part of its input is a condition"
        )
    return Network(net, channels, 2 * channels if learned_variance else channels)


def form_of(net: Any) -> tuple[str, Form]:
    """The class of diffusers that a network is of, and how it is called.

    Raises:
        InvalidInputError: it is of none that is sampled here.
    """
    own = type(net).__name__
    name = _name_of(net)
    if name is None and isinstance(net, nn.Module) and type(net).__module__.startswith("diffusers."):
        raise InvalidInputError(
            f"got {own}, expected a network that is called in a way known here: {', '.join(FORMS)}. One of another "
            "class is wrapped in a module net(x, t, **cond), and Denoiser(net, sde, parametrization=...) is told what "
            "it predicts"
        )
    if name is None:
        raise InvalidInputError(f"got {own}, expected a network of diffusers, such as UNet2DModel, or its folder")
    form, config = FORMS[name], cast(Config, net.config)
    if why := form.refusal(config):
        raise InvalidInputError(f"this {own} cannot be sampled: {why}")
    _check_signature(net, form)
    return name, form


def _name_of(net: Any) -> str | None:
    """The class in `FORMS`; a network of one's own that is called as a UNet2DModel is one."""
    config = getattr(net, "config", None)
    if not isinstance(net, nn.Module) or not isinstance(config, Mapping):
        return None
    for cls in type(net).__mro__:
        if cls.__name__ in FORMS:
            return cls.__name__
    if type(net).__module__.startswith("diffusers.") or not {"in_channels", "out_channels"} <= config.keys():
        return None
    words = list(inspect.signature(net.forward).parameters)[2:]
    return "UNet2DModel" if set(words) <= {"class_labels", "return_dict"} else None


def _check_signature(net: Any, form: Form) -> None:
    """Raise where a release of diffusers calls the network in another way than is known here."""
    parameters = inspect.signature(net.forward).parameters
    known = {*form.conditions(net.config), *_NOT_CONDITIONS, next(iter(parameters)), "encoder_hidden_states"}
    new = [p.name for p in parameters.values() if p.default is p.empty and p.name not in known]
    new = [name for name in new if parameters[name].kind not in (2, 4)]  # *args, **kwargs
    if new and "timestep" in parameters:
        raise InvalidInputError(
            f"this {type(net).__name__} takes {', '.join(new)}, which is not known here: wrap it in a module "
            "net(x, t, **cond) and use Denoiser(net, sde, parametrization=...)"
        )


def _in_channels(config: Mapping[str, Any]) -> int:
    return config.get("in_channels", config.get("embedding_dim", 0))


def _out_channels(config: Mapping[str, Any]) -> int:
    return config.get("out_channels") or _in_channels(config)


# ---- what conditions look like


def _told(asked: Condition | dict[str, Condition]) -> str:
    """The shape of a condition, in words."""
    if isinstance(asked, dict):
        return "a dict of " + ", ".join(f"{name} {_told(inner)}" for name, inner in asked.items())
    if asked.below is not None:
        return f"(B,) whole numbers from 0 to {asked.below - 1}, or one for all"
    sizes = ["B", *(letter if n is None else str(n) for n, letter in zip(asked.shape, "TCHW", strict=False))]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def _check_dict(name: str, value: Any, asked: dict[str, Condition], batch: int) -> None:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name}: got a {type(value).__name__}, expected {_told(asked)}")
    for key, condition in asked.items():
        if value.get(key) is None and condition.required:
            raise InvalidInputError(f"{name}: got no {key!r}, expected {_told(asked)}")
    for key, inner in value.items():
        if key in asked and inner is not None:
            _check(f"{name}[{key!r}]", inner, asked[key], batch)


def _check(name: str, value: Any, asked: Condition, batch: int) -> None:
    if value is None and not asked.required:
        return
    shared = isinstance(value, Real) and not isinstance(value, bool) and asked.shape == ()
    if not shared and not isinstance(value, Tensor):
        raise InvalidInputError(f"{name}: got {value!r:.60}, expected {_told(asked)}")
    if isinstance(value, Tensor):
        fits = value.ndim == 1 + len(asked.shape) and len(value) == batch
        if not fits or any(n not in (None, own) for n, own in zip(asked.shape, value.shape[1:], strict=True)):
            raise InvalidInputError(f"{name}: got shape {tuple(value.shape)}, expected {_told(asked)} with B = {batch}")
    if asked.below is not None:
        _check_labels(name, value, asked.below)


def _check_labels(name: str, value: Any, below: int) -> None:
    """The range is not asked for on a GPU: it would wait."""
    if isinstance(value, Tensor):
        if value.dtype not in INTEGERS:
            raise InvalidInputError(f"{name}: got {value.dtype}, expected whole numbers from 0 to {below - 1}")
        if value.device.type != "cpu" or not len(value):
            return
        low, high = int(value.min()), int(value.max())
    else:
        low = high = value
    if not (low == int(low) and low >= 0 and high < below):
        raise InvalidInputError(f"{name}: got {low} to {high}, expected whole numbers from 0 to {below - 1}")


def _check_added(config: Mapping[str, Any], added: Mapping[str, Any]) -> None:
    """SDXL's sizes and pooled text are joined: together they have the width of a layer."""
    width, each = (config.get(k) for k in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
    if config.get("addition_embed_type") != "text_time" or width is None or each is None:
        return
    text, sizes = added["text_embeds"].shape[1], added["time_ids"].shape[1]
    if text + sizes * each != width:
        raise InvalidInputError(
            f"added_cond_kwargs: got text_embeds of width {text} and {sizes} time_ids, expected widths with "
            f"text + {each} sizes = {width}, such as {width - 6 * each} and 6"
        )


# ---- Flux


def _as_tokens(net: nn.Module, name: str, words: dict[str, Any], patch: int) -> Tensor:
    """A network that takes a picture as a row of tokens, patch x patch pixels each, with their places."""
    x = words.pop(name)
    batch, channels, height, width = x.shape
    rows, columns = height // patch, width // patch
    if (rows * patch, columns * patch) != (height, width):
        raise InvalidInputError(f"got samples of {height} x {width}, expected multiples of {patch}")
    tokens = x.view(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    tokens = tokens.reshape(batch, rows * columns, channels * patch**2)
    places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
    places[..., 1] += torch.arange(rows, device=x.device)[:, None]
    places[..., 2] += torch.arange(columns, device=x.device)
    text = torch.zeros(words["encoder_hidden_states"].shape[1], 3, device=x.device, dtype=x.dtype)
    out = net(**{name: tokens}, img_ids=places.flatten(0, 1), txt_ids=text, **words)[0]
    out = out.view(batch, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(batch, channels, height, width)
