"""Splitting one call over threads, so that a busy machine cannot stall it.

Chunks are claimed from a shared counter. The caller claims too; when none is left it waits only for helpers that have
begun, and a helper that never got a CPU costs nothing. Helpers are ordinary Python threads; the kernels they call
release the interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Lock

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_size = 0


def _helpers(number: int) -> ThreadPoolExecutor:
    global _pool, _size
    with _lock:
        if _pool is None or _size < number:
            # A pool that is too small is left to finish what others gave it.
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _size = ThreadPoolExecutor(number, thread_name_prefix="tersor"), number
        return _pool


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def spread(task: Callable[[int], None], chunks: int, threads: int) -> None:
    """Run task(0) .. task(chunks - 1), each once, on at most `threads` threads including this one; re-raises the first
    error.
    """
    claims = count()

    def work() -> None:
        while (chunk := next(claims)) < chunks:  # next() of a count is atomic under the interpreter lock
            task(chunk)

    submit = _helpers(threads - 1).submit
    helpers = [submit(work) for _ in range(min(threads, chunks) - 1)]
    try:
        work()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        for helper in begun:
            helper.result()
