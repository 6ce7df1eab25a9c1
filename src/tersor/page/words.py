"""Numbers as people read them."""

from __future__ import annotations

from tersor.compiler.units import bytes_text


def quantity(name: str, value: float) -> str:
    """A value of the budget of that name, or of `damage`.

    >>> quantity("size", 12e6), quantity("latency at batch = 1, tokens = 128", 0.008), quantity("damage", 0.01234)
    ('12.00 MB', '8 ms', '0.0123')
    """
    match name.split()[0]:
        case "size" | "memory":
            return bytes_text(value)
        case "latency":
            return duration(value)
        case "damage":
            return f"{value:.3g}"
    return f"{value:.6g}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.0135164), duration(0.03), duration(2.5e-5)
    ('13.52 ms', '30 ms', '25 us')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def seconds_spent(seconds: float) -> str:
    """
    >>> seconds_spent(4.2), seconds_spent(319)
    ('4.2 s', '5 min 19 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "weight"), count(3, "weight")
    ('1 weight', '3 weights')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
