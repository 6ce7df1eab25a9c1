"""Numba code that gathers and expands rows of codes: a step whose units are indices.

`build` compiles a copy of this file with the SPEC of the embedding in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load, make_store
from tersor.backends.numba.rowkernels import EmbeddingSpec, make_expand

SPEC = EmbeddingSpec("generic", 8)

LEVEL = level_named(SPEC.level)
WIDTH = SPEC.width
expand = make_expand(SPEC)
copy = make_copy(LEVEL)
load = make_load(LEVEL)
store = make_store(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y[i] = row index[i]. An index that is not in 0..rows-1 reads nothing and goes to `wrong`.

    Operands: index (int64), rows, codes, scale, zero, zero_step (1: a zero point per group, 0: one for all), columns,
    group, groups, y, wrong; `work` holds a padded row of floats.
    """
    index, rows, codes, scale = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    zero, zero_step, columns = load(operands + 32), load(operands + 40), load(operands + 48)
    group, groups, y, wrong = load(operands + 56), load(operands + 64), load(operands + 72), load(operands + 80)
    padded = group * groups
    for i in range(first, last):
        row = load(index + 8 * i)
        if row < 0 or row >= rows:
            store(wrong, row)
            continue
        target = y + 4 * columns * i
        source = codes + row * (padded * WIDTH // 8)
        place = work if padded > columns else target
        for g in range(groups):
            cell = 4 * (row * groups + g)
            expand(place + 4 * group * g, source + group * WIDTH // 8 * g, scale + cell, zero + zero_step * cell, group)
        if padded > columns:
            copy(target, work, columns)
