"""Truncated singular value decomposition (survey section 6, equation 64 first part; `decomp.svd`).

    W = U S V^T  ->  W_r = L R,   L = U_r S_r^(1/2)  (m, r),   R = S_r^(1/2) V_r^T  (r, n)

Error ||W - W_r||^2 = sum of the dropped squared singular values (Eckart-Young). It is smaller than W only for r < mn
/ (m + n). The balanced split keeps both factors on one scale, so that they can be quantised next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Chain, Dense


def _rank(value: int | float) -> int | float:
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError("a share of the full rank lies above 0% and at most at 100%")
    if isinstance(value, int) and value < 1:
        raise ValueError("a rank is at least 1")
    return value


class Svd(Params):
    rank: Annotated[
        int | float, AfterValidator(_rank), Field(description="rank kept: a number, or a share of min(out, in)")
    ] = 0.5


def rank_of(point: Svd, shape: tuple[int, ...]) -> int:
    """The whole number of components a point keeps of a matrix."""
    full = min(shape)
    return max(1, round(point.rank * full)) if isinstance(point.rank, float) else point.rank


class TruncatedSvd(Method[Svd]):
    id = "decomp.svd"
    title = "truncated singular value decomposition"
    source = "survey section 6, equation 64"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    Params = Svd

    def refuse(self, shape: tuple[int, ...], point: Svd) -> Refusal | None:
        if len(shape) != 2 or min(shape) < 2:
            return Refusal(f"a matrix with at least two rows and columns is needed, not shape {shape}")
        rank, (m, n) = rank_of(point, shape), shape
        if rank > min(shape):
            return Refusal(f"rank {rank} is above the full rank {min(shape)}")
        if rank * (m + n) >= m * n:
            return Refusal(f"rank {rank} makes a {m} x {n} matrix larger: the rank must be below {m * n / (m + n):.0f}")
        return None

    def pack(self, tensor: Tensor, point: Svd, context: Context = Context()) -> Chain:
        return next(self.pack_each(tensor, (point,), context))

    def pack_each(self, tensor: Tensor, points: Sequence[Svd], context: Context = Context()) -> Iterator[Chain]:
        # Through the smaller Gram matrix, in float64: an embedding has 30,000 rows and a few hundred columns.
        wide = tensor.shape[0] < tensor.shape[1]
        matrix = (tensor.T if wide else tensor).to(torch.float64)
        squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
        squares = squares.clamp_min(0)
        roots = squares.flip(0).sqrt().sqrt()
        # What is below this is rounding of the Gram matrix: a component so small has no direction of its own.
        least = (2.0**-52 * squares.max()).clamp_min(torch.finfo(torch.float64).tiny).sqrt().sqrt()
        vectors = vectors.flip(1)
        for point in points:
            rank = rank_of(point, tuple(tensor.shape))
            v, root = vectors[:, :rank], roots[:rank]
            tall = (matrix @ v) / root.clamp_min(least)
            short = (v * root).T
            left, right = (short.T, tall.T) if wide else (tall, short)
            yield Chain(Dense(left.to(torch.float32).contiguous()), Dense(right.to(torch.float32).contiguous()))

    def examples(self) -> tuple[Svd, ...]:
        return tuple(Svd(rank=share) for share in (0.1, 0.2, 0.3, 0.4))
