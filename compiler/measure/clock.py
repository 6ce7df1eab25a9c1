"""Time on this machine: what is timed, by which backend, and how.

A time is the median call of the quietest of a few stretches: what a call usually takes on a machine that is left
alone. With one thread it is the processor time of the call, which is the time on the clock when nothing else wants the
processor and does not grow while something else has it; with several it is the time on the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from tersor.compiler.equality import resized
from tersor.compiler.program import Program
from tersor.compiler.threads import using_threads

STRETCHES, LEAST = 5, 3
TRIES, AGREE = 5, 0.02


@dataclass(frozen=True, order=True)
class Shape:
    """The inputs and the threads of a timed call: `tokens` new ones, after `cached` whose keys and values are kept."""

    batch: int
    tokens: int
    threads: int = 1
    cached: int = 0

    def __str__(self) -> str:
        cached = f", cached = {self.cached}" if self.cached else ""
        return f"batch = {self.batch}, tokens = {self.tokens}{cached}, threads = {self.threads}"

    def inputs(self, program: Program) -> dict[str, Tensor]:
        """Inputs of this shape without padding, made from the example; the new tokens only."""
        found = resized(program.example, self.batch, self.tokens, program.signature.limits)
        if "attention_mask" in found:
            found["attention_mask"] = torch.ones_like(found["attention_mask"])
        return found


class Engine(Protocol):
    """A backend as the core sees it. `version` names its kernels and the machine: times of one version are not those
    of another."""

    @property
    def version(self) -> str: ...

    def emit(self, module: fx.GraphModule) -> nn.Module:
        """The graph for inference on this backend; the one given stays as it is."""


class Timings(Protocol):
    """Seconds that were measured before, by a text that says of what."""

    def get(self, key: str) -> float | None: ...

    def put(self, key: str, seconds: float) -> None: ...


class Remembered:
    """Timings of this process alone."""

    def __init__(self) -> None:
        self.known: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        return self.known.get(key)

    def put(self, key: str, seconds: float) -> None:
        self.known[key] = seconds


def typical(runs: Sequence[Callable[[], object]], threads: int, seconds: float) -> list[float]:
    """Seconds of one call of each on so many threads, from about `seconds` of calls of each; in turns, so that a busy
    moment hits all alike."""
    now = time.thread_time if threads == 1 else time.perf_counter
    counts = []
    for run in runs:
        run()  # compiles what has to be compiled
        run()
        counts.append(max(LEAST, int(seconds / STRETCHES / max(_timed(run, now), 1e-7))))
    best = [float("inf")] * len(runs)
    for _ in range(STRETCHES):
        for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
            best[i] = min(best[i], median(_timed(run, now) for _ in range(count)))
    return best


def _timed(run: Callable[[], object], now: Callable[[], float]) -> float:
    start = now()
    run()
    return now() - start


def whole(module: Callable[..., object], inputs: Mapping[str, Tensor], threads: int, seconds: float = 1.0) -> float:
    """Seconds of one call of a whole model; on a machine that is busy, of its quietest time in a few more tries."""
    best = float("inf")
    with using_threads(threads), torch.no_grad():
        for _ in range(TRIES):
            before, best = best, min(best, typical([lambda: module(**inputs)], threads, seconds)[0])
            if before - best <= AGREE * best:
                break
    return best
