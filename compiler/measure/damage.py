"""The damage of changing one weight: how far the signal moves.

weights only   ||D||^2 / ||W||^2: the relative squared error, blind to where a weight matters
second order   1/2 mean_s (sum_t g_t^T D x_t)^2 over calibration examples s and their tokens t: the squared derivative
of a random probe
               of the signal along the change D. It keeps the terms between tokens that a layer-wise Hessian
               tr(G D A D^T) drops, and is an estimate of the signal's divergence in its own unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from tersor.compiler.measure.collect import Calibration, Lookups, Products, Slopes, Trace
from tersor.compiler.site import Site

BLOCK_BYTES = 32 * 2**20


class Damage(Protocol):
    """Scores changes D = W' - W of a site's weight; None where it cannot tell (the signal does not reach the site)."""

    unit: str

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]: ...


def relative_error(weight: Tensor, change: Tensor) -> float:
    """||D||^2 / ||W||^2 (0 for a weight of zeros that stays so)."""
    size = float(weight.square().sum())
    return float(change.square().sum()) / size if size > 0 else float(change.square().sum())


class WeightError:
    """Damage judged by `relative_error` alone: needs no data."""

    unit = "relative squared weight error"

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]:
        for _ in changes:
            yield None


class SecondOrder:
    """Damage from the traces of one calibration pass."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.unit = calibration.signal.unit

    def score(self, site: Site, changes: Iterable[Tensor]) -> Iterator[float | None]:
        traces = self.calibration.traces.get(site.name, ())
        for chunk in _chunks(changes, max(1, 4 * BLOCK_BYTES // max(1, 4 * site.params))):
            if not traces:
                yield from [None] * len(chunk)
                continue
            slopes = torch.zeros(self.calibration.examples, len(chunk))
            for trace in traces:
                _add_slopes(slopes, trace, chunk)
            yield from (0.5 * slopes.square().mean(0)).tolist()


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
        case Products(first, inputs, gradients):
            # The examples' weight gradients, a block of rows at a time, then one product for all changes.
            x, g = inputs.to(torch.float32), gradients.to(torch.float32)
            examples, out = x.shape[0], g.shape[-1]
            block = max(1, BLOCK_BYTES // (4 * examples * x.shape[-1]))
            for start in range(0, out, block):
                weight_gradient = torch.bmm(g[:, :, start : start + block].transpose(1, 2), x).flatten(1)
                stacked = torch.stack([change[start : start + block].reshape(-1) for change in changes])
                slopes[first : first + examples] += weight_gradient @ stacked.T
