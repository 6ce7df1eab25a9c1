"""Numba code that rounds rows of activations to 8 bits: a step whose units are rows.

`build` compiles a copy of this file with the SPEC of the CPU level in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.elementwise import make_copy, make_zero
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load
from tersor.backends.numba.quantiser import QuantiseSpec, make_quantiser

SPEC = QuantiseSpec("generic")

LEVEL = level_named(SPEC.level)
quantise = make_quantiser(LEVEL)
load = make_load(LEVEL)
copy = make_copy(LEVEL)
zero = make_zero(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """Operands: x, bytes between its rows, q, records, columns, group, groups, groups a span; `work` holds a
    padded row of floats.
    """
    x, stride, q, records = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    columns, group, groups = load(operands + 32), load(operands + 40), load(operands + 48)
    per_span = load(operands + 56)
    padded = group * groups
    record_size = 12 * groups + 4
    if padded > columns:
        zero(work + 4 * columns, padded - columns)
    for m in range(first, last):
        source = x + m * stride
        if padded > columns:
            copy(work, source, columns)
            source = work
        quantise(source, q + m * padded, records + m * record_size, groups // per_span, per_span, group)
