"""Choices and budgets to a plan: an exact multiple-choice knapsack (HiGHS), with its proven bound.

    min  sum_c goal_c x_c    s.t.  sum_{c covers s} x_c = 1 for every site s,
                                   sum_c cost_qc x_c + sum_k cost_qk y_k <= limit_q for every limited quantity q,
                                   sum_{c covers s, shares k} x_c <= y_k,   x_c, y_k in {0, 1}

Quantities are "size" (bytes), "damage", and whatever else the choices carry in `costs` (seconds at a named shape,
resident bytes); any of them can be limited and any can be the goal. A column c usually covers one site. Choices that
hang together (a method that looks at all tensors of its rule, the width of a layer and the bits of every matrix it
touches) are one column over several sites, so anything that must be decided together needs no other solver; what
choices share (an activation format that several layers read) is a column y of its own, paid once. Ties go
to fewer bytes, less time and fewer steps, which enter the goal with a weight too small to buy anything else, to within
the gap the solver stops at. The solver is given only the columns that a best solution may take, which matters where
many sites are alike.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from tersor.compiler.errors import CompilerBug
from tersor.compiler.measure.price import Choice, Choices, Shared, total
from tersor.compiler.narrow import Links, needed

TIE_BREAK = 1e-6
GAP = 1e-5
SECONDS, OUT_OF_TIME = 60, 1
SCALE, ROWS = 1e4, 1e2
"""What the largest coefficient of the goal and of a constraint is scaled to: the solver's tolerances are absolute."""


@dataclass(frozen=True)
class Column:
    """Choices taken together."""

    choices: tuple[Choice, ...]

    def cost(self, quantity: str) -> float:
        """Without what its choices share."""
        return sum(choice.own(quantity) for choice in self.choices)


@dataclass(frozen=True)
class Allocation:
    """A choice per site and what it comes to; `bound` is a proven lower bound on the damage of any allocation within
    the limits, where damage was to be small."""

    chosen: Mapping[str, Choice]
    bytes: int
    damage: float
    bound: float | None

    def total(self, quantity: str) -> float:
        return total(self.chosen.values(), quantity)


@dataclass(frozen=True)
class Infeasible:
    """No allocation is within the limits.

    `quantity` is the limit to begin with and `least` what it can come to with the others kept (with `conflict`), or
    at all. `chosen` is an allocation that gets there, `largest` its choices by what they take of it. `instead` is the
    least of every other quantity that would do by itself.
    """

    quantity: str
    least: float
    chosen: Mapping[str, Choice]
    largest: tuple[Choice, ...]
    conflict: bool = False
    instead: Mapping[str, float] = field(default_factory=dict)


def columns(choices: Choices) -> list[Column]:
    """One column per useful choice; scoped candidates of a rule become one column over all its sites.

    A choice that is in no quantity better than another of its site is left out.
    """
    single: list[Column] = []
    scoped: dict[tuple[tuple[int, int], str], list[Choice]] = {}
    for site in choices.values():
        free = [c for c in site if c.candidate is None or not c.candidate.scoped]
        single += [Column((c,)) for c in undominated(free)]
        for choice in site:
            if choice.candidate is not None and choice.candidate.scoped:
                scoped.setdefault((choice.candidate.option, choice.candidate.text), []).append(choice)
    return single + [Column(tuple(group)) for group in scoped.values()]


def undominated(choices: Sequence[Choice]) -> Iterator[Choice]:
    """The choices that no other is as good as in every quantity, in order of bytes (the earlier one on ties); of what
    another one shares with choices of other sites, it may have to take all, and they nothing."""
    names = sorted({name for choice in choices for name in choice.costs})
    found: list[tuple[Choice, tuple[float, ...]]] = []
    for choice in sorted(choices, key=lambda c: (c.bytes, c.damage, *(c.cost(n) for n in names))):
        own, whole = ((choice.bytes, choice.damage, *map(cost, names)) for cost in (choice.own, choice.cost))
        if not any(
            all(a <= b for a, b in zip(values, whole if _share(other, choice) else own, strict=True))
            for other, values in found
        ):
            found.append((choice, whole))
            yield choice


def _share(one: Choice, other: Choice) -> bool:
    return one.shared is not None and other.shared is not None and one.shared.key == other.shared.key


def allocate(choices: Choices, limits: Mapping[str, float], minimize: str = "damage") -> Allocation | Infeasible:
    """The allocation with the least of a quantity that is within every limit."""
    problem = _Problem(choices)
    solution = problem.within(minimize, limits)
    if solution is None:
        return _explained(problem, limits)
    chosen = problem.chosen(solution[0])
    damage = float(sum(c.damage for c in chosen.values()))
    bound = min(solution[1], damage) if minimize == "damage" else None
    return Allocation(chosen, sum(c.bytes for c in chosen.values()), damage, bound)


def _explained(problem: _Problem, limits: Mapping[str, float]) -> Infeasible:
    """Which limit cannot be met at all; else which one, raised alone, has the least way to go."""
    for quantity, limit in limits.items():
        chosen, least = problem.least(quantity, {})
        if least > limit:
            return _infeasible(quantity, least, chosen)
    found = []
    for quantity, limit in limits.items():
        others = {name: value for name, value in limits.items() if name != quantity}
        solution = problem.within(quantity, others)
        if solution is not None:
            chosen = problem.chosen(solution[0])
            least = total(chosen.values(), quantity)
            found.append((least / max(limit, 1e-300), quantity, least, chosen))
    if found:
        _, quantity, least, chosen = min(found, key=lambda f: f[0])
        instead = {name: value for _, name, value, _ in found if name != quantity}
        return _infeasible(quantity, least, chosen, True, instead)
    quantity = next(iter(limits))  # no single limit is enough to raise
    chosen, least = problem.least(quantity, {})
    return _infeasible(quantity, least, chosen, True)


