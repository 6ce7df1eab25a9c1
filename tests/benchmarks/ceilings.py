"""What this processor can do at most: read bandwidth by size, float32 multiply-adds, dot products of codes and bytes.

    python -m tests.benchmarks.ceilings [--threads 1 2] [--json PATH]

The loops are emitted by the emitter of the CPU kernels, so a ceiling is what its best possible kernel could reach:
nothing but the loads, or nothing but the arithmetic on registers. The best of many short slices is kept.

    limit(operations, bytes) = max(operations / peak, bytes / bandwidth at that many bytes)
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from tersor.backends.numba.emitter import I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level, detect
from tersor.backends.numba.layout import kernel_bits
from tersor.backends.numba.tiles import Sums, dots_in_short
from tersor.interleave import interleaved

KIB, MIB, LINE = 1 << 10, 1 << 20, 64
SIZES = (16 * KIB, 128 * KIB, 512 * KIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
QUADS = 8  # of columns, in a turn of dot products
TOGETHER = (1, 2)  # of them, for each row: which is faster depends on how many products fit 16 bits
UNROLL = 16  # loads in flight, or accumulators of multiply-adds: more than latency x ports of any processor we know
TURNS = 50_000  # iterations of an arithmetic loop: about a millisecond


@dataclass(frozen=True)
class Ceilings:
    """Per second, all threads together: operations (a multiply-add is two) of float32 and of codes of `bits` bits with
    bytes, and bytes read from a working set of `sizes` bytes, both ascending."""

    level: str
    threads: int
    float_operations: float
    bits: tuple[int, ...]
    dot_operations: tuple[float, ...]
    sizes: tuple[int, ...]
    bandwidths: tuple[float, ...]

    def bandwidth(self, size: float) -> float:
        """Between the measured sizes around `size`, by its logarithm; the first and the last one beyond them."""
        return float(np.interp(np.log(size), np.log(self.sizes), self.bandwidths))

    def peak(self, bits: int) -> float:
        """Of weights of `bits` bits; those of more than 8 are floats."""
        return self.float_operations if bits > self.bits[-1] else self.dot_operations[bisect_left(self.bits, bits)]

    def limit(self, operations: float, size: float, bits: int) -> float:
        """Seconds below which no kernel of so many operations can go that reads `size` bytes of such weights."""
        return max(operations / self.peak(bits), size / self.bandwidth(size))


def make_read(level: Level) -> Any:
    """read(address, blocks, turns): all bytes of `blocks` blocks of UNROLL vectors, `turns` times over."""

    @kernel(level, 3, "int64")
    def read(e: Emitter, address: Value, blocks: Value, turns: Value) -> Value:
        vector = 4 * e.level.lanes

        def turn(_: Value, state: list[Value]) -> list[Value]:
            base = e.opaque(address)

            def block(i: Value, held: list[Value]) -> list[Value]:
                at = e.at(base, e.times(i, UNROLL * vector))
                return [e.b.xor(x, e.load_ints(e.at(at, j * vector))) for j, x in enumerate(held)]

            return e.loop(blocks, state, block)

        return _sum(e, e.loop(turns, [e.int_vector(0)] * UNROLL, turn))

    return read


def make_fma(level: Level) -> Any:
    """fma(address, turns): `turns` times UNROLL multiply-adds of independent accumulators."""

    @kernel(level, 2, "int64")
    def fma(e: Emitter, address: Value, turns: Value) -> Value:
        x, y = e.load_floats(address), e.load_floats(e.at(address, 64))
        start = [e.load_floats(e.at(address, 64 * j)) for j in range(_accumulators(level))]
        found = e.loop(turns, start, lambda _, held: [e.fma(x, y, acc) for acc in held])
        return _sum(e, [e.b.bitcast(acc, e.ints) for acc in found])

    return fma


def make_dot(level: Level, bits: int, together: int) -> Any:
    """dot(address, turns): `turns` times the dot products of the widest tile of a kernel, rows x strips of them for
    each of QUADS places, of codes below 2^bits, on operands out of the first-level cache. Each has operands of its own:
    where a dot product is several instructions, none of them can be shared. `together` places are gone through for each
    row before the next one."""

    @kernel(level, 2, "int64")
    def dot(e: Emitter, address: Value, turns: Value) -> Value:
        vector = 4 * e.level.lanes
        keys = [(m, v, 0) for m in range(level.row_tiles[0]) for v in range(level.strips)]
        strips = range(level.strips)

        def turn(_: Value, held: list[Value]) -> list[Value]:
            base = e.opaque(address)
            room = dots_in_short(level, bits)
            if together > 1:  # sums wait in 16 bits for those of the same row only
                room = min(room, together)
            sums = Sums(e, room, dict(zip(keys, held, strict=True)))
            for first in range(0, QUADS, together):
                quads = range(first, first + together)
                codes = {
                    (t, v): e.load_ints(e.at(base, vector * (level.strips * t + v))) for t, v in product(quads, strips)
                }
                for m in range(level.row_tiles[0]):
                    for t in quads:
                        four = e.broadcast_int(e.at(base, 64 * m + 4 * t))
                        for v in strips:
                            sums.add((m, v, 0), codes[t, v], four)
            return sums.found()

        return _sum(e, e.loop(turns, [e.int_vector(0)] * len(keys), turn))

    return dot


def _accumulators(level: Level) -> int:
    """Half of the vector registers, more than the latency of a multiply-add times the ports that do it."""
    return 16 if level.lanes == 16 else 12


def _sum(e: Emitter, vectors: Sequence[Value]) -> Value:
    """One number that depends on all of them, so that none is left out."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = e.b.xor(total, vector)
    return e.b.sext(e.reduce_add_int(total), I64)


