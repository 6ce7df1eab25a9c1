"""The closed loop: plan, measure the artifact, correct what was predicted, plan again, until every budget holds.

Size needs no loop, its bytes are exact. Time and memory are predicted as the sum over the choices corrected by what
the artifacts so far took (`forecast`). A floor under the user's metric cannot be predicted: where it is missed, the
choice with the most damage is rolled back first, and then the damage that a plan may do is narrowed down between a
plan that held the floor and one that did not. Where a metric is to be as large as it can be, plans that weigh the
damage of the model's parts otherwise are measured in turn (`tilt`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Protocol

from tersor.compiler.allocate import Infeasible
from tersor.compiler.budget import Limit
from tersor.compiler.errors import CompilerBug
from tersor.compiler.forecast import Forecast
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.price import Choices
from tersor.compiler.pipeline import Planned, Unsolved, solve
from tersor.compiler.prepare import Prepared
from tersor.compiler.tilt import Tilt

MAX_ROUNDS = 12
AGAIN = 3
MARGIN = 0.01
"""How much of a limit is left free after each near miss: times are not the same twice."""
NEAR = 0.1
PENALTY = 4.0
"""How much worse than measured the damage of a choice is taken to be once a plan with it missed the floor."""
NARROW = 1.15
"""A floor is found to within this factor of damage."""
DAMAGE, METRIC = "damage", "metric"


class Judge(Protocol):
    def __call__(self, planned: Planned, again: bool = False) -> Mapping[str, float]:
        """Measure the artifact of a plan: values by name of the limit, and the divergence of its outputs as `damage`.
        With `again` times and memory are measured anew, though they are known; the smaller of both counts, since what
        disturbs a measurement never makes it smaller."""


@dataclass(frozen=True)
class Contender:
    """A plan that was carried out and measured; `predicted` is by name of the limit, as far as there was a prediction,
    `over` how far it is from the budgets, as a share of them."""

    planned: Planned
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    over: float

    def goal(self, minimize: str) -> float:
        plan = self.planned.plan
        if minimize == DAMAGE:
            return self.measured.get(DAMAGE, plan.damage)
        if minimize.startswith(METRIC):
            return -self.measured[minimize]
        return float(plan.bytes) if minimize == "size" else self.planned.allocation.total(minimize)


@dataclass(frozen=True)
class Settled:
    """What a loop came to. `why` says what the last solution lacked where there was none, `out_of_time` whether the
    clock ended it."""

    best: Contender
    contenders: tuple[Contender, ...]
    forecasts: Mapping[str, Forecast]
    why: Infeasible | None = None
    out_of_time: bool = False


@dataclass
class Deadline:
    """`seconds` from now (None: no end)."""

    seconds: float | None = None
    began: float = field(default_factory=lambda: time.monotonic())

    def left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.began)


class Loop:
    """Plans within limits, and what the measured artifacts taught; `forecasts` are what earlier ones did."""

    def __init__(
        self,
        prepared: Prepared,
        limits: Sequence[Limit],
        minimize: str,
        judge: Judge,
        keep: Callable[[Contender], object] = lambda contender: None,
        deadline: Deadline | None = None,
        progress: Progress | None = None,
        forecasts: Mapping[str, Forecast] = {},
    ) -> None:
        self.prepared, self.limits, self.minimize = prepared, limits, minimize
        self.judge, self.keep, self.progress = judge, keep, progress
        self.deadline = deadline or Deadline()
        self.forecasts = {limit.key: forecasts.get(limit.key, Forecast()) for limit in self._summed()}
        self.misses: dict[str, int] = {}
        self.penalised: dict[str, float] = {}  # by site, the weight error of the least choice that missed a floor
        self.ceilings: dict[str, float] = {}
        self.cap: float | None = None
        self.held: float | None = None  # the most damage that is known to hold the floors
        self.missed: float | None = None  # the least that is known to miss one
        self.contenders: list[Contender] = []
        self.tilt = Tilt(prepared.program.sites) if minimize.startswith(METRIC) else None
        self.goal = DAMAGE if self.tilt else minimize

    def _summed(self) -> list[Limit]:
        """The limits on what adds up over the choices and is not exact already."""
        return [limit for limit in self.limits if not limit.floor and limit.key != "size"]

    def run(self, rounds: int = MAX_ROUNDS) -> Settled:
        """Plan and measure until a plan repeats, nothing fits, or time runs out."""
        longest, why, out_of_time = 0.0, None, False
        seen: dict[tuple[tuple[str, str], ...], int] = {}
        for number in range(rounds):
            if self.contenders and self.deadline.left() < longest:
                out_of_time = True
                break
            began = time.monotonic()
            if self.progress:
                self.progress("planning and measuring", number, rounds)
            found = self.plan()
            why = found.why if isinstance(found, Unsolved) else None
            # Before a budget is given up, what speaks against it is measured again: it may have been disturbed.
            doubtful = why is not None and why.quantity in self.forecasts
            if isinstance(found, Unsolved):
                found = self.nearest(found.why)  # what it takes teaches most about whether nothing fits
            mark = _mark(found)
            seen[mark] = seen.get(mark, 0) + 1
            if seen[mark] > 1 and (seen[mark] > AGAIN or not (doubtful or self._disturbed(found))):
                if (self.tilt is not None and self.tilt.learn(None)) or self.narrow():
                    continue
                break
            contender = self.measure(found, again=seen[mark] > 1)
            longest = max(longest, time.monotonic() - began)
            going = self.correct(contender)
            if self.tilt is not None and contender.over == 0:
                going = self.tilt.learn(-contender.goal(self.minimize))
            if not going:
                break
        if self.progress:
            self.progress("planning and measuring", rounds, rounds)
        best = min(self.contenders, key=self._rank)
        return Settled(best, tuple(self.contenders), dict(self.forecasts), why, out_of_time)

    def plan(self) -> Planned | Unsolved:
        """The best plan as far as is known now."""
        return solve(self.prepared, self.room(), self.goal, self.weighed)

    def nearest(self, why: Infeasible) -> Planned:
        """The plan that comes nearest to a limit that cannot be met, within the others where there is one."""
        others = {key: value for key, value in self.room().items() if key != why.quantity}
        for room in (others, {}):
            found = solve(self.prepared, room, why.quantity, self.weighed)
            if isinstance(found, Planned):
                return found
        raise CompilerBug("without limits there is no plan")

    def room(self) -> dict[str, float]:
        """What the choices of a plan may cost."""
        found: dict[str, float] = {}
        for limit in self.limits:
            if limit.floor:
                continue
            aim = limit.limit * (1 - MARGIN * self.misses.get(limit.name, 0))
            value = limit.limit if limit.key == "size" else self.forecasts[limit.key].costs(aim)
            found[limit.key] = min(value, found.get(limit.key, value))
        found |= self.ceilings
        if self.cap is not None:
            found[DAMAGE] = self.cap
        return found

    def narrow(self) -> bool:
        """Where an artifact holds a budget and one with more costs missed it, maybe on a busy machine: aim half way
        between them. Whether there is a way left between."""
        for limit in self._summed():
            costs = [(c, c.planned.allocation.total(limit.key)) for c in self.contenders]
            low = max((cost for c, cost in costs if c.over == 0), default=None)
            missed = [cost for c, cost in costs if limit.over(c.measured[limit.name]) > 0]
            if low is None or not (above := [cost for cost in missed if cost > low]):
                continue
            aim = (low + min(above)) / 2
            if aim > low * (1 + MARGIN) and aim != self.ceilings.get(limit.key):
                self.ceilings[limit.key] = aim
                return True
        return False

    def weighed(self, measured: Choices) -> Choices:
        """Measured choices with the damage of those that missed a floor raised."""
        if self.tilt is not None:
            measured = self.tilt.choices(measured)
        if not self.penalised:
            return measured
        return {
            name: tuple(
                replace(c, damage=c.damage * PENALTY) if c.error >= self.penalised.get(name, float("inf")) else c
                for c in site
            )
            for name, site in measured.items()
        }

    def predicted(self, found: Planned) -> dict[str, float]:
        """What a plan is expected to come to, by name of the limit, as far as can be told."""
        values = {limit.name: float(found.plan.bytes) for limit in self.limits if limit.key == "size"}
        for limit in self._summed():
            if self.forecasts[limit.key].seen:
                values[limit.name] = self.forecasts[limit.key].real(found.allocation.total(limit.key))
        return values

    def _disturbed(self, found: Planned) -> bool:
        """Whether a plan that was measured before missed a limit that it is now expected to meet."""
        expected = self.predicted(found)
        last = next(c for c in reversed(self.contenders) if _mark(c.planned) == _mark(found))
        return any(
            limit.over(last.measured[limit.name]) > 0 and limit.over(expected[limit.name]) == 0
            for limit in self._summed()
        )

    def measure(self, found: Planned, again: bool = False) -> Contender:
        """Carry a plan out, measure it, learn from it, and keep it if it is the best so far."""
        predicted = self.predicted(found)
        measured = self.judge(found, again)
        over = sum(limit.over(measured[limit.name]) for limit in self.limits)
        contender = Contender(found, predicted, measured, over)
        for limit in self._summed():
            costs = found.allocation.total(limit.key)
            self.forecasts[limit.key] = self.forecasts[limit.key].after(costs, measured[limit.name])
        if not self.contenders or self._rank(contender) < min(map(self._rank, self.contenders)):
            self.keep(contender)
        self.contenders.append(contender)
        return contender

    def _rank(self, contender: Contender) -> tuple[float, float]:
        return contender.over, contender.goal(self.minimize)

    def correct(self, contender: Contender) -> bool:
        """Learn from a contender what to ask for next; whether there is anything left to try."""
        for limit in self.limits:
            if 0 < limit.over(contender.measured[limit.name]) < NEAR:
                self.misses[limit.name] = self.misses.get(limit.name, 0) + 1
        floors = [limit for limit in self.limits if limit.floor]
        if not floors or any(not lim.met(contender.measured[lim.name]) for lim in self.limits if not lim.floor):
            return True
        damage = contender.planned.allocation.damage
        if all(limit.met(contender.measured[limit.name]) for limit in floors):
            self.held = max(damage, self.held or 0.0)
            if self.missed is None or self.goal == DAMAGE or self.missed <= NARROW * self.held:
                return False
            self.cap = sqrt(self.held * self.missed)
            return True
        worst = max(contender.planned.allocation.chosen.values(), key=lambda c: c.damage)
        if self.goal == DAMAGE:
            self.penalised[worst.site] = min(worst.error, self.penalised.get(worst.site, worst.error))
            return True
        first = self.missed is None
        self.missed = min(damage, self.missed or damage)
        if first:
            self.cap = damage - 0.5 * worst.damage  # the worst choice no longer fits
        else:
            self.cap = sqrt(self.held * self.missed) if self.held else self.missed / PENALTY
        return self.held is None or self.missed > NARROW * self.held


def _mark(found: Planned) -> tuple[tuple[str, str], ...]:
    """What makes two plans the same."""
    return tuple(sorted((site, choice.text) for site, choice in found.allocation.chosen.items()))
