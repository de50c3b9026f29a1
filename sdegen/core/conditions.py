"""Conditions of a network, by name: tensors are per sample, also inside dicts and tuples; anything else is shared."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from .errors import InvalidInputError, shortened

# Other libraries' words for options, without underscores.
_OTHER_WORDS = {
    "steps": "epochs nepochs numepochs maxepochs nsteps numsteps maxiter iterations niter numinferencesteps",
    "lr": "learningrate",
    "batch_size": "bs batch trainbatchsize",
    "weight_decay": "wd",
    "clip": "gradclip gradientclip maxgradnorm gradientclipval",
    "ema": "emadecay",
    "loss": "lossfn criterion",
    "accumulate": "gradientaccumulationsteps accumulategradbatches",
    "precision": "mixedprecision amp",
    "seed": "generator rng randomstate",
    "solver": "method sampler",
    "rtol": "tol",
    "t_span": "trange tspan",
    "progress": "verbose progressbar",
}

_LONGEST = 1000  # characters of a name, with those of what it is in


def merged(
    cond: Mapping[str, Any],
    verb: Callable[..., Any] | None = None,
    known: set[str] | Callable[[], set[str] | None] | None = None,
) -> dict[str, Any]:
    """The conditions in a verb's keywords, those in a mapping `cond={...}` among them.

    `cond=` is for conditions whose names are options of the verb. (What is under it and no mapping is a condition that
    is called cond.)

    Args:
        cond: the keywords that are no options.
        verb: whose, if near misses of its options are to be refused; they are read from its signature.
        known: the words that the network takes, or what gives them, which is asked where there are keywords only; None:
            any.

    Raises:
        InvalidInputError: a name twice, a name that is no word, or a keyword that is nearly an option, or what other
            libraries call one, and not known to be a condition.
    """
    if not cond:
        return {}
    given, known = dict(cond), known() if callable(known) else known
    inner = given.pop("cond") if isinstance(given.get("cond"), Mapping) else {}
    for name in inner:
        if not isinstance(name, str):
            raise InvalidInputError(f"cond={{{name!r}: ...}}: expected names of conditions, as {{'label': y}}")
        if name in given:
            raise InvalidInputError(f"condition {name!r} is given twice, by name and in cond={{...}}: leave one out")
    for name in given.keys() - (known or set()) - {"cond"}:
        if verb is not None and (meant := nearest_option(name, verb)):
            raise InvalidInputError(
                f"{name}= is no option of {verb.__name__}: {meant}= is one; if the network has a condition of that "
                f"name, pass cond={{{name!r}: ...}}"
            )
    return {**given, **inner}


def gathered(cond: Any, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a verb that names `cond` in its signature, as `merged` takes them."""
    return dict(conditions) if cond is None else {**conditions, "cond": cond}


def nearest_option(name: str, verb: Callable[..., Any]) -> str | None:
    """The option of a verb that a word is nearly, or that other libraries call so; None where there is none."""
    plain, options = name.replace("_", "").lower(), _options(verb)
    for option in options:
        if plain in (option.replace("_", ""), *_OTHER_WORDS.get(option, "").split()):
            return option
    near = [] if len(name) > _LONGEST else difflib.get_close_matches(name, options, n=1, cutoff=0.83)
    return near[0] if near else None


@cache
def _options(verb: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(p.name for p in inspect.signature(verb).parameters.values() if p.kind is p.KEYWORD_ONLY)


def rows_of(cond: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    """The conditions of the samples at positions `rows`."""
    return mapped(cond, lambda v: v[rows.to(v.device) if isinstance(rows, Tensor) else rows])


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A condition, or all of them, with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, tuple):
        parts = [mapped(inner, change) for inner in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a condition, with the words that name it."""
    return ((words, part) for words, part in _parts(value, name) if isinstance(part, Tensor))


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What is in a condition and no dict or tuple itself, with the words that name it."""
    if len(name) > _LONGEST:
        raise InvalidInputError(f"condition {shortened(name)}: got a longer name or more levels than a condition has")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _parts(inner, f"{name}[{key!r}]")
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from _parts(inner, f"{name}[{i}]")
    else:
        yield name, value


def check_rows(name: str, value: Any, batch: int) -> None:
    """Raise unless every tensor in a condition has a row for each sample, and nothing else is of many samples."""
    for words, part in _parts(value, repr(name)):
        if isinstance(part, Tensor):
            if part.ndim == 0 or part.shape[0] != batch:
                raise InvalidInputError(
                    f"condition {words} has shape {tuple(part.shape)} for {batch} samples: tensors are per sample, "
                    f"({batch}, ...); pass a Python number for a value that all share"
                )
        elif isinstance(part, list | range | set | Iterator) or getattr(part, "ndim", 0):
            raise InvalidInputError(
                f"condition {words} is a {type(part).__name__}: pass a tensor with a row for each sample, such as "
                "torch.tensor(values), or a tuple for a value that all share"
            )


def words_of(function: Any) -> tuple[set[str], bool]:
    """The keywords a forward function takes beyond (x, t), and whether it takes any others."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return set(), True
    named, any_more = set(), False
    for place, p in enumerate(parameters):
        any_more = any_more or p.kind is p.VAR_KEYWORD
        if place >= 2 and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            named.add(p.name)
    return named, any_more
