"""Prices of the methods that take every row by itself, found some rows at a time.

All candidates of a site are packed on the same few rows before the next ones are taken: the rows stay in the cache, no
change of a whole table is ever held, and calibration forms the gradient of a row once for all candidates. The bytes
follow from the shape and are exact, to within the digits of an exponent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from tersor.compiler.candidate import Candidate, pack_each
from tersor.compiler.measure.damage import Block, Damage, relative
from tersor.compiler.measure.size import described_bytes, of_rows
from tersor.compiler.method import Refusal
from tersor.compiler.site import Site
from tersor.compiler.stores import Store

WEIGHTS = 2**18
"""Weights of a matrix that are taken together."""
CHANGES = 2**22
"""Weights of all candidates that are held at a time."""

NOT_FINITE = Refusal("the packed weight is not finite")


@dataclass(frozen=True)
class Price:
    """What a candidate takes and does at one site: `bytes`, relative squared weight `error`, and `damage` (None: the
    score cannot tell)."""

    bytes: int
    error: float
    damage: float | None


def by_row(site: Site, candidate: Candidate) -> bool:
    """Whether a candidate can be priced some rows at a time."""
    return len(site.shape) == 2 and len(candidate.steps) == 1 and candidate.steps[0].method.by_row


def accepted(site: Site, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Refusal | None]]:
    """The candidates that can be applied to a site, and per candidate why it cannot (None: it can)."""
    refusals = [c.steps[0].method.refuse(site.shape, c.steps[0].point) for c in candidates]
    taken = [c for c, refusal in zip(candidates, refusals, strict=True) if refusal is None]
    return taken, [
        None if refusal is None else Refusal(f"{c.text}: {refusal.reason}")
        for c, refusal in zip(candidates, refusals, strict=True)
    ]


def price_rows(site: Site, weight: Tensor, candidates: Sequence[Candidate], damage: Damage) -> list[Price | Refusal]:
    """The prices of candidates that are all `by_row`, in order."""
    taken, refusals = accepted(site, candidates)
    sizes: list[int] = []
    errors = _Errors(len(taken))

    def blocks() -> Iterator[Block]:
        for at, rows in _blocks(weight, len(taken)):
            changes = torch.empty(len(taken), *rows.shape)
            for change, store in zip(changes, pack_each(rows, taken), strict=True):
                if not isinstance(store, Store):
                    raise TypeError(f"a part of the rows is refused where the whole is not: {store.reason}")
                if at == 0:
                    sizes.append(described_bytes(site, of_rows(store, len(weight))))
                torch.sub(store.dense().detach(), rows, out=change)
            errors.add(rows, changes)
            yield at, changes

    scores = damage.score_blocks(site, blocks()) if taken else []
    priced = iter(
        Price(size, error, score) if isfinite(error) else NOT_FINITE
        for size, error, score in zip(sizes, errors.relative(), scores, strict=True)
    )
    return [next(priced) if refusal is None else refusal for refusal in refusals]


class _Errors:
    """Relative squared weight errors of several changes, summed over blocks of rows."""

    def __init__(self, changes: int) -> None:
        self.size, self.moved = 0.0, [0.0] * changes

    def add(self, rows: Tensor, changes: Tensor) -> None:
        self.size += float(torch.linalg.vector_norm(rows)) ** 2
        for i, change in enumerate(changes):
            self.moved[i] += float(torch.linalg.vector_norm(change)) ** 2

    def relative(self) -> list[float]:
        return [relative(moved, self.size) for moved in self.moved]


def _blocks(weight: Tensor, candidates: int) -> Iterator[tuple[int, Tensor]]:
    """The rows of a weight, some at a time with the number of the first."""
    rows, width = weight.shape
    step = max(1, min(WEIGHTS, CHANGES // max(1, candidates)) // max(1, width))
    for at in range(0, rows, step):
        yield at, weight[at : at + step]
