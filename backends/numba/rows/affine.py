"""Rows of codes with a scale and a zero point per group: w = scale (code - zero).

arrays   codes [row][padded columns], in 4 bits STEP codes in STEP / 2 bytes, the first half in the low bits; scale
         [row][group]; zero [row][group], or one for all
numbers  whether zero points are several, columns of a group (a multiple of STEP), groups of a row
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tersor.backends.numba.emitter import I64, Emitter, Value
from tersor.backends.numba.features import Level
from tersor.backends.numba.layout import STEP, AffineCodes, Layout, width_of
from tersor.backends.numba.rows.form import Block, BlockForm, Sample, Table


def pack_rows(codes: Tensor, layout: Layout) -> Tensor:
    """Codes (rows, columns) uint8 row by row, padded; in 4 bits STEP codes in STEP / 2 bytes, the first half in the
    low bits.
    """
    full = codes.new_zeros(layout.rows, layout.padded)
    full[:, : layout.columns] = codes
    if layout.width == 8:
        return full.reshape(-1)
    halves = full.view(-1, 2, STEP // 2)
    return (halves[:, 0] | (halves[:, 1] << 4)).reshape(-1)


def unpack_rows(packed: Tensor, layout: Layout) -> Tensor:
    """The inverse of `pack_rows`."""
    if layout.width == 4:
        pairs = packed.view(-1, STEP // 2)
        packed = torch.stack([pairs & 15, pairs >> 4], dim=1)
    return packed.reshape(layout.rows, layout.padded)[:, : layout.columns]


def affine_table(
    codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int = 0
) -> tuple[Literal["affine4", "affine8"], Table]:
    """The form and table of codes (n, k) uint8 below 2^bits, scale and zero (n, groups); `group` columns share a scale,
    0 for the row. RequestError for shapes, codes or groups that have no kernel.
    """
    held = AffineCodes(codes, scale, zero, bits, group)
    layout = Layout(held.rows, held.columns, max(width_of(bits), 4), group)
    one = bool((held.zero == held.zero.flatten()[0]).all())
    origin = (held.zero.flatten()[:1] if one else held.zero.flatten()).clone()
    arrays = (pack_rows(codes, layout), held.scale.flatten().clone(), origin)
    table = Table(held.rows, held.columns, arrays, (int(not one), layout.group, layout.groups))
    return "affine4" if layout.width == 4 else "affine8", table


class AffineRows(BlockForm):
    operands = 6

    def __init__(self, width: Literal[4, 8]) -> None:
        self.width = width

    def unit(self, level: Level) -> int:
        return STEP

    def place(self, e: Emitter, number: Value, operands: list[Value], columns: Value) -> tuple[Value, Value]:
        codes, *_, group, groups = operands
        size = e.b.sdiv(e.times(e.b.mul(group, groups), self.width), I64(8))
        return e.at(codes, e.b.mul(number, size)), size

    def blocks(self, e: Emitter, operands: list[Value], columns: Value, each: Callable[[Block], None]) -> None:
        b = e.b
        _, scales, zeros, several, group, groups = operands

        def over(g: Value, _: list[Value]) -> list[Value]:
            first = b.mul(g, group)
            left = b.sub(columns, first)
            here = b.select(b.icmp_signed("<", left, group), left, group)

            def body(i: Value, _: list[Value]) -> list[Value]:
                start = b.add(first, e.times(i, STEP))

                def read(number: Value) -> list[Value]:
                    cell = e.times(b.add(b.mul(number, groups), g), 4)
                    factor = e.broadcast_float(e.at(scales, cell))
                    origin = e.broadcast_float(e.at(zeros, b.mul(several, cell)))
                    source, _ = self.place(e, number, operands, columns)
                    codes = self.codes(e, e.at(source, b.sdiv(e.times(start, self.width), I64(8))))
                    return [b.fmul(b.fsub(e.to_float(code), origin), factor) for code in codes]

                each(Block(start, e.floats, STEP // e.level.lanes, read))
                return []

            e.loop(b.sdiv(e.at(here, STEP - 1), I64(STEP)), [], body)
            return []

        e.loop(groups, [], over)

    def codes(self, e: Emitter, place: Value) -> list[Value]:
        """STEP codes, a vector of 32 bits each for so many lanes."""
        stored = STEP * self.width // 8  # bytes
        packed = [e.b.zext(e.load(e.at(place, i), e.narrow), e.ints) for i in range(0, stored, e.level.lanes)]
        if self.width == 8:
            return packed
        return [e.b.and_(pair, e.int_vector(15)) for pair in packed] + [e.shift_right(pair, 4) for pair in packed]

    def dense(self, table: Table) -> Tensor:
        (codes, scale, zero), (_, group, groups) = table.arrays, table.numbers
        layout = Layout(table.rows, table.columns, self.width, group)

        def spread(values: Tensor) -> Tensor:
            if values.numel() == 1:
                return values
            return values.view(table.rows, groups).repeat_interleave(group, dim=1)[:, : table.columns]

        return (unpack_rows(codes, layout).float() - spread(zero)) * spread(scale)

    def sample(self, level: Level, generator: torch.Generator) -> Sample:
        rows, columns, groups = 5, 2 * STEP + 5, 3
        size = rows * groups * STEP * self.width // 8
        codes = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        scale, zero = torch.rand(2, rows * groups, generator=generator)
        return Sample(Table(rows, columns, (codes, scale, zero), (1, STEP, groups)), torch.tensor([4, 0, 2, 2]))
