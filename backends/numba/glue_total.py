"""Numba code that completes records of rounded activations: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load
from tersor.backends.numba.quantiser import QuantiseSpec, make_total

SPEC = QuantiseSpec("generic")

LEVEL = level_named(SPEC.level)
load = make_load(LEVEL)
total = make_total(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: records, groups."""
    records, groups = load(operands), load(operands + 8)
    for m in range(first, last):
        total(records + m * (12 * groups + 4), groups)
