"""A plan carried out: the rewritten and lowered model, compared with the original on data that did not decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tersor import backend as backends
from tersor.batches import Batch, blame, check_inputs
from tersor.compiler import pipeline
from tersor.compiler.budget import Limit, sought
from tersor.compiler.callable import CompiledModule
from tersor.compiler.loop import Contender
from tersor.compiler.measure.signal import signal_of
from tersor.compiler.pipeline import Planned
from tersor.compiler.program import Program
from tersor.compiler.report import held
from tersor.compiler.rewrite import held_by
from tersor.fidelity import Fidelity, Original
from tersor.optimise import Settings
from tersor.policies import Policy
from tersor.report import Report
from tersor.result import Result


class Finish:
    """From plans of a captured program to results."""

    def __init__(
        self,
        program: Program,
        policy: Policy,
        calibration: Sequence[Batch] | None,
        held_out: Sequence[Batch],
        settings: Settings,
    ) -> None:
        self.program, self.policy, self.settings = program, policy, settings
        self.sought = goal.name if (goal := sought(policy)) else ""
        self.signal = settings.signal or signal_of(program).name
        self.on = "held-out data" if held_out else "the calibration data: there is too little to hold any out"
        judged = held_out or calibration
        self.original = Original(self.signal, program.callable().eval(), judged) if judged else None

    def __call__(
        self,
        found: Planned,
        limits: Sequence[Limit] = (),
        contender: Contender | None = None,
        fingerprint: str = "",
    ) -> Result:
        """The result of a plan; `contender` is what was measured of it."""
        rewritten, trace = pipeline.carry_out(self.program, found)
        reference = CompiledModule(rewritten, self.program.signature).eval()
        lowered, placed = backends.apply(rewritten, self.settings.backend)
        module = reference if lowered is rewritten else CompiledModule(lowered, self.program.signature).eval()
        measured: Fidelity | None = None
        if self.original is not None:
            with data_errors(self.program, self.original.batches):
                measured = self.original.compared(module, self.on)
        p = found.plan
        budgets = (
            ()
            if contender is None
            else tuple(held(x, contender.predicted.get(x.name), contender.measured[x.name]) for x in limits)
        )
        reached = []
        if contender is not None and self.sought:
            reached.append(f"{self.sought} comes to {contender.measured[self.sought]:.6g}, the most of what was tried")
        report = Report(
            p.original_bytes, p.bytes, p.budget, p.damage, p.bound, p.unit, p.calibrated, self.signal, placed, measured,
            (*p.notes, *reached), budgets,
        )  # fmt: skip
        return Result(
            module, reference, p, report, trace, self.policy, found, held_by(self.program), dict(self.program.example),
            fingerprint,
        )  # fmt: skip


@contextmanager
def data_errors(program: Program, batches: Sequence[Batch]) -> Iterator[None]:
    """Tell data that does not fit the model from a bug of ours."""
    module = program.callable().eval()
    check_inputs(module, batches)
    try:
        yield
    except (RuntimeError, IndexError, ValueError):
        blame(module, batches)
        raise
