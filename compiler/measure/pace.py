"""Time on a machine whose speed is never the same for long: whatever is timed takes turns with a computation that does
not change, the reference.

    slowdown of a turn = the reference around it / its least time in this process
    seconds = median over quiet turns of (slice of calls / slowdown)

What shares a core with us slows some code by half and other code hardly at all, so that neither the median of all times
nor that of all ratios to the reference says what a call takes; but it pauses every few milliseconds. A turn is quiet
where the reference before and after it was hardly slowed. Short slices find the pauses, and where there are few, we
wait for them. Calls that are longer than a pause have to do with the turns that were slowed least; theirs is another
reference, longer and with a part that waits for the third cache, which slows down more like a whole model does.

With one thread time is the processor time of the call, which does not grow while something else has the processor; with
several it is the time on the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median

import torch

from tersor.compiler.threads import using_threads

SMALL, LARGE = (48, 256), (64, 768)
"""Rows and width of the inputs of products whose matrix is in the second cache (two are a tenth of a millisecond), and
in the third."""
SLICE = 1e-3
"""Seconds of calls, at least one, that are timed at a turn; where there are several, after one that brings the data
back into the caches."""
PAUSE = 4e-3
"""Seconds of the longest slice that may be over within a pause of what else there is."""
PART = 3
"""A reference lasts this part of a slice that is longer."""
QUIET = 1.15
"""The slowdown up to which a turn is quiet."""
TURNS, FEWEST = 9, 3
"""Quiet turns that are waited for, and those that are enough where no more came."""
PATIENCE = 4
"""How many times as long as asked is waited for them."""
FIRST = 2.0
"""Seconds that both references are timed for before anything else is."""
STANDARD = f"turns of {SLICE} s to {PAUSE} s, quiet to {QUIET}, products of {SMALL} and {LARGE}"
"""How times are told: those told otherwise do not compare."""

Run = Callable[[], object]


class Pace:
    """Times calls against the reference."""

    def __init__(self) -> None:
        self.reference = _products(SMALL, SMALL)
        self.long_reference = _products(SMALL, SMALL, LARGE)
        self.least: dict[tuple[int, bool], float] = {}  # seconds at best, by threads and whether it is the long one
        self.standards: dict[int, tuple[float, float]] = {}

    def unit(self, threads: int) -> float:
        """Seconds of a reference on a machine left alone: the same from the first time on that it is asked for, so that
        what is told later compares."""
        return self._standard(threads)[0]

    def seconds(self, run: Run, threads: int, seconds: float) -> float:
        """Seconds of one call."""
        return self.ratios([run], threads, seconds)[0] * self.unit(threads)

    def ratios(self, runs: Sequence[Run], threads: int, seconds: float) -> list[float]:
        """How many references one call of each takes, from about `seconds` for each, more on a busy machine; in
        turns."""
        _, length = self._standard(threads)
        with using_threads(threads), torch.no_grad():
            one = [max(_timed(threads, run, 1, 2), 1e-7) for run in runs]  # the first call compiles, the next allocates
            counts = [max(1, round(SLICE / each)) for each in one]
            longest = max(calls * each for calls, each in zip(counts, one, strict=True))
            if longest <= PAUSE:
                return self._in_turns(runs, threads, seconds, counts, 1, long=False)
            part = longest / PART / max(_timed(threads, self.long_reference, 1, 1), 1e-7)
            found = self._in_turns(runs, threads, seconds, counts, max(1, round(part)), long=True)
            return [length * ratio for ratio in found]

    def _standard(self, threads: int) -> tuple[float, float]:
        """Seconds of a reference on a machine left alone, and how many of it a long one takes."""
        if threads not in self.standards:
            with using_threads(threads), torch.no_grad():
                (length,) = self._in_turns([self.long_reference], threads, FIRST, [1], 1, long=False)
            self.standards[threads] = self.least[threads, False], length
        return self.standards[threads]

    def _in_turns(
        self, runs: Sequence[Run], threads: int, seconds: float, counts: Sequence[int], references: int, long: bool
    ) -> list[float]:
        """How many references, long ones or not, a call takes: `counts` of them are a slice."""
        reference = self.long_reference if long else self.reference
        taken = [_Turns() for _ in runs]
        before = _timed(threads, reference, references, 2)
        least = min(before, self.least.get((threads, long), before))
        start, enough = _now(threads), seconds * len(runs)
        for turn in count():
            spent, quiet = _now(threads) - start, all(each.quiet >= TURNS for each in taken)
            if turn >= FEWEST and spent >= (enough if quiet else PATIENCE * enough):
                break
            for run, calls, each in zip(runs, counts, taken, strict=True):
                took = _timed(threads, run, calls, unseen=int(calls > 1))
                after = _timed(threads, reference, references, 1)
                least = min(least, after)
                each.add(took, before, after, least)
                before = after
        self.least[threads, long] = least
        return [each.ratio(least) for each in taken]


def _now(threads: int) -> float:
    return time.thread_time() if threads == 1 else time.perf_counter()


def _timed(threads: int, run: Run, calls: int, unseen: int) -> float:
    """Seconds of one of the calls after the `unseen` ones."""
    for _ in range(unseen):
        run()
    start = _now(threads)
    for _ in range(calls):
        run()
    return (_now(threads) - start) / calls


def _products(*sizes: tuple[int, int]) -> Run:
    """Computes a product for each (rows, width)."""
    products = [(torch.ones(rows, width), torch.ones(width, width)) for rows, width in sizes]
    return lambda: [torch.mm(a, b) for a, b in products]


class _Turns:
    """The turns of one run: the slower one of the references around it, and its ratio to both; `quiet` counts the
    quiet ones by the least time that was known at each."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []
        self.quiet = 0

    def add(self, took: float, before: float, after: float, least: float) -> None:
        slower = max(before, after)
        self.found.append((slower, 2 * took / (before + after)))
        self.quiet += slower <= QUIET * least

    def ratio(self, least: float) -> float:
        """The median over the quiet turns; over the fastest where there are too few."""
        quiet = sum(slower <= QUIET * least for slower, _ in self.found)
        return median(ratio for _, ratio in sorted(self.found)[: quiet if quiet >= FEWEST else TURNS])
