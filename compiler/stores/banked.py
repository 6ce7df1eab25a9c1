"""As many kept blocks in every bank: block-sparse and bank-balanced storage (survey section 2.3; `S.bsr`, `S.bank`).

A matrix (m, n) is cut into blocks of `height` rows by `width` columns, a row of blocks into banks of `bank` blocks; the
last of each may reach beyond the edge. Each bank keeps as many blocks, so that the kept values are an ordinary matrix:

    w[i, width (bank b + place[i // height, j]) + c] = values[i, width j + c],      j of bank b = j // (kept in a bank)

which later methods pack like any other, with scales for its rows and groups. Bank-balanced sparsity has blocks of one
weight, block sparsity one bank to a row. The places are written in the form that takes the fewest bits: one bit a
block, a number in its bank, or gaps between the kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from tersor.compiler.stores.base import Json, Store
from tersor.compiler.stores.codes import Codes
from tersor.compiler.stores.sparse import MOST_SLOTS, Positions, gap_bits


@dataclass(frozen=True)
class Grid:
    """How a matrix is cut."""

    shape: tuple[int, int]
    height: int
    width: int
    bank: int

    @property
    def block_rows(self) -> int:
        return -(-self.shape[0] // self.height)

    @property
    def banks(self) -> int:
        """Banks in a row of blocks."""
        return -(-self.shape[1] // (self.width * self.bank))

    @property
    def blocks(self) -> int:
        """Blocks in a row of blocks, those beyond the edge included."""
        return self.banks * self.bank


class Banked(Store):
    """bits = bits(places) + bits(values); `values` has shape (m, width * blocks kept in a row)."""

    kind = "banked"

    def __init__(self, grid: Grid, places: Codes | Positions, values: Store) -> None:
        self.shape = grid.shape
        self.grid, self.places, self.values = grid, places, values

    @property
    def kept(self) -> int:
        """Blocks that a row of blocks keeps."""
        return self.values.shape[1] // self.grid.width

    def blocks(self) -> Tensor:
        """(block rows, kept) the number of every kept block in its row, increasing."""
        grid, kept = self.grid, self.kept
        if isinstance(self.places, Positions):
            return self.places.values.to(torch.int64).view(grid.block_rows, kept) % grid.blocks
        if self.places.shape == (grid.block_rows, grid.blocks):
            return self.places.values.nonzero()[:, 1].view(grid.block_rows, kept)
        start = torch.arange(grid.banks).repeat_interleave(kept // grid.banks) * grid.bank
        return self.places.values.to(torch.int64) + start

    def columns(self) -> Tensor:
        """(block rows, width * kept) the column of every value; it may lie beyond the edge."""
        width = self.grid.width
        return (self.blocks().unsqueeze(-1) * width + torch.arange(width)).flatten(1)

    def _spread(self, values: Tensor, columns: Tensor) -> Tensor:
        full = torch.zeros(len(values), self.grid.blocks * self.grid.width, dtype=values.dtype, device=values.device)
        return full.scatter(1, columns, values)[:, : self.shape[1]]

    def dense(self) -> Tensor:
        columns = self.columns().repeat_interleave(self.grid.height, 0)[: self.shape[0]]
        return self._spread(self.values.dense(), columns)

    def rows(self, index: Tensor) -> Tensor:
        flat = index.reshape(-1)
        found = self._spread(self.values.rows(flat), self.columns()[flat // self.grid.height])
        return found.reshape(*index.shape, self.shape[1])

    def parts(self) -> Mapping[str, Store]:
        return {"places": self.places, "values": self.values}

    def open_parts(self) -> frozenset[str]:
        return frozenset({"values"})

    def rebuilt(self, parts: Mapping[str, Store]) -> Banked:
        places = parts["places"]
        if not isinstance(places, Codes | Positions):
            raise ValueError("a banked store has places")
        return Banked(self.grid, places, parts["values"])

    def meta(self) -> dict[str, Any]:
        return {"height": self.grid.height, "width": self.grid.width, "bank": self.grid.bank}

    @classmethod
    def build(cls, shape: tuple[int, ...], meta: Json, parts: Mapping[str, Store], array: Tensor | None) -> Banked:
        height, width, bank = (int(meta[name]) for name in ("height", "width", "bank"))
        places, values = parts["places"], parts["values"]
        if len(shape) != 2 or 0 in shape or min(height, width, bank) < 1 or not isinstance(places, Codes | Positions):
            raise ValueError("a banked store is a matrix of blocks and their places")
        grid = Grid((shape[0], shape[1]), height, width, bank)
        if grid.block_rows * grid.blocks > MOST_SLOTS or grid.blocks * width > shape[1] + width * bank:
            raise ValueError("these blocks reach too far beyond the edge")
        kept = values.shape[1] // width if len(values.shape) == 2 else 0
        if values.shape != (shape[0], kept * width) or not kept or kept % grid.banks:
            raise ValueError(f"values of shape {values.shape} do not fill the banks")
        store = cls(grid, places, values)
        store._check(kept)
        return store

    def _check(self, kept: int) -> None:
        """ValueError unless every bank keeps as many blocks, in order."""
        grid = self.grid
        count = self.places.values.sum() if self._masked() else prod(self.places.shape)
        if int(count) != grid.block_rows * kept:
            raise ValueError(f"{int(count)} places for {grid.block_rows * kept} blocks")
        blocks = self.blocks().view(grid.block_rows, grid.banks, -1)
        wrong = (blocks // grid.bank != torch.arange(grid.banks)[:, None]).any() or (blocks.diff(dim=2) <= 0).any()
        if isinstance(self.places, Positions):
            rows = self.places.values.to(torch.int64).view(grid.block_rows, kept) // grid.blocks
            wrong = wrong or (rows != torch.arange(grid.block_rows)[:, None]).any()
        if bool(wrong):
            raise ValueError("the places are not those of banks")

    def _masked(self) -> bool:
        grid = self.grid
        return isinstance(self.places, Codes) and self.places.shape == (grid.block_rows, grid.blocks)


def places_of(grid: Grid, keep: Tensor) -> Codes | Positions:
    """The places of the True blocks of keep (block rows, blocks), as many in each bank, in the fewest bytes."""
    flat = keep.reshape(-1).nonzero().reshape(-1).to(torch.int32)
    forms: list[Codes | Positions] = [Codes(keep.to(torch.uint8), 1), Positions(flat, gap_bits(flat.numpy()))]
    if grid.bank <= 256:
        width = max(1, (grid.bank - 1).bit_length())
        numbers = (flat.to(torch.int64) % grid.bank).view(grid.block_rows, -1)
        if numbers.shape != keep.shape:  # where all are kept, numbers would look like a mask
            forms.append(Codes(numbers.to(torch.uint8), width))
    return min(forms, key=lambda form: form.nbytes())


def blocked(grid: Grid, weight: Tensor) -> Tensor:
    """weight (m, n) as (block rows, blocks, height * width), 0 beyond the edge."""
    (m, n), height, width = grid.shape, grid.height, grid.width
    full = torch.nn.functional.pad(weight, (0, grid.blocks * width - n, 0, grid.block_rows * height - m))
    return full.view(grid.block_rows, height, grid.blocks, width).transpose(1, 2).flatten(2)


def banked(grid: Grid, weight: Tensor, keep: Tensor) -> tuple[Codes | Positions, Tensor]:
    """The places of the kept blocks, and their values (m, width * kept in a row), 0 beyond the edge."""
    m, n = grid.shape
    places = places_of(grid, keep)
    chosen = keep.nonzero()[:, 1].view(grid.block_rows, -1)
    columns = (chosen.unsqueeze(-1) * grid.width + torch.arange(grid.width)).flatten(1)
    columns = columns.repeat_interleave(grid.height, 0)[:m]
    full = torch.nn.functional.pad(weight, (0, grid.blocks * grid.width - n))
    return places, full.gather(1, columns)
