"""The Pareto front of a measured model: plans of the least damage for sizes from the smallest to the largest useful
one, each solved anew from the same measurements; nothing is measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from tersor.compiler.allocate import Allocation, allocate
from tersor.compiler.loop import Loop
from tersor.compiler.measure.price import Choice, Choices, total
from tersor.compiler.pipeline import Planned
from tersor.compiler.report import FrontPoint

POINTS = 24


class Sizes:
    """Plans of the least damage for sizes in equal ratios, from the smallest plan to the one with the least damage of
    all; solved once for a model and its rules."""

    def __init__(self) -> None:
        self._solved: list[dict[str, str]] = []

    def of(self, choices: Choices) -> Iterator[dict[str, Choice]]:
        """In order of bytes, whatever else the choices cost."""
        if not self._solved:
            ends = [allocate(choices, {}, goal) for goal in ("size", "damage")]
            low, high = (end.bytes for end in ends if isinstance(end, Allocation))
            sizes = np.geomspace(max(1, low), max(low + 1, high), POINTS)
            solved = [allocate(choices, {"size": float(np.ceil(size))}) for size in sizes]
            self._solved = [{n: c.text for n, c in x.chosen.items()} for x in solved if isinstance(x, Allocation)]
        by_text = {name: {c.text: c for c in site} for name, site in choices.items()}
        for plan in self._solved:
            yield {name: by_text[name][text] for name, text in plan.items()}


def front(loop: Loop, chosen: Planned, sizes: Sizes) -> tuple[FrontPoint, ...]:
    """The front of size and damage, in order of bytes, with the chosen plan on it.

    `loop` has the choices and what was learnt of the rest of the time and memory; the sizes include what the chosen
    artifact takes besides its choices.
    """
    rest = chosen.plan.bytes - sum(c.bytes for c in chosen.allocation.chosen.values())
    found: dict[int, FrontPoint] = {}
    contenders = loop.prepared.contenders
    # The sizes are those of the anchors alone: what a plan taught besides is not the same from one budget to the next.
    choices = loop.prepared.measured.choices
    for solved in sizes.of(contenders.fresh().judged(choices) if contenders else choices):
        size = sum(c.bytes for c in solved.values())
        damage = contenders.together(solved) if contenders else sum(c.damage for c in solved.values())
        point = _point(loop, solved, damage, size + rest, False)
        found[point.bytes] = point
    mine = _point(loop, chosen.allocation.chosen, chosen.plan.damage, chosen.plan.bytes, True)
    found[mine.bytes] = mine
    ordered = [found[size] for size in sorted(found)]
    return tuple(p for p, kept in zip(ordered, _undominated(ordered), strict=True) if kept or p.chosen)


def _point(loop: Loop, choices: Mapping[str, Choice], damage: float, size: int, chosen: bool) -> FrontPoint:
    costs = {
        x.name: loop.forecasts[x.key].real(total(choices.values(), x.key))
        for x in loop.limits
        if x.key in loop.forecasts
    }
    met = all(limit.met(costs[limit.name]) for limit in loop.limits if limit.name in costs)
    return FrontPoint(size, damage, costs, met, chosen)


def _undominated(ordered: list[FrontPoint]) -> list[bool]:
    """Whether a point has less damage than every smaller one."""
    least = np.minimum.accumulate([float("inf"), *(p.damage for p in ordered)])
    return [after < before for before, after in pairwise(least)]
