"""The stages in order: capture -> resolve -> measure -> allocate -> rewrite -> artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from tersor.compiler.account import plan_of
from tersor.compiler.allocate import Allocation, Infeasible, allocate
from tersor.compiler.artifact.image import Image, image, size_of
from tersor.compiler.budget import infeasible, original_bytes, size_limit
from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.errors import RequestError
from tersor.compiler.measure.collect import Batch, Progress
from tersor.compiler.measure.damage import Damage, SecondOrder, WeightError
from tersor.compiler.measure.forms import product_forms
from tersor.compiler.measure.price import Choice, Measurements, measure, pack_chosen
from tersor.compiler.measure.signal import SIGNALS, Signal, SignalName, signal_of
from tersor.compiler.memory import give_back
from tersor.compiler.method import Method
from tersor.compiler.plan import Plan
from tersor.compiler.policy import Budget, Policy
from tersor.compiler.program import Program
from tersor.compiler.resolve import Resolution, refused_everywhere, resolve
from tersor.compiler.rewrite import TraceStep, held_by, rewrite
from tersor.compiler.stores import Store
from tersor.compiler.supported import check_supported

MAX_ROUNDS = 8


@dataclass(frozen=True)
class Planned:
    """A plan with what it takes to carry it out."""

    plan: Plan
    stores: Mapping[str, Store]


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
            Diagnostic(
                "E204", f"`{text}` needs calibration data", span, help="give data, or choose `rounding = nearest`"
            )
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


class Forms:
    """The error forms of the sites a plan asks for, measured when first asked."""

    def __init__(self, program: Program, batches: Sequence[Batch], damage: Damage, progress: Progress | None) -> None:
        self.program, self.batches, self.progress = program, batches, progress
        self.known = dict(damage.forms) if isinstance(damage, SecondOrder) else {}

    def of(self, chosen: Mapping[str, Choice]) -> Mapping[str, Tensor]:
        """The forms of the chosen candidates that want one."""
        missing = [
            site
            for site in self.program.sites
            if site.kind in ("linear", "recurrent")
            and site.name not in self.known
            and (choice := chosen.get(site.name)) is not None
            and choice.candidate is not None
            and choice.candidate.wants_form
        ]
        if missing:
            self.known |= product_forms(self.program, missing, self.batches, self.progress)
            give_back()
        return self.known


def plan(
    program: Program,
    policy: Policy,
    methods: Sequence[Method[Any]],
    batches: Sequence[Batch] | None = None,
    *,
    signal: SignalName | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Everything that would be done, with exact bytes, and nothing written.

    Raises PolicyError for rules that do not fit the model, and (exit code 3) for a budget that cannot be met.
    """
    check_supported(policy)
    resolution = resolve(program.sites, policy, methods)
    check_data(resolution, batches)
    damage, examples = scorer(program, batches, signal, progress)
    measured = measure(program, resolution, damage, progress)
    check_packed(policy, methods, resolution, measured)
    forms = Forms(program, batches or (), damage, progress)
    del damage  # its traces are as large as the model
    give_back()
    limit, budget = size_limit(policy, original_bytes(program))
    allocation, stores, files = _solve(program, policy, resolution, measured, forms, limit, budget)
    made = plan_of(
        program,
        policy,
        resolution,
        measured,
        allocation,
        formed=forms.known.keys(),
        size=size_of(files),
        limit=limit,
        examples=examples,
    )
    return Planned(made, stores)


def _solve(
    program: Program,
    policy: Policy,
    resolution: Resolution,
    measured: Measurements,
    forms: Forms,
    limit: float | None,
    budget: Budget | None,
) -> tuple[Allocation, Mapping[str, Store], Image]:
    """Allocate, build the files, and allocate again with what they really take besides the choices' own bytes."""
    held = held_by(program)
    # The graph and the manifest; what each store adds to them is in the price of its choice.
    overhead = size_of(image(program.module, program.signature, held, {}))
    for _ in range(MAX_ROUNDS):
        limits = {} if limit is None else {"size": limit - overhead}
        found = allocate(measured.choices, limits, policy.objective.quantity)
        if isinstance(found, Infeasible):
            stores = pack_chosen(program, resolution, found.chosen, forms.of(found.chosen))
            files = image(program.module, program.signature, held, stores)
            smallest = size_of(files)
            if limit is None or smallest > limit:
                raise PolicyError([infeasible(program, found, smallest, limit or 0, budget)], exit_code=3)
            damage = sum(c.damage for c in found.chosen.values())  # only the estimate of the overhead was too high
            size = sum(c.bytes for c in found.chosen.values())
            return Allocation(found.chosen, size, damage, 0.0), stores, files
        stores = pack_chosen(program, resolution, found.chosen, forms.of(found.chosen))
        files = image(program.module, program.signature, held, stores)
        exact = size_of(files)
        if limit is None or exact <= limit:
            return found, stores, files
        overhead = max(overhead + 1, exact - found.bytes)
        del stores, files  # before the next ones are made
    raise RequestError("the size of the artifact does not settle below the budget; raise it by a kilobyte")


def carry_out(program: Program, planned: Planned) -> tuple[fx.GraphModule, tuple[TraceStep, ...]]:
    """The rewritten graph of a plan, and the trace of how it came to be."""
    reasons = {s.site: s.place for s in planned.plan.sites if s.place is not None}
    return rewrite(program, planned.stores, reasons)


__all__ = ["Planned", "carry_out", "original_bytes", "plan"]
