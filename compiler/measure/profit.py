"""No form without profit: what dense 8 bits beat in bytes and in seconds, and do no more damage than, is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tersor.compiler.candidate import Candidate
from tersor.compiler.measure.clock import Shape
from tersor.compiler.measure.price import Choice, Measurements
from tersor.compiler.resolve import Refused

NOISE = 1.05
"""How many times as long a kernel must take to be called slower."""


def profitable(measured: Measurements, shapes: Sequence[Shape], dense: Callable[[Candidate], bool]) -> Measurements:
    """The measurements without the choices that are larger than, slower than at every shape, and at least as harmful
    as one that is `dense` 8 bits; those are refused. Without shapes no kernel was timed, and nothing is."""
    if not shapes:
        return measured
    keys = [str(shape) for shape in shapes]
    reason = f"slower than 8 bits at {' and at '.join(keys)}, and neither smaller nor nearer to the original"
    kept: dict[str, tuple[Choice, ...]] = {}
    refused = []
    for site, choices in measured.choices.items():
        rivals = [c for c in choices if c.candidate is not None and dense(c.candidate)]
        lost = {id(c) for c in choices for rival in rivals if c.candidate is not None and _beaten(c, rival, keys)}
        kept[site] = tuple(c for c in choices if id(c) not in lost)
        refused += [Refused(site, c.text, reason) for c in choices if id(c) in lost]
    return replace(measured, choices=kept, refused=(*measured.refused, *refused))


def _beaten(choice: Choice, rival: Choice, keys: Sequence[str]) -> bool:
    no_better = choice.bytes >= rival.bytes and choice.damage >= rival.damage
    return no_better and all(choice.cost(key) > NOISE * rival.cost(key) for key in keys)
