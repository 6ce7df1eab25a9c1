"""Numba code that applies a function to a dense tensor: a step whose units are blocks of floats.

`build` compiles a copy of this file with the SPEC of the function in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import UnarySpec, make_map
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = UnarySpec("generic", "relu")

LEVEL = level_named(SPEC.level)
load = make_load(LEVEL)
apply = make_map(LEVEL, SPEC.function)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: y, x, floats in all, floats a block."""
    y, x, total, block = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    for unit in range(first, last):
        start = unit * block
        apply(y + 4 * start, x + 4 * start, min(block, total - start))
