"""Numba code that copies a strided tensor of floats into a dense one: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import CopySpec, make_copy, make_spread_copy
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = CopySpec("generic")

LEVEL = level_named(SPEC.level)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
spread_copy = make_spread_copy(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: target, source, columns (at least one), bytes between them, and for the three dimensions of the rows,
    from the inner one outwards: size, bytes.
    """
    target, source, columns, stride = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    inner, inner_stride = load(operands + 32), load(operands + 40)
    middle, middle_stride, outer_stride = load(operands + 48), load(operands + 56), load(operands + 64)
    for m in range(first, last):
        rest = m // inner
        place = source + m % inner * inner_stride + rest % middle * middle_stride + rest // middle * outer_stride
        if stride == 4:
            copy(target + 4 * columns * m, place, columns)
        else:
            spread_copy(target + 4 * columns * m, place, stride, columns)
