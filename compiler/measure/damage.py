"""The damage of changing one weight: how far the signal moves.

weights only   ||D||^2 / ||W||^2: the relative squared error, blind to where a weight matters
second order   1/2 mean_s (sum_t g_t^T D x_t)^2 over calibration examples s and their tokens t: the squared derivative
of a random probe
               of the signal along the change D. It keeps the terms between tokens that a layer-wise Hessian
               tr(G D A D^T) drops, and is an estimate of the signal's divergence in its own unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tersor.compiler.measure.collect import Batch, Lookups, Products, Progress, Slopes, Trace, collect, schedule
from tersor.compiler.measure.forms import Form, lookup_forms
from tersor.compiler.measure.signal import Signal
from tersor.compiler.memory import give_back
from tersor.compiler.program import Program
from tersor.compiler.site import Site

BLOCK_BYTES = 12 * 2**20
EXAMPLES = 16
"""Examples whose weight gradients are held at a time."""

Block = tuple[int, Tensor]
"""Several changes of some rows of a weight: the number of the first row, and (changes, rows, ...)."""


class Damage(Protocol):
    """Scores changes D = W' - W of a site's weight; None where it cannot tell (the signal does not reach the site).

    `forms` are the error forms it came to know on the way. `sampled` says that it judges by the weights alone: a sample
    of their rows is enough for it.
    """

    unit: str
    sampled: bool
    forms: dict[str, Form]

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]:
        """The scores of whole changes, one after another."""

    def score_blocks(self, site: Site, blocks: Iterable[Block]) -> list[float | None]:
        """The scores of several changes that are given some rows at a time."""


def relative_error(weight: Tensor, change: Tensor) -> float:
    """||D||^2 / ||W||^2 (0 for a weight of zeros that stays so)."""
    size, moved = (float(torch.linalg.vector_norm(t)) ** 2 for t in (weight, change))
    return relative(moved, size)


def relative(moved: float, size: float) -> float:
    """||D||^2 / ||W||^2 from the two; ||D||^2 for a weight of zeros."""
    return moved / size if size > 0 else moved


class WeightError:
    """Damage judged by `relative_error` alone: needs no data."""

    unit = "relative squared weight error"
    sampled = True

    def __init__(self) -> None:
        self.forms: dict[str, Form] = {}

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]:
        for _ in changes:
            yield None

    def score_blocks(self, site: Site, blocks: Iterable[Block]) -> list[float | None]:
        count = 0
        for _, changes in blocks:
            count = len(changes)
        return [None] * count


class SecondOrder:
    """Damage from traces, collected for one group of sites after another as they are asked for.

    `forms` are the error forms of the weights that are looked up, of the groups so far.
    """

    sampled = False

    def __init__(
        self,
        program: Program,
        batches: Sequence[Batch],
        signal: Signal,
        *,
        memory: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.unit = signal.unit
        self.forms: dict[str, Form] = {}
        self.schedule = schedule(program.sites, batches, memory)
        self._group = {site.name: i for i, group in enumerate(self.schedule.groups) for site in group}
        self._collect = partial(
            collect,
            program,
            batches=batches,
            signal=signal,
            examples=self.schedule.examples,
            seed=seed,
            progress=progress,
        )
        self._held: int | None = None
        self._traces: Mapping[str, tuple[Trace, ...]] = {}

    def traces(self, site: Site) -> tuple[Trace, ...]:
        """What calibration knows about a site; nothing where the signal does not reach it."""
        group = self._group.get(site.name)
        if group is not None and group != self._held:
            self._traces = {}  # the old ones make room first
            give_back()
            self._traces = self._collect(self.schedule.groups[group]).traces
            self._held = group
            give_back()
            self.forms |= lookup_forms(self._traces)
        return self._traces.get(site.name, ())

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]:
        traces = self.traces(site)  # before the first change is made: collecting them takes memory
        # Products pay for the examples' weight gradients once per chunk; a table that is only looked up pays nothing.
        room = 4 * BLOCK_BYTES if any(isinstance(t, Products) for t in traces) else BLOCK_BYTES
        for chunk in _chunks(changes, max(1, room // max(1, 4 * site.params))):
            yield from self.score_blocks(site, _blocks(chunk))
            chunk.clear()  # the changes of a large table are large: gone before the next ones are made

    def score_blocks(self, site: Site, blocks: Iterable[Block]) -> list[float | None]:
        traces = self.traces(site)
        slopes = torch.zeros(self.schedule.examples, 0)
        for at, changes in blocks:
            if not slopes.numel():
                slopes = torch.zeros(self.schedule.examples, len(changes))
            for trace in traces:
                _add_slopes(slopes, trace, at, changes)
        scores: list[float | None] = (0.5 * slopes.square().mean(0)).tolist()
        return scores if traces else [None] * len(scores)


def _chunks(changes: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    for change in changes:
        chunk.append(change)
        del change  # the chunk alone holds it
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _blocks(changes: Sequence[Tensor]) -> Iterator[Block]:
    """Whole changes some rows at a time."""
    rows = changes[0].shape[0]
    step = max(1, BLOCK_BYTES // max(1, 4 * len(changes) * (changes[0].numel() // max(1, rows))))
    for at in range(0, rows, step):
        yield at, torch.stack([change[at : at + step] for change in changes])


def _add_slopes(slopes: Tensor, trace: Trace, at: int, changes: Tensor) -> None:
    """Add the derivative of each example's probe along each change of the rows from `at` on to `slopes` (examples,
    changes)."""
    rows = slice(at, at + changes.shape[1])
    match trace:
        case Products(first, inputs, gradients):
            flat = changes.flatten(1).T
            for start in range(0, len(inputs), EXAMPLES):
                some = slice(start, start + EXAMPLES)
                x, g = inputs[some].to(torch.float32), gradients[some, :, rows].to(torch.float32)
                weight_gradient = torch.bmm(g.transpose(1, 2), x).flatten(1)
                slopes[first + start : first + start + len(x)] += weight_gradient @ flat
        case Lookups(first, index, gradients):
            inside = (index >= rows.start) & (index < rows.stop)
            if bool(inside.any()):
                example, found = first + inside.nonzero()[:, 0], index[inside] - at
                g = gradients[inside].to(torch.float32)
                for c, change in enumerate(changes):
                    slopes[:, c].index_add_(0, example, (change[found] * g).sum(-1))
        case Slopes(first, gradient):
            slopes[first] += changes.flatten(1) @ gradient[rows].reshape(-1)
