"""The driver runs every unit of every step exactly once, in order of the steps, whoever does the work."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from tersor.backends.numba.native.memory import Life, place
from tersor.backends.numba.native.pool import Workspace, execute

LEVEL = "generic"


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(types.int64), codegen


@cfunc("void(int64, int64, int64, int64)")
def _count(operands: Any, first: Any, last: Any, work: Any) -> None:
    """counts[u] += 1 for each unit, by way of the scratch, which must be this thread's own."""
    where = carray(_pointer(operands), 1)
    counts = carray(_pointer(where[0]), 1 << 20)
    scratch = carray(_pointer(work), 1)
    for unit in range(first, last):
        scratch[0] = unit
        counts[scratch[0]] += 1


def _run(units: list[int], chunk: int, threads: int) -> list[np.ndarray[Any, Any]]:
    counts = [np.zeros(max(n, 1), dtype=np.int64) for n in units]
    operands = np.array([c.ctypes.data for c in counts], dtype=np.int64)
    table = np.array(
        [[_count.address, operands.ctypes.data + 8 * i, n, chunk] for i, n in enumerate(units)], dtype=np.int64
    )
    execute(LEVEL, table.ctypes.data, len(units), Workspace(), 64, threads)
    return counts


@given(st.lists(st.integers(0, 5000), max_size=30), st.integers(1, 700), st.integers(1, 4))
def test_every_unit_once(units: list[int], chunk: int, threads: int) -> None:
    for counts, n in zip(_run(units, chunk, threads), units, strict=True):
        assert (counts[:n] == 1).all()


def test_many_callers_at_once() -> None:
    failures: list[int] = []

    def work(seed: int) -> None:
        for i in range(200):
            if not all((counts == 1).all() for counts in _run([1000, 3, 5000], 10 + (seed + i) % 7, 3)):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_helpers_of_its_own() -> None:
    _run([5000], 1, 2)
    child = os.fork()
    if not child:
        done = all((counts == 1).all() for counts in _run([5000, 5000], 1, 2))
        os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 20)), max_size=40))
def test_buffers_alive_together_do_not_overlap(drawn: list[tuple[int, int, int]]) -> None:
    lives = {key: Life(size, min(a, b), max(a, b)) for key, (size, a, b) in enumerate(drawn)}
    offsets, total = place(lives)
    for i, one in lives.items():
        assert offsets[i] % 64 == 0
        assert offsets[i] + one.size <= total
        for j, other in lives.items():
            together = i < j and one.first <= other.last and other.first <= one.last
            if together and one.size and other.size:
                assert offsets[i] + one.size <= offsets[j] or offsets[j] + other.size <= offsets[i]
