"""Numba code around attention over q, k and v that lie side by side.

`build` compiles a copy of this file with the SPEC of the attention in place of the one below.
"""

from __future__ import annotations

from numba import njit, types

from tersor.backends.numba.attentionkernels import (
    STRIPS,
    AttentionSpec,
    make_add,
    make_hide,
    make_product,
    make_softmax,
    make_transpose,
)
from tersor.backends.numba.elementwise import make_zero
from tersor.backends.numba.features import level_named

SPEC = AttentionSpec("generic")

LEVEL = level_named(SPEC.level)
LANES = LEVEL.lanes
TILE = STRIPS * LEVEL.lanes
QUERIES = 24
product = make_product(SPEC)
softmax = make_softmax(SPEC)
add = make_add(SPEC)
hide = make_hide(SPEC)
transpose = make_transpose(SPEC)
zero = make_zero(LEVEL)


@njit(types.void(*[types.int64] * 11), nogil=True, error_model="numpy", cache=True)
def attend(first, last, tokens, heads, width, joined, mask, mask_stride, scale, y, work):  # type: ignore[no-untyped-def]
    """Heads `first` to `last` of batch * heads, in order; `work` holds (width + QUERIES) * padded + QUERIES floats.

    joined (batch, tokens, 3, heads, width), y (batch, tokens, heads, width), mask (batch, tokens, tokens) to be added,
    or 0 for none; `scale` is the address of a float, `mask_stride` the bytes between two sentences of the mask.
    """
    padded = (tokens + TILE - 1) // TILE * TILE
    keys = work
    scores = keys + 4 * width * padded
    inverse = scores + 4 * QUERIES * padded
    line = 12 * heads * width
    for unit in range(first, last):
        batch, head = unit // heads, unit % heads
        q = joined + batch * tokens * line + 4 * width * head
        k = q + 4 * heads * width
        v = k + 4 * heads * width
        out = y + batch * tokens * (line // 3) + 4 * width * head
        if padded > tokens:
            for d in range(width):
                zero(keys + 4 * (d * padded + tokens), padded - tokens)
        for t in range(tokens):
            transpose(keys + 4 * t, 4 * padded, k + t * line, width)
        for start in range(0, tokens, QUERIES):
            count = min(QUERIES, tokens - start)
            for column in range(0, padded, TILE):
                m = 0
                while m < count:
                    m += product(
                        count - m, q + (start + m) * line, line, width, keys + 4 * column, 4 * padded,
                        scores + 4 * (m * padded + column), 4 * padded, scale, 0,
                    )  # fmt: skip
            for m in range(count):
                row = scores + 4 * m * padded
                if mask != 0:
                    add(row, mask + batch * mask_stride + 4 * (start + m) * tokens, tokens)
                if padded > tokens:
                    hide(row + 4 * tokens, padded - tokens)
                softmax(row, padded // LANES, inverse + 4 * m)
            for column in range(0, width, TILE):
                m = 0
                while m < count:
                    m += product(
                        count - m, scores + 4 * m * padded, 4 * padded, tokens, v + 4 * column, line,
                        out + (start + m) * (line // 3) + 4 * column, line // 3, inverse + 4 * m, 4,
                    )  # fmt: skip
