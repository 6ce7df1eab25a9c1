"""Micro-kernels of a linear over kept blocks of weights: a few tokens times the `height` outputs of a row of blocks.

Outputs lie in lanes, a block has four columns of signed codes, or one or four of floats, and every row of blocks keeps
as many. Tokens lie side by side, so that one place finds a column (four of bytes) of all of them:

    x        [column, or four][token]             floats, or bytes: the rounded activation + 128
    places   [block row][block]                   16 bits, the block's number in its row
    weights  [block row][block][output][4]        signed codes       or       [block row][block][column][output] floats
    start    [block row][group][output]           int32: -128 * sum of the codes      scale  likewise, float32

    codes:   y[m, n] = bias[n] + a[m] * sum_g scale[n, g] * (start[n, g] + sum_b sum_j code x)
    floats:  y[m, n] = bias[n] + factor * sum_b sum_c w x

Sums of codes are exact, and groups ascend. Floats of one token are summed in several chains, those of many in one,
whatever the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llvmlite import ir

from tersor.backends.numba.densekernels import Storage, load_weights
from tersor.backends.numba.emitter import F32, I16, I32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level, level_named

_CHAINS = 8  # sums at once that hide the latency of a dot product
_SIZES = (16, 8, 4)
_TOKENS = {16: 16, 8: 8, 4: 8}  # most tokens times strips of a tile, by lanes: what the registers hold


@dataclass(frozen=True)
class BlockSpec:
    """What a compiled linear over blocks is specialised on: also how many tokens lie side by side."""

    level: str
    height: int
    width: int
    storage: Literal["int8"] | Storage
    tokens: int

    @property
    def name(self) -> str:
        return f"blocks_{self.level}_{self.height}x{self.width}_{self.storage}_{self.tokens}"

    @property
    def coded(self) -> bool:
        return self.storage == "int8"

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        size = 1 if self.coded else 4 if self.storage == "float32" else 2
        return self.height * self.width * size


@dataclass(frozen=True)
class SpreadSpec:
    """The laying of tokens side by side compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"spread_{self.level}"


