"""Which weights of a matrix are kept where every output keeps as many, and their kernel layout.

`blocks`: of each `height` outputs together, `kept` blocks of `width` columns. `banks`: of each `bank` columns, `kept`
ones, an output by itself. What is kept of an output is a row of values, in order of columns; `group` of them share a
scale (0: all).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.backends.numba.bankkernels import TABLE
from tersor.backends.numba.features import Level, level_named
from tersor.backends.numba.layout import ceil_to

HEIGHTS = (16, 32)
TABLES = (1, 2, 4)
MOST_BLOCKS = 1 << 16  # that a place of 16 bits reaches


@dataclass(frozen=True)
class Structure:
    """The shape of a matrix and what is kept of it."""

    rows: int
    columns: int
    height: int
    width: int
    bank: int
    kept: int
    group: int = 0

    @property
    def banks(self) -> int:
        """Banks in a row; 0 where there are blocks."""
        return -(-self.columns // self.bank) if self.bank else 0

    @property
    def values(self) -> int:
        """Values of an output."""
        return self.kept * (self.banks or 1) * self.width

    @property
    def groups(self) -> int:
        return -(-self.values // self.group) if self.group else 1

    @property
    def per_group(self) -> int:
        """Blocks, or banks, that share a scale."""
        if not self.group:
            return self.banks or self.kept
        return self.group // (self.kept if self.bank else self.width)

    @property
    def quads(self) -> int:
        """Fours of columns that are kept of a bank, the last filled up."""
        return -(-self.kept // 4)

    @property
    def tables(self) -> int:
        return self.bank // TABLE

    def ints(self) -> list[int]:
        """For an operator, whose arguments are no dataclasses."""
        return [self.rows, self.columns, self.height, self.width, self.bank, self.kept, self.group]

    def panel(self, level: Level) -> int:
        """Outputs that are computed together."""
        return level.panel if self.bank else max(level.panel, self.height)

    def refuse(self, coded: bool, level: Level) -> str | None:
        """Why no kernel computes it."""
        if self.bank:
            if not coded:
                return "banks of floating values have no kernel of their own"
            if level.name == "generic":
                return "this CPU level cannot choose among bytes"
            if self.bank % TABLE or self.tables not in TABLES or self.quads > min(self.tables, 2):
                return f"{self.kept} of {self.bank} columns have no kernel"
            return f"a scale for {self.group} values" if self.group and self.group % self.kept else None
        if self.height not in HEIGHTS or self.width not in ((4,) if coded else (1, 4)):
            return f"blocks of {self.height} x {self.width} have no kernel"
        if -(-self.columns // self.width) > MOST_BLOCKS:
            return f"{self.columns} columns are too many"
        return f"a scale for {self.group} values" if self.group % self.width else None


@dataclass(frozen=True)
class Packed:
    """The arrays of a kernel. `weights` are signed bytes, or floats, times 2^exponent; `start` and `scale` are empty
    with floats, whose places are those of blocks."""

    weights: Tensor
    places: Tensor
    start: Tensor
    scale: Tensor


def pack_structure(s: Structure, values: Tensor, index: Tensor, scale: Tensor | None, level: Level) -> Packed:
    """values (rows, s.values) int8 with scale (rows, groups), or floating; index (block rows, blocks or kept columns)
    numbers blocks in their row, or columns in their bank.
    """
    outputs = ceil_to(s.rows, s.panel(level))
    steps = s.banks or s.kept  # of the innermost loop
    wide = values.shape[1] // steps
    per_group, groups = s.per_group, s.groups
    room = per_group * groups
    full = values.new_zeros(outputs, room, 4 * s.quads if s.bank else wide)
    full[: s.rows, :steps, :wide] = _within(s, values, index).view(s.rows, steps, wide)
    places = index.new_zeros(outputs // s.height, room, full.shape[2] if s.bank else 1)
    given = index.view(len(index), steps, -1)
    places[: len(index), :steps, : given.shape[2]] = given
    empty = torch.zeros(0)
    if s.bank:
        weights, laid = _banked(s, full, level), _banked(s, places.to(torch.uint8), level)
    else:
        cut = full.view(-1, s.height, room, s.width)
        # A lane holds the four codes of an output, but one float.
        weights, laid = cut.permute(*((0, 2, 1, 3) if scale is not None else (0, 2, 3, 1))), places.to(torch.int16)
    weights, laid = weights.reshape(-1).contiguous(), laid.reshape(-1).contiguous()
    if scale is None:
        return Packed(weights, laid, empty, empty)
    sums = full.view(outputs, groups, -1).to(torch.int64).sum(2)
    scales = torch.zeros(outputs, groups)
    scales[: s.rows] = scale
    start = _by_panel(s, -128 * sums, level).to(torch.int32)
    return Packed(weights, laid, start, _by_panel(s, scales, level))


def _within(s: Structure, values: Tensor, index: Tensor) -> Tensor:
    """The values with 0 for those beyond the last column, which are kept where there are no others."""
    return torch.where(columns_of(s, index) < s.columns, values, torch.zeros_like(values))


def columns_of(s: Structure, index: Tensor) -> Tensor:
    """The column of every value (rows, s.values)."""
    if s.bank:
        return index + torch.arange(s.banks).repeat_interleave(s.kept) * s.bank
    columns = (index.unsqueeze(-1) * s.width + torch.arange(s.width)).flatten(1)
    return columns.repeat_interleave(s.height, 0)[: s.rows]


def _banked(s: Structure, full: Tensor, level: Level) -> Tensor:
    """(outputs, banks, 4 quads) to [panel][bank][quad][strip][lane][4]."""
    split = full.view(-1, level.strips, level.lanes, full.shape[1], s.quads, 4)
    return split.permute(0, 3, 4, 1, 2, 5)


def _by_panel(s: Structure, values: Tensor, level: Level) -> Tensor:
    """(outputs, groups) to [panel or block row][group][output]."""
    size = level.panel if s.bank else s.height
    return values.view(-1, size, values.shape[1]).transpose(1, 2).reshape(-1).contiguous()


def unpack_structure(s: Structure, packed: Packed, exponent: int, name: str) -> Tensor:
    """The matrix (rows, columns) in float32."""
    level = level_named(name)
    outputs, room = ceil_to(s.rows, s.panel(level)), s.per_group * s.groups
    coded = packed.weights.dtype is torch.int8
    if s.bank:
        shape = (outputs // level.panel, room, s.quads, level.strips, level.lanes, 4)
        values, index = (
            a.view(shape).permute(0, 3, 4, 1, 2, 5).reshape(outputs, room, -1)[..., : s.kept]
            for a in (packed.weights, packed.places)
        )
        columns = index.to(torch.int64) + torch.arange(room)[:, None] * s.bank
    else:
        order = (0, 2, 1, 3) if coded else (0, 3, 1, 2)
        shape4 = (-1, room, s.height, s.width) if coded else (-1, room, s.width, s.height)
        values = packed.weights.view(shape4).permute(*order).reshape(outputs, room, s.width)
        places = packed.places.view(-1, room, 1).to(torch.int64) & 0xFFFF
        columns = (places * s.width + torch.arange(s.width)).repeat_interleave(s.height, 0)
    matrix = values.float()
    if coded:
        size = level.panel if s.bank else s.height
        scale = packed.scale.view(-1, s.groups, size).transpose(1, 2).reshape(outputs, s.groups)
        matrix = matrix * scale.repeat_interleave(s.per_group, 1).unsqueeze(-1)
    else:
        matrix = torch.ldexp(matrix, torch.tensor(exponent))
    full = torch.zeros(outputs, room * s.bank if s.bank else ceil_to(s.columns, s.width))
    full.scatter_add_(1, columns.flatten(1), matrix.flatten(1))
    return full[: s.rows, : s.columns]
