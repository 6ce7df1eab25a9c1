"""Artifacts timed in turns with the first one: a clock that is wrong all through a measurement does not count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from tests.optimise.models import tiny

from tersor.compiler.budget import limits_of
from tersor.compiler.measure.clock import Shape
from tersor.compiler.measure.ledger import Forgetful
from tersor.compiler.measure.pace import Pace, Run
from tersor.judge import Judge
from tersor.original import captured
from tersor.policies import Policy

SHAPE = Shape(1, 8)


class Drifting(Pace):
    """A machine on which a call of `run` takes `run()` references, and everything a third more at every second
    measurement."""

    def __init__(self) -> None:
        super().__init__()
        self.number = count()

    def ratios(self, runs: Sequence[Run], threads: int, seconds: float) -> list[float]:
        speed = (1.0, 4 / 3)[next(self.number) % 2]
        return [speed * float(run()) for run in runs]  # type: ignore[arg-type]

    def unit(self, threads: int) -> float:
        return 1e-3


@pytest.fixture
def judge() -> Judge:
    model, example = tiny()
    program = captured(model, example, share=True)
    limits = limits_of(Policy.parse("budget latency <= 1 s at batch = 1, tokens = 8"), program)
    return Judge(program, limits, "eager", None, "embedding", Forgetful(), Drifting())


def test_later_artifacts_compare_with_the_first(judge: Judge) -> None:
    runs: list[Run] = [lambda: 3.0, lambda: 6.0, lambda: 1.5]
    assert [judge._seconds(SHAPE, run, False) for run in runs] == pytest.approx([3e-3, 6e-3, 1.5e-3])


def test_a_first_artifact_that_was_disturbed_is_measured_again(judge: Judge) -> None:
    next(judge.pace.number)  # type: ignore[attr-defined]  # the first measurement is a disturbed one
    first, other = (lambda: 3.0), (lambda: 6.0)
    assert judge._seconds(SHAPE, first, False) == pytest.approx(4e-3)
    assert judge._seconds(SHAPE, other, False) == pytest.approx(8e-3)
    assert judge._seconds(SHAPE, other, True) == pytest.approx(6e-3)
    assert judge._seconds(SHAPE, first, False) == pytest.approx(3e-3)
