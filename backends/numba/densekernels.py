"""The micro-kernel of a linear over floating weights: a few rows of activations times one panel of weights.

    y[m, n] = start[m, n] + factor * sum_k w[n, k] x[m, k]

`start` is the bias or, for columns that are taken block by block, what the blocks before left in y. The sum runs over
k in order, one fused multiply-add a term, whatever the tile, so that a row's result does not depend on its neighbours.

Panels are `strips` vectors of outputs:

    weights  [panel][k][strip][lane]      float32, or 16 bits that widen to it exactly
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llvmlite import ir

from tersor.backends.numba.emitter import F32, I16, I32, Emitter, Value, kernel
from tersor.backends.numba.features import level_named

Storage = Literal["float32", "float16", "bfloat16"]

COLUMNS = 512  # columns of a block: a panel of them fits the second-level cache beside the activations


@dataclass(frozen=True)
class DenseSpec:
    """What a compiled linear over floating weights is specialised on."""

    level: str
    storage: Storage

    @property
    def name(self) -> str:
        return f"dense_{self.level}_{self.storage}"

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return 4 if self.storage == "float32" else 2


def load_weights(e: Emitter, address: Value, storage: str) -> Value:
    """One vector of weights, widened to float32."""
    if storage == "float32":
        return e.load_floats(address)
    lanes = e.level.lanes
    if storage == "float16" and e.level.name != "generic":
        return e.b.fpext(e.load(address, ir.VectorType(ir.HalfType(), lanes)), e.floats)
    bits = e.b.zext(e.load(address, ir.VectorType(I16, lanes)), e.ints)
    if storage == "bfloat16":
        return e.b.bitcast(e.b.shl(bits, e.int_vector(16)), e.floats)
    # Exponent and mantissa in place are 2^112 too small, subnormals included.
    size = e.b.shl(e.b.and_(bits, e.int_vector(0x7FFF)), e.int_vector(13))
    size = e.b.bitcast(e.b.fmul(e.b.bitcast(size, e.floats), e.float_vector(2.0**112)), e.ints)
    sign = e.b.shl(e.b.and_(bits, e.int_vector(0x8000)), e.int_vector(16))
    return e.b.bitcast(e.b.or_(size, sign), e.floats)


def _emit_tile(
    e: Emitter, spec: DenseSpec, rows: int, x: Value, x_stride: Value, w: Value, start: Value, start_stride: Value,
    factor: Value, y: Value, y_stride: Value, columns: Value,
) -> None:  # fmt: skip
    strips, lanes = e.level.strips, e.level.lanes
    inputs = [e.opaque(e.at(x, e.times(x_stride, m))) for m in range(rows)]
    vector = lanes * spec.itemsize

    def body(k: Value, sums: list[Value]) -> list[Value]:
        place = e.at(w, e.times(k, strips * vector))
        weights = [load_weights(e, e.at(place, v * vector), spec.storage) for v in range(strips)]
        new = []
        for m in range(rows):
            value = e.broadcast_float(e.at(inputs[m], e.times(k, 4)))
            new += [e.fma(weights[v], value, sums[m * strips + v]) for v in range(strips)]
        return new

    sums = e.loop(columns, [e.float_vector(0.0)] * (rows * strips), body)
    scale = e.splat(e.b.bitcast(e.b.trunc(factor, I32), F32))
    for m in range(rows):
        for v in range(strips):
            offset = 4 * lanes * v
            first = e.load_floats(e.at(start, e.times(start_stride, m), offset))
            e.store(e.at(y, e.times(y_stride, m), offset), e.fma(sums[m * strips + v], scale, first))


def make_dense_tile(spec: DenseSpec) -> Any:
    """tile(left, x, x_stride, w, start, start_stride, factor, y, y_stride, columns) -> rows done.

    `left` and `columns` are at least 1; `factor` is the bits of a float32.
    """
    level = level_named(spec.level)

    @kernel(level, 10, "int64")
    def tile(e: Emitter, left: Value, *arguments: Value) -> Value:
        b = e.b
        done = b.append_basic_block("tile_done")
        results = []
        for i, size in enumerate(level.row_tiles):
            if size > 1:
                here, other = b.append_basic_block(f"tile{size}"), b.append_basic_block("smaller")
                fits = b.icmp_signed(">=", left, left.type(size))
                # Two tiles of the next size are faster than this one and a thin one, which waits for its weights.
                twice = left.type(2 * level.row_tiles[i + 1])
                b.cbranch(b.and_(fits, b.icmp_signed("!=", left, twice)), here, other)
                b.position_at_end(here)
            _emit_tile(e, spec, size, *arguments)
            results.append((size, b.block))
            b.branch(done)
            if size > 1:
                b.position_at_end(other)
        b.position_at_end(done)
        rows = b.phi(left.type)
        for size, block in results:
            rows.add_incoming(left.type(size), block)
        return rows

    return tile
