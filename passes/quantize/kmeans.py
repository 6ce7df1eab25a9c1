"""k-means codes after training (survey section 3.3.3, equation 49 for the size; `quant.kmeans.static`).

    min over levels T and codes c of  sum_i (w_i - T[c_i])^2,   k = 2^bits levels per tensor

Lloyd's algorithm on the sorted weights: a cluster is an interval, its mean is a difference of prefix sums, so one
iteration costs O(k log n). A tensor of at most k distinct values is stored without error. Levels are stored in 16
bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Codebook, Codes, Dense

MAX_ITERATIONS = 300


class KMeans(Params):
    bits: Annotated[int, Field(ge=1, le=8, description="bits per code: 2^bits levels")] = 4
    init: Annotated[
        Literal["best", "density", "linear"],
        Field(description="first levels: quantiles, equal steps, or whichever ends with less error"),
    ] = "best"


class SortedWeights:
    """The weights of one tensor in order, with prefix sums: what every k shares."""

    def __init__(self, tensor: Tensor) -> None:
        self.values = tensor.reshape(-1).sort().values
        self.sums = torch.cat([torch.zeros(1, dtype=torch.float64), self.values.to(torch.float64).cumsum(0)])

    def fit(self, levels: int, init: str) -> Tensor:
        """The levels Lloyd's algorithm ends at from the given start."""
        if init != "best":
            return self.lloyd(self.start(levels, init))
        fitted = [self.lloyd(self.start(levels, start)) for start in ("density", "linear")]
        return min(fitted, key=self.error)

    def error(self, table: Tensor) -> float:
        """Sum of squared distances to the nearest level."""
        return float((self.values - table[nearest(self.values, table)]).square().sum())

    def distinct(self) -> Tensor:
        distinct: Tensor = torch.unique_consecutive(self.values)
        return distinct

    def start(self, levels: int, init: str) -> Tensor:
        if init == "linear":
            return torch.linspace(float(self.values[0]), float(self.values[-1]), levels)
        index = ((torch.arange(levels) + 0.5) / levels * self.values.numel()).to(torch.int64)
        return self.values[index]

    def lloyd(self, table: Tensor) -> Tensor:
        """Levels at which the error no longer falls: each is the mean of the weights nearest to it."""
        table = table.to(torch.float64)
        for _ in range(MAX_ITERATIONS):
            edges = torch.searchsorted(self.values, ((table[1:] + table[:-1]) / 2).to(torch.float32))
            edges = torch.cat([torch.zeros(1, dtype=torch.int64), edges, torch.tensor([self.values.numel()])])
            count = edges.diff()
            means = self.sums[edges].diff() / count.clamp_min(1)
            # An empty cluster keeps its level; sorting keeps clusters intervals.
            following = torch.where(count > 0, means, table).sort().values
            if torch.equal(following, table):
                break
            table = following
        return table.to(torch.float32)


def nearest(tensor: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest level for every weight; `table` in increasing order."""
    return torch.bucketize(tensor.contiguous(), (table[1:] + table[:-1]) / 2)


class KMeansCodes(Method[KMeans]):
    id = "quant.kmeans.static"
    title = "k-means after training"
    source = "survey section 3.3.3, equation 49"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    Params = KMeans

    def refuse(self, shape: tuple[int, ...], point: KMeans) -> Refusal | None:
        if not shape or 0 in shape:
            return Refusal("there is nothing to cluster")
        return None

    def pack(self, tensor: Tensor, point: KMeans, context: Context = Context()) -> Codebook:
        return next(self.pack_each(tensor, (point,), context))

    def pack_each(self, tensor: Tensor, points: Sequence[KMeans], context: Context = Context()) -> Iterator[Codebook]:
        weights = SortedWeights(tensor)
        distinct = weights.distinct()
        for point in points:
            levels = 2**point.bits
            exact = distinct.numel() <= levels
            fitted = distinct if exact else weights.fit(levels, point.init)
            table = Dense.of(fitted.unique(), "float16")
            order = table.values.unique()
            codes = nearest(tensor, order).to(torch.uint8)
            yield Codebook(Codes(codes, point.bits), Dense(order, table.dtype, table.exponent))

    def examples(self) -> tuple[KMeans, ...]:
        return tuple(KMeans(bits=bits) for bits in range(1, 9))
