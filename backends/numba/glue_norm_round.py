"""Numba code around the normalisation of rows, with the addition before it and rounding to 8 bits after it: a step
whose units are as many rows as a vector has lanes.

`build` compiles a copy of this file with the SPEC in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.features import level_named
from tersor.backends.numba.fusedspec import NormRoundSpec
from tersor.backends.numba.memorykernels import make_as_float, make_load
from tersor.backends.numba.quantiser import make_total
from tersor.backends.numba.rounding import RoundSpec, make_round
from tersor.backends.numba.rowkernels import NormSpec, make_norm

SPEC = NormRoundSpec(NormSpec("generic"), RoundSpec("generic"))

LEVEL = level_named(SPEC.norm.level)
LANES = LEVEL.lanes
normalise = make_norm(SPEC.norm)
rounded = make_round(SPEC.rounding)
total = make_total(LEVEL)
load = make_load(LEVEL)
as_float = make_as_float(LEVEL)


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """y = norm(z) with z = x + other, and y rounded.

    Operands: columns (whole groups), x, other (0 for none), rows of other (it repeats), weight, bias, z (written if
    there is another), y, epsilon, rows; then q, records, group, groups.
    """
    columns, x, other, period = load(operands), load(operands + 8), load(operands + 16), load(operands + 24)
    weight, bias, z, y = load(operands + 32), load(operands + 40), load(operands + 48), load(operands + 56)
    epsilon, rows = as_float(load(operands + 64)), load(operands + 72)
    q, records, group = load(operands + 80), load(operands + 88), load(operands + 96)
    groups = load(operands + 104)
    add = 0 if other == 0 else 1
    size = 4 * columns
    record_size = 12 * groups + 4
    for unit in range(first, last):
        start = unit * LANES
        count = min(LANES, rows - start)
        for m in range(start, start + count):
            second = other + size * (m % period)
            here = size * m
            normalise(x + here, second, add, weight, bias, z + here, y + here, columns // LANES, columns, epsilon)
        for g in range(groups):
            rounded(
                count,
                y + size * start + 4 * group * g,
                size,
                group,
                q + columns * start + group * g,
                columns,
                records + record_size * start + 4 * g,
                record_size,
                groups,
                work,
            )
        for m in range(start, start + count):
            total(records + record_size * m, groups)
