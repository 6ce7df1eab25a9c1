"""How far outputs move where something in the graph is replaced, on a few calibration examples.

    c = change of the signal's view of the outputs,   damage = mean ||c||^2 / 2

Changes are kept, not only their size: those of several replacements add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from tersor.compiler.measure.collect import Batch, Progress, batch_size, gathered
from tersor.compiler.measure.ledger import Ledger
from tersor.compiler.measure.resume import Resumable
from tersor.compiler.measure.signal import Signal
from tersor.compiler.memory import give_back
from tersor.compiler.program import Program
from tersor.compiler.site import Site

EXAMPLES, LEAST = 32, 4
"""Most and fewest examples."""
WORK = 2e12
"""Products of a weight and a value that one replacement at every site may take; more examples than that are left
out."""
TOKENS = 256
"""Tokens that are run together."""
NUMBERS, NARROW = 2**15, 16
"""Of a change are kept, and of a vector at least: wider ones are projected at random, which keeps the products of two
changes on average."""

Leaves = Mapping[str, nn.Module]
"""What stands at some paths of the graph."""


@dataclass(frozen=True)
class Replaced:
    """What `leaves` makes is put in the place of what is at `paths`."""

    paths: tuple[str, ...]
    leaves: Callable[[], Leaves]


@dataclass(frozen=True)
class Change:
    """`vectors` (vectors, width) is c, projected to few columns, in 16 bits; `damage` is exact."""

    vectors: Tensor
    damage: float


class Changes:
    """Measures changes; the ledger keeps them."""

    def __init__(
        self,
        program: Program,
        signal: Signal,
        sites: Sequence[Site],
        batches: Sequence[Batch],
        ledger: Ledger,
        progress: Progress | None = None,
    ) -> None:
        self.program, self.signal, self.ledger, self.progress = program, signal, ledger, progress
        self.batches = list(_parts(sites, batches))

    def known(self, key: str) -> Change | None:
        """What the ledger has."""
        kept = self.ledger.recall_arrays(key)
        return None if kept is None else Change(kept["change"], float(kept["damage"]))

    @torch.no_grad()
    def measure(self, stage: str, replaced: Mapping[str, Replaced]) -> dict[str, Change]:
        """By key, the change where some leaves are replaced; they are made anew for every batch, so that one weight is
        held at a time."""
        run = self.program.callable().eval()
        runner = Resumable(run.graph_module, [some.paths for some in replaced.values()])
        found: dict[str, list[Tensor]] = {key: [] for key in replaced}
        squares = dict.fromkeys(found, 0.0)
        vectors = done = width = 0
        for batch in self.batches:
            inputs = run.bind((), dict(batch))
            before = self.signal.view(runner.first([inputs[n] for n in run.signature.names]), inputs)
            width = width or max(NARROW, NUMBERS // (len(before) * len(self.batches)))
            vectors += len(before)
            for key, some in replaced.items():
                after = self.signal.view(runner.again(some.paths, some.leaves()), inputs)
                change = self.signal.change(before, after)
                squares[key] += float(change.double().square().sum())
                found[key].append(_projected(change, width))
                done += 1
                if self.progress:
                    self.progress(stage, done, len(replaced) * len(self.batches))
        changes = {k: Change(torch.cat(c).to(torch.bfloat16), squares[k] / (2 * vectors)) for k, c in found.items()}
        for key, made in changes.items():
            damage = torch.tensor(made.damage, dtype=torch.float64)
            self.ledger.keep_arrays(key, {"change": made.vectors, "damage": damage})
        del runner  # it holds what the graph computes on the way
        give_back()
        return changes


def together(changes: Iterable[tuple[Change, float]]) -> float:
    """The damage of changes, each times a number, to second order: mean ||sum||^2 / 2."""
    total = torch.zeros(())
    for change, scale in changes:
        total = total + scale * change.vectors.to(torch.float32)
    return float(total.double().square().sum(-1).mean()) / 2 if total.dim() else 0.0


def _projected(change: Tensor, width: int) -> Tensor:
    """(vectors, width) with the same products on average."""
    if change.shape[1] <= width:
        return change
    drawn = torch.randn(change.shape[1], width, generator=torch.Generator().manual_seed(0))
    return change @ drawn / sqrt(width)


def _parts(sites: Sequence[Site], batches: Sequence[Batch]) -> Iterator[Batch]:
    """The examples to measure on, so many at a time as are run together."""
    tokens = max(int(next(iter(b.values())).shape[:2].numel()) // batch_size(b) for b in batches)
    work = tokens * len(sites) * sum(s.params for s in sites if s.kind != "embedding") / 2
    examples = int(max(LEAST, min(EXAMPLES, WORK // max(1, work))))
    for batch in gathered(batches, examples):
        size = max(1, TOKENS // max(1, next(iter(batch.values())).shape[:2].numel() // batch_size(batch)))
        for start in range(0, batch_size(batch), size):
            yield {name: value[start : start + size] for name, value in batch.items()}
