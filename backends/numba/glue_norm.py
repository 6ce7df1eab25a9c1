"""Numba code around the normalisation of rows, with the addition before it: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the normalisation in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_as_float, make_load
from tersor.backends.numba.rowkernels import NormSpec, make_norm

SPEC = NormSpec("generic")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
normalise = make_norm(SPEC)
load = make_load(LEVEL)
as_float = make_as_float(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y = norm(z) with z = x + other.

    Operands: columns (whole vectors), x, other (0 for none), rows of other (it repeats), weight, bias, z (written if
    there is another), y, epsilon.
    """
    columns, x, other, period = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    weight, bias, z, y = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    epsilon = as_float(load(operands + 64))
    add = 0 if other == 0 else 1
    size = 4 * columns
    for m in range(first, last):
        second = other + size * (m % period)
        here = size * m
        normalise(x + here, second, add, weight, bias, z + here, y + here, columns // LANES, columns, epsilon)
