"""What the driver is compiled for, and the places of its control block."""

from __future__ import annotations

from dataclasses import dataclass

# Byte offsets; one cache line each, so that a write to one does not slow down the readers of another.
(
    GENERATION,
    TICKET,
    DONE,
    CHUNKS,
    KERNEL,
    OPERANDS,
    UNITS,
    CHUNK,
    STOP,
    SLEEPERS,
    ALLOWED,
    WORK,
    WORK_SIZE,
) = range(0, 13 * 64, 64)
CONTROL_BYTES = 13 * 64


@dataclass(frozen=True)
class DriverSpec:
    """The driver compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"driver_{self.level}"
