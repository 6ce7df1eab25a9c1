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
from torch import Tensor, nn

from tersor.compiler.measure.changes import Change, Changes, Leaves, Replaced, together
from tersor.compiler.measure.collect import Batch, Progress
from tersor.compiler.measure.inputs import Inputs
from tersor.compiler.measure.ledger import Ledger
from tersor.compiler.measure.price import Choice, Choices
from tersor.compiler.measure.resume import with_weight
from tersor.compiler.measure.signal import Signal
from tersor.compiler.program import Program
from tersor.compiler.slots import slots
from tersor.compiler.stores import Store

MATTERS = 0.005
"""The least share of the damage of all sites at their middle choices for which a site's is measured."""
MUCH = 0.03
"""The share of a plan's damage from which on a choice is measured."""
LESSONS = 2
"""Plans whose choices are measured."""
MEASURED = ("linear", "embedding", "recurrent")

Key = tuple[str, str]
"""Site and the text of what a choice makes of its weights."""
Manner = tuple[tuple[str | bool, ...], ...]
TINY = 1e-6


class Contenders:
    """What is known of some choices. Measurements are shared with the `fresh` ones made of it, what they are used for
    is not: a plan does not depend on the plans that were made before.

    Choices that differ in how their kernels round inputs alone have the same weights, which are measured once. With
    `kernels`, what the rounding of inputs does is a part of their damage.
    """

    def __init__(
        self,
        program: Program,
        choices: Choices,
        signal: Signal,
        batches: Sequence[Batch],
        ledger: Ledger,
        progress: Progress | None = None,
        *,
        kernels: bool = True,
    ) -> None:
        self.program = program
        self.sites = {site.name: site for site in program.sites if site.kind in MEASURED and site.readers}
        distinct = {name: _distinct(site) for name, site in choices.items()}
        self.scored = {(c.site, c.weights): c for site in distinct.values() for c in site}
        self.anchors = _anchors({name: distinct[name] for name in self.sites if name in choices})
        self.changes = Changes(program, signal, list(self.sites.values()), batches, ledger, progress)
        self.inputs = Inputs(program, choices if kernels else {}, self.changes)
        self.known: dict[Key, Change] = {}
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
        """Measure the anchors and the rounding of inputs, if that was not done."""
        self.inputs.measure()
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
            if c.candidate
            and c.site in self.sites
            and self._of_weights(c) > MUCH * total
            and c.weights not in self._used(c.site)
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
        """What a choice does to its weights and to their inputs, as if by itself."""
        return self._of_weights(choice) + self.inputs.damage(choice)

    def _of_weights(self, choice: Choice) -> float:
        """As measured, or the score times the ratio of those that are like it."""
        score = self.scored[choice.site, choice.weights].damage
        if choice.weights in self._used(choice.site):
            return self.known[choice.site, choice.weights].damage
        alike = sorted(self._alike(choice), key=lambda c: c.damage)
        if score <= 0 or not alike:
            return score * self.usual.get(_manner(choice), 1.0)
        places = [log(c.damage) for c in alike]
        return score * exp(float(np.interp(log(score), places, [log(max(self._ratio(c), TINY)) for c in alike])))

    def together(self, chosen: Mapping[str, Choice]) -> float:
        """The damage of all choices of a plan, together."""
        changes: list[tuple[Change, float]] = []
        rest = 0.0
        for choice in chosen.values():
            damage = self._of_weights(choice) if choice.site in self.sites else choice.damage
            nearest = self._nearest(choice)
            if nearest is None or nearest.damage <= 0:
                rest += damage
            else:
                changes.append((nearest, sqrt(damage / nearest.damage)))
        changes += [(rounding, 1.0) for rounding in self.inputs.of(chosen.values())]
        return rest + together(changes)

    def _used(self, site: str) -> Sequence[str]:
        return self.used.get(site, ())

    def _use(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            if (choice.site, choice.weights) in self.known:
                self.used.setdefault(choice.site, []).append(choice.weights)

    def _ratio(self, choice: Choice) -> float:
        key = choice.site, choice.weights
        return self.known[key].damage / self.scored[key].damage

    def _anchors(self) -> Iterator[Choice]:
        return (choice for some in self.anchors for choice in some.values())

    def _alike(self, choice: Choice) -> list[Choice]:
        """The measured choices of the same site and manner."""
        known = [self.scored[choice.site, weights] for weights in self._used(choice.site)]
        return [c for c in known if c.damage > 0 and _manner(c) == _manner(choice)]

    def _nearest(self, choice: Choice) -> Change | None:
        """The change of the measured choice of the same site and manner whose score is the most like that of a
        choice."""
        if choice.weights in self._used(choice.site):
            return self.known[choice.site, choice.weights]
        score = self.scored[choice.site, choice.weights].damage
        alike = self._alike(choice) if score > 0 else []
        if not alike:
            return None
        return self.known[choice.site, min(alike, key=lambda c: abs(log(c.damage / score))).weights]

    def _find(self, choices: Sequence[Choice], packed: Callable[[Mapping[str, Choice]], Mapping[str, Store]]) -> None:
        """Measure what is not known, and use it."""
        missing: dict[str, Choice] = {}
        for choice in choices:
            if (choice.site, choice.weights) in self.known:
                continue
            kept = self.changes.known(_key(choice))
            if kept is None:
                missing[_key(choice)] = choice
            else:
                self.known[choice.site, choice.weights] = kept
        if missing:
            stores = packed({c.site: c for c in missing.values()})
            replaced = {key: self._replaced(c.site, stores[c.site]) for key, c in missing.items()}
            for key, change in self.changes.measure("measuring choices", replaced).items():
                self.known[missing[key].site, missing[key].weights] = change
        self._use(choices)

    def _replaced(self, site: str, store: Store) -> Replaced:
        """What reads a site, with the weight that a store stands for."""
        graph = self.program.module
        found = slots(graph, self.sites[site])

        def leaves() -> Leaves:
            read = {path: graph.get_submodule(path) for path, _ in found}
            if all(isinstance(leaf, nn.Embedding) for leaf in read.values()):
                return dict.fromkeys(read, Rows(store))  # a whole table takes much memory
            weight = store.dense().detach()
            return {path: with_weight(read[path], name, weight).eval() for path, name in found}

        return Replaced(tuple(dict.fromkeys(slot.path for slot in found)), leaves)


class Rows(nn.Module):
    """Rows of a store."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def forward(self, index: Tensor) -> Tensor:
        return self.store.rows(index)


def _distinct(choices: Sequence[Choice]) -> list[Choice]:
    """One choice for all that make the same of the weights."""
    return list({choice.weights: choice for choice in reversed(choices)}.values())[::-1]


def _manner(choice: Choice) -> Manner:
    """What is done to the weights, whatever its numbers."""
    steps = choice.candidate.weights.steps if choice.candidate else ()
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


def _key(choice: Choice) -> str:
    return f"contender {choice.site} {choice.weights}"
