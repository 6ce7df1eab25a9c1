"""The Pareto front of a measured model: plans of the least damage for sizes from the smallest to the largest useful
one, each solved anew from the same measurements; nothing is measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from tersor.compiler.allocate import Allocation, allocate
from tersor.compiler.loop import Loop
from tersor.compiler.measure.price import Choice
from tersor.compiler.pipeline import Planned
from tersor.compiler.report import FrontPoint

POINTS = 24


def front(loop: Loop, chosen: Planned, points: int = POINTS) -> tuple[FrontPoint, ...]:
    """The front of size and damage, in order of bytes, with the chosen plan on it.

    `loop` has the choices and what was learnt of the rest of the time and memory; the sizes include what the chosen
    artifact takes besides its choices.
    """
    choices = loop.prepared.measured.choices
    rest = chosen.plan.bytes - sum(c.bytes for c in chosen.allocation.chosen.values())
    smallest, best = (allocate(choices, {}, goal) for goal in ("size", "damage"))
    found: dict[int, FrontPoint] = {}
    if isinstance(smallest, Allocation) and isinstance(best, Allocation):
        sizes = np.geomspace(max(1, smallest.bytes), max(smallest.bytes + 1, best.bytes), points)
        for size in sizes:
            solved = allocate(choices, {"size": float(np.ceil(size))})
            if isinstance(solved, Allocation):
                point = _point(loop, solved.chosen, solved.damage, solved.bytes + rest, False)
                found[point.bytes] = point
    mine = _point(loop, chosen.allocation.chosen, chosen.plan.damage, chosen.plan.bytes, True)
    found[mine.bytes] = mine
    ordered = [found[size] for size in sorted(found)]
    return tuple(p for p, kept in zip(ordered, _undominated(ordered), strict=True) if kept or p.chosen)


def _point(loop: Loop, choices: Mapping[str, Choice], damage: float, size: int, chosen: bool) -> FrontPoint:
    total: Callable[[str], float] = lambda key: sum(c.cost(key) for c in choices.values())  # noqa: E731
    costs = {x.name: loop.forecasts[x.key].real(total(x.key)) for x in loop.limits if x.key in loop.forecasts}
    met = all(limit.met(costs[limit.name]) for limit in loop.limits if limit.name in costs)
    return FrontPoint(size, damage, costs, met, chosen)


def _undominated(ordered: list[FrontPoint]) -> list[bool]:
    """Whether a point has less damage than every smaller one."""
    least = np.minimum.accumulate([float("inf"), *(p.damage for p in ordered)])
    return [after < before for before, after in pairwise(least)]
