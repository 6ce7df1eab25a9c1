"""Every candidate of every site, priced: exact bytes, and damage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import median
from typing import Any

from torch import Tensor

from tersor.compiler.candidate import Candidate, pack, pack_each
from tersor.compiler.measure.collect import Progress
from tersor.compiler.measure.damage import Damage, relative_error
from tersor.compiler.measure.forms import Form
from tersor.compiler.measure.ledger import Forgetful, Ledger, digest
from tersor.compiler.measure.rows import NOT_FINITE, Price, by_row, price_rows
from tersor.compiler.measure.samples import price_samples, sampled_rows
from tersor.compiler.measure.size import described_bytes
from tersor.compiler.memory import give_back
from tersor.compiler.method import Refusal
from tersor.compiler.program import Program
from tersor.compiler.resolve import Decision, Refused, Resolution
from tersor.compiler.site import Site
from tersor.compiler.slots import parameter_of
from tersor.compiler.stores import Dense, Store


@dataclass(frozen=True)
class Shared:
    """What choices with the same key take once, however many of them there are (rounding what several layers read): a
    part of the `costs` of each."""

    key: str
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """One thing that can be done at one site (`candidate` None: keep it). `bytes` is what its arrays and their
    description take on disk, `damage` is in the unit of the scorer, `error` the relative squared weight error; `costs`
    is what it takes of further quantities that a budget may limit, taken alone, of which it may share a part."""

    site: str
    candidate: Candidate | None
    bytes: int
    damage: float
    error: float
    costs: Mapping[str, float] = field(default_factory=dict)
    shared: Shared | None = None

    @property
    def text(self) -> str:
        return self.candidate.text if self.candidate else "keep"

    @property
    def weights(self) -> str:
        """The text of what it makes of the weights, whatever is done to their inputs."""
        return self.candidate.weights.text if self.candidate else "keep"

    def cost(self, quantity: str) -> float:
        """What it takes of a quantity: "size", "damage", or one of `costs` (0 where it has no part in it)."""
        match quantity:
            case "size":
                return self.bytes
            case "damage":
                return self.damage
        return self.costs.get(quantity, 0.0)

    def own(self, quantity: str) -> float:
        """What it takes of a quantity where another one takes the part that they share."""
        return self.cost(quantity) - (self.shared.costs.get(quantity, 0.0) if self.shared else 0.0)


def total(choices: Iterable[Choice], quantity: str) -> float:
    """What choices of several sites take of a quantity together."""
    shared: dict[str, float] = {}
    own = 0.0
    for choice in choices:
        own += choice.own(quantity)
        if choice.shared is not None:
            shared[choice.shared.key] = choice.shared.costs.get(quantity, 0.0)
    return own + sum(shared.values())


Choices = Mapping[str, Sequence[Choice]]
"""What can be done, by site."""


@dataclass(frozen=True)
class Measurements:
    """The choices of every site, what was refused while packing, which sites the damage score could not judge, and
    which were judged by a sample of their rows."""

    choices: Mapping[str, tuple[Choice, ...]]
    refused: tuple[Refused, ...]
    unjudged: tuple[str, ...]
    unit: str
    sampled: tuple[str, ...] = ()


UNJUDGED = -1.0
"""Damage of a choice that the score could not judge, until the judged ones are known."""
GIVE_BACK = 2**20
"""Bytes of a weight above which the memory its candidates took goes back to the system at once."""


def as_it_is(program: Program, site: Site) -> Dense:
    """The parameter in the type it has in the original: 16-bit values stay 16 bits."""
    weight = parameter_of(program.module, site)
    match site.dtype:
        case "float16" | "bfloat16" as half:
            return Dense.of(weight, half)
    return Dense(weight)


def kept(program: Program, site: Site) -> Choice:
    """The choice of leaving a site as it is."""
    return Choice(site.name, None, described_bytes(site, as_it_is(program, site)), 0.0, 0.0)


def measure(
    program: Program,
    resolution: Resolution,
    damage: Damage,
    progress: Progress | None = None,
    ledger: Ledger = Forgetful(),
) -> Measurements:
    """Pack every candidate once, price it, and score how far it moves the weight; what the ledger knows is not done
    again."""
    surveyed = _survey(program, resolution)
    samples = _samples(program, resolution, ledger) if damage.sampled else {}
    choices: dict[str, tuple[Choice, ...]] = {}
    refused: list[Refused] = []
    unjudged: dict[str, None] = {}
    sampled: list[str] = []
    for number, decision in enumerate(resolution.decisions):
        site = decision.site
        if site.kind == "attention":
            continue
        if not decision.candidates:
            choices[site.name] = (kept(program, site),)
            continue
        if damage.sampled and any(by_row(site, c) for c in decision.candidates) and site.shape[0] > sampled_rows(site):
            sampled.append(site.name)
        key = _key(decision, resolution)
        known = ledger.recall(key)
        if known is not None:
            choices[site.name] = _recalled(decision, known["priced"]) or (kept(program, site),)
            refused.extend(Refused(site.name, text, reason) for text, reason in known["refused"])
            if any(score is None for *_, score in known["priced"]):
                unjudged[site.name] = None
            continue
        weight = parameter_of(program.module, site)
        found = _prices(site, weight, decision, surveyed, damage, samples.get(site.name))
        gone = [Refused(site.name, c.text, f.reason) for c, f in found if isinstance(f, Refusal)]
        priced = [(c, f) for c, f in found if isinstance(f, Price)]
        refused += gone
        if any(price.damage is None for _, price in priced):
            unjudged[site.name] = None
        choices[site.name] = tuple(
            Choice(site.name, candidate, p.bytes, UNJUDGED if p.damage is None else p.damage, p.error)
            for candidate, p in priced
        ) or (kept(program, site),)
        form = damage.forms.get(site.name)
        if form is not None:
            ledger.keep_arrays(f"form {site.name}", form.arrays())
        rows = [(c.text, price.bytes, price.error, price.damage) for c, price in priced]
        reasons = [(r.candidate, r.reason) for r in gone]
        ledger.keep(key, {"priced": rows, "refused": reasons})
        if 4 * site.params > GIVE_BACK:
            give_back()
        if progress:
            progress("pricing", number + 1, len(resolution.decisions))
    return Measurements(_judge_the_rest(choices), tuple(refused), tuple(unjudged), damage.unit, tuple(sampled))


def _samples(program: Program, resolution: Resolution, ledger: Ledger) -> dict[str, list[Price | Refusal]]:
    """By site, the prices of its candidates that a sample of its rows tells, unless the ledger knows them."""
    return price_samples(
        [
            (d.site, parameter_of(program.module, d.site), apart)
            for d in resolution.decisions
            if (apart := _apart(d)) and ledger.recall(_key(d, resolution)) is None
        ]
    )


def _apart(decision: Decision) -> list[Candidate]:
    return [c for c in _distinct(decision) if by_row(decision.site, c)]


def _distinct(decision: Decision) -> list[Candidate]:
    """One candidate for all that make the same of the weights: they have the same price."""
    return list({c.weights.text: c.weights for c in decision.candidates}.values())


def _prices(
    site: Site,
    weight: Tensor,
    decision: Decision,
    surveyed: Surveyed,
    damage: Damage,
    sampled: Sequence[Price | Refusal] | None,
) -> list[tuple[Candidate, Price | Refusal]]:
    """Every candidate with its price, in the order of the policy."""
    distinct = _distinct(decision)
    rest = [c for c in distinct if not by_row(site, c)]
    rows = iter(price_rows(site, weight, _apart(decision), damage) if sampled is None else sampled)
    whole = iter(_whole(site, weight, rest, surveyed, damage) if rest else ())
    prices = {c.text: next(rows if by_row(site, c) else whole) for c in distinct}
    return [(c, prices[c.weights.text]) for c in decision.candidates]


def _whole(
    site: Site, weight: Tensor, candidates: Sequence[Candidate], surveyed: Surveyed, damage: Damage
) -> list[Price | Refusal]:
    """Prices of candidates that must see the whole weight."""
    found: list[Price | Refusal] = []

    def changes() -> Iterator[Tensor]:
        for store in _stores(site, weight, candidates, surveyed):
            if isinstance(store, Refusal):
                found.append(store)
                continue
            size, dense = described_bytes(site, store), store.dense().detach()
            change = dense - weight if dense.data_ptr() == weight.data_ptr() else dense.sub_(weight)
            del store, dense
            error = relative_error(weight, change)
            if not isfinite(error):
                found.append(NOT_FINITE)
                continue
            found.append(Price(size, error, None))
            yield change
            del change  # before the next one is made

    scores = iter(list(damage.score(site, changes())))
    return [replace(price, damage=next(scores)) if isinstance(price, Price) else price for price in found]


def _key(decision: Decision, resolution: Resolution) -> str:
    """Under what a site's prices are kept: its candidates, and whom those that look at a whole rule look at."""
    texts = [candidate.text for candidate in decision.candidates]
    together: list[str] = []
    if any(candidate.scoped for candidate in decision.candidates):
        together = [d.site.name for d in resolution.decisions if d.rule == decision.rule]
    return f"prices {decision.site.name} {digest([texts, together])}"


