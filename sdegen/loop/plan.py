"""Where the steps are: one checked request, in the model's own time and in the coordinates a solver works in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInputError, shortened
from ..models.coordinates import Coordinates
from ..solvers import Solver
from ..solvers.tolerance import Tolerance
from ..terms import Term
from .record import NEAR
from .solution import Solution, describe


@dataclass(frozen=True)
class Plan:
    """One checked request: what every part of a batch shares.

    Attributes:
        solver: the one that runs.
        times: (S,) float64 on the CPU, without a final 0: the fixed grid, or under error control the two ends (one time
            where only the final denoising is left).
        tolerance: error control, None on a fixed grid.
        denoise: whether one more evaluation at the last time, returning x0, follows.
        save: "last", "all" or times.
        max_steps: most steps per sample, rejected ones included.
        noisy: whether noise is drawn.
        grid: the kind of grid that was laid, "" where the times were given.
        view: the coordinates to run in; None: the term's own.
        rests: whether the first step is made without an evaluation, the slope there being known to be 0.
    """

    solver: Solver
    times: Tensor
    tolerance: Tolerance | None
    denoise: bool
    save: str | Tensor
    max_steps: int
    noisy: bool
    grid: str = ""
    view: Coordinates | None = None
    rests: bool = False

    @property
    def start(self) -> float:
        """The first time."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """The last time before the final denoising, if there is one."""
        return float(self.times[-1])

    @property
    def steps(self) -> int:
        """Evaluations of a fixed grid, the final denoising not counted."""
        return len(self.times) - 1 - self.rests

    @property
    def refills(self) -> bool:
        """Whether samples that wait take the places of those that are done."""
        return self.tolerance is not None and self.solver.refills

    def inside(self) -> Plan:
        """The same request in the coordinates of `view`."""
        view = self.view
        if view is None or view.crossing is None:
            return self
        times = view.there(self.times)
        if self.tolerance is not None and self.denoise:
            times = torch.cat([times[:-1], times.new_tensor([view.model.sde.t_min])])
        save = self.save
        if isinstance(save, Tensor):
            low, high = sorted((float(times[0]), 0.0 if self.denoise else float(times[-1])))
            save = view.there(save).clamp(low, high)
        return replace(self, times=times, save=save, view=None)

    def back(self, solution: Solution) -> Solution:
        """A solution of `inside()` as the model's own process has it."""
        view, device = self.view, solution.x.device
        if view is None or view.crossing is None:
            return solution
        t = view.back(solution.t)
        return replace(
            solution,
            x=view.state_back(solution.x, solution.t.to(device)),
            ts=view.back(solution.ts) if isinstance(self.save, str) else self.save,
            xs=torch.stack([view.state_back(x, t.to(device)) for t, x in zip(solution.ts, solution.xs, strict=True)]),
            t=t,
            message=describe(solution.status, t, solution.accepted),
        )


def check_times(term: Term, times: tuple[float, float] | Tensor) -> tuple[Tensor, bool]:
    """The nodes that a span (from, to) or a list of times means, and whether the final denoising follows them.

    A model's times may end at 0: then the last node is where the denoising looks from, t_min for a span, else the last
    time before 0. Nodes that rounding put outside [t_min, t_max] are moved onto its ends.

    Raises:
        InvalidInputError: times outside the term's range, out of order, or in a direction that the term does not run.
    """
    has_model = term.model is not None
    nodes = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    denoise = has_model and len(nodes) > 1 and float(nodes[-1]) == 0.0
    if denoise:
        nodes = (
            nodes[:-1]
            if isinstance(times, Tensor)
            else torch.tensor([times[0], term.t_min], dtype=torch.float64, device="cpu")
        )
    slack = 1e-6 * term.t_max if term.t_max < float("inf") else 0.0
    outside = (nodes < term.t_min - min(slack, 1e-3 * term.t_min)) | (nodes > term.t_max + slack)
    if bool(outside.any()):
        time, falls = float(nodes[outside][0]), len(nodes) > 1 and bool(nodes[0] > nodes[-1])
        raise InvalidInputError(
            f"time {time:g} is outside [t_min, t_max] = [{term.t_min:g}, {term.t_max:g}]"
            + ("; to end with clean data go to exactly 0" if has_model and falls and time < term.t_min else "")
        )
    nodes = nodes.clamp(term.t_min, term.t_max)
    if denoise and len(nodes) == 2 and nodes[0] == nodes[1]:  # from t_min to 0: nothing to solve
        nodes = nodes[:1]
    _check_order(term, nodes, denoise)
    return nodes, denoise


def _check_order(term: Term, nodes: Tensor, denoise: bool) -> None:
    rise = nodes.diff()
    if not (bool((rise > 0).all()) or bool((rise < 0).all())):
        raise InvalidInputError(
            f"times must rise or fall throughout, without repeats: got {[round(t, 6) for t in nodes.tolist()[:6]]}..."
        )
    upward = len(rise) > 0 and float(rise[0]) > 0
    first, last, name = float(nodes[0]), float(nodes[-1]), type(term).__name__
    if upward and denoise:
        raise InvalidInputError(
            f"times rise from {first:g} to {last:g} and end at 0: sampling goes down, from t_max to 0"
        )
    if upward and not term.upward:
        raise InvalidInputError(f"{name} runs from noise to data, t falling: got {first:g} to {last:g}; swap t_span")
    if len(rise) and not upward and not term.downward:
        raise InvalidInputError(f"{name} runs from data to noise, t rising: got {first:g} to {last:g}; swap t_span")


def check_save(save: Any, times: Tensor, denoise: bool, *, nodes_only: bool) -> str | Tensor:
    """`save=` as "last", "all" or (S,) times inside the span; with `nodes_only` among `times` (or 0, denoised)."""
    if isinstance(save, str):
        if save not in ("last", "all"):
            raise InvalidInputError(f"got save={shortened(save)}, expected 'last', 'all' or a list of times")
        return save
    if isinstance(save, range):
        raise InvalidInputError(f"got save={shortened(save)}, expected 'last', 'all' or a list of times")
    try:
        wanted = torch.as_tensor(save, dtype=torch.float64, device="cpu").detach().flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(f"got save={shortened(save)}, expected 'last', 'all' or a list of times") from error
    first, last = float(times[0]), 0.0 if denoise else float(times[-1])
    low, high = min(first, last), max(first, last)
    near = NEAR * high
    if not len(wanted) or not bool(((wanted >= low - near) & (wanted <= high + near)).all()):
        raise InvalidInputError(
            f"save={shortened(wanted.tolist())}: times inside the span go between {first:g} and {last:g}"
        )
    if nodes_only:
        nodes = torch.cat([times, torch.zeros(int(denoise), dtype=torch.float64, device="cpu")])
        if bool(((wanted[:, None] - nodes).abs().amin(1) > near).any()):
            raise InvalidInputError(
                f"save={shortened(wanted.tolist())}: a solver of SDEs saves nodes of its grid only; pass save='all', "
                "or steps= with these times among them"
            )
    return wanted.clamp(low, high)
