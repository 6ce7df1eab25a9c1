"""Measures the artifact of a plan: written to disk, loaded and lowered as a user would have it.

The first artifact that is timed at a shape stays loaded, and every later one is timed in turns with it: what the
machine does meanwhile then counts for both.

    seconds = seconds of the first * (calls of this one / calls of the first, in turns)
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

from torch import Tensor, nn

from tersor.backend import BackendName
from tersor.batches import Batch
from tersor.compiler.artifact.image import image
from tersor.compiler.artifact.leaves import opaque_leaves
from tersor.compiler.artifact.load import load
from tersor.compiler.artifact.writing import write
from tersor.compiler.budget import Limit
from tersor.compiler.callable import CompiledModule
from tersor.compiler.loop import DAMAGE
from tersor.compiler.measure.clock import Shape
from tersor.compiler.measure.collect import gathered
from tersor.compiler.measure.ledger import Ledger, digest
from tersor.compiler.measure.pace import Pace, Run
from tersor.compiler.measure.price import as_it_is
from tersor.compiler.measure.signal import SignalName
from tersor.compiler.pipeline import Planned
from tersor.compiler.program import Program
from tersor.compiler.rewrite import held_by
from tersor.engine import BackendEngine
from tersor.fidelity import Original
from tersor.generation import continuing, ids_of
from tersor.metric import Function, Metric, metric_named
from tersor.peak import peak_memory

EXAMPLES = 64
"""Calibration examples that a contender's outputs are compared on."""
SECONDS = 1.5
"""How long the calls of one shape are timed."""


class Judge:
    """`tersor.compiler.loop.Judge`. What the ledger knows is not measured again."""

    def __init__(
        self,
        program: Program,
        limits: Sequence[Limit],
        backend: BackendName,
        batches: Sequence[Batch] | None,
        signal: SignalName,
        ledger: Ledger,
        pace: Pace,
        metric: Function | None = None,
    ) -> None:
        self.program, self.backend, self.ledger, self.pace = program, backend, ledger, pace
        self.engine = BackendEngine(backend)
        few = list(gathered(batches, EXAMPLES)) if batches else []
        self.compared = Original(signal, program.callable().eval(), few) if few else None
        self.firsts: dict[str, tuple[Run, float]] = {}
        self.limits: Sequence[Limit] = ()
        self.metrics: Mapping[str, Metric] = {}
        self._ask(limits, metric)

    def _ask(self, limits: Sequence[Limit], metric: Function | None) -> None:
        self.limits = limits
        self.metrics = {limit.name: metric_named(limit.budget.metric, metric) for limit in limits if limit.floor}

    def asked(self, limits: Sequence[Limit], metric: Function | None = None) -> Judge:
        """The same judge for other limits."""
        other = copy.copy(self)
        other._ask(limits, metric)
        return other

    def __call__(self, planned: Planned, again: bool = False) -> dict[str, float]:
        choices = {site: choice.text for site, choice in planned.allocation.chosen.items()}
        key = f"artifact {digest([self.engine.version, planned.plan.bytes, choices])}"
        known = dict(self.ledger.recall(key) or {})
        missing = [
            limit
            for limit in self.limits
            if limit.key != "size" and (limit.name not in known or (again and limit.shape is not None))
        ]
        if missing or (self.compared and DAMAGE not in known):
            with tempfile.TemporaryDirectory(prefix="tersor-") as name:
                folder = Path(name)
                write(folder, planned.files.files)
                module = self._loaded(folder)
                for limit in missing:
                    value = self._value(limit, module, folder, again)
                    known[limit.name] = min(value, known.get(limit.name, value))
                if self.compared and DAMAGE not in known:
                    known[DAMAGE] = self.compared.compared(module, "").mean
            self.ledger.keep(key, known)
        return {**known, **{limit.name: float(planned.plan.bytes) for limit in self.limits if limit.key == "size"}}

    def _loaded(self, folder: Path) -> nn.Module:
        loaded = load(folder, opaque_leaves(self.program.module))
        return CompiledModule(self.engine.emit(loaded.module), loaded.signature).eval()

    def _value(self, limit: Limit, module: nn.Module, folder: Path, again: bool) -> float:
        if limit.shape is None:
            return self.metrics[limit.name](module)
        inputs = limit.shape.inputs(self.program)
        if limit.budget.quantity == "memory":
            return float(peak_memory(folder, inputs, limit.shape.threads, self.backend))
        if limit.shape.cached:
            every = replace(limit.shape, tokens=limit.shape.cached + limit.shape.tokens).inputs(self.program)
            return self._seconds(limit.shape, continuing(module, ids_of(every), limit.shape.cached), again)
        return self._seconds(limit.shape, partial(module, **inputs), again)

    def _seconds(self, shape: Shape, run: Run, again: bool) -> float:
        """Seconds of one call; with `again` those of the first artifact are doubted too."""
        first, seconds = self.firsts.get(str(shape), (run, inf))
        ratio = 1.0
        if first is not run:
            ours, theirs = self.pace.ratios([run, first], shape.threads, SECONDS / 2)
            ratio = ours / theirs
        if again or first is run:
            seconds = min(seconds, self.pace.seconds(run, shape.threads, SECONDS) / ratio)
            self.firsts[str(shape)] = first, seconds
        return seconds * ratio

    def original(self, limit: Limit) -> float:
        """What the original takes of a limit: budgets may be a share of it."""
        key = f"original {digest([BackendEngine('eager').version, limit.name])}"
        known: float | None = self.ledger.recall(key)
        if known is None:
            module = self.program.callable().eval()
            if limit.shape is None:
                known = self.metrics[limit.name](module)
            elif limit.budget.quantity == "memory":
                known = self._original_memory(limit.shape.inputs(self.program), limit.shape.threads)
            else:
                run = partial(module, **limit.shape.inputs(self.program))
                known = self.pace.seconds(run, limit.shape.threads, SECONDS)
            self.ledger.keep(key, known)
        return known

    def _original_memory(self, inputs: Mapping[str, Tensor], threads: int) -> float:
        """Peak of the original, saved with every weight as it is and computed in plain torch."""
        program = self.program
        stores = {site.name: as_it_is(program, site) for site in program.sites if site.kind != "attention"}
        files = image(program.module, program.signature, held_by(program), stores).files
        with tempfile.TemporaryDirectory(prefix="tersor-") as name:
            write(Path(name), files)
            return float(peak_memory(Path(name), inputs, threads, "eager"))
