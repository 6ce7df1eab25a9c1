"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return what this process has freed to the system. glibc keeps freed blocks for later, which after a stage over
    large tensors can be more than the model itself; elsewhere there is nothing to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
