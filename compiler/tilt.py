"""Towards the best of a metric that no prediction knows: plans whose damage is weighed otherwise, measured in turn.

    damage' = factor(part) * damage        part: the model's embeddings, its attention, its feed-forward layers, ...

A coordinate search: one part after another counts more, or less; what makes the metric better stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tersor.compiler.measure.price import Choices
from tersor.compiler.site import Site

FACTOR = 8.0
"""About what a bit and a half change."""


def part_of(site: Site) -> str:
    """`attention` of `attention.query`; the kind where no role is known."""
    return site.kind if site.role == "other" else site.role.partition(".")[0]


class Tilt:
    """The factors that are tried now, by part."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.parts = {site.name: part_of(site) for site in sites if site.kind != "attention"}
        large: dict[str, int] = {}
        for site in sites:
            if site.name in self.parts:
                large[self.parts[site.name]] = large.get(self.parts[site.name], 0) + site.params
        ordered = sorted(large, key=lambda part: -large[part])
        self.trials = [(part, factor) for part in ordered for factor in (FACTOR, 1 / FACTOR)]
        self.kept: dict[str, float] = {}
        self.tried: dict[str, float] = {}
        self.best: float | None = None

    def choices(self, choices: Choices) -> Choices:
        """The choices as a plan is to see them now."""
        if not self.tried:
            return choices
        return {
            name: tuple(replace(c, damage=c.damage * self.tried.get(self.parts[name], 1.0)) for c in site)
            for name, site in choices.items()
        }

    def learn(self, metric: float | None) -> bool:
        """What the plan with these factors came to (None: it is no new plan, or breaks a budget); whether there is
        another to try."""
        if metric is not None and (self.best is None or metric > self.best):
            self.best, self.kept = metric, self.tried
        if not self.trials:
            return False
        part, factor = self.trials.pop(0)
        self.tried = {**self.kept, part: self.kept.get(part, 1.0) * factor}
        return True
