"""Numba code that gathers and expands rows of codes.

`build` compiles a copy of this file with the SPEC of the embedding in place of the one below.
"""

from __future__ import annotations

from numba import njit, types

from tersor.backends.numba.elementwise import make_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.rowkernels import EmbeddingSpec, make_expand, make_load

SPEC = EmbeddingSpec("generic", 8)

LEVEL = level_named(SPEC.level)
WIDTH = SPEC.width
expand = make_expand(SPEC)
copy = make_copy(LEVEL)
load = make_load(LEVEL)


@njit(types.int64(*[types.int64] * 12), nogil=True, error_model="numpy", cache=True)
def gather(  # type: ignore[no-untyped-def]  # every argument is a 64-bit integer: an address or a count
    count, index, rows, codes, scale, zero, zero_step, columns, group, groups, y, work
):  # fmt: skip
    """y[i] = row index[i]; returns the first i whose index is not in 0..rows-1, or -1. Nothing is read at a wrong
    index.

    `zero_step` is 1 where every group has a zero point, 0 where one serves all; `work` holds a padded row of floats.
    """
    padded = group * groups
    for i in range(count):
        row = load(index + 8 * i)
        if row < 0 or row >= rows:
            return i
        target = y + 4 * columns * i
        source = codes + row * (padded * WIDTH // 8)
        place = work if padded > columns else target
        for g in range(groups):
            cell = 4 * (row * groups + g)
            expand(place + 4 * group * g, source + group * WIDTH // 8 * g, scale + cell, zero + zero_step * cell, group)
        if padded > columns:
            copy(target, work, columns)
    return -1
