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
    make_add_rows,
    make_add_weighted,
    make_ask,
    make_divide,
)
from tersor.backends.numba.memorykernels import make_load, make_store

SPEC = GatherSpec("generic", "float32", True)

LEVEL = level_named(SPEC.level)
UNIT = SPEC.unit
add_rows = make_add_rows(SPEC)
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
    starts gives 0). An index that is not in 0..rows-1 reads nothing and goes to `wrong`: the sum is of no use.

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
        for i in range(start, end, AHEAD):
            count = min(AHEAD, end - i)
            for j in range(i + AHEAD, min(i + AHEAD + count, held)):  # in the next bag too
                ask(index + 8 * j, rows, table, columns)
            known = True
            for j in range(i, i + count):
                row = load(index + 8 * j)
                if row < 0 or row >= rows:
                    store(wrong, row)
                    known = False
            if not known:
                continue
            if weights == 0:
                add_rows(target, index + 8 * i, count, table, columns)
            else:
                add_weighted(target, index + 8 * i, count, table, columns, weights + 4 * i)
        if mean != 0 and (end > start or starts == 0):
            divide(target, columns, end - start)
        if aside:
            copy(y + 4 * columns * n, work, columns)
