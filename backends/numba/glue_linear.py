"""Numba code around the micro-kernels of a linear: row blocks, panels, tiles.

`build` compiles a copy of this file with the SPEC of the linear in place of the one below.
"""

from __future__ import annotations

from numba import njit, types

from tersor.backends.numba.elementwise import make_copy, make_indirect_call, make_zero
from tersor.backends.numba.features import level_named
from tersor.backends.numba.layout import STEP
from tersor.backends.numba.microkernels import LinearSpec, make_tile
from tersor.backends.numba.quantiser import make_quantiser

SPEC = LinearSpec("generic", 8, "row", False)

LEVEL = level_named(SPEC.level)
PANEL = LEVEL.panel
quantise = make_quantiser(LEVEL)
tile = make_tile(SPEC)
copy = make_copy(LEVEL)
zero = make_zero(LEVEL)
call = make_indirect_call(LEVEL)
PER_GROUP = SPEC.kind == "group"
WIDTH = SPEC.width


@njit(
    types.void(*[types.int64] * 18),
    nogil=True,
    error_model="numpy",
    cache=True,
)
def linear(  # type: ignore[no-untyped-def]  # every argument is a 64-bit integer: an address, a stride in bytes, or a count
    rows, x, x_stride, y, y_stride, work, block, codes, scale, shift, bias, outputs, columns, group, groups, per_span,
    center, activate,
):  # fmt: skip
    """y = activation(x @ w^T + bias) for `rows` rows; `work` holds what `work_bytes` says for `block` rows."""
    padded = group * groups
    record_size = 12 * groups + 4
    q = work
    records = q + block * padded
    row = records + block * record_size
    edge = row + 4 * padded
    panel_codes = padded * PANEL * WIDTH // 8
    panel_scales = 4 * PANEL * (groups if PER_GROUP else 1)
    steps = group // STEP
    if padded > columns:
        zero(row + 4 * columns, padded - columns)
    for first in range(0, rows, block):
        count = min(block, rows - first)
        for m in range(count):
            source = x + (first + m) * x_stride
            if padded > columns:
                copy(row, source, columns)
                source = row
            quantise(source, q + m * padded, records + m * record_size, groups // per_span, per_span, group, center)
        for p in range((outputs + PANEL - 1) // PANEL):
            width = min(PANEL, outputs - p * PANEL)
            target = y + first * y_stride + 4 * PANEL * p
            stride = y_stride
            if width < PANEL:
                target = edge
                stride = 4 * PANEL
            m = 0
            while m < count:
                m += tile(
                    count - m,
                    q + m * padded,
                    padded,
                    records + m * record_size,
                    record_size,
                    codes + p * panel_codes,
                    scale + p * panel_scales,
                    shift + p * panel_scales,
                    bias + 4 * PANEL * p,
                    target + m * stride,
                    stride,
                    steps,
                    groups,
                )
            if activate != 0:
                call(activate, target, stride, count, 0)
            if width < PANEL:
                for m in range(count):
                    copy(y + (first + m) * y_stride + 4 * PANEL * p, edge + m * stride, width)
