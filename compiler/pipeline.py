"""The stages in order: capture -> resolve -> measure -> allocate -> rewrite -> artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from tersor.compiler.allocate import Allocation, Infeasible, allocate
from tersor.compiler.artifact.image import Image, image, size_of
from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.errors import RequestError
from tersor.compiler.measure.collect import Batch, Progress, collect
from tersor.compiler.measure.damage import Damage, SecondOrder, WeightError
from tersor.compiler.measure.price import Choice, Measurements, measure, pack_chosen
from tersor.compiler.measure.signal import SIGNALS, Signal, SignalName, signal_of
from tersor.compiler.method import Method
from tersor.compiler.plan import Plan, RefusedPlan, SitePlan
from tersor.compiler.policy import Budget, Policy
from tersor.compiler.program import Program
from tersor.compiler.resolve import Resolution, resolve
from tersor.compiler.rewrite import TraceStep, held_by, rewrite
from tersor.compiler.stores import Store
from tersor.compiler.supported import check_supported
from tersor.compiler.units import bytes_text

MAX_ROUNDS = 8


@dataclass(frozen=True)
class Planned:
    """A plan with what it takes to carry it out: the stores, and the exact files they make."""

    plan: Plan
    stores: Mapping[str, Store]
    files: Image


def original_bytes(program: Program) -> int:
    """Bytes of the model's parameters, tied ones once."""
    return sum(site.bytes for site in program.sites)


def size_limit(policy: Policy, original: int) -> tuple[float | None, Budget | None]:
    """The size budget in bytes, and where it is written."""
    for budget in policy.budgets:
        if budget.quantity == "size":
            return (budget.limit * original if budget.share else budget.limit), budget
    return None, None


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
    calibration = collect(program, batches, chosen, progress=progress)
    return SecondOrder(calibration), calibration.examples


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
    damage, examples = scorer(program, batches, signal, progress)
    measured = measure(program, resolution, damage, progress)
    limit, budget = size_limit(policy, original_bytes(program))
    allocation, stores, files = _solve(program, policy, resolution, measured, limit, budget)
    return Planned(_plan(program, policy, resolution, measured, allocation, files, limit, examples), stores, files)


def _solve(
    program: Program,
    policy: Policy,
    resolution: Resolution,
    measured: Measurements,
    limit: float | None,
    budget: Budget | None,
) -> tuple[Allocation, Mapping[str, Store], Image]:
    """Allocate, build the files, and allocate again with what they really take besides the choices' own bytes."""
    held = held_by(program)
    overhead = 0
    for _ in range(MAX_ROUNDS):
        room = None if limit is None else limit - overhead
        found = allocate(measured.choices, room, policy.objective.quantity)
        if isinstance(found, Infeasible):
            stores = pack_chosen(program, resolution, found.chosen)
            files = image(program.module, program.signature, held, stores)
            smallest = size_of(files)
            if limit is None or smallest > limit:
                raise PolicyError([_infeasible(program, found, smallest, limit or 0, budget)], exit_code=3)
            damage = sum(c.damage for c in found.chosen.values())  # only the estimate of the overhead was too high
            return Allocation(found.chosen, found.smallest, damage, 0.0), stores, files
        stores = pack_chosen(program, resolution, found.chosen)
        files = image(program.module, program.signature, held, stores)
        exact = size_of(files)
        if limit is None or exact <= limit:
            return found, stores, files
        overhead = max(overhead + 1, exact - found.bytes)
    raise RequestError("the size of the artifact does not settle below the budget; raise it by a kilobyte")


def _infeasible(program: Program, found: Infeasible, smallest: int, limit: float, budget: Budget | None) -> Diagnostic:
    """The message for a budget below the smallest artifact the policy allows."""
    path = {site.name: site.path for site in program.sites}
    notes = [f"{path[c.site]} still takes {bytes_text(c.bytes)} as {c.text}" for c in found.largest[:3]]
    untouched = [c.bytes for c in found.largest if c.candidate is None]
    if untouched:
        notes.append(f"{len(untouched)} weights that no rule changes take {bytes_text(sum(untouched))} of it")
    return Diagnostic(
        "E301",
        f"size <= {bytes_text(limit)} cannot be met: the smallest this policy allows is {bytes_text(smallest)}",
        budget.span if budget else None,
        notes=tuple(notes),
        help=f"raise the budget to {bytes_text(smallest, up=True)}, or allow a smaller choice at "
        f"`{path[found.largest[0].site]}`",
    )


def _places(policy: Policy, rule: int | None, choice: Choice) -> str | None:
    span = choice.candidate.span if choice.candidate else None
    if span is None and rule is not None:
        span = policy.rules[rule].span
    if span is None:
        return None
    line, column = span.where()
    return f"{span.source.name}:{line}:{column}"


def _plan(
    program: Program,
    policy: Policy,
    resolution: Resolution,
    measured: Measurements,
    allocation: Allocation,
    files: Image,
    limit: float | None,
    examples: int,
) -> Plan:
    rows = []
    for decision in resolution.decisions:
        site = decision.site
        if site.name not in allocation.chosen:
            continue
        c = allocation.chosen[site.name]
        rows.append(
            SitePlan(
                site=site.name,
                path=site.path,
                kind=site.kind,
                role=site.role,
                shape=site.shape,
                choice=c.text,
                original_bytes=site.bytes,
                bytes=c.bytes,
                damage=c.damage,
                error=c.error,
                place=_places(policy, decision.rule, c),
                rivals=len(measured.choices[site.name]) - 1,
            )
        )
    notes = list(program.notes)
    if examples and measured.unjudged:
        notes.append(
            f"the signal does not reach {', '.join(measured.unjudged)}: judged by weight error at the median sensitivity"
        )
    refused = tuple(RefusedPlan(r.site, r.candidate, r.reason) for r in (*resolution.refused, *measured.refused))
    return Plan(
        sites=tuple(rows),
        refused=refused,
        original_bytes=original_bytes(program),
        bytes=size_of(files),
        overhead=size_of(files) - allocation.bytes,
        damage=allocation.damage,
        bound=allocation.bound,
        unit=measured.unit,
        budget=limit,
        calibrated=examples,
        notes=tuple(notes),
    )


def carry_out(program: Program, planned: Planned) -> tuple[fx.GraphModule, tuple[TraceStep, ...]]:
    """The rewritten graph of a plan, and the trace of how it came to be."""
    reasons = {s.site: s.place for s in planned.plan.sites if s.place is not None}
    return rewrite(program, planned.stores, reasons)


__all__ = ["Planned", "carry_out", "plan"]
