"""Bank-balanced sparsity: every row is cut into banks of as many weights (survey section 2.3; `prune.block.bbs`; Cao et
al., 2019).

Of each bank of `bank` inputs a row keeps `kept` weights: the largest |w|, or with `score = curvature` those that the
error of the outputs misses most, w^2 / [H^-1]_jj, the later weights making up for what goes (`saliency`). On ties
those further right stay. A last bank that is shorter keeps as many, or all it has. Kept values stay open for a
following method; their places take ceil(log2 bank) bits each.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Banked, Dense
from tersor.compiler.stores.banked import Grid, banked
from tersor.passes.prune.block import keep_most
from tersor.passes.prune.saliency import surgeon


class Bank(Params):
    kept: Annotated[int, Field(ge=1, le=256, description="weights that stay in each bank")] = 4
    bank: Annotated[int, Field(ge=2, le=256, description="neighbouring inputs of a row that make a bank")] = 16
    score: Annotated[
        Literal["magnitude", "curvature"],
        Field(description="what is kept; `curvature` needs calibration data and moves kept weights"),
    ] = "magnitude"


class BankPruning(Method[Bank]):
    id = "prune.block.bbs"
    title = "bank-balanced sparsity"
    source = "survey section 2.3"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    Params = Bank

    def refuse(self, shape: tuple[int, ...], point: Bank) -> Refusal | None:
        if len(shape) != 2 or 0 in shape:
            return Refusal(f"banks of a row need a matrix, not shape {shape}")
        if point.kept > point.bank:
            return Refusal(f"a bank of {point.bank} has no {point.kept} to keep")
        return None

    def wants_form(self, point: Bank) -> bool:
        return point.score == "curvature"

    def pack(self, tensor: Tensor, point: Bank, context: Context = Context()) -> Banked:
        rows, columns = tensor.shape
        grid = Grid((rows, columns), 1, 1, point.bank)

        def choose(scores: Tensor) -> Tensor:
            """Scores of whole banks, or of one: what is beyond the edge comes after all there is."""
            full = torch.nn.functional.pad(scores, (0, -scores.shape[1] % point.bank), value=-1.0)
            return keep_most(full.view(rows, -1, point.bank), point.kept).reshape(rows, -1)

        if self.wants_form(point) and context.form is not None:
            tensor, mask = surgeon(tensor, context.form, point.bank, lambda s: choose(s)[:, : s.shape[1]])
            keep = choose(mask.float())
        else:
            keep = choose(tensor.abs())
        places, values = banked(grid, tensor, keep)
        return Banked(grid, places, Dense(values))

    def examples(self) -> tuple[Bank, ...]:
        return (Bank(kept=8, bank=64), Bank(), Bank(kept=8), Bank(kept=5, bank=7))
