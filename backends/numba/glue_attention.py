"""Numba code around attention over q, k and v that lie side by side.

`build` compiles a copy of this file with the SPEC of the attention in place of the one below.
"""

from __future__ import annotations

from numba import cfunc

from tersor.backends.numba.attentionkernels import (
    STRIPS,
    AttentionSpec,
    make_add,
    make_gather,
    make_product,
    make_softmax,
    make_transpose,
)
from tersor.backends.numba.features import level_named
from tersor.backends.numba.memorykernels import make_load

SPEC = AttentionSpec("generic")

TILE = STRIPS * level_named(SPEC.level).lanes
scores_of = make_product(SPEC, False)
mix = make_product(SPEC, True)
softmax = make_softmax(SPEC)
add = make_add(SPEC)
gather = make_gather(SPEC)
transpose = make_transpose(SPEC)
load = make_load(level_named(SPEC.level))


@cfunc("void(int64, int64, int64, int64)", cache=True)
def kernel(operands, first, last, work):  # type: ignore[no-untyped-def]  # addresses and counts
    """softmax(scale q k^T + mask) v; unit u is head u % heads of sentence u // heads.

    Operands: tokens, heads, width, joined, mask, mask_stride, the address of scale, y. joined (batch, tokens, 3,
    heads, width), y (batch, tokens, heads, width); mask, to be added, transposed and padded: (batch, key, query up to
    a multiple of TILE), or 0 for none; `mask_stride` the bytes between two sentences of the mask. `work` holds
    (width + tokens + 1) * TILE + tokens * width floats.
    """
    tokens, heads, width = load(operands), load(operands + 8), load(operands + 16)
    joined, mask, mask_stride = load(operands + 24), load(operands + 32), load(operands + 40)
    scale, y = load(operands + 48), load(operands + 56)
    lane_row = 4 * TILE
    queries = work
    values = queries + width * lane_row
    scores = values + 4 * tokens * width
    inverse = scores + tokens * lane_row
    line = 12 * heads * width
    padded = (tokens + TILE - 1) // TILE * TILE
    for unit in range(first, last):
        batch, head = unit // heads, unit % heads
        q = joined + batch * tokens * line + 4 * width * head
        k = q + 4 * heads * width
        out = y + batch * tokens * (line // 3) + 4 * width * head
        gather(values, k + 4 * heads * width, line, tokens, width)
        for start in range(0, tokens, TILE):
            count = min(TILE, tokens - start)
            transpose(queries, q + start * line, line, count, width)
            m = 0
            while m < tokens:
                m += scores_of(
                    tokens - m, k + m * line, line, width, queries, lane_row, scores + m * lane_row, lane_row, scale, 0
                )
            if mask != 0:
                add(scores, mask + batch * mask_stride + 4 * start, 4 * padded, tokens)
            softmax(scores, tokens, inverse)
            for column in range(0, width, TILE):
                m = 0
                while m < count:
                    m += mix(
                        count - m, scores + 4 * m, lane_row, tokens, values + 4 * column, 4 * width,
                        out + (start + m) * (line // 3) + 4 * column, line // 3, inverse + 4 * m, 4,
                    )  # fmt: skip
