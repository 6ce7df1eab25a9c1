"""What a search or a compilation came to, as data: all that a page or a table about it needs. A search writes it as
`search.json`.

Quantities are in bytes and seconds, damage in `plan.unit`, and a metric in its own unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from tersor.compiler.budget import Limit
from tersor.compiler.plan import Plan
from tersor.compiler.stores import Banked, Bitmask, Chain, Delta, Store


@dataclass(frozen=True)
class Held:
    """A budget and what the saved artifact was measured to take of it; `predicted` as far as there was a prediction.
    `text` says it for people."""

    name: str
    limit: float
    predicted: float | None
    measured: float
    met: bool
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def held(limit: Limit, predicted: float | None, measured: float) -> Held:
    """How a limit was kept."""
    expected = "" if predicted is None else f" (predicted {limit.text(predicted)})"
    text = f"{limit.text(measured)}{expected}, {'within' if limit.met(measured) else 'MISSES'} {limit.rule()}"
    return Held(limit.name, limit.limit, predicted, measured, limit.met(measured), text)


@dataclass(frozen=True)
class FrontPoint:
    """The plan with the least damage for its size. `bytes` and `damage` are predicted, and so are `costs` (seconds and
    bytes by the name of the budget); `met` says whether the other budgets are expected to hold, `chosen` which point
    the artifact is."""

    bytes: int
    damage: float
    costs: Mapping[str, float]
    met: bool
    chosen: bool


@dataclass(frozen=True)
class Measured:
    """A plan that was carried out on the way: predicted and measured, by the name of the budget, and `damage`."""

    bytes: int
    predicted: Mapping[str, float]
    measured: Mapping[str, float]


@dataclass(frozen=True)
class SiteForm:
    """The form of a weight in the artifact: bits it takes on disk per weight, the share of weights that are not kept
    (None: all are), and the rank of a factorisation (None: there is none)."""

    site: str
    bits: float
    sparsity: float | None
    rank: int | None


@dataclass(frozen=True)
class Made:
    """How, when and where: `command` as it was typed (empty where it was called from Python), `data` the source of the
    text it was judged by, `when` in UTC, `versions` by the name of the library."""

    command: str
    data: str
    when: str
    processor: str
    cores: int
    threads: int
    system: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class SearchReport:
    """`plan` has every site with its bytes before and after, its choice and what was refused; `forms` is in the same
    order. `front` is in order of bytes, `contenders` in the order they were measured, `seconds` by stage; a compilation
    has none of them. `original` is what the original takes, by the name of the budget, as far as it was measured, and
    `missed` says which budgets do not hold, and what would help."""

    model: str
    plan: Plan
    forms: tuple[SiteForm, ...]
    budgets: tuple[Held, ...]
    front: tuple[FrontPoint, ...]
    contenders: tuple[Measured, ...]
    fidelity: Mapping[str, Any] | None
    policy: str
    seconds: Mapping[str, float]
    made: Made
    original: Mapping[str, float]
    missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchReport:
        return cls(
            **{
                **data,
                "plan": Plan.from_json(data["plan"]),
                "forms": tuple(SiteForm(**x) for x in data["forms"]),
                "budgets": tuple(Held(**x) for x in data["budgets"]),
                "front": tuple(FrontPoint(**x) for x in data["front"]),
                "contenders": tuple(Measured(**x) for x in data["contenders"]),
                "made": Made(**data["made"]),
                "missed": tuple(data["missed"]),
                "notes": tuple(data["notes"]),
            }
        )


def form_of(site: str, store: Store) -> SiteForm:
    """The form of a stored weight."""
    count = max(1, prod(store.shape))
    sparsity = 1 - prod(store.values.shape) / count if isinstance(store, Bitmask | Delta | Banked) else None
    return SiteForm(site, store.bits() / count, sparsity, store.rank if isinstance(store, Chain) else None)