def measure(threads: int, sizes: Sequence[int] = SIZES, seconds: float = 0.25) -> Ceilings:
    """The ceilings of `threads` threads at once; each reads its own share of the bytes."""
    level = detect()
    read_, fma_ = make_read(level), make_fma(level)
    widths = tuple(sorted({kernel_bits(bits, level) for bits in range(4, 9)}))

    @njit("int64(int64, int64, int64)", nogil=True)
    def read(address: int, blocks: int, turns: int) -> int:
        return read_(address, blocks, turns)  # type: ignore[no-any-return]

    @njit("int64(int64, int64)", nogil=True)
    def fma(address: int, turns: int) -> int:
        return fma_(address, turns)  # type: ignore[no-any-return]

    def dot(bits: int, together: int) -> Callable[[int, int], int]:
        emitted = make_dot(level, bits, together)

        @njit("int64(int64, int64)", nogil=True)
        def run(address: int, turns: int) -> int:
            return emitted(address, turns)  # type: ignore[no-any-return]

        return run  # type: ignore[no-any-return]

    block = UNROLL * 4 * level.lanes
    memory = np.ones(max(sizes) + threads * block + LINE, np.uint8)
    at = memory.ctypes.data + -memory.ctypes.data % LINE  # a load across two lines costs two
    dots = level.row_tiles[0] * level.strips
    counts: dict[str, float] = {}
    calls: dict[str, Callable[[], object]] = {}
    with ThreadPoolExecutor(threads) as pool:

        def all_at_once(*works: Callable[[], int]) -> object:
            others = [pool.submit(work) for work in works[1:]]
            return works[0](), [other.result() for other in others]

        def add(name: str, count: float, works: Sequence[Callable[[], int]]) -> None:
            counts[name], calls[name] = count, partial(all_at_once, *works)

        work = TURNS * threads * threads  # long enough that starting the other threads does not count
        add("fma", 2.0 * threads * work * _accumulators(level) * level.lanes, [partial(fma, at, work)] * threads)
        for bits in widths:
            count = 8.0 * threads * work * dots * level.lanes
            for together in TOGETHER:
                add(f"{bits} bits {together}", count, [partial(dot(bits, together), at, work // QUADS)] * threads)
        for size in sizes:
            blocks = max(1, size // threads // block)
            turns = max(1, 8 * MIB * threads * threads // size)
            shares = [partial(read, at + i * blocks * block, blocks, turns) for i in range(threads)]
            add(str(size), float(threads * blocks * block * turns), shares)
        found = interleaved(calls, seconds=seconds, least=8)
    rates = {name: counts[name] / min(times) for name, times in found.items()}
    bandwidths = tuple(rates[str(size)] for size in sizes)
    dots_found = tuple(max(rates[f"{bits} bits {together}"] for together in TOGETHER) for bits in widths)
    return Ceilings(level.name, threads, rates["fma"], widths, dots_found, tuple(sizes), bandwidths)


def table(found: Sequence[Ceilings]) -> str:
    """Markdown."""
    heads = " | ".join(f"{c.threads} thread{'s' * (c.threads > 1)}" for c in found)
    rows = [
        ("float32 multiply-add", [f"{c.float_operations / 1e9:.0f} GFLOP/s" for c in found]),
        *(
            (f"codes of {bits} bits with bytes", [f"{c.dot_operations[i] / 1e9:.0f} GOP/s" for c in found])
            for i, bits in enumerate(found[0].bits)
        ),
        *(
            (f"read, {_size(size)}", [f"{c.bandwidths[i] / 1e9:.0f} GB/s" for c in found])
            for i, size in enumerate(found[0].sizes)
        ),
    ]
    lines = [f"| {found[0].level} | {heads} |", "|---" * (len(found) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(values)} |" for name, values in rows)])


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // KIB} KiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = [measure(threads) for threads in given.threads]
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps([asdict(c) for c in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
