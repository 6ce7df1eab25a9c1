"""Times on a machine that runs at half its speed every now and then, which a fake clock stands in for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tersor.compiler.measure.pace import Pace

REFERENCE = 0.001


class Machine:
    """A clock; what takes `seconds` on the machine left alone takes `slow(clock)` times as long."""

    def __init__(self, slow: Callable[[float], float]) -> None:
        self.clock, self.slow, self.calls = 0.0, slow, 0

    def run(self, seconds: float, touched: float = 1.0) -> Callable[[], None]:
        """A call that slows down by `touched` of what the machine does."""

        def spend() -> None:
            self.calls += 1
            self.clock += seconds * (1 + touched * (self.slow(self.clock) - 1))

        return spend

    def pace(self, patch: pytest.MonkeyPatch, reference: float = REFERENCE) -> Pace:
        pace = Pace()
        patch.setattr("time.thread_time", lambda: self.clock)
        patch.setattr("time.perf_counter", lambda: 2 * self.clock)
        patch.setattr(pace, "reference", self.run(reference))
        patch.setattr(pace, "long_reference", self.run(8 * reference))
        return pace


@pytest.mark.parametrize("slow", [lambda t: 1.0, lambda t: 1.0 + (t % 0.5 > 0.1), lambda t: 1.8 - 0.1 * min(t, 8)])
def test_the_speed_of_the_machine_does_not_count(
    slow: Callable[[float], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(slow)
    pace = machine.pace(monkeypatch)
    asked = 0.00001, 0.0004, 0.03
    found = pace.ratios([machine.run(seconds) for seconds in asked], 1, 0.5)
    assert [ratio * REFERENCE for ratio in found] == pytest.approx(asked, rel=0.02)


def test_the_unit_is_that_of_the_quietest_moment_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Machine(lambda t: 2.0 if t < 1 else 1.0)
    pace = busy.pace(monkeypatch)
    assert pace.unit(1) == pytest.approx(REFERENCE)
    assert pace.seconds(busy.run(0.01), 1, 0.1) == pytest.approx(0.01, rel=0.01)
    pace.least[1, False] /= 2
    assert pace.unit(1) == pytest.approx(REFERENCE)


def test_several_threads_are_timed_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda t: 1.0)
    pace = machine.pace(monkeypatch)
    assert pace.unit(2) == pytest.approx(2 * REFERENCE)
    assert pace.unit(1) == pytest.approx(REFERENCE)
    assert pace.seconds(machine.run(0.005), 2, 0.1) == pytest.approx(0.01)


def test_code_that_a_busy_core_slows_otherwise_than_the_reference_is_timed_while_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(lambda t: 2.0 if t % 0.02 > 0.006 else 1.0)
    pace = machine.pace(monkeypatch, reference=0.0001)
    found = pace.ratios([machine.run(0.0004, 0.3), machine.run(0.0004), machine.run(0.0004, 1.4)], 1, 0.5)
    assert [ratio * 0.0001 for ratio in found] == pytest.approx([0.0004] * 3, rel=0.02)


def test_a_busy_machine_is_waited_for_but_not_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda t: 2.0)
    pace = machine.pace(monkeypatch)
    pace.least[1, False] = REFERENCE
    assert pace.unit(1) == REFERENCE
    start = machine.clock
    assert pace.seconds(machine.run(0.001), 1, 0.5) == pytest.approx(0.001)
    assert 2.0 < machine.clock - start < 2.1


def test_a_call_is_timed_for_as_long_as_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda t: 1.0)
    pace = machine.pace(monkeypatch)
    pace.unit(1)
    start = machine.clock
    pace.ratios([machine.run(0.01)], 1, 1.0)
    assert 1.0 < machine.clock - start < 1.2
