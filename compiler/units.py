"""Numbers with their units, for people."""

from __future__ import annotations

from math import ceil


def bytes_text(count: float, up: bool = False) -> str:
    """Bytes in decimal units (MB = 10^6); with `up`, rounded up so that the text is never less than the number.

    >>> bytes_text(12_345_678), bytes_text(12_345_678, up=True), bytes_text(900)
    ('12.35 MB', '12.35 MB', '900 B')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = ceil(count / size * 100) / 100 if up else count / size
            return f"{value:.2f} {unit}"
    return f"{ceil(count) if up else round(count)} B"


def seconds_text(seconds: float, up: bool = False) -> str:
    """Seconds in the unit that suits them; with `up`, rounded up so that the text is never less than the number.

    >>> seconds_text(0.0079), seconds_text(0.0079001, up=True), seconds_text(2.5e-5)
    ('7.900 ms', '7.901 ms', '25.000 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            value = ceil(round(seconds / size * 1000, 6)) / 1000 if up else seconds / size
            return f"{value:.3f} {unit}"
    return f"{seconds * 1e6:.3f} us"
