"""Where the buffers of a program lie in one arena: buffers whose lives do not overlap share memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ALIGN = 64


@dataclass(frozen=True)
class Life:
    """A buffer of `size` bytes needed from item `first` to item `last`, both included."""

    size: int
    first: int
    last: int


def place(lives: Mapping[int, Life]) -> tuple[dict[int, int], int]:
    """(offset of every buffer, bytes in all): in the order of birth, each at the lowest gap it fits in."""
    offsets: dict[int, int] = {}
    living: list[tuple[int, int, int]] = []  # (offset, end, last), by offset
    total = 0
    for key, life in sorted(lives.items(), key=lambda item: (item[1].first, -item[1].size)):
        living = [block for block in living if block[2] >= life.first]
        size = -(-max(life.size, 1) // _ALIGN) * _ALIGN
        offset = 0
        for start, end, _ in living:
            if start - offset >= size:
                break
            offset = max(offset, end)
        offsets[key] = offset
        living.append((offset, offset + size, life.last))
        living.sort()
        total = max(total, offset + size)
    return offsets, total
