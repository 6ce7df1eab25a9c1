"""Where the time of a native program goes: microseconds of each kind of step, in the order and the caches of a run.

    python -m tests.benchmarks.profile_steps [--model minilm] [--size 1x16] [--threads 1] [--rounds 50]

The steps of a run are called one by one, so that each also pays for a call from Python (about a microsecond). Equal
steps (name, units, units claimed at once) are one line: how many there are, and the sums of least and of median times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from unittest import mock

import numpy as np
import torch
from tests.benchmarks import ours
from tests.benchmarks.subjects import SUBJECTS
from tests.benchmarks.tables import markdown

import tersor
from tersor.backends.numba.native import program as native
from tersor.backends.numba.native.pool import Workspace, execute
from tersor.backends.numba.native.program import NativeRun, Program

ENTRY = 32  # bytes of a step in a table: kernel, operands, units, units claimed at once


def profile(call: Callable[[], object], program: Program, rounds: int) -> str:
    """A table of what `call`, a run of `program`, spends on its steps."""
    names = [name for item in program.items if isinstance(item, NativeRun) for name in item.names]
    kinds: list[str] = []
    times: list[list[float]] = []

    def timed(level: str, steps: int, count: int, workspace: Workspace, work: int, threads: int) -> None:
        table = np.ctypeslib.as_array((native.ctypes.c_int64 * (4 * count)).from_address(steps)).reshape(-1, 4)
        for s, (_, _, units, chunk) in enumerate(table):
            began = time.perf_counter()
            execute(level, steps + ENTRY * s, 1, workspace, work, threads)
            times[-1].append(time.perf_counter() - began)
            if len(times) == 1:
                kinds.append(f"{names[len(kinds)]}, {units} units by {chunk}")

    with mock.patch.object(native, "execute", timed):
        for _ in range(rounds):
            times.append([])
            call()
    least, middle = ([1e6 * f(found) for found in zip(*times, strict=True)] for f in (min, median))
    sums: dict[str, tuple[int, float, float]] = {}
    for kind, low, mid in zip(kinds, least, middle, strict=True):
        count, lows, mids = sums.get(kind, (0, 0.0, 0.0))
        sums[kind] = count + 1, lows + low, mids + mid
    sums["all"] = len(kinds), sum(least), sum(middle)
    lines = [[kind, n, f"{low:.1f}", f"{mid:.1f}"] for kind, (n, low, mid) in sorted(sums.items(), key=_least)]
    return markdown(("step", "number", "least us", "median us"), lines)


def _least(item: tuple[str, tuple[int, float, float]]) -> float:
    return -item[1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SUBJECTS), default="minilm")
    parser.add_argument("--size", default="1x16", metavar="BATCHxTOKENS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    subject = SUBJECTS[given.model]()
    example = {name: torch.from_numpy(value) for name, value in subject.example.items()}
    module = tersor.compile(subject.module, tersor.Policy.parse(ours.POLICY), example, backend="numba").module
    batch, tokens = map(int, given.size.split("x"))
    sized = {name: torch.from_numpy(value) for name, value in subject.sized(batch, tokens).items()}
    inputs = [sized[declared.name] for declared in module.signature.inputs]
    graph = module.graph_module
    with torch.inference_mode():
        graph(*inputs)
        print(profile(lambda: graph(*inputs), graph.program(*inputs), given.rounds))


if __name__ == "__main__":
    main()
