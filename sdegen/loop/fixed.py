"""A fixed grid: all samples take the same steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.shapes import all_finite, finite_rows
from ..noise.white import Noise
from ..terms import Counted
from .breaks import pieces
from .ending import Reached
from .modes import silent
from .plan import Plan
from .record import SharedPath
from .solution import ARRIVED, NON_FINITE


def fixed(plan: Plan, term: Counted, x: Tensor, noise: Noise, report: Callable[[float], None]) -> Reached:
    """Walk the grid; a sample that stops being finite is noted with the step it happened in."""
    solver, ts = plan.solver, plan.times
    steps, done = len(ts) - 1, 0
    path, watch = SharedPath(plan.save, ts[0], x), _Watch(x)
    for part in pieces(plan, term):
        term.warm(part)
        ahead = steps - done - (len(part) - 1) + plan.denoise
        state = solver.begin(term, x, part, ahead=ahead, rests=plan.rests and not done) if steps else None
        times = list(part)
        for t, t_next in zip(times, times[1:], strict=False):
            step = solver.step(term, x, t, t_next, state, noise)
            done += 1
            if path.whole or done == steps:
                path.add(t, t_next, x, step)
            x, state = step.x, step.state
            del step  # and all that it was made of, before the next one needs memory
            watch.add(x)
            if report is not silent:
                report(done / (steps + plan.denoise))
    settled = solver.finish(term, x, ts[-1], noise)
    if settled is not x:
        x = settled
        path.end_at(x)
        watch.add(x)
    accepted = torch.full(x.shape[:1], steps, dtype=torch.int64, device="cpu")
    t, status = ts[-1].repeat(len(accepted)), torch.full_like(accepted, ARRIVED)
    bad = watch.first_bad()
    if bad is not None:
        failed = bad >= 0
        accepted = torch.where(failed, bad.clamp_max(steps), steps)
        t, status = torch.where(failed, ts[bad.clamp(0, steps)], t), status.masked_fill_(failed, NON_FINITE)
    nfe, rejected = term.counts(accepted), torch.zeros_like(accepted)
    return Reached(x=x, path=path, t=t, status=status, nfe=nfe, accepted=accepted, rejected=rejected)


class _Watch:
    """Notes the first step at which each sample stopped being finite, without waiting for a device at every step.

    On the CPU a look at the whole batch is the cheapest there is, and every second state gets one. It is made of the
    state before, which the loop holds until then and which is looked at where this one is not finite.
    """

    def __init__(self, x: Tensor) -> None:
        self._bad: Tensor | None = None  # (B,) the first bad step, or -1; None: no look was needed at single samples
        self._on_cpu = x.device.type == "cpu"
        self._before: Tensor | None = None  # the state that waits for the next one
        self._good: list[Tensor] = []
        self._steps = 0

    def add(self, x: Tensor) -> None:
        if not self._on_cpu:
            self._note(x)
        elif self._before is None:
            self._before = x
        else:
            before, self._before = self._before, None
            if all_finite(x):
                self._steps += 2
            else:
                self._note(before, x)

    def _note(self, *states: Tensor) -> None:
        self._good += [finite_rows(x) for x in states]
        if self._on_cpu or len(self._good) == 64:
            self._flush()

    def _flush(self) -> None:
        if self._good:
            bad = ~torch.stack(self._good)
            step = torch.where(bad.any(0), bad.int().argmax(0) + self._steps, -1)
            self._bad = step if self._bad is None else torch.where(self._bad >= 0, self._bad, step)
            self._steps += len(self._good)
            self._good = []

    def first_bad(self) -> Tensor | None:
        """(B,) on the CPU: the first bad step, or -1; None: there is none."""
        if self._before is not None:
            self.add(self._before)  # beside itself
        self._flush()
        return None if self._bad is None else self._bad.cpu()
