"""The steps of decoders: rotary positions, attention over written keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.decoderkernels import AppendSpec, AttendSpec, RotarySpec
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.values import Operand, Value
from tersor.backends.numba.steps import Step, attention_tile

_QUERIES = 16  # queries of a unit


def strides(value: Value) -> tuple[int, int, int]:
    """Bytes between neighbours in the outer three of four dimensions, 0 where there is but one."""
    one, two, three = (
        0 if n == 1 else s * value.dtype.itemsize for n, s in zip(value.shape[:3], value.stride[:3], strict=True)
    )
    return one, two, three


def rotary_step(level: str, x: Value, cos: Value, sin: Value, y: Value) -> Step:
    """y = x cos + (-x2, x1) sin: x, cos and sin (batch, heads, tokens, width) with adjacent columns, y dense."""
    batch, heads, tokens, width = x.shape
    tables = [part for v in (x, cos, sin) for part in (v.ref, *strides(v))]
    kernel = kernel_address(RotarySpec(level), "glue_rotary")
    return Step("rotary", kernel, (width // 2, heads, tokens, y.ref, *tables), batch * heads * tokens, 0.3 * width)


@dataclass(frozen=True)
class Cache:
    """Where keys and values lie: room for `capacity` tokens of `heads` heads, `width` wide."""

    keys: Operand
    values: Operand
    heads: int
    width: int
    capacity: int
    tile: int

    @staticmethod
    def sizes(level: str, heads: int, width: int, capacity: int) -> tuple[int, int]:
        """Floats of a sentence's keys and values."""
        tile = attention_tile(level)
        whole = heads * ceil_to(capacity, tile)
        return whole * width, whole * ceil_to(width, tile)

    @property
    def head_bytes(self) -> tuple[int, int]:
        """Bytes of the keys and of the values of a head."""
        tokens = 4 * ceil_to(self.capacity, self.tile)
        return tokens * self.width, tokens * ceil_to(self.width, self.tile)


def append_step(level: str, k: Value, v: Value, cache: Cache, offset: Operand) -> Step:
    """Write k and v (batch, heads, tokens, width) behind the `offset` tokens in the cache."""
    batch, heads, tokens, width = k.shape
    key_bytes, value_bytes = cache.head_bytes
    operands = (
        tokens, offset, heads, width, k.ref, *strides(k), v.ref, *strides(v),
        cache.keys, key_bytes, cache.values, value_bytes,
    )  # fmt: skip
    kernel = kernel_address(AppendSpec(level), "glue_append")
    return Step("append", kernel, operands, batch * heads, float(tokens * width))


def attend_step(
    level: str,
    q: Value,
    cache: Cache,
    offset: Operand,
    kept: int,
    mask: tuple[Operand, int, int, int],
    causal: bool,
    scale: Operand,
    y: Value,
) -> Step:
    """Attention of q (batch, heads, tokens, width) over `offset` + `kept` keys. `mask`: address (0: none), bytes
    between sentences, heads and queries, of an additive mask. y of the shape of q, with adjacent columns.
    """
    batch, heads, tokens, width = q.shape
    group = heads // cache.heads
    block = min(_QUERIES, tokens)
    key_bytes, value_bytes = cache.head_bytes
    operands = (
        tokens, block, offset, kept, cache.heads, group, width, int(causal), scale, q.ref, *strides(q),
        y.ref, *strides(y), *mask, cache.keys, key_bytes, cache.values, value_bytes,
    )  # fmt: skip
    rows = group if tokens == 1 else block
    padded = ceil_to(cache.capacity, cache.tile)
    work = 4 * (rows * (padded + ceil_to(width, cache.tile)) + ceil_to(rows, 16))
    cost = block * group * cache.capacity * (width / 20 + 0.5)
    kernel = kernel_address(AttendSpec(level), "glue_attend")
    return Step("attend", kernel, operands, batch * cache.heads * -(-tokens // block), cost, work)
