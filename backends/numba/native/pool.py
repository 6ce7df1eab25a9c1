"""The process's helper threads, and the call that runs a table of steps.

Helpers are Python threads parked in native code (see `glue_driver`). One run at a time has them; runs that come
meanwhile from other Python threads go on with the caller's thread alone, and give the same results.
"""

from __future__ import annotations

import ctypes
import os
import threading

import torch
from torch import Tensor

from tersor.backends.numba.build import driver
from tersor.backends.numba.driverspec import ALLOWED, MOST_THREADS, WORK, WORK_SIZE, control_bytes
from tersor.backends.numba.memorykernels import HAS_FUTEX

_PATIENCE = 700  # pauses before a helper sleeps: about 40 us, longer than most gaps between the steps of a program


class Helpers:
    """Helper threads of this process and the one control block they listen to."""

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._count = 0
        self._memory = torch.zeros(control_bytes(MOST_THREADS) + 64, dtype=torch.uint8)
        self._control = -(-self._memory.data_ptr() // 64) * 64

    def acquire(self, level: str, threads: int, work: int, work_size: int) -> int:
        """Address of the control block, now the caller's, for a run on `threads` threads (MOST_THREADS at most); 0 if
        they are taken.
        """
        threads = min(threads, MOST_THREADS)
        if threads < 2 or not HAS_FUTEX or not self._free.acquire(blocking=False):
            return 0
        self._grow(level, threads - 1)
        for place, value in ((ALLOWED, threads), (WORK, work), (WORK_SIZE, work_size)):
            ctypes.c_int64.from_address(self._control + place).value = value
        return self._control

    def release(self) -> None:
        """Give the control block back."""
        self._free.release()

    def _grow(self, level: str, count: int) -> None:
        while self._count < count:
            self._count += 1
            arguments = (self._control, self._count, _PATIENCE)
            name = f"tersor-helper-{self._count}"
            threading.Thread(target=driver(level).help_out, args=arguments, name=name, daemon=True).start()


_helpers = Helpers()


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _helpers
    _helpers = Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Workspace:
    """Scratch memory for `threads` threads, `size` bytes each, every one 64-byte aligned."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._bytes = 0
        self.address = 0

    def fit(self, size: int, threads: int) -> int:
        """Bytes a thread has once there are at least `size` for each."""
        size = -(-size // 64) * 64
        if self._memory is None or self._bytes < size * threads:
            self._bytes = size * threads
            self._memory = torch.empty(self._bytes + 64, dtype=torch.uint8)
            self.address = -(-self._memory.data_ptr() // 64) * 64
        return size


def execute(level: str, steps: int, count: int, workspace: Workspace, work_size: int, threads: int) -> None:
    """Run `count` steps whose table lies at `steps`, on at most `threads` threads."""
    run = driver(level).run
    size = workspace.fit(work_size, threads)
    helpers = _helpers
    control = helpers.acquire(level, threads, workspace.address, size)
    try:
        run(steps, count, workspace.address, control)
    finally:
        if control:
            helpers.release()
