"""Choices and budgets to a plan: an exact multiple-choice knapsack (HiGHS), with its proven bound.

    min  sum_c damage_c x_c    s.t.  sum_{c covers s} x_c = 1 for every site s,   sum_c bytes_c x_c <= budget,   x_c
    in {0, 1}

A column c usually covers one site. Choices that hang together (a method that looks at all tensors of its rule) are
one column over several sites, so anything that must be decided together needs no other solver. Ties go to fewer
bytes, which enter the objective with a weight too small to buy damage, to within the gap the solver stops at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from tersor.compiler.errors import CompilerBug
from tersor.compiler.measure.price import Choice

TIE_BREAK = 1e-6
GAP = 1e-5
SECONDS, OUT_OF_TIME = 60, 1


@dataclass(frozen=True)
class Column:
    """Choices taken together, and what they cost together."""

    choices: tuple[Choice, ...]
    bytes: int
    damage: float


@dataclass(frozen=True)
class Allocation:
    """A choice per site; `bound` is a proven lower bound on the damage of any allocation within the budget."""

    chosen: Mapping[str, Choice]
    bytes: int
    damage: float
    bound: float


@dataclass(frozen=True)
class Infeasible:
    """No allocation fits: the smallest possible one, and its sites by what they still take, the largest first."""

    smallest: int
    chosen: Mapping[str, Choice]
    largest: tuple[Choice, ...]


def columns(choices: Mapping[str, Sequence[Choice]]) -> list[Column]:
    """One column per useful choice; scoped candidates of a rule become one column over all its sites.

    A choice that is neither smaller nor less damaging than another of its site is left out.
    """
    single: list[Column] = []
    scoped: dict[tuple[tuple[int, int], str], list[Choice]] = {}
    for site in choices.values():
        free = [c for c in site if c.candidate is None or not c.candidate.scoped]
        single += [Column((c,), c.bytes, c.damage) for c in undominated(free)]
        for choice in site:
            if choice.candidate is not None and choice.candidate.scoped:
                scoped.setdefault((choice.candidate.option, choice.candidate.text), []).append(choice)
    joint = [Column(tuple(g), sum(c.bytes for c in g), sum(c.damage for c in g)) for g in scoped.values()]
    return single + joint


def undominated(choices: Sequence[Choice]) -> Iterator[Choice]:
    """The choices on the front of bytes and damage, in order of bytes (the earlier one on ties)."""
    least = float("inf")
    for choice in sorted(choices, key=lambda c: (c.bytes, c.damage)):
        if choice.damage < least:
            least = choice.damage
            yield choice


def allocate(
    choices: Mapping[str, Sequence[Choice]], budget: float | None, minimize: str = "damage"
) -> Allocation | Infeasible:
    """The allocation with the least damage (or bytes) whose bytes are within the budget."""
    found = columns(choices)
    sizes = np.array([c.bytes for c in found], float)
    damages = np.array([c.damage for c in found], float)
    by_size = minimize == "size"
    goal = sizes if by_size else damages
    solution = _within(found, choices, goal, sizes, budget)
    if solution is None:
        smallest = _solve(found, choices, sizes, sizes, None)
        if smallest is None:
            raise CompilerBug("no allocation covers every site")
        chosen = _chosen(found, smallest[0])
        largest = tuple(sorted(chosen.values(), key=lambda c: -c.bytes))
        return Infeasible(sum(c.bytes for c in chosen.values()), chosen, largest)
    taken, bound = solution
    chosen = _chosen(found, taken)
    damage = float(sum(c.damage for c in chosen.values()))
    return Allocation(chosen, sum(c.bytes for c in chosen.values()), damage, damage if by_size else min(bound, damage))


def _chosen(found: Sequence[Column], taken: np.ndarray) -> dict[str, Choice]:
    return {choice.site: choice for c, x in zip(found, taken, strict=True) if x > 0.5 for choice in c.choices}


def _within(
    found: Sequence[Column],
    choices: Mapping[str, Sequence[Choice]],
    goal: np.ndarray,
    sizes: np.ndarray,
    budget: float | None,
) -> tuple[np.ndarray, float] | None:
    """`_solve` within the budget to the byte: the solver may overstep a constraint by its tolerance, a few bytes of a
    megabyte, and is then given that much less room."""
    solution = _solve(found, choices, goal, sizes, budget)
    room, bound = budget, solution[1] if solution else 0.0
    while solution is not None and budget is not None and room is not None:
        excess = float(sizes[solution[0] > 0.5].sum()) - budget
        if excess <= 0:
            break
        room -= excess
        solution = _solve(found, choices, goal, sizes, room)
    return None if solution is None else (solution[0], bound)


def _solve(
    found: Sequence[Column],
    choices: Mapping[str, Sequence[Choice]],
    goal: np.ndarray,
    sizes: np.ndarray,
    budget: float | None,
) -> tuple[np.ndarray, float] | None:
    """Values of the columns and the bound on the goal, or None when nothing fits."""
    rows = {site: i for i, site in enumerate(choices)}
    entries = [(rows[choice.site], j) for j, c in enumerate(found) for choice in c.choices]
    cover = coo_array((np.ones(len(entries)), tuple(np.array(entries).T)), shape=(len(rows), len(found)))
    constraints = [LinearConstraint(cover.tocsr(), 1, 1)]
    if budget is not None:
        constraints.append(LinearConstraint(sizes[None] / 1e3, -np.inf, budget / 1e3))
    scale = float(goal.max()) or 1.0
    weight = TIE_BREAK / (float(sizes.max()) or 1.0) * float(np.min(goal[goal > 0], initial=scale)) / scale
    result = milp(
        goal / scale * 1e4 + weight * sizes * 1e4,
        constraints=constraints,
        integrality=np.ones(len(found), int),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    if result.x is None:
        if result.status == OUT_OF_TIME:
            raise CompilerBug(f"the solver found no allocation in {SECONDS} s")
        return None
    slack = weight * (float(sizes.sum()) if budget is None else budget)  # the most that breaking ties adds to the goal
    bound = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
    return result.x, max(0.0, (float(bound) / 1e4 - slack) * scale)
