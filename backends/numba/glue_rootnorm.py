"""Numba code around root-mean-square normalisation: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the normalisation in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.decoderkernels import RootNormSpec, make_root_norm
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_as_float, make_load

SPEC = RootNormSpec("generic")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
normalise = make_root_norm(SPEC)
load = make_load(LEVEL)
as_float = make_as_float(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y = x / sqrt(mean x^2 + epsilon) * weight. Operands: columns (whole vectors), x, weight, y, epsilon."""
    columns, x, weight, y = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    epsilon = as_float(load(operands + 32))
    size = 4 * columns
    for m in range(first, last):
        normalise(x + size * m, weight, y + size * m, columns // LANES, columns, epsilon)
