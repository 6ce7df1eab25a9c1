"""Time on a machine whose speed is never the same for long: whatever is timed takes turns with a computation that does
not change.

    seconds = median over turns of (slice of calls / reference around it) * the reference's least time

Other work on the machine, or its clock, slows both alike, so the ratio stays while the time on the clock moves by half:
the reference is a product whose matrix is in the third cache and two in the second, because one of either kind alone
slows down less, or more, than a whole model does. The least time is that of a machine left alone, as far as it was seen
in this process. With one thread it is the processor time of the call, which does not grow while something else has the
processor; with several it is the time on the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from tersor.compiler.threads import using_threads

LARGE, SMALL = (64, 768), (128, 256)
"""Rows and width of the inputs of the reference's products; about a millisecond."""
SLICE = 2e-3
"""Seconds of calls, at least one, that are timed at a turn."""
PART = 3
"""A reference lasts this part of the longest slice."""
TURNS = 7
FIRST = 2.0
"""Seconds that the reference is timed for where nothing else was timed before."""

Run = Callable[[], object]


class Pace:
    """Times calls against the reference."""

    def __init__(self) -> None:
        self.products = [(torch.ones(n, k), torch.ones(k, k)) for n, k in (LARGE, SMALL, SMALL)]
        self.least: dict[int, float] = {}
        self.settled: dict[int, float] = {}

    def reference(self) -> object:
        return [torch.mm(a, b) for a, b in self.products]

    def ratios(self, runs: Sequence[Run], threads: int, seconds: float) -> list[float]:
        """How many references one call of each takes, from about `seconds` of calls of each; in turns."""
        now = time.thread_time if threads == 1 else time.perf_counter

        def timed(run: Run, count: int) -> float:
            start = now()
            for _ in range(count):
                run()
            return now() - start

        with using_threads(threads), torch.no_grad():
            counts, slices = [], []
            for run in runs:
                timed(run, 2)  # compiles what has to be compiled
                one = max(timed(run, 1), 1e-7)
                counts.append(max(1, int(SLICE / one)))
                slices.append(counts[-1] * one)
            timed(self.reference, 2)
            references = max(1, round(max(slices) / PART / max(timed(self.reference, 1), 1e-7)))
            found: list[list[float]] = [[] for _ in runs]
            before = timed(self.reference, references) / references
            for _ in range(max(TURNS, int(seconds / max(slices)))):
                for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
                    took = timed(run, count) / count
                    after = timed(self.reference, references) / references
                    found[i].append(2 * took / (before + after))
                    self.least[threads] = min(before, after, self.least.get(threads, after))
                    before = after
        return [median(times) for times in found]

    def unit(self, threads: int) -> float:
        """Seconds of one reference on a machine left alone: the same from the first time on that it is asked for, so
        that what is told later compares."""
        if threads not in self.settled:
            if threads not in self.least:
                self.ratios([self.reference], threads, FIRST)
            self.settled[threads] = self.least[threads]
        return self.settled[threads]

    def seconds(self, run: Run, threads: int, seconds: float) -> float:
        """Seconds of one call."""
        return self.ratios([run], threads, seconds)[0] * self.unit(threads)
