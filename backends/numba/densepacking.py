"""The kernel layout of a floating matrix: 16 bits a weight where that is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from tersor.backends.numba.densekernels import DenseSpec, Storage
from tersor.backends.numba.features import Level
from tersor.compiler.stores import Dense

_SOME = 4096


@dataclass(frozen=True)
class Narrowed:
    """values = stored * 2^exponent exactly, `stored` of type `storage`."""

    stored: Tensor
    storage: Storage
    exponent: int


def narrowed(values: Tensor) -> Narrowed:
    """float32 values in the fewest bits that hold them exactly."""
    values = values.detach().to(torch.float32)
    some = values.reshape(-1)[:_SOME]
    for storage in get_args(Storage)[1:]:
        # A few values that do not fit spare the copies of a large table.
        if not torch.equal(Dense.of(some, storage).values, some):
            continue
        held = Dense.of(values, storage)
        if torch.equal(held.values, values):
            return Narrowed(held.state()[""], storage, held.exponent)
    return Narrowed(values, "float32", 0)


def pack_dense(stored: Tensor, level: Level) -> Tensor:
    """(rows, columns) to panels of outputs, padded with zeros: one flat tensor of the same type."""
    rows, columns = stored.shape
    panels = -(-rows // level.panel)
    full = stored.new_zeros(panels * level.panel, columns)
    full[:rows] = stored
    return full.view(panels, level.panel, columns).transpose(1, 2).reshape(-1)


def unpack_dense(packed: Tensor, rows: int, columns: int, level: Level) -> Tensor:
    """The inverse of `pack_dense`."""
    panels = -(-rows // level.panel)
    return packed.view(panels, columns, level.panel).transpose(1, 2).reshape(-1, columns)[:rows]


def storage_of(packed: Tensor) -> Storage:
    """The storage that a packed tensor's type means."""
    names: dict[torch.dtype, Storage] = {torch.float32: "float32", torch.float16: "float16"}
    return names.get(packed.dtype, "bfloat16")


def dense_spec(packed: Tensor, level: str) -> DenseSpec:
    return DenseSpec(level, storage_of(packed))
