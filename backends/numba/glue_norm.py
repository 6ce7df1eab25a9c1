"""Numba code around layer normalisation, with the addition before it.

`build` compiles a copy of this file with the SPEC of the normalisation in place of the one below.
"""

from __future__ import annotations

from numba import njit, types

from tersor.backends.numba.features import level_named
from tersor.backends.numba.rowkernels import NormSpec, make_norm

SPEC = NormSpec("generic")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
normalise = make_norm(SPEC)


@njit(types.void(*[types.int64] * 7, types.float32), nogil=True, error_model="numpy", cache=True)
def norm(rows, columns, x, other, weight, bias, y, epsilon):  # type: ignore[no-untyped-def]  # addresses and counts
    """y = (z - mean) / sqrt(var + epsilon) * weight + bias with z = x + other; `other` 0 for none; columns fill
    vectors.
    """
    add = 0 if other == 0 else 1
    for m in range(rows):
        row = 4 * columns * m
        normalise(x + row, other + add * row, add, weight, bias, y + row, columns // LANES, columns, epsilon)
