"""A form that 8 bits beat in everything is refused, and the plan says so; one that is better in anything stays."""

from __future__ import annotations

import pytest

from tersor.compiler.candidate import Candidate, Step
from tersor.compiler.measure.clock import Shape
from tersor.compiler.measure.price import Choice, Measurements
from tersor.compiler.measure.profit import profitable
from tersor.passes.quantize.int8 import Int8, Int8Quantisation
from tersor.passes.quantize.kmeans import KMeansCodes

SHAPE = Shape(1, 16, 1)
EIGHT = Candidate((Step(Int8Quantisation(), Int8()),), (0, 0))
CODES = Candidate((Step(KMeansCodes(), KMeansCodes().examples()[0]),), (0, 1))


def choice(candidate: Candidate | None, size: int, damage: float, seconds: float) -> Choice:
    return Choice("a", candidate, size, damage, damage, {str(SHAPE): seconds})


@pytest.mark.parametrize(
    ("size", "damage", "seconds", "stays"),
    [
        (100, 1.0, 2.0, False),
        (99, 1.0, 2.0, True),
        (100, 0.9, 2.0, True),
        (100, 1.0, 1.0, True),
        (100, 1.0, 1.04, True),
    ],
)
def test_only_what_is_better_in_something_stays(size: int, damage: float, seconds: float, stays: bool) -> None:
    choices = (choice(None, 400, 0.0, 3.0), choice(EIGHT, 100, 1.0, 1.0), choice(CODES, size, damage, seconds))
    measured = Measurements({"a": choices}, (), (), "relative squared weight error")
    found = profitable(measured, (SHAPE,), lambda c: c is EIGHT)
    assert found.choices["a"] == (choices if stays else choices[:2])
    assert [(r.site, r.candidate) for r in found.refused] == ([] if stays else [("a", CODES.text)])
    assert all("slower than 8 bits at" in r.reason for r in found.refused)
    assert profitable(measured, (), lambda c: c is EIGHT) == measured
