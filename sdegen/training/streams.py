"""Data that can only be iterated: a generator, a stream, a DataLoader of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..core.conditions import tensors_of
from ..core.errors import InvalidInputError, warn
from ..core.kinds import told
from ..core.shapes import check_state
from ..core.team import place_here
from .batches import CPU, MEASURED, Batch, Batches, Share, whole, with_tuples
from .draws import derived_seed, own_draws, seed_draws
from .rows import PLAIN, Rows


class Stream(Batches):
    """Passes over an iterable of batches; one that can be iterated once must last for all steps.

    A pass begins with the global generators, and a DataLoader's own, seeded by (seed, e), so that it shuffles alike
    when a run goes on. A stream that has `state_dict` and `load_state_dict` says where it is, and goes on there; of
    others the batches before the first step are loaded and left out, and the last of them is compared with the one
    that the run has seen.

    Args:
        data: the iterable.
        cond: conditions that all samples share.
        divided: whether each process iterates over rows of its own, of batches of one size.
    """

    def __init__(self, data: Iterable, cond: Mapping[str, Any], rows: Rows = PLAIN, *, divided: bool = False) -> None:
        self.rows = rows
        refuse_rows(cond)
        self.data, self.cond, self.divided = data, dict(cond), divided
        self._counting = _counts_itself(data)
        self._start = self._counting.state_dict() if self._counting is not None else None
        self._moved = False  # whether the next pass has to be told to begin at the start
        self._at: tuple[int, int, Any] | None = None  # step, pass and state to go on from
        self._e = 0  # the pass that is under way
        self._last: Tensor | None = None  # x0 of the batch that was given last
        self._seen: tuple[int, str] | None = None  # a step to go on from, and the digest of the batch before it
        if not isinstance(data, Iterable):
            raise InvalidInputError(f"got data={told(data)}, expected a tensor, an array, a Dataset or batches of x0")
        with own_draws():
            iterator = iter(data)
            self._once = iterator if iterator is data else None
            seed_draws(0)
            first = next(self._pass(0, 0), None)
        if first is None:
            raise InvalidInputError("data is empty: expected at least one batch")
        self.first, self.size = self._of_all(first), size_of(data)
        check_state(first.x0, name="data")

    def from_step(self, step: int, seed: int, share: Share = whole, device: torch.device = CPU) -> Iterator[Batch]:
        known = self._at is not None and self._at[0] == step
        for n, batch in enumerate(self._all(seed, device, step if known else 0), step if known else 0):
            self._last = batch.x0
            if n == step - 1:
                self._compare(step)
            if n >= step:
                yield self._of_all(batch) if self.divided else batch.rows(*share(batch.total))

    def _of_all(self, batch: Batch) -> Batch:
        """A process's batch among those of the others, which follow each other in the order of ranks."""
        if not self.divided:
            return batch
        rank, size = place_here()
        rows = len(batch.x0)
        if hasattr(self, "first") and rows != len(self.first.x0):
            raise InvalidInputError(
                f"data: got a batch of {rows} samples from what each process loads by itself, expected "
                f"{len(self.first.x0)} as before: pass drop_last=True to the DataLoader"
            )
        return Batch(batch.x0, batch.cond, None, rank * rows, size * rows)

    def state(self) -> Any:
        if self._counting is not None:
            return {"pass": self._e, "inner": self._counting.state_dict()}
        return {"pass": self._e, "inner": None, "seen": None if self._last is None else _digest(self._last)}

    def go_on(self, step: int, state: Any) -> None:
        if state is None:
            return
        if state["inner"] is not None and self._counting is not None:
            self._at = (step, int(state["pass"]), state["inner"])
        elif state.get("seen") is not None:
            self._seen = (step, state["seen"])

    def _compare(self, step: int) -> None:
        """Warn if the batch before a step is not the one that the run made that step after."""
        if self._last is not None and self._seen not in (None, (step, _digest(self._last))):
            warn(
                "data: the stream gives other batches than when this run was stopped, which goes on with those after "
                f"the first {step}: give what shuffles it a seed of its own, or a state_dict and load_state_dict",
                UserWarning,
            )

    def _all(self, seed: int, device: torch.device, n: int) -> Iterator[Batch]:
        if self._once is not None:
            yield self.first
            yield from _seeded(self._pass(0, seed), seed, 1, device)
            raise InvalidInputError(
                "data ended before the last step: pass what can be iterated again, such as a DataLoader, or fewer steps"
            )
        _, self._e, inside = self._at if n and self._at is not None else (0, 0, None)
        while True:
            for batch in _seeded(self._pass(self._e, seed, inside), seed, n, device):
                yield batch
                n += 1
            self._e, inside = self._e + 1, None

    def measured(self) -> Iterable[Tensor]:
        n = 0
        for batch in [self.first] if self._once is not None else self._pass(0, 0):
            yield batch.x0
            n += len(batch.x0)
            if n >= MEASURED:
                return

    def some(self) -> Batch | None:
        if self._once is not None:
            return None
        return next(self._pass(0, 0), None)

    def _pass(self, e: int, seed: int, inside: Any = None) -> Iterator[Batch]:
        if self._once is not None:
            yield from map(self._batch, self._once)
            return
        start_pass(self.data, e)
        if self._counting is not None and (inside is not None or self._moved):
            self._counting.load_state_dict(self._start if inside is None else inside)
            self._moved = True
        with own_draws():
            own = derived_seed(seed, "pass", e)
            seed_draws(own)
            for generator in generators(self.data):
                generator.manual_seed(own)
            iterator = iter(self.data)
            first = list(islice(iterator, 1))
        yield from map(self._batch, first)
        yield from map(self._batch, iterator)

    def _batch(self, item: Any) -> Batch:
        x0, own = self.rows.parted(item)
        x0 = x0 if isinstance(x0, Tensor) else torch.as_tensor(x0, device="cpu")
        return Batch(x0, {**with_tuples(own), **self.cond}, None, 0, len(x0) if x0.ndim else 0)


