"""Operators that only say the shapes of their results while a graph is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch._C import DispatchKey

Kernels = Mapping[Any, Callable[..., Any]]


@contextlib.contextmanager
def shapes_only(kernels: Kernels) -> Iterator[None]:
    """Put functions of shapes in the place of what torch runs for some operators on fake tensors; restored on exit."""
    saved = {op: dict(op.py_kernels) for op in kernels}
    try:
        for op, kernel in kernels.items():
            op.py_kernels.update(dict.fromkeys((*saved[op], DispatchKey.CompositeImplicitAutograd), kernel))
            op._dispatch_cache.clear()
        yield
    finally:
        for op, before in saved.items():
            op.py_kernels.clear()
            op.py_kernels.update(before)
            op._dispatch_cache.clear()