def _infeasible(
    quantity: str,
    least: float,
    chosen: Mapping[str, Choice],
    conflict: bool = False,
    instead: Mapping[str, float] | None = None,
) -> Infeasible:
    largest = tuple(sorted(chosen.values(), key=lambda c: -c.cost(quantity)))
    return Infeasible(quantity, least, chosen, largest, conflict, instead or {})


class _Problem:
    """The columns of some choices, and the solver."""

    def __init__(self, choices: Choices) -> None:
        self.found = columns(choices)
        held = [(j, c.site, c.shared) for j, column in enumerate(self.found) for c in column.choices if c.shared]
        self.shared = list({shared.key: shared for *_, shared in held}.values())
        self.links = _links(held, {shared.key: len(self.found) + k for k, shared in enumerate(self.shared)})
        self.rows = {site: i for i, site in enumerate(choices)}
        self._costs: dict[str, np.ndarray] = {}
        extra = sorted({name for site in choices.values() for c in site for name in c.costs})
        ties = [self._unit(self.costs("size")), *(0.1 * self._unit(self.costs(name)) for name in extra)]
        steps = [sum(len(c.candidate.steps) for c in f.choices if c.candidate) for f in self.found]
        steps += [0] * len(self.shared)
        self.ties = sum(ties) + 1e-3 * self._unit(np.array(steps, float))
        entries = [(self.rows[choice.site], j) for j, c in enumerate(self.found) for choice in c.choices]
        shape = (len(self.rows), len(self.found) + len(self.shared))
        self.cover = coo_array((np.ones(len(entries)), tuple(np.array(entries).T)), shape=shape).tocsr()

    @staticmethod
    def _unit(values: np.ndarray) -> np.ndarray:
        return values / (float(values.max()) or 1.0)

    def costs(self, quantity: str) -> np.ndarray:
        if quantity not in self._costs:
            shared = [s.costs.get(quantity, 0.0) for s in self.shared]
            self._costs[quantity] = np.array([c.cost(quantity) for c in self.found] + shared, float)
        return self._costs[quantity]

    def chosen(self, taken: np.ndarray) -> dict[str, Choice]:
        used = taken[: len(self.found)] > 0.5
        return {choice.site: choice for c, x in zip(self.found, used, strict=True) if x for choice in c.choices}

    def least(self, quantity: str, limits: Mapping[str, float]) -> tuple[dict[str, Choice], float]:
        """The allocation with the least of a quantity, which there must be."""
        solution = self.within(quantity, limits)
        if solution is None:
            raise CompilerBug("no allocation covers every site")
        chosen = self.chosen(solution[0])
        return chosen, total(chosen.values(), quantity)

    def within(self, minimize: str, limits: Mapping[str, float]) -> tuple[np.ndarray, float] | None:
        """`solve` within the limits to the last digit: the solver may overstep a constraint by its tolerance, a few
        bytes of a megabyte, and is then given that much less room."""
        room = dict(limits)
        solution = self.solve(minimize, room)
        bound = solution[1] if solution else 0.0
        while solution is not None:
            taken = solution[0] > 0.5
            excess = {q: float(self.costs(q)[taken].sum()) - limit for q, limit in limits.items()}
            over = {q: e for q, e in excess.items() if e > 0}
            if not over:
                break
            room |= {q: room[q] - e for q, e in over.items()}
            solution = self.solve(minimize, room)
        return None if solution is None else (solution[0], bound)

    def solve(self, minimize: str, limits: Mapping[str, float]) -> tuple[np.ndarray, float] | None:
        """Values of the columns and the bound on the goal, or None when nothing fits."""
        goal = self.costs(minimize)
        rows, room = np.zeros((len(limits), len(goal))), np.zeros(len(limits))
        for i, (quantity, limit) in enumerate(limits.items()):
            costs = self.costs(quantity)
            unit = (float(costs.max()) or 1.0) / ROWS
            rows[i], room[i] = costs / unit, limit / unit
        scale = float(goal.max()) or 1.0
        weight = TIE_BREAK * float(np.min(goal[goal > 0], initial=scale)) / scale
        price = (goal / scale + weight * self.ties) * SCALE
        with _silent():
            core = needed(price, rows, room, self.cover, self.links)
            links = self.links.matrix(len(price))[:, core]
            result = milp(
                price[core],
                constraints=[
                    LinearConstraint(self.cover[:, core], 1, 1),
                    *(LinearConstraint(row[None, core], -np.inf, most) for row, most in zip(rows, room, strict=True)),
                    *([LinearConstraint(links, -np.inf, 0)] if self.shared else []),
                ],
                integrality=np.ones(len(core), int),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": GAP, "time_limit": SECONDS},
            )
        if result.x is None:
            if result.status == OUT_OF_TIME:
                raise CompilerBug(f"the solver found no allocation in {SECONDS} s")
            return None
        taken = np.zeros(len(price))
        taken[core] = result.x
        self.links.follow(taken)  # where taking too much costs nothing, the solver does not mind it
        slack = (
            weight * float(self.ties.max()) * (len(self.rows) + len(self.shared))
        )  # the most that breaking ties adds to the goal
        bound = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
        return taken, max(0.0, (float(bound) / SCALE - slack) * scale)


def _links(held: Sequence[tuple[int, str, Shared]], number: Mapping[str, int]) -> Links:
    """The columns that share something, one row for every site and what it shares."""
    rows: dict[tuple[str, str], int] = {}
    found = [(rows.setdefault((site, s.key), len(rows)), column, number[s.key]) for column, site, s in held]
    return Links(*np.array(found, int).reshape(-1, 3).T)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on standard output: HiGHS writes there, now and then, whatever it is told."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)
