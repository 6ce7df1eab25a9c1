"""Sums and means of table rows as a step, as the torch operator `tersor::sum_rows`, and as a layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.features import level_named
from tersor.backends.numba.gather import GatheredEmbedding, refuse_index, table_operands
from tersor.backends.numba.gatherkernels import GatherSpec
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.ops import direct
from tersor.backends.numba.rows import ROWS, Table
from tersor.backends.numba.steps import Step, run_now
from tersor.compiler.errors import CompilerBug

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "sum_rows(Tensor index, Tensor? weights, Tensor? starts, bool mean, Tensor[] arrays, int[] numbers, int rows, "
    "int columns, str form, str level) -> Tensor"
)


def bags_step(
    spec: GatherSpec, table: Table, bags: int, length: int, mean: bool,
    given: tuple[Operand, Operand, Operand], operands: Sequence[int], y: Operand, wrong: Operand,
) -> Step:  # fmt: skip
    """y (bags, columns) = sums or means of rows of a table. `given` are index (int64), weights (float or 0) and starts
    (int64, one more than bags, or 0); `length` is that of every bag, or with starts of the index.
    """
    index, weights, starts = given
    shape = (table.rows, table.columns)
    places = (index, weights, starts, length, int(mean), *shape, y, wrong, *operands)
    each = length if starts == 0 else length / max(bags, 1)
    cost = 0.3 * table.columns * max(each, 1)
    return Step("bags", kernel_address(spec, "glue_bags"), places, bags, cost, spec.work(table.columns))


def sum_rows(
    index: Tensor, weights: Tensor | None, starts: Tensor | None, mean: bool, arrays: Sequence[Tensor],
    numbers: Sequence[int], rows: int, columns: int, form: str, level: str,
) -> Tensor:  # fmt: skip
    """y[n] = sum_i weights[n, i] * row index[n, i] on the CPU, divided by the number of i for a mean: index
    (..., length) of integers, result (..., columns) float32. With `starts` (bags + 1) the index is flat and bag n is
    index[starts[n] : starts[n + 1]]; an empty one gives 0.

    RequestError if an index is not in 0..rows-1.
    """
    if mean and weights is not None:
        raise CompilerBug("a mean has no weights")
    places = index.to(torch.int64).contiguous()
    lead = index.shape[:-1] if starts is None else (starts.numel() - 1,)
    y = torch.empty((*lead, columns), dtype=torch.float32)
    wrong = torch.zeros(1, dtype=torch.int64)
    table = Table(rows, columns, tuple(arrays), tuple(numbers))
    held = [None if t is None else t.contiguous() for t in (weights, starts)]
    given = (places.data_ptr(), *(0 if t is None else t.data_ptr() for t in held))
    bags = y.numel() // columns
    operands = (table_operands(table), y.data_ptr(), wrong.data_ptr())
    run_now(level, [bags_step(GatherSpec(level, form, True), table, bags, index.shape[-1], mean, given, *operands)])  # type: ignore[arg-type]
    if int(wrong):
        refuse_index(int(wrong), rows)
    return y


def _fake(
    index: Tensor, weights: Tensor | None, starts: Tensor | None, mean: bool, arrays: Sequence[Tensor],
    numbers: Sequence[int], rows: int, columns: int, *_: Any,
) -> Tensor:  # fmt: skip
    lead = index.shape[:-1] if starts is None else (starts.shape[0] - 1,)
    return index.new_empty((*lead, columns), dtype=torch.float32)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    index, weights, starts, _, arrays, numbers, rows, columns, form, _ = inputs
    ctx.shape = (numbers, rows, columns, form)
    ctx.save_for_backward(index, weights, starts, *arrays)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """grad_weights[n, i] = grad[n] . row index[n, i]; the table is a constant here."""
    index, weights, starts, *arrays = ctx.saved_tensors
    numbers, rows, columns, form = ctx.shape
    rest = (None, None, [None] * len(arrays), [None] * len(numbers), *[None] * 4)
    if weights is None:
        return (None, None, *rest)
    table = ROWS[form].dense(Table(rows, columns, tuple(arrays), tuple(numbers)))
    found = table[index.to(torch.int64)]
    # The gradient of its bag, for every row.
    given = grad.unsqueeze(-2) if starts is None else grad.repeat_interleave(starts.diff(), dim=0)
    return (None, (found * given).sum(-1), *rest)


_library.impl("sum_rows", sum_rows, "CPU")
torch.library.register_fake("tersor::sum_rows", _fake, lib=_library)
torch.library.register_autograd("tersor::sum_rows", _backward, setup_context=_context, lib=_library)
summed = torch.ops.tersor.sum_rows.default


class SummedEmbedding(nn.Module):
    """sum or mean over dimension `dim` of weights[..., None] * embedding(index); with `starts` over the bags of a flat
    index (see `sum_rows`). Weights are of the shape of the index; with them only sums are taken.
    """

    def __init__(self, embedding: GatheredEmbedding, mean: bool, dim: int) -> None:
        super().__init__()
        self.embedding, self.mean, self.dim = embedding, mean, dim

    def fits(self, index: Any, weights: Any) -> bool:
        """Whether the kernel computes it: the rows of a bag are neighbours and have a weight each."""
        rank = len(index.shape)
        return self.dim % (rank + 1) == rank - 1 and (weights is None or weights.shape == index.shape)

    def forward(self, index: Tensor, weights: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        if not self.fits(index, weights):
            rows = self.embedding(index)
            rows = rows if weights is None else rows * weights.unsqueeze(-1)
            pooled: Tensor = rows.mean(self.dim) if self.mean else rows.sum(self.dim)
            return pooled
        run = sum_rows if direct(index) and (weights is None or direct(weights)) else summed
        y: Tensor = run(index, weights, starts, self.mean, *self.embedding.constants())
        return y

    def extra_repr(self) -> str:
        return f"{'mean' if self.mean else 'sum'}, dim={self.dim}"


@cache
def _agrees(level: str, form: str) -> bool:
    """Whether the sums agree with torch on a small table: in float32 one product and one addition a row, in order."""
    sample = ROWS[form].sample(level_named(level), torch.Generator().manual_seed(0))
    table = sample.table
    dense, places = ROWS[form].dense(table), sample.index
    weights = torch.linspace(-1, 2, places.numel())
    wanted = torch.zeros(table.columns)
    for i, w in zip(places, weights, strict=True):
        wanted += dense[i] * w
    constants = (table.arrays, table.numbers, table.rows, table.columns, form, level)
    y = sum_rows(places[None], weights[None], None, False, *constants)
    starts = torch.tensor([0, 2, 2, places.numel()])
    means = sum_rows(places, None, starts, True, *constants)
    first = (dense[places[0]] + dense[places[1]]) / 2
    return torch.equal(y[0], wanted) and torch.equal(means[0], first) and not bool(means[1].any())


def trusted_bags(embedding: GatheredEmbedding) -> bool:
    """Whether the level of an embedding sums its rows as torch does; warns on a mismatch."""
    if embedding.level is None:
        return False
    if not _agrees(embedding.level, embedding.form):
        warnings.warn(
            f"the {embedding.level} kernel that sums {embedding.form} rows is wrong on this CPU", stacklevel=3
        )
        return False
    return True
