"""A plan: what will be done to every site, what it will cost, and which line of the policy asked for it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SitePlan:
    """One site. `bytes` is its share of the artifact, `place` the `file:line:column` behind the choice (None: no rule
    names it), `rivals` how many other choices it had."""

    site: str
    path: str
    kind: str
    role: str
    shape: tuple[int, ...]
    choice: str
    original_bytes: int
    bytes: int
    damage: float
    error: float
    place: str | None
    rivals: int


@dataclass(frozen=True)
class RefusedPlan:
    """What a rule asked for and could not have, and why."""

    site: str
    choice: str
    reason: str


@dataclass(frozen=True)
class Foreseen:
    """A budget and what a plan is expected to take of it, in bytes, seconds or the metric's own unit (None: it cannot
    be told before it is measured). `text` says it for people."""

    name: str
    limit: float
    predicted: float | None
    text: str


@dataclass(frozen=True)
class Plan:
    """`bytes` is the exact size of the files that `load` reads, `overhead` the part of it that is no site's. `damage`
    is that of all sites together in `unit`, `bound` a proven lower bound on it within the budgets (as far as damage
    adds up), where it was what to minimize."""

    sites: tuple[SitePlan, ...]
    refused: tuple[RefusedPlan, ...]
    original_bytes: int
    bytes: int
    overhead: int
    damage: float
    bound: float | None
    unit: str
    budget: float | None
    calibrated: int
    notes: tuple[str, ...] = ()
    budgets: tuple[Foreseen, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        return cls(
            **{
                **data,
                "sites": tuple(SitePlan(**{**s, "shape": tuple(s["shape"])}) for s in data["sites"]),
                "refused": tuple(RefusedPlan(**r) for r in data["refused"]),
                "notes": tuple(data["notes"]),
                "budgets": tuple(Foreseen(**b) for b in data["budgets"]),
            }
        )

    def diff(self, other: Plan) -> tuple[tuple[str, str, str], ...]:
        """(site, choice here, choice there) wherever two plans differ."""
        theirs = {s.site: s.choice for s in other.sites}
        return tuple((s.site, s.choice, theirs.get(s.site, "-")) for s in self.sites if theirs.get(s.site) != s.choice)