def refuse_rows(cond: Mapping[str, Any]) -> None:
    """Raise on conditions with rows, which nobody can match with samples that come by themselves."""
    for name, value in cond.items():
        for words, _ in tensors_of(value, repr(name)):
            raise InvalidInputError(
                f"condition {words} is a tensor, but rows cannot be matched with data that are iterated: let "
                f"them give (x0, {{{name!r}: ...}})"
            )


def start_pass(loader: Any, e: int) -> None:
    """Tell samplers and sets that shuffle by the number of the pass."""
    for thing in (loader, getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
        if callable(tell := getattr(thing, "set_epoch", None)):
            tell(e)


def _counts_itself(data: Any) -> Any:
    """The part of a stream that says where it is: its own, or the set inside a DataLoader without workers."""
    inside = [data.dataset] if isinstance(data, DataLoader) and not data.num_workers else []
    for thing in (data, *inside):
        if callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None)):
            return None if _has_buffer(getattr(thing, "_ex_iterable", None)) else thing
    return None


def _has_buffer(part: Any) -> bool:
    """Whether a stream of Hugging Face shuffles through a buffer, which its state leaves out."""
    inside = [getattr(part, "ex_iterable", None), *getattr(part, "ex_iterables", ())]
    return hasattr(part, "buffer_size") or any(_has_buffer(inner) for inner in inside if inner is not None)


def _digest(x0: Tensor) -> str:
    return hashlib.sha256(x0.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _seeded(passed: Iterator[Batch], seed: int, n: int, device: torch.device) -> Iterator[Batch]:
    """The same batches, each loaded after the global generators were seeded by its number, from n on."""
    while True:
        seed_draws(derived_seed(seed, "data", n), device)
        batch = next(passed, None)
        if batch is None:
            return
        yield batch
        n += 1


def generators(loader: Any) -> list[torch.Generator]:
    """Those that a DataLoader shuffles by, where it was given some."""
    own = [getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None)]
    return [generator for generator in own if isinstance(generator, torch.Generator)]


def size_of(loader: Any) -> int | None:
    """How many samples a DataLoader has."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return None
