"""Floating values: kept as they are, in 16 bits where those hold them exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.densepacking import narrowed
from tersor.backends.numba.features import level_named
from tersor.backends.numba.forms.form import Form, Target
from tersor.backends.numba.gather import GatheredEmbedding, trusted_rows
from tersor.backends.numba.rows import Table
from tersor.backends.numba.steps import float_bits
from tersor.compiler.stores import Store


def dense_embedding(table: Tensor, target: Target) -> GatheredEmbedding:
    """Rows of a floating table."""
    held = narrowed(table)
    level = trusted_rows(target.level.name, held.storage)
    missing = -table.shape[1] % (level or level_named("generic")).lanes
    padded = torch.nn.functional.pad(held.stored, (0, missing)) if missing else held.stored.contiguous()
    rows, columns = table.shape
    factor = float_bits(2.0**held.exponent)
    return GatheredEmbedding(held.storage, Table(rows, columns, (padded,), (factor,)), level.name if level else None)


class DenseForm(Form):
    """w as it stands."""

    def linear(self, store: Store, bias: Tensor | None, target: Target) -> DenseLinear:
        return DenseLinear.from_weight(store.dense(), bias, "none", target.level.name)

    def embedding(self, store: Store, target: Target) -> GatheredEmbedding:
        return dense_embedding(store.dense().detach(), target)
