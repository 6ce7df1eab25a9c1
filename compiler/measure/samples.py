"""Prices by a sample of the rows, for scores that know the weights alone: of many sites at a time.

A sample is small, and what is done to it costs more in calls than in arithmetic. Rows do not know of each other, so
the samples of all sites of one width that have the same candidates are packed as one matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import isfinite

import torch
from torch import Tensor

from tersor.compiler.candidate import Candidate, pack_each
from tersor.compiler.measure.damage import relative
from tersor.compiler.measure.rows import NOT_FINITE, Price, accepted
from tersor.compiler.measure.size import described_bytes, of_rows
from tersor.compiler.method import Refusal
from tersor.compiler.site import Site
from tersor.compiler.stores import Store

SAMPLE, LEAST = 2**15, 32
"""Weights that are drawn from a matrix as a sample, and its least number of rows."""
TOGETHER = 2**19
"""Weights of several samples that are packed together."""

Task = tuple[Site, Tensor, Sequence[Candidate]]
"""A site, its weight and candidates that are all `by_row`."""


def sampled_rows(site: Site) -> int:
    """How many rows of a matrix are drawn as a sample."""
    rows, width = site.shape
    return min(rows, max(LEAST, SAMPLE // max(1, width)))


def price_samples(tasks: Sequence[Task]) -> dict[str, list[Price | Refusal]]:
    """By site, the prices of its candidates in order. The bytes follow from the shape and are exact, to within the
    digits of an exponent."""
    found: dict[str, list[Price | Refusal]] = {}
    refused: dict[str, list[Refusal | None]] = {}
    alike: dict[tuple[int, tuple[str, ...]], list[tuple[Task, list[Candidate]]]] = defaultdict(list)
    for task in tasks:
        site, _, candidates = task
        taken, refused[site.name] = accepted(site, candidates)
        alike[site.shape[1], tuple(c.text for c in taken)].append((task, taken))
    for group in alike.values():
        for some in _together([task for task, _ in group]):
            for (site, _, _), prices in zip(some, _priced(some, group[0][1]), strict=True):
                rest = iter(prices)
                found[site.name] = [refusal or next(rest) for refusal in refused[site.name]]
    return found


def _together(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """The tasks in order, so many at a time as are packed together."""
    some: list[Task] = []
    for task in tasks:
        some.append(task)
        if sum(sampled_rows(site) * site.shape[1] for site, _, _ in some) >= TOGETHER:
            yield some
            some = []
    if some:
        yield some


def _priced(tasks: Sequence[Task], candidates: Sequence[Candidate]) -> list[list[Price | Refusal]]:
    """For every task the prices of the candidates."""
    counts = [sampled_rows(site) for site, _, _ in tasks]
    rows = torch.cat([_sample(weight, count) for (_, weight, _), count in zip(tasks, counts, strict=True)])
    sizes = [float(part.square().sum()) for part in rows.split(counts)]
    found: list[list[Price | Refusal]] = [[] for _ in tasks]
    for store in pack_each(rows, candidates):
        if not isinstance(store, Store):
            raise TypeError(f"a sample of the rows is refused where the whole is not: {store.reason}")
        moved = (store.dense().detach() - rows).square_().sum(1).split(counts)
        for i, (site, weight, _) in enumerate(tasks):
            error = relative(float(moved[i].sum()), sizes[i])
            price = Price(described_bytes(site, of_rows(store, len(weight))), error, None)
            found[i].append(price if isfinite(error) else NOT_FINITE)
    return found


def _sample(weight: Tensor, count: int) -> Tensor:
    """So many rows, evenly spread."""
    rows = len(weight)
    return weight.detach() if count == rows else weight.detach()[torch.arange(count) * rows // count]
