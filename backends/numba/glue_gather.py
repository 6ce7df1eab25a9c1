"""Numba code that gathers rows of a table: a step whose units are indices.

`build` compiles a copy of this file with the SPEC of the table in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.gatherkernels import AHEAD, GatherSpec, make_ask, make_row
from tersor.backends.numba.memorykernels import make_load, make_store

SPEC = GatherSpec("generic", "float32")

LEVEL = level_named(SPEC.level)
UNIT = SPEC.unit
write_row = make_row(SPEC)
ask = make_ask(SPEC)
copy = make_copy(LEVEL)
load = make_load(LEVEL)
store = make_store(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y[i] = row index[i]. An index that is not in 0..rows-1 reads nothing and goes to `wrong`.

    Operands: index (int64), rows, columns, y, wrong, and those of the table; `work` holds a row in whole units.
    """
    index, rows, columns = load(operands), load(operands + 8), load(operands + 16)
    y, wrong, table = load(operands + 24), load(operands + 32), operands + 40
    aside = columns % UNIT != 0
    for i in range(first, last):
        if i + AHEAD < last:
            ask(index + 8 * (i + AHEAD), rows, table, columns)
        row = load(index + 8 * i)
        if row < 0 or row >= rows:
            store(wrong, row)
            continue
        target = y + 4 * columns * i
        write_row(work if aside else target, row, table, columns)
        if aside:
            copy(target, work, columns)