def counted(
    e: Emitter, first: Value, stop: Value, step: int, carried: list[Value], body: Callable[[Value, list[Value]], Any]
) -> tuple[Value, list[Value]]:
    """while first + step <= stop: carried = body(first, carried); first += step. What first became, and carried."""
    b = e.b
    before = b.block
    head, inside, after = (b.append_basic_block(name) for name in ("head", "inside", "after"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(first, before)
    state = []
    for value in carried:
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        state.append(phi)
    following = b.add(index, I64(step))
    b.cbranch(b.icmp_signed("<=", following, stop), inside, after)
    b.position_at_end(inside)
    result = body(index, list(state))
    tail = b.block
    index.add_incoming(following, tail)
    for phi, value in zip(state, result, strict=True):
        phi.add_incoming(value, tail)
    b.branch(head)
    b.position_at_end(after)
    return index, state


def in_chains(
    e: Emitter,
    first: Value,
    stop: Value,
    chains: int,
    carried: list[Value],
    product: Callable[[Value, list[Value], int, int], None],
) -> list[Value]:
    """Products of the blocks first..stop: `product(block, sums, chain, offset)` adds that of block + offset to the sums
    of a chain. Chains do not wait for each other; what is left over goes to the first."""

    def several(block: Value, sums: list[Value]) -> list[Value]:
        for chain in range(chains):
            product(block, sums, chain, chain)
        return sums

    def one(block: Value, sums: list[Value]) -> list[Value]:
        product(block, sums, 0, 0)
        return sums

    at, carried = counted(e, first, stop, chains, carried, several)
    return counted(e, at, stop, 1, carried, one)[1] if chains > 1 else carried


def folded(sums: list[Value], count: int, add: Callable[[Value, Value], Value]) -> list[Value]:
    """The sums of all chains added up, `count` of them a chain."""
    total = sums[:count]
    for i in range(count, len(sums)):
        total[i % count] = add(total[i % count], sums[i])
    return total


class _Blocks:
    """Emits a row of blocks times tokens; see `make_blocks`."""

    def __init__(self, e: Emitter, spec: BlockSpec, arguments: tuple[Value, ...]) -> None:
        self.e, self.spec = e, spec
        self.strips = spec.height // e.level.lanes
        self.vector = 4 * e.level.lanes
        self.x, self.stride, self.weights, self.places, self.blocks, self.groups = arguments[:6]
        self.start, self.scale, self.record, self.record_stride, self.bias, self.y, self.y_stride = arguments[6:]

    def emit(self, count: Value) -> None:
        if self.spec.tokens == 1:
            self.tile(I64(0), 1, count)
            return
        e, b = self.e, self.e.b
        most = min(self.spec.tokens, max(1, _TOKENS[e.level.lanes] // self.strips))
        sizes = [n for n in _SIZES if self.spec.coded and n <= most] or [most]

        def piece(i: Value, _: list[Value]) -> list[Value]:
            first = e.times(i, most)
            left = b.sub(count, first)

            def choose(sizes: list[int]) -> None:
                # Tokens beyond the last are there as zeros: a larger tile is never wrong.
                if len(sizes) == 1:
                    self.tile(first, sizes[0], count)
                else:
                    fits = b.icmp_signed("<=", left, I64(sizes[1]))
                    e.branch(fits, lambda: choose(sizes[1:]), lambda: self.tile(first, sizes[0], count))

            choose(sizes)
            return []

        e.loop(b.sdiv(b.add(count, I64(most - 1)), I64(most)), [], piece)

    def tile(self, token: Value, tokens: int, count: Value) -> None:
        e = self.e
        keys = [(m, v) for m in range(tokens) for v in range(self.strips)]
        x = e.at(self.x, e.times(token, 4))
        sums = self.coded(keys, x) if self.spec.coded else self.floating(keys, x)
        biases = [e.load_floats(e.at(self.bias, v * self.vector)) for v in range(self.strips)]
        if self.spec.coded:
            last = e.b.sub(count, I64(1))  # whose record stands in for those of tokens beyond
            numbers = [e.b.add(token, I64(m)) for m in range(tokens)]
            numbers = [e.b.select(e.b.icmp_signed("<", number, last), number, last) for number in numbers]
            factors = [e.broadcast_float(e.at(self.record, e.times(self.record_stride, n), 4)) for n in numbers]
        else:
            factors = [e.splat(e.b.bitcast(e.b.trunc(self.scale, I32), F32))] * tokens
        target = e.at(self.y, e.times(self.y_stride, token))
        for (m, v), value in zip(keys, sums, strict=True):
            place = e.at(target, e.times(self.y_stride, m), v * self.vector)
            e.store(place, e.fma(value, factors[m], biases[v]))

    def coded(self, keys: list[tuple[int, int]], x: Value) -> list[Value]:
        """Sum over groups of scale times the exact sum of products."""
        e = self.e
        chains = max(2 if len(keys) <= _CHAINS else 1, _CHAINS // len(keys))
        line = self.strips * self.vector

        def product(block: Value, sums: list[Value], chain: int, offset: int) -> None:
            place, codes = self.block(x, block, offset)
            for v in range(self.strips):
                weights = e.load_ints(e.at(codes, v * self.vector))
                for i, (m, strip) in enumerate(keys):
                    if strip == v:
                        at = chain * len(keys) + i
                        sums[at] = e.dot(sums[at], e.broadcast_int(e.at(place, 4 * m)), weights)

        def group(g: Value, totals: list[Value]) -> list[Value]:
            here = e.times(g, line)
            first = e.b.mul(g, self.blocks)
            starts = [e.load_ints(e.at(self.start, here, v * self.vector)) for v in range(self.strips)]
            carried = [starts[v] for _, v in keys] + [e.int_vector(0)] * (len(keys) * (chains - 1))

            sums = in_chains(e, first, e.b.add(first, self.blocks), chains, carried, product)
            sums = folded(sums, len(keys), e.b.add)
            scales = [e.load_floats(e.at(self.scale, here, v * self.vector)) for v in range(self.strips)]
            return [
                e.fma(e.to_float(value), scales[v], total)
                for (_, v), value, total in zip(keys, sums, totals, strict=True)
            ]

        return e.loop(self.groups, [e.float_vector(0.0)] * len(keys), group)

    def floating(self, keys: list[tuple[int, int]], x: Value) -> list[Value]:
        e, spec = self.e, self.spec
        alone = spec.tokens == 1
        chains = max(1, _CHAINS // (self.strips * spec.width)) if alone else 1
        columns = spec.width if alone else 1  # a chain of its own for each column of a block
        size = spec.block_bytes // (spec.width * self.strips)

        def product(block: Value, sums: list[Value], chain: int, offset: int) -> None:
            place, weights = self.block(x, block, offset)
            for c in range(spec.width):
                column = e.at(place, e.times(self.stride, c))
                values = {m: e.broadcast_float(e.at(column, 4 * m)) for m, v in keys if v == 0}
                for v in range(self.strips):
                    loaded = load_weights(e, e.at(weights, (c * self.strips + v) * size), spec.storage)
                    for i, (m, strip) in enumerate(keys):
                        if strip == v:
                            at = (chain * columns + c % columns) * len(keys) + i
                            sums[at] = e.fma(loaded, values[m], sums[at])

        carried = [e.float_vector(0.0)] * (len(keys) * chains * columns)
        return folded(in_chains(e, I64(0), self.blocks, chains, carried, product), len(keys), e.b.fadd)

    def block(self, x: Value, block: Value, offset: int) -> tuple[Value, Value]:
        """Where the inputs and the weights of a block are."""
        e = self.e
        number = e.b.zext(e.load(e.at(self.places, e.times(block, 2), 2 * offset), I16), I64)
        step = 1 if self.spec.coded else self.spec.width
        weights = e.at(self.weights, e.times(block, self.spec.block_bytes), offset * self.spec.block_bytes)
        return e.at(x, e.b.mul(e.times(number, step), self.stride)), weights


def make_blocks(spec: BlockSpec) -> Any:
    """blocks(count, x, stride, weights, places, blocks, groups, start, scale, record, record_stride, bias, y,
    y_stride): `count` tokens times one row of blocks. `stride` bytes lie between columns of x (of bytes: between
    fours), `blocks` are those of a group; floats have one group, and the bits of their factor for `scale`.
    """

    @kernel(level_named(spec.level), 14)
    def blocks(e: Emitter, count: Value, *arguments: Value) -> None:
        _Blocks(e, spec, arguments).emit(count)

    return blocks


def make_spread(level: Level) -> Any:
    """spread(y, step, half, x, x_stride, count, flip): the transpose of `lanes` 32-bit words of `count` tokens, their
    bits `flip`ped. The first half of a word's tokens goes to y + step * word, the other `half` bytes on; the last token
    stands for those beyond it.
    """

    @kernel(level, 7)
    def spread(
        e: Emitter, y: Value, step: Value, half: Value, x: Value, x_stride: Value, count: Value, flip: Value
    ) -> None:
        mask, last = e.splat(e.b.trunc(flip, I32)), e.b.sub(count, I64(1))
        rows = []
        for i in range(level.lanes):
            row = e.b.select(e.b.icmp_signed("<", I64(i), last), I64(i), last)
            rows.append(e.load_floats(e.at(x, e.times(x_stride, row))))
        halves = [ir.Constant(ir.VectorType(I32, level.lanes // 2), list(range(start, start + level.lanes // 2)))
                  for start in (0, level.lanes // 2)]  # fmt: skip
        for i, row in enumerate(e.transpose(rows)):
            flipped = e.b.xor(e.b.bitcast(row, e.ints), mask)
            place = e.at(y, e.times(step, i))
            for offset, order in zip((I64(0), half), halves, strict=True):
                e.store(e.at(place, offset), e.b.shuffle_vector(flipped, flipped, order))

    return spread


def make_flip(level: Level) -> Any:
    """flip(y, x, vectors, flip): `vectors` vectors, at least one, their bits `flip`ped."""

    @kernel(level, 4)
    def flip(e: Emitter, y: Value, x: Value, vectors: Value, bits: Value) -> None:
        mask = e.splat(e.b.trunc(bits, I32))

        def body(i: Value, _: list[Value]) -> list[Value]:
            here = e.times(i, 4 * level.lanes)
            e.store(e.at(y, here), e.b.xor(e.load_ints(e.at(x, here)), mask))
            return []

        e.loop(vectors, [], body)

    return flip
