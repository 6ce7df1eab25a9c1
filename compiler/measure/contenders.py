"""Choices measured: how each alone moves the outputs, and with that how the choices of a plan move them together.

    c_i  = change of the outputs where site i alone is as chosen,   damage_i = mean ||c_i||^2 / 2
    damage of a plan = mean || sum_i c_i ||^2 / 2                   with every product of two sites, to second order

The scores of `damage` price all choices of all sites from one pass, but they do not see what compensation saves, which
is another part of the error at every site and about the same for all its choices. So one choice of every site that
matters is measured, and the scores of the others are corrected by its ratio; choices that make up much of a plan's
damage are measured themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import log, sqrt
from statistics import median

import torch
from torch import Tensor

from tersor.compiler.measure.collect import Batch, Progress, batch_size, gathered
from tersor.compiler.measure.ledger import Ledger
from tersor.compiler.measure.price import Choice, Choices
from tersor.compiler.measure.resume import Resumable, with_weight
from tersor.compiler.measure.signal import Signal
from tersor.compiler.program import Program
from tersor.compiler.site import Site
from tersor.compiler.slots import slots
from tersor.compiler.stores import Store

EXAMPLES, LEAST = 32, 4
"""Most and fewest examples that a choice is measured on."""
WORK = 2e12
"""Products of a weight and a value that the choices of all sites may take; more examples than that are left out."""
TOKENS = 1024
"""Tokens that are run together."""
NUMBERS, NARROW = 2**15, 16
"""Of a change are kept, and of a vector at least: wider ones are projected at random, which keeps the products of two
changes on average."""
MATTERS = 0.005
"""The least share of the damage of all sites at their middle choices for which a site's is measured."""
MUCH = 0.03
"""The share of a plan's damage from which on a choice is measured."""
LESSONS = 2
"""Plans whose choices are measured."""
MEASURED = ("linear", "embedding", "recurrent")

Key = tuple[str, str]
"""Site and text of a choice."""


