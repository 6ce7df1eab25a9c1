"""What is measured before the first plan: capture -> resolve -> measure. A plan for any budget follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.measure.collect import Batch, Progress
from tersor.compiler.measure.contenders import Contenders
from tersor.compiler.measure.damage import Damage, SecondOrder, WeightError
from tersor.compiler.measure.ledger import Forgetful, Ledger
from tersor.compiler.measure.price import Choices, Measurements, measure
from tersor.compiler.measure.signal import SIGNALS, Signal, SignalName, signal_of
from tersor.compiler.memory import give_back
from tersor.compiler.method import Method
from tersor.compiler.packed import Forms, Packed
from tersor.compiler.policy import Policy
from tersor.compiler.program import Program
from tersor.compiler.resolve import Resolution, refused_everywhere, resolve


@dataclass(frozen=True)
class Prepared:
    """A model with every choice measured; `examples` is how many the damage was judged on."""

    program: Program
    policy: Policy
    resolution: Resolution
    measured: Measurements
    forms: Forms
    examples: int
    packed: Packed
    contenders: Contenders | None

    def choices(self) -> Choices:
        """The measured choices, with what is known by now of their damage."""
        return self.contenders.judged(self.measured.choices) if self.contenders else self.measured.choices


def prepare(
    program: Program,
    policy: Policy,
    methods: Sequence[Method[Any]],
    batches: Sequence[Batch] | None = None,
    *,
    signal: SignalName | None = None,
    progress: Progress | None = None,
    ledger: Ledger = Forgetful(),
    kernels: bool = True,
) -> Prepared:
    """Resolve the rules, price and judge every candidate; with `kernels` the rounding of their inputs is a part of what
    choices do. Raises PolicyError for rules that do not fit the model."""
    resolution = resolve(program.sites, policy, methods)
    check_data(resolution, batches)
    damage, examples = scorer(program, batches, signal, progress)
    measured = measure(program, resolution, damage, progress, ledger)
    check_packed(policy, methods, resolution, measured)
    forms = Forms(program, resolution, batches or (), damage.forms, ledger, progress)
    del damage  # its traces are as large as the model
    give_back()
    packed = Packed(program, resolution, forms, ledger)
    contenders = None
    if batches is not None:
        chosen = SIGNALS[signal] if signal else signal_of(program)
        contenders = Contenders(program, measured.choices, chosen, batches, ledger, progress, kernels=kernels)
    return Prepared(program, policy, resolution, measured, forms, examples, packed, contenders)


def scorer(
    program: Program,
    batches: Sequence[Batch] | None,
    signal: SignalName | None,
    progress: Progress | None,
) -> tuple[Damage, int]:
    """The damage score: second order with calibration data, weight error without; and the examples it saw."""
    if batches is None:
        return WeightError(), 0
    chosen: Signal = SIGNALS[signal] if signal else signal_of(program)
    second_order = SecondOrder(program, batches, chosen, progress=progress)
    return second_order, second_order.schedule.examples


def check_data(resolution: Resolution, batches: Sequence[Batch] | None) -> None:
    """Refuse methods that need calibration data when there is none."""
    if batches is not None:
        return
    wanting = {c.span: c.text for d in resolution.decisions for c in d.candidates if c.wants_form}
    if wanting:
        raise PolicyError(
            Diagnostic("E204", f"`{text}` needs calibration data", span, help="give data, or choose what needs none")
            for span, text in wanting.items()
        )


def check_packed(
    policy: Policy, methods: Sequence[Method[Any]], resolution: Resolution, measured: Measurements
) -> None:
    """Refuse options that turned out to fit nowhere only when they were packed (`uniform() then svd()`)."""
    alive = {c.candidate.option for choices in measured.choices.values() for c in choices if c.candidate}
    problems = list(refused_everywhere(policy, methods, resolution.decisions, alive, measured.refused))
    if problems:
        raise PolicyError(problems)
