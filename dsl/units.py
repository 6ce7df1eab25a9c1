"""Numbers and units, exactly: text to value and back loses nothing, because both ways go through decimal fractions."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Literal

BYTES: dict[str, int] = {
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "B": 1,
}
SECONDS: dict[str, Decimal] = {"ms": Decimal("1e-3"), "us": Decimal("1e-6"), "s": Decimal(1)}
UNITS: dict[str, dict[str, Decimal]] = {
    "bytes": {name: Decimal(size) for name, size in BYTES.items()},
    "seconds": SECONDS,
}
Measure = Literal["bytes", "seconds"]
_EXACT = Context(prec=400)


def read(digits: str, unit: Decimal = Decimal(1)) -> float:
    """`12` and the unit `Decimal(10**6)` are `12000000.0`; the float nearest to the exact product, or inf."""
    value = float(digits)
    if value == 0 or not math.isfinite(value):
        return value
    return float(_EXACT.multiply(Decimal(digits), unit))


def read_percent(digits: str) -> float:
    """`25` per cent is `0.25`, the nearest float to the exact quotient."""
    return read(digits, Decimal("0.01"))


def plain(value: float) -> str:
    """The shortest text that reads back as the value; whole numbers without a point.

    >>> plain(12.0), plain(0.25), plain(1e-05)
    ('12', '0.25', '1e-05')
    """
    text = repr(float(value))
    return text.removesuffix(".0")


def write_percent(fraction: float) -> str:
    """`0.07` is `7%`."""
    return f"{_decimal(_EXACT.multiply(Decimal(repr(float(fraction))), Decimal(100)))}%"


def write(value: float, measure: Measure) -> str:
    """The shortest exact text of an amount of bytes or seconds: `12 MB`, `1 MiB`, `8 ms`."""
    exact = Decimal(repr(float(value)))
    best = ""
    for name, unit in UNITS[measure].items():
        digits = _decimal(_EXACT.divide(exact, unit))
        text = f"{digits} {name}"
        if (not best or len(text) < len(best)) and len(digits) <= 40 and read(digits, unit) == value:
            best = text
    return best


def _decimal(value: Decimal) -> str:
    """A decimal as the language writes numbers: `8`, `0.125`, `1e-9`; never `1.2E+7`."""
    value = value.normalize(_EXACT)
    text = format(value, "f")
    return text if len(text) <= 24 else format(value, "e")
