"""How every loop ends: the final denoising, what became of each sample, and the Solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.shapes import all_finite, finite_rows
from ..solvers.advice import Advice, advise
from ..solvers.tolerance import effective_variance
from ..terms import Counted
from .plan import Plan
from .record import OwnPath, SharedPath
from .solution import ARRIVED, NON_FINITE, Solution, describe

_ROUGH = "chosen for smooth=False"


@dataclass(slots=True, eq=False)
class Reached:
    """Where a loop has brought the samples, before the final denoising; all but x and the path on the CPU.

    Attributes:
        x: (B, *event).
        path: what was saved on the way.
        t: (B,) the times they reached.
        status: (B,) as in Solution.
        nfe, accepted, rejected: (B,) counts.
    """

    x: Tensor
    path: SharedPath | OwnPath
    t: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


def finite(*values: Tensor) -> Tensor:
    """(B,) which samples are finite in all of these."""
    rows = [finite_rows(v) for v in values]
    return rows[0] if len(rows) == 1 else torch.stack(rows).all(0)


def finished(plan: Plan, term: Counted, reached: Reached, seed: int | None, places: int | None = None) -> Solution:
    """The final denoising, if the plan has one, and the Solution."""
    if plan.denoise:
        _denoise(plan, term, reached, min(places or len(reached.x), len(reached.x)))
    ts, xs = reached.path.saved(0.0 if plan.denoise else plan.end, reached.x)
    return _solution(plan, term, reached, ts, xs, seed)


def _denoise(plan: Plan, term: Counted, reached: Reached, places: int) -> None:
    """x0 of the samples that arrived, in calls of so many."""
    x, arrived = reached.x, reached.status == ARRIVED
    before, everyone = x, bool(arrived.all())
    if everyone and len(x) <= places:
        x = term.denoised(x, plan.times[-1])
    elif len(rows := arrived.to(x.device).nonzero().flatten()):
        parts = [term.denoised(x[some], plan.times[-1], some) for some in rows.split(places)]
        x = x.index_copy(0, rows, torch.cat(parts))
    made = term.evaluations(plan.times[-1])
    if everyone and all_finite(x):
        reached.nfe += made
        reached.accepted += 1
        reached.t.zero_()
    else:
        good = arrived & finite(x).cpu()
        failed = arrived ^ good
        reached.nfe += arrived * made
        reached.accepted += good
        reached.t.masked_fill_(good, 0.0).masked_fill_(failed, plan.end)
        reached.status.masked_fill_(failed, NON_FINITE)
    reached.path.denoised(before, plan.times[-1], x)
    reached.x = x


def nothing(plan: Plan, term: Counted, x: Tensor, seed: int | None) -> Solution:
    """An empty batch gives an empty result."""
    none, t = torch.zeros(0, dtype=torch.int64, device="cpu"), torch.zeros(0, dtype=torch.float64, device="cpu")
    if isinstance(plan.save, Tensor):
        ts = plan.save
    else:
        ends = torch.tensor([plan.start, 0.0 if plan.denoise else plan.end], dtype=torch.float64, device="cpu")
        ts = ends[1:] if plan.save == "last" else ends
    reached = Reached(x, SharedPath("last", ts[0], x), t, none, none, none, none)
    return _solution(plan, term, reached, ts, x[None].expand(len(ts), *x.shape), seed)


def _solution(plan: Plan, term: Counted, reached: Reached, ts: Tensor, xs: Tensor, seed: int | None) -> Solution:
    return Solution(
        x=reached.x,
        ts=ts,
        xs=xs,
        nfe=reached.nfe,
        calls=term.calls,
        gradients=term.gradients,
        accepted=reached.accepted,
        rejected=reached.rejected,
        t=reached.t,
        status=reached.status,
        message=describe(reached.status, reached.t, reached.accepted),
        solver=f"{plan.solver!r}, {_how(plan, term, reached.x)}",
        seed=seed,
    )


def _how(plan: Plan, term: Counted, x: Tensor) -> str:
    """What ran, in words: the tolerance, or the steps with the choices made for them."""
    steps = None if plan.tolerance is not None else plan.steps
    smooth: bool = term.model is None or term.model.smooth
    advice = advise(plan.solver, term, steps=steps, tolerance=plan.tolerance, smooth=smooth)
    if steps is None:
        words = [f"rtol={plan.tolerance.rtol:g}, atol={plan.tolerance.atol:g}"]  # type: ignore[union-attr]
    else:
        words = [f"{steps + plan.denoise} steps"]
        words += [] if advice.orders is None else [f"order {advice.orders}"]
        words += [f"grid {plan.grid!r}"] if plan.grid else []
    if not smooth:
        other = advise(plan.solver, term, steps=steps, tolerance=plan.tolerance, smooth=True)
        words += [_ROUGH] * (_choices(plan, term, x, advice, False) != _choices(plan, term, x, other, True))
    return ", ".join(words)


def _choices(plan: Plan, term: Counted, x: Tensor, advice: Advice, smooth: bool) -> Any:
    """What is chosen by whether the model is smooth."""
    down = plan.times[-1] < plan.times[0]
    if plan.tolerance is None:
        several = len(plan.times) > 2  # the one step of a grid has the order 1 and the ends, whatever was chosen
        starts = advice.orders is not None and bool(down) and not smooth
        return several and (advice.orders, starts, advice.grid if plan.grid else "")
    return advice.first, effective_variance(term, x, smooth=smooth) if down else None
