"""The gather of table rows as a step, as the torch operator `tersor::gather_rows`, and as an embedding."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.features import Level, below, detect, level_named
from tersor.backends.numba.gatherkernels import GatherSpec, Rows
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.ops import direct, refuse_index
from tersor.backends.numba.steps import Step, float_bits, run_now

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "gather_rows(Tensor index, Tensor data, Tensor? second, Tensor? third, int rows, int columns, int exponent, "
    "str form, str level) -> Tensor"
)


def gather_step(
    spec: GatherSpec, shape: tuple[int, int], count: int, index: Operand, table: tuple[Operand, Operand, Operand],
    y: Operand, wrong: Operand,
) -> Step:  # fmt: skip
    """y (count, columns) = rows `index` (int64) of a table of `shape`; see `gatherkernels` for `table`."""
    rows, columns = shape
    operands = (index, rows, *table, columns, y, wrong)
    kernel = kernel_address(spec, "glue_gather")
    return Step("gather", kernel, operands, count, 0.3 * columns, 4 * ceil_to(columns, level_named(spec.level).lanes))


def gather_rows(
    index: Tensor, data: Tensor, second: Tensor | None, third: Tensor | None, rows: int, columns: int, exponent: int,
    form: Rows, level: str,
) -> Tensor:  # fmt: skip
    """Rows of a table on the CPU: index of integers of any shape, result (*index.shape, columns) float32.

    RequestError if an index is not in 0..rows-1.
    """
    places = index.to(torch.int64).contiguous()
    y = torch.empty((*index.shape, columns), dtype=torch.float32)
    wrong = torch.zeros(1, dtype=torch.int64)
    factor = float_bits(2.0**exponent) if second is None else second.data_ptr()
    table = (data.data_ptr(), factor, 0 if third is None else third.data_ptr())
    spec = GatherSpec(level, form)
    step = gather_step(spec, (rows, columns), places.numel(), places.data_ptr(), table, y.data_ptr(), wrong.data_ptr())
    run_now(level, [step])
    if int(wrong):
        refuse_index(int(wrong), rows)
    return y


def _fake(
    index: Tensor, data: Tensor, second: Tensor | None, third: Tensor | None, rows: int, columns: int, *_: Any
) -> Tensor:
    return data.new_empty((*index.shape, columns), dtype=torch.float32)


_library.impl("gather_rows", gather_rows, "CPU")
torch.library.register_fake("tersor::gather_rows", _fake, lib=_library)
gather = torch.ops.tersor.gather_rows.default


class GatheredEmbedding(nn.Module):
    """Rows w[index] of a table in one of the forms of `gatherkernels`, float32.

    index of any integer type and shape, result (*index.shape, columns); RequestError for an index out of range. Where
    no compiled kernel can be trusted (`level` is None) torch looks up in a dense table.
    """

    data: Tensor
    second: Tensor | None
    third: Tensor | None

    def __init__(
        self, shape: tuple[int, int], form: Rows, level: str | None, data: Tensor, second: Tensor | None = None,
        third: Tensor | None = None, exponent: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rows, self.columns = shape
        self.form, self.level, self.exponent = form, level, exponent
        self.register_buffer("data", data)
        self.register_buffer("second", second)
        self.register_buffer("third", third)
        self._constants: Any = (self.rows, self.columns, exponent, form, level)

    def forward(self, index: Tensor) -> Tensor:
        if self.level is None:
            return nn.functional.embedding(index, self.dense())
        run = gather_rows if direct(index) else gather
        rows: Tensor = run(index, self.data, self.second, self.third, *self._constants)
        return rows

    def dense(self) -> Tensor:
        """w (n, k) float32."""
        return expanded(self.form, (self.rows, self.columns), self.exponent, self.data, self.second, self.third)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, form={self.form}, level={self.level}"


def expanded(
    form: Rows, shape: tuple[int, int], exponent: int, data: Tensor, second: Tensor | None, third: Tensor | None
) -> Tensor:
    """The table that the arrays of a form stand for, by torch."""
    rows, columns = shape
    if form == "sparse" and second is not None and third is not None:
        y = torch.zeros(rows, columns)
        row = torch.repeat_interleave(torch.arange(rows), third.diff())
        return y.index_put((row, second.to(torch.int64) & 0xFFFF), data)
    if second is not None:
        codes = data.view(rows, -1)
        if form == "codes4":
            codes = torch.stack([codes & 15, codes >> 4], dim=2).view(rows, -1)[:, :columns]
        return second[codes.to(torch.int64)]
    return torch.ldexp(data.view(rows, -1)[:, :columns].float(), torch.tensor(exponent))


@cache
def _agrees(level: str, form: Rows) -> bool:
    """Whether the gather agrees with torch to the last bit on a small table."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = 5, 2 * level_named(level).lanes + 3
    second, third = None, None
    if form == "sparse":
        keep = torch.rand(rows, columns, generator=generator) < 0.3
        third = torch.cat([torch.zeros(1, dtype=torch.int64), keep.sum(1).cumsum(0)])
        second = keep.nonzero()[:, 1].to(torch.int16)
        data = torch.randn(int(keep.sum()), generator=generator)
    elif form in ("codes4", "codes8"):
        second = torch.randn(256, generator=generator)
        data = torch.randint(0, 256, (rows, columns if form == "codes8" else -(-columns // 2)), generator=generator)
        data = data.to(torch.uint8)
    else:
        data = torch.randn(rows, 3 * level_named(level).lanes, generator=generator).to(getattr(torch, form))
    index = torch.tensor([4, 0, 2, 2, 1])
    y = gather_rows(index, data, second, third, rows, columns, -1, form, level)
    return torch.equal(y, expanded(form, (rows, columns), -1, data, second, third)[index])


def trusted_rows(asked: str | None, form: Rows) -> Level | None:
    """The level asked for (default: `features.detect`) if its gather agrees here, else the next slower one that does,
    else None; warns on a mismatch.
    """
    level: Level | None = detect(asked)
    while level is not None and not _agrees(level.name, form):
        warnings.warn(f"the {level.name} kernel of {form} rows is wrong on this CPU; trying another", stacklevel=3)
        level = below(level)
    return level
