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
from tersor.compiler.measure.forms import lookup_forms
from tersor.compiler.measure.signal import Signal
from tersor.compiler.memory import give_back
from tersor.compiler.program import Program
from tersor.compiler.site import Site

BLOCK_BYTES = 12 * 2**20


class Damage(Protocol):
    """Scores changes D = W' - W of a site's weight; None where it cannot tell (the signal does not reach the site).
    `forms` are the error forms it came to know on the way."""

    unit: str
    forms: dict[str, Tensor]

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]: ...


def relative_error(weight: Tensor, change: Tensor) -> float:
    """||D||^2 / ||W||^2 (0 for a weight of zeros that stays so)."""
    size, moved = (float(torch.linalg.vector_norm(t)) ** 2 for t in (weight, change))
    return moved / size if size > 0 else moved


class WeightError:
    """Damage judged by `relative_error` alone: needs no data."""

    unit = "relative squared weight error"

    def __init__(self) -> None:
        self.forms: dict[str, Tensor] = {}

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]:
        for _ in changes:
            yield None


class SecondOrder:
    """Damage from traces, collected for one group of sites after another as they are asked for.

    `forms` are the error forms of the weights that are looked up, of the groups so far.
    """

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
        self.forms: dict[str, Tensor] = {}
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
        traces = self.traces(site)
        products = [trace for trace in traces if isinstance(trace, Products)]
        # Products pay for the examples' weight gradients once per chunk; a table that is only looked up pays nothing.
        room = 4 * BLOCK_BYTES if products else BLOCK_BYTES
        for chunk in _chunks(changes, max(1, room // max(1, 4 * site.params))):
            slopes = torch.zeros(self.schedule.examples, len(chunk))
            for trace in traces:
                _add_slopes(slopes, trace, chunk)
            if products:
                _add_products(slopes, products, chunk)
            chunk.clear()  # the changes of a large table are large: gone before the next ones are made
            scores: list[float | None] = (0.5 * slopes.square().mean(0)).tolist()
            yield from scores if traces else [None] * len(scores)


def _chunks(changes: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    for change in changes:
        chunk.append(change)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _add_slopes(slopes: Tensor, trace: Trace, changes: list[Tensor]) -> None:
    """Add the derivative of each example's probe along each change to `slopes` (examples, changes)."""
    match trace:
        case Lookups(first, index, gradients):
            rows, g = index.reshape(-1), gradients.reshape(-1, gradients.shape[-1]).to(torch.float32)
            for c, change in enumerate(changes):
                per_token = (change[rows] * g).sum(-1)
                slopes[first : first + index.shape[0], c] += per_token.reshape(index.shape).sum(-1)
        case Slopes(first, gradient):
            for c, change in enumerate(changes):
                slopes[first, c] += (gradient * change).sum()


def _add_products(slopes: Tensor, traces: Sequence[Products], changes: list[Tensor]) -> None:
    """`_add_slopes` for products: the examples' weight gradients, a block of rows at a time, times all changes."""
    out, width = changes[0].shape
    block = max(1, BLOCK_BYTES // (4 * width * len(changes)))
    for start in range(0, out, block):
        rows = slice(start, start + block)
        stacked = torch.stack([change[rows].reshape(-1) for change in changes]).T
        for trace in traces:
            x, g = trace.inputs.to(torch.float32), trace.gradients[..., rows].to(torch.float32)
            weight_gradient = torch.bmm(g.transpose(1, 2), x).flatten(1)
            slopes[trace.first : trace.first + len(x)] += weight_gradient @ stacked
