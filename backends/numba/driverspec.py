"""What the driver is compiled for, and the places of its control block."""

from __future__ import annotations

from dataclasses import dataclass

# Byte offsets. What different threads write lies in cache lines of its own, what an offer writes at once in one line.
GENERATION, DONE, STOP, SLEEPERS, KERNEL, TICKETS = range(0, 6 * 64, 64)
OPERANDS, UNITS, CHUNK, ALLOWED, WORK, WORK_SIZE = range(KERNEL + 8, KERNEL + 7 * 8, 8)
MOST_THREADS = 256

CHUNK_BITS = 14
MOST_CHUNKS = (1 << CHUNK_BITS) - 1


def control_bytes(threads: int) -> int:
    """Size of a control block for so many threads: each has a ticket."""
    return TICKETS + 64 * threads


@dataclass(frozen=True)
class DriverSpec:
    """The driver compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"driver_{self.level}"