def _recalled(decision: Decision, priced: Sequence[tuple[str, int, float, float | None]]) -> tuple[Choice, ...]:
    by_text = {candidate.text: candidate for candidate in decision.candidates}
    return tuple(
        Choice(decision.site.name, by_text[text], size, UNJUDGED if score is None else score, error)
        for text, size, error, score in priced
    )


def _judge_the_rest(choices: Mapping[str, tuple[Choice, ...]]) -> dict[str, tuple[Choice, ...]]:
    """Sites without a score get the relative weight error times the median sensitivity of the judged ones (1 if there
    is none), so that what the signal does not see is neither free nor sacred."""
    known = [c.damage / c.error for site in choices.values() for c in site if c.damage > 0 and c.error > 0]
    sensitivity = median(known) if known else 1.0
    return {
        name: tuple(replace(c, damage=c.error * sensitivity) if c.damage < 0 else c for c in site)
        for name, site in choices.items()
    }


Surveyed = Mapping[tuple[tuple[int, int], str], Mapping[int, Mapping[str, Any]]]


def _survey(program: Program, resolution: Resolution) -> Surveyed:
    """What scoped methods find over all sites of a rule: by (option, candidate), step and site."""
    scoped: dict[tuple[tuple[int, int], str], tuple[Candidate, list[Site]]] = {}
    for decision in resolution.decisions:
        for candidate in decision.candidates:
            if candidate.scoped:
                scoped.setdefault((candidate.option, candidate.text), (candidate, []))[1].append(decision.site)
    found: dict[tuple[tuple[int, int], str], dict[int, Mapping[str, Any]]] = {}
    for key, (candidate, sites) in scoped.items():
        # Only the first step sees whole weights; a later scoped step takes each tensor as a scope of its own.
        step = candidate.steps[0]
        if step.method.scope == "rule":
            tensors = {site.name: parameter_of(program.module, site) for site in sites}
            found[key] = {0: step.method.survey(sites, tensors, step.point)}
    return found


