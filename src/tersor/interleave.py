"""The one way in which whole calls are timed against each other: in turns, so that a busy moment hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
    slice_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of one call of each, one number a round; about `seconds` for each contender, `least` to `most` rounds.

    A round takes every contender in turn and begins with another one each time. A turn is one call that is not timed
    (it brings the contender's own weights into the caches and lets the threads of the last one go to sleep), then as
    many timed calls as fill `slice_seconds`, at least one; their mean is the number.
    """
    names = list(calls)
    repeats = {name: _repeats(calls[name], slice_seconds) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    began, rounds = time.perf_counter(), 0
    while rounds < least or (rounds < most and time.perf_counter() - began < seconds * len(names)):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            run, count = calls[name], repeats[name]
            run()
            start = time.perf_counter()
            for _ in range(count):
                run()
            times[name].append((time.perf_counter() - start) / count)
        rounds += 1
    return times


def _repeats(run: Callable[[], object], slice_seconds: float) -> int:
    """Calls that fill a slice, after two that compile and warm what there is."""
    run()
    run()
    start = time.perf_counter()
    run()
    return max(1, int(slice_seconds / max(time.perf_counter() - start, 1e-8)))
