"""The loops that measure ceilings do what they count, and the limit is the larger of two quotients."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from tests.benchmarks.ceilings import LINE, QUADS, TOGETHER, UNROLL, Ceilings, make_dot, make_fma, make_read

from tersor.backends.numba.features import detect

LEVEL = detect()
BLOCKS = 3


def aligned(size: int) -> np.ndarray:
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]


def test_every_byte_is_read() -> None:
    read_ = make_read(LEVEL)

    @njit("int64(int64, int64, int64)")
    def read(address: int, blocks: int, turns: int) -> int:
        return read_(address, blocks, turns)

    memory = aligned(BLOCKS * UNROLL * 4 * LEVEL.lanes)
    for place in range(len(memory)):
        memory[place] = 1
        assert read(memory.ctypes.data, BLOCKS, 1) != 0
        memory[place] = 0
    assert read(memory.ctypes.data, BLOCKS, 1) == 0


def test_every_turn_multiplies() -> None:
    fma_ = make_fma(LEVEL)

    @njit("int64(int64, int64)")
    def fma(address: int, turns: int) -> int:
        return fma_(address, turns)

    memory = aligned(64 * 64)
    memory.view(np.float32)[:] = np.sqrt(np.arange(1, 1 + 16 * 64))  # no two accumulators alike, else they cancel
    assert len({fma(memory.ctypes.data, turns) for turns in (1, 2, 3, 4)}) == 4


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
@pytest.mark.parametrize("together", TOGETHER)
def test_every_turn_adds_dot_products(bits: int, together: int) -> None:
    dot_ = make_dot(LEVEL, bits, together)

    @njit("int64(int64, int64)")
    def dot(address: int, turns: int) -> int:
        return dot_(address, turns)

    memory = aligned(64 * 64)
    memory[:] = 1
    odd = LEVEL.row_tiles[0] * LEVEL.strips % 2  # equal accumulators cancel in pairs
    assert dot(memory.ctypes.data, 5) == odd * LEVEL.lanes * 4 * QUADS * 5
    memory[0] = 3  # a code and a value that differ from the rest: no longer all equal
    assert dot(memory.ctypes.data, 5) != dot(memory.ctypes.data, 6)


def test_the_limit_is_what_takes_longer() -> None:
    found = Ceilings("x", 1, 10.0, (4, 8), (200.0, 100.0), (1000, 2000), (50.0, 20.0))
    assert found.limit(1000, 100, 8) == pytest.approx(10)  # arithmetic
    assert found.limit(1000, 1000, 8) == pytest.approx(20)  # reading at 50
    assert found.limit(1000, 1000 * 2**0.5, 8) == pytest.approx(1000 * 2**0.5 / 35)  # half way between 50 and 20
    assert found.limit(1000, 9000, 8) == pytest.approx(450)
    assert found.limit(1000, 100, 4) == pytest.approx(5)
    assert found.limit(1000, 100, 6) == pytest.approx(10)
    assert found.limit(1000, 100, 32) == pytest.approx(100)
