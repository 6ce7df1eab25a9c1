"""What the page says, worked out of a report: parts of the model, predictions beside measurements, refusals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from tersor.compiler.plan import Plan, SitePlan
from tersor.compiler.report import SearchReport, SiteForm
from tersor.compiler.units import bytes_text
from tersor.page.words import quantity

PARTS = 12
"""Parts that are shown one by one; the smaller ones are added up."""
DESCRIPTION = "graph and description"


@dataclass(frozen=True)
class Part:
    """A part of the model: bytes and predicted damage of `weights` weights."""

    name: str
    weights: int
    before: int
    after: int
    damage: float


def parts(plan: Plan) -> list[Part]:
    """By role (biases with what they belong to), the largest first; the last is what is no weight's."""
    groups: dict[str, list[SitePlan]] = defaultdict(list)
    for site in plan.sites:
        groups[part_of(site)].append(site)
    found = [_sum(name, sites) for name, sites in groups.items()]
    found.sort(key=lambda part: (-part.before, part.name))
    if len(found) > PARTS:
        names = [part.name for part in found[PARTS - 1 :]]
        found[PARTS - 1 :] = [_sum(f"{len(names)} others", [s for name in names for s in groups[name]])]
    return [*found, Part(DESCRIPTION, 0, 0, plan.overhead, 0.0)]


def part_of(site: SitePlan) -> str:
    """`ffn.up` for its weights and biases; the kind where no role was found."""
    role = site.role.removesuffix(".bias")
    return role if role != "other" else site.kind


def _sum(name: str, sites: Sequence[SitePlan]) -> Part:
    before, after = sum(s.original_bytes for s in sites), sum(s.bytes for s in sites)
    return Part(name, len(sites), before, after, sum(s.damage for s in sites))


@dataclass(frozen=True)
class Compared:
    """A quantity of the measured artifact of that number, counted from 1; `best` is the artifact that was kept. `off`
    is what was measured beyond the prediction, as a share of it (None where there was none)."""

    number: int
    best: bool
    name: str
    predicted: float | None
    measured: float

    @property
    def off(self) -> float | None:
        return None if not self.predicted else self.measured / self.predicted - 1

    @property
    def predicted_text(self) -> str:
        return "-" if self.predicted is None else quantity(self.name, self.predicted)

    @property
    def measured_text(self) -> str:
        return quantity(self.name, self.measured)

    @property
    def off_text(self) -> str:
        if self.predicted is not None and self.predicted == self.measured:
            return "exact"
        return "-" if self.off is None else f"{self.off:+.1%}"


def compared(report: SearchReport) -> list[Compared]:
    """All that was measured on the way, artifact by artifact; for a compilation, its budgets."""
    if not report.contenders:
        return [Compared(1, True, b.name, b.predicted, b.measured) for b in report.budgets]
    kept = {b.name: b.measured for b in report.budgets}
    return [
        Compared(number, kept.items() <= contender.measured.items(), name, contender.predicted.get(name), value)
        for number, contender in enumerate(report.contenders, 1)
        for name, value in sorted(contender.measured.items())
    ]


@dataclass(frozen=True)
class Refusals:
    """Choices that were refused for one reason: how many, and the first of them."""

    reason: str
    times: int
    choice: str
    site: str


def refusals(plan: Plan) -> list[Refusals]:
    """By reason, the most frequent first."""
    first = {r.reason: r for r in reversed(plan.refused)}
    counted = Counter(r.reason for r in plan.refused)
    return [Refusals(reason, n, first[reason].choice, first[reason].site) for reason, n in counted.most_common()]


@dataclass(frozen=True)
class Row:
    """A weight with its form."""

    site: SitePlan
    form: SiteForm

    @property
    def params(self) -> int:
        return prod(self.site.shape)

    @property
    def shape(self) -> str:
        return " × ".join(map(str, self.site.shape))

    @property
    def before(self) -> str:
        return bytes_text(self.site.original_bytes)

    @property
    def after(self) -> str:
        return bytes_text(self.site.bytes)


def rows(report: SearchReport) -> Iterator[Row]:
    for site, form in zip(report.plan.sites, report.forms, strict=True):
        yield Row(site, form)


@dataclass(frozen=True)
class Fact:
    """A number at the top of the page; `share` is how much of its budget it takes, `met` whether the budget holds."""

    label: str
    value: str
    detail: str
    share: float | None = None
    met: bool | None = None


def facts(report: SearchReport) -> list[Fact]:
    """Size, the other budgets, and how close the outputs are to the original's."""
    plan = report.plan
    found = []
    if all(b.name != "size" for b in report.budgets):
        found.append(Fact("size", bytes_text(plan.bytes), f"of {bytes_text(plan.original_bytes)}"))
    for b in report.budgets:
        before = float(plan.original_bytes) if b.name == "size" else report.original.get(b.name)
        words = [f"{'at least' if b.name.startswith('metric') else 'budget'} {quantity(b.name, b.limit)}"]
        if before is not None:
            words.append(f"original {quantity(b.name, before)}")
        share = None if b.name.startswith("metric") or b.limit <= 0 else b.measured / b.limit
        found.append(Fact(b.name, quantity(b.name, b.measured), ", ".join(words), share, b.met))
    if report.fidelity is not None:
        found.append(closeness(report))
    else:
        found.append(Fact("damage", f"{plan.damage:.3g}", f"{plan.unit}, predicted; not measured: there is no data"))
    return found


def closeness(report: SearchReport) -> Fact:
    """The fidelity of the artifact."""
    f = report.fidelity or {}
    on = f"{f['vectors']} outputs, {f['on']}"
    if f["signal"] == "embedding":
        return Fact("cosine to the original", f"{1 - f['mean']:.4f}", f"least {1 - f['worst']:.4f}; {on}")
    same = "" if f["agreement"] is None else f"same first answer {f['agreement']:.1%}; "
    return Fact("divergence, nats", f"{f['mean']:.3g}", f"{same}most {f['worst']:.3g}; {on}")
