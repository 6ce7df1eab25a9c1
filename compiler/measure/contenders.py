"""Choices measured: how each alone moves the outputs, and with that how the choices of a plan move them together.

    c_i  = change of the outputs where site i alone is as chosen,   damage_i = mean ||c_i||^2 / 2
    damage of a plan = mean || sum_i c_i ||^2 / 2                   with every product of two sites, to second order

The scores of `damage` price all choices of all sites from one pass, but they do not see what compensation saves, which
is another part of the error at every site and changes little from one choice to the next. So of every site that matters
two choices of each manner are measured, the worst one and one in the middle, and the scores of the others are corrected
by their ratios; choices that make up much of a plan's damage are measured themselves.

    damage = score * r,   log r linear in log score between the measured choices, constant beyond them
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, log, sqrt
from statistics import median

import numpy as np
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
Manner = tuple[tuple[str | bool, ...], ...]
TINY = 1e-6


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
        self.anchors = _anchors({name: choices[name] for name in self.sites if name in choices})
        self.batches = list(_parts(list(self.sites.values()), batches))
        self.changes: dict[Key, Tensor] = {}
        self.damages: dict[Key, float] = {}
        self.used: dict[str, list[str]] = {}
        self.usual: dict[Manner, float] = {}
        self.lessons = LESSONS

    def fresh(self) -> Contenders:
        """The same measurements, of which only the anchors are used."""
        other = copy.copy(self)
        other.used, other.lessons = {}, LESSONS
        other._use(self._anchors())
        return other

    def anchor(self, packed: Callable[[Mapping[str, Choice]], Mapping[str, Store]]) -> None:
        """Measure the anchors, if that was not done."""
        if self.anchors and not self.used:
            for some in self.anchors:
                self._find(list(some.values()), packed)
            ratios: dict[Manner, list[float]] = {}
            for choice in self._anchors():
                ratios.setdefault(_manner(choice), []).append(self._ratio(choice))
            self.usual = {manner: median(found) for manner, found in ratios.items()}

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
        """As measured, or the score times the ratio of those that are like it."""
        score = self.scored[choice.site, choice.text].damage
        if choice.text in self._used(choice.site):
            return self.damages[choice.site, choice.text]
        alike = sorted(self._alike(choice), key=lambda c: c.damage)
        if score <= 0 or not alike:
            return score * self.usual.get(_manner(choice), 1.0)
        places = [log(c.damage) for c in alike]
        return score * exp(float(np.interp(log(score), places, [log(max(self._ratio(c), TINY)) for c in alike])))

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

    def _ratio(self, choice: Choice) -> float:
        return self.damages[choice.site, choice.text] / self.scored[choice.site, choice.text].damage

    def _anchors(self) -> Iterator[Choice]:
        return (choice for some in self.anchors for choice in some.values())

    def _alike(self, choice: Choice) -> list[Choice]:
        """The measured choices of the same site and manner."""
        known = [self.scored[choice.site, text] for text in self._used(choice.site)]
        return [c for c in known if c.damage > 0 and _manner(c) == _manner(choice)]

    def _nearest(self, choice: Choice) -> str | None:
        """The measured choice of the same site and manner whose score is the most like that of a choice."""
        if choice.text in self._used(choice.site):
            return choice.text
        score = self.scored[choice.site, choice.text].damage
        alike = self._alike(choice) if score > 0 else []
        return min(alike, key=lambda c: abs(log(c.damage / score))).text if alike else None

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


def _manner(choice: Choice) -> Manner:
    """What is done, whatever its numbers."""
    steps = choice.candidate.steps if choice.candidate else ()
    return tuple(
        (step.method.id, *(v for v in step.point.model_dump().values() if isinstance(v, str | bool))) for step in steps
    )


def _anchors(choices: Choices) -> list[dict[str, Choice]]:
    """Of the sites that matter, by site and for each manner in turn, the compensated choice in the middle of the scores
    and the worst one."""
    manners: dict[Manner, dict[str, list[Choice]]] = {}
    for name, site in choices.items():
        for choice in site:
            if choice.candidate and choice.candidate.wants_form and choice.damage > 0:
                manners.setdefault(_manner(choice), {}).setdefault(name, []).append(choice)
    found: list[dict[str, Choice]] = []
    for sites in manners.values():
        middles = {name: _middle(alike) for name, alike in sites.items()}
        least = MATTERS * sum(c.damage for c in middles.values())
        middles = {name: c for name, c in middles.items() if c.damage >= least}
        worst = {name: max(sites[name], key=lambda c: c.damage) for name in middles}
        found += [middles, {name: c for name, c in worst.items() if c is not middles[name]}]
    return found


def _middle(choices: Sequence[Choice]) -> Choice:
    middle = sum(log(c.damage) for c in choices) / len(choices)
    return min(choices, key=lambda c: abs(log(c.damage) - middle))


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
