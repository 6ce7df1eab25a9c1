"""Contenders take turns, each turn after a call that is not timed."""

from __future__ import annotations

import time

from tersor.interleave import interleaved


def test_every_round_takes_each_in_turn_and_begins_with_another() -> None:
    calls: list[str] = []
    found = interleaved({n: lambda n=n: calls.append(n) for n in "abc"}, seconds=0, least=3, most=3)
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(calls[9:]) == "aabbcc" + "bbccaa" + "ccaabb"  # nine calls went before, to warm and to size the turns


def test_it_is_the_time_of_one_call_however_many_fill_a_slice() -> None:
    calls = []

    def run() -> None:
        calls.append(None)
        time.sleep(0.001)

    found = interleaved({"nap": run}, seconds=0, least=2, most=2, slice_seconds=0.02)
    assert len(calls) > 3 + 2 * 2
    assert min(found["nap"]) < 0.02


def test_it_ends_when_the_seconds_are_over() -> None:
    assert len(interleaved({"nap": lambda: time.sleep(0.01)}, seconds=0.05, least=2)["nap"]) < 20