def _scope(surveyed: Surveyed, candidate: Candidate, site: str) -> dict[int, Any]:
    steps = surveyed.get((candidate.option, candidate.text), {})
    return {step: by_site.get(site) for step, by_site in steps.items()}


def _stores(
    site: Site, weight: Tensor, candidates: Sequence[Candidate], surveyed: Surveyed
) -> Iterator[Store | Refusal]:
    if any(candidate.scoped for candidate in candidates):
        for candidate in candidates:
            yield pack(weight, candidate.steps, _scope(surveyed, candidate, site.name))
    else:
        yield from pack_each(weight, candidates)


def pack_chosen(
    program: Program, resolution: Resolution, chosen: Mapping[str, Choice], forms: Mapping[str, Form] = {}
) -> dict[str, Store]:
    """The stores of a plan: every chosen candidate packed, every kept parameter as it is. `forms` are those of the
    sites whose candidate wants one."""
    surveyed = _survey(program, resolution)
    stores: dict[str, Store] = {}
    for decision in resolution.decisions:
        choice = chosen.get(decision.site.name)
        if choice is None:
            continue
        if choice.candidate is None:
            stores[decision.site.name] = as_it_is(program, decision.site)
            continue
        weight = parameter_of(program.module, decision.site)
        name, steps = decision.site.name, choice.candidate.steps
        form = forms.get(name) if choice.candidate.wants_form else None
        store = pack(weight, steps, _scope(surveyed, choice.candidate, name), form.dense() if form else None)
        if isinstance(store, Refusal):
            raise ValueError(f"{decision.site.name}: {store.reason}")
        stores[decision.site.name] = store
        if 4 * decision.site.params > GIVE_BACK:
            give_back()
    return stores
