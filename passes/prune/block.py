"""Block pruning: weights go by whole blocks (survey section 2.3; `prune.block.magnitude`).

    score of a block B:   norm  sum_{i in B} w_i^2        max  max_{i in B} |w_i|  (the survey's)
                          curvature  sum_{i in B} w_i^2 / [H^-1]_ii, and the kept weights make up for the others

Of each row of blocks floor(sparsity * blocks) go, the lowest scores first (on ties the one further left), so that every
output keeps as many weights: a threshold for the whole matrix would keep 2 to 5 % more of the squares, but rows of one
length take scales, groups and a kernel like those of a dense matrix. `norm` is the default because it leaves less error
than `max`. What is left of a block beyond the edge of the matrix counts as 0. Kept values stay open for a following
method. Blocks of 16 and 32 outputs are those that fill a vector.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Banked, Dense
from tersor.compiler.stores.banked import Grid, banked, blocked
from tersor.passes.prune.magnitude import dropped
from tersor.passes.prune.saliency import surgeon

Score = Literal["norm", "max", "curvature"]


class Block(Params):
    sparsity: Annotated[float, Field(ge=0, lt=1, description="share of the blocks set to zero")] = 0.5
    block: Annotated[Literal["16x4", "32x4", "16x1"], Field(description="outputs and inputs of a block")] = "16x4"
    score: Annotated[
        Score, Field(description="what a block is judged by; `curvature` needs calibration data and moves kept weights")
    ] = "norm"


def grid_of(shape: tuple[int, ...], block: str) -> Grid:
    """The matrix cut into blocks, one bank to a row."""
    height, width = (int(side) for side in block.split("x"))
    return Grid((shape[0], shape[1]), height, width, -(-shape[1] // width))


def keep_most(scores: Tensor, kept: int) -> Tensor:
    """True for the `kept` largest of every row; on ties those further right stay."""
    order = scores.argsort(dim=-1, stable=True)
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    return keep.scatter_(-1, order[..., scores.shape[-1] - kept :], True)


class BlockPruning(Method[Block]):
    id = "prune.block.magnitude"
    title = "block pruning"
    source = "survey section 2.3"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    Params = Block

    def refuse(self, shape: tuple[int, ...], point: Block) -> Refusal | None:
        if len(shape) != 2 or 0 in shape:
            return Refusal(f"blocks need a matrix, not shape {shape}")
        return None

    def wants_form(self, point: Block) -> bool:
        return point.score == "curvature"

    def pack(self, tensor: Tensor, point: Block, context: Context = Context()) -> Banked:
        grid = grid_of(tuple(tensor.shape), point.block)
        kept = grid.blocks - dropped(point.sparsity, grid.blocks)
        if self.wants_form(point) and context.form is not None:

            def choose(scores: Tensor) -> Tensor:
                keep = keep_most(blocked(grid, scores).sum(-1), kept)
                full = keep.repeat_interleave(grid.height, 0).repeat_interleave(grid.width, 1)
                return full[: tensor.shape[0], : tensor.shape[1]]

            tensor, mask = surgeon(tensor, context.form, tensor.shape[1], choose)
            keep = blocked(grid, mask.float()).any(-1)
        else:
            weights = blocked(grid, tensor)
            keep = keep_most(weights.abs().amax(-1) if point.score == "max" else weights.square().sum(-1), kept)
        places, values = banked(grid, tensor, keep)
        return Banked(grid, places, Dense(values))

    def examples(self) -> tuple[Block, ...]:
        return (
            Block(sparsity=0.9),
            Block(sparsity=0.75, block="32x4"),
            Block(sparsity=0.6, block="16x1"),
            Block(sparsity=0.3),
        )
