"""Numba code that sums rows of a table: a step whose units are bags.

`build` compiles a copy of this file with the SPEC of the table in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy, make_zero
from tersor.backends.numba.features import level_named
from tersor.backends.numba.gatherkernels import (
    AHEAD,
    GatherSpec,
    make_add_row,
    make_add_weighted,
    make_ask,
    make_divide,
)
from tersor.backends.numba.memorykernels import make_load, make_store

SPEC = GatherSpec("generic", "float32", True)

LEVEL = level_named(SPEC.level)
UNIT = SPEC.unit
add_row = make_add_row(SPEC)
add_weighted = make_add_weighted(SPEC)
ask = make_ask(SPEC)
divide = make_divide(SPEC)
copy = make_copy(LEVEL)
zero = make_zero(LEVEL)
load = make_load(LEVEL)
store = make_store(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y[n] = sum of weight[i] * row index[i] over the bag n, divided by its size for a mean (an empty one between
    starts gives 0). An index that is not in 0..rows-1 reads nothing and goes to `wrong`.

    Operands: index (int64), weights (float, or 0 for ones), starts (int64, one more than bags, or 0), length of every
    bag (with starts: of the index), mean (0 or 1), rows, columns, y, wrong, and those of the table;
    `work` holds a row in whole units.
    """
    index, weights, starts = load(operands), load(operands + 8), load(operands + 16)
    length, mean = load(operands + 24), load(operands + 32)
    rows, columns = load(operands + 40), load(operands + 48)
    y, wrong, table = load(operands + 56), load(operands + 64), operands + 72
    aside = columns % UNIT != 0
    held = last * length if starts == 0 else length
    for n in range(first, last):
        start = n * length
        end = start + length
        if starts != 0:
            start = max(load(starts + 8 * n), 0)
            end = min(load(starts + 8 * (n + 1)), length)
        target = work if aside else y + 4 * columns * n
        zero(target, (columns + UNIT - 1) // UNIT * UNIT)
        for i in range(start, end):
            if i + AHEAD < held:  # in the next bag too
                ask(index + 8 * (i + AHEAD), rows, table, columns)
            row = load(index + 8 * i)
            if row < 0 or row >= rows:
                store(wrong, row)
                continue
            if weights == 0:
                add_row(target, row, table, columns)
            else:
                add_weighted(target, row, table, columns, weights + 4 * i)
        if mean != 0 and (end > start or starts == 0):
            divide(target, columns, end - start)
        if aside:
            copy(y + 4 * columns * n, work, columns)