class Contenders:
    """What is known of some choices. Measurements are shared with the `fresh` ones made of it, what they are used for
    is not: a plan does not depend on the plans that were made before."""

    def __init__(
        self,
        program: Program,
        choices: Choices,
        signal: Signal,
        batches: Sequence[Batch],
        ledger: Ledger,
        progress: Progress | None = None,
    ) -> None:
        self.program, self.signal, self.ledger, self.progress = program, signal, ledger, progress
        self.sites = {site.name: site for site in program.sites if site.kind in MEASURED and site.readers}
        self.scored = {(c.site, c.text): c for site in choices.values() for c in site}
        self.anchors = _middles({name: choices[name] for name in self.sites if name in choices})
        self.batches = list(_parts(list(self.sites.values()), batches))
        self.changes: dict[Key, Tensor] = {}
        self.damages: dict[Key, float] = {}
        self.used: dict[str, list[str]] = {}
        self.usual = 1.0
        self.lessons = LESSONS

    def fresh(self) -> Contenders:
        """The same measurements, of which only the anchors are used."""
        other = copy.copy(self)
        other.used, other.lessons = {}, LESSONS
        other._use(self.anchors.values())
        return other

    def anchor(self, packed: Callable[[Mapping[str, Choice]], Mapping[str, Store]]) -> None:
        """Measure the anchors, if that was not done."""
        if self.anchors and not self.used:
            self._find(list(self.anchors.values()), packed)
            ratios = [self._ratio(c.site, c.text) for c in self.anchors.values()]
            self.usual = median(ratios)

    def learn(self, chosen: Mapping[str, Choice], stores: Mapping[str, Store]) -> bool:
        """Measure the choices that make up much of a plan and are not in use; whether there were any. After `LESSONS`
        plans that is enough: a plan that is as good as found is not worth another one."""
        total = sum(c.damage for c in chosen.values())
        wanted = [
            c
            for c in chosen.values()
            if c.candidate and c.site in self.sites and c.damage > MUCH * total and c.text not in self._used(c.site)
        ]
        if not wanted or not self.lessons:
            return False
        self.lessons -= 1
        self._find(wanted, lambda missing: stores)
        return True

    def judged(self, choices: Choices) -> Choices:
        """The choices with their scores corrected."""
        return {
            name: tuple(replace(c, damage=self.damage(c)) for c in site) if name in self.sites else site
            for name, site in choices.items()
        }

    def damage(self, choice: Choice) -> float:
        """As measured, or the score times the ratio of what is most like it."""
        score = self.scored[choice.site, choice.text].damage
        nearest = self._nearest(choice)
        if nearest == choice.text:
            return self.damages[choice.site, nearest]
        if nearest is not None:
            return score * self._ratio(choice.site, nearest)
        return score * self.usual if _compensated(choice) else score

    def together(self, chosen: Mapping[str, Choice]) -> float:
        """The damage of all choices of a plan, together."""
        total, rest = torch.zeros(()), 0.0
        for choice in chosen.values():
            damage = self.damage(choice) if choice.site in self.sites else choice.damage
            nearest = self._nearest(choice)
            if nearest is None or self.damages[choice.site, nearest] <= 0:
                rest += damage
            else:
                scale = sqrt(damage / self.damages[choice.site, nearest])
                total = total + scale * self.changes[choice.site, nearest].to(torch.float32)
        return rest + (float(total.double().square().sum(-1).mean()) / 2 if total.dim() else 0.0)

    def _used(self, site: str) -> Sequence[str]:
        return self.used.get(site, ())

    def _use(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            if (choice.site, choice.text) in self.damages:
                self.used.setdefault(choice.site, []).append(choice.text)

    def _ratio(self, site: str, text: str) -> float:
        return self.damages[site, text] / self.scored[site, text].damage

    def _nearest(self, choice: Choice) -> str | None:
        """The measured choice of the same site and manner whose score is the most like that of a choice."""
        if choice.text in self._used(choice.site):
            return choice.text
        score = self.scored[choice.site, choice.text].damage if choice.site in self.sites else 0.0
        alike = [self.scored[choice.site, text] for text in self._used(choice.site)]
        known = [c for c in alike if c.damage > 0 and _compensated(c) == _compensated(choice)]
        if score <= 0 or not known:
            return None
        return min(known, key=lambda c: abs(log(c.damage / score))).text

    def _find(self, choices: Sequence[Choice], packed: Callable[[Mapping[str, Choice]], Mapping[str, Store]]) -> None:
        """Measure what is not known, and use it."""
        missing = []
        for choice in choices:
            if (choice.site, choice.text) in self.damages:
                continue
            kept = self.ledger.recall_arrays(_key(choice))
            if kept is None:
                missing.append(choice)
            else:
                self._know(choice, kept["change"], float(kept["damage"]))
        if missing:
            self._measure(missing, packed({c.site: c for c in missing}))
        self._use(choices)

    def _know(self, choice: Choice, change: Tensor, damage: float) -> None:
        self.changes[choice.site, choice.text], self.damages[choice.site, choice.text] = change, damage

    @torch.no_grad()
    def _measure(self, missing: Sequence[Choice], stores: Mapping[str, Store]) -> None:
        run = self.program.callable().eval()
        graph = run.graph_module
        places = {c.site: slots(graph, self.sites[c.site]) for c in missing}
        paths = {site: tuple(dict.fromkeys(slot.path for slot in found)) for site, found in places.items()}
        runner = Resumable(graph, list(paths.values()))
        found: dict[str, list[Tensor]] = {c.site: [] for c in missing}
        squares = dict.fromkeys(found, 0.0)
        vectors = done = width = 0
        for batch in self.batches:
            inputs = run.bind((), dict(batch))
            before = self.signal.view(runner.first([inputs[n] for n in run.signature.names]), inputs)
            width = width or max(NARROW, NUMBERS // (len(before) * len(self.batches)))
            vectors += len(before)
            for site, slots_of in places.items():
                weight = stores[site].dense().detach()
                leaves = {path: with_weight(graph.get_submodule(path), name, weight) for path, name in slots_of}
                change = self.signal.change(before, self.signal.view(runner.again(paths[site], leaves), inputs))
                squares[site] += float(change.double().square().sum())
                found[site].append(_projected(change, width))
                done += 1
                if self.progress:
                    self.progress("measuring choices", done, len(places) * len(self.batches))
        for choice in missing:
            change, damage = torch.cat(found[choice.site]).to(torch.bfloat16), squares[choice.site] / (2 * vectors)
            self._know(choice, change, damage)
            arrays = {"change": change, "damage": torch.tensor(damage, dtype=torch.float64)}
            self.ledger.keep_arrays(_key(choice), arrays)


def _projected(change: Tensor, width: int) -> Tensor:
    """(vectors, width) with the same products on average."""
    if change.shape[1] <= width:
        return change
    drawn = torch.randn(change.shape[1], width, generator=torch.Generator().manual_seed(0))
    return change @ drawn / sqrt(width)


def _compensated(choice: Choice) -> bool:
    return choice.candidate is not None and choice.candidate.wants_form


def _middles(choices: Choices) -> dict[str, Choice]:
    """Of the sites that matter, the compensated choice in the middle of their scores."""
    found: dict[str, Choice] = {}
    for name, site in choices.items():
        scored = [c for c in site if _compensated(c) and c.damage > 0]
        if scored:
            middle = sum(log(c.damage) for c in scored) / len(scored)
            found[name] = min(scored, key=lambda c: abs(log(c.damage) - middle))
    total = sum(c.damage for c in found.values())
    return {name: c for name, c in found.items() if c.damage >= MATTERS * total}


def _parts(sites: Sequence[Site], batches: Sequence[Batch]) -> Iterator[Batch]:
    """The examples to measure on, so many at a time as are run together."""
    tokens = max(int(next(iter(b.values())).shape[:2].numel()) // batch_size(b) for b in batches)
    work = tokens * len(sites) * sum(s.params for s in sites if s.kind != "embedding") / 2
    examples = int(max(LEAST, min(EXAMPLES, WORK // max(1, work))))
    for batch in gathered(batches, examples):
        size = max(1, TOKENS // max(1, next(iter(batch.values())).shape[:2].numel() // batch_size(batch)))
        for start in range(0, batch_size(batch), size):
            yield {name: value[start : start + size] for name, value in batch.items()}


def _key(choice: Choice) -> str:
    return f"contender {choice.site} {choice.text}"
