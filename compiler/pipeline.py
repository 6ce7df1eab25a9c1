"""The stages in order: capture -> resolve -> measure -> allocate -> rewrite -> artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tersor.compiler.account import plan_of
from tersor.compiler.allocate import Allocation, Infeasible, allocate
from tersor.compiler.artifact.image import Image, image, size_of
from tersor.compiler.budget import infeasible, limits_of, original_bytes
from tersor.compiler.diagnostics import BudgetError
from tersor.compiler.errors import CompilerBug, RequestError
from tersor.compiler.measure.collect import Batch, Progress
from tersor.compiler.measure.price import Choices
from tersor.compiler.measure.signal import SignalName
from tersor.compiler.method import Method
from tersor.compiler.plan import Plan
from tersor.compiler.policy import Policy
from tersor.compiler.prepare import Prepared, prepare
from tersor.compiler.program import Program
from tersor.compiler.rewrite import TraceStep, held_by, rewrite
from tersor.compiler.stores import Store
from tersor.compiler.supported import check_supported

MAX_ROUNDS = 10


@dataclass(frozen=True)
class Planned:
    """A plan with what it takes to carry it out."""

    plan: Plan
    stores: Mapping[str, Store]
    allocation: Allocation
    files: Image = field(repr=False)


@dataclass(frozen=True)
class Unsolved:
    """No plan is within the limits; `smallest` is the exact size of the artifact that comes nearest to the budget on
    size."""

    why: Infeasible
    smallest: int


def plan(
    program: Program,
    policy: Policy,
    methods: Sequence[Method[Any]],
    batches: Sequence[Batch] | None = None,
    *,
    signal: SignalName | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Everything that would be done for the budget on size, with exact bytes, and nothing written; other budgets need
    a backend that measures (`loop`).

    Raises PolicyError for rules that do not fit the model, and (exit code 3) for a budget that cannot be met.
    """
    check_supported(policy)
    limits_of(policy, program)  # what is wrong with a budget is said before anything slow starts
    return planned(prepare(program, policy, methods, batches, signal=signal, progress=progress))


def planned(prepared: Prepared) -> Planned:
    """The plan for the policy's budget on size."""
    limits = [limit for limit in limits_of(prepared.policy, prepared.program) if limit.key == "size"]
    found = solve(prepared, {limit.key: limit.limit for limit in limits}, prepared.policy.objective.quantity)
    if isinstance(found, Unsolved):
        raise BudgetError([infeasible(prepared.program, found.why, limits, lambda limit, value: found.smallest)])
    return found


def smallest(prepared: Prepared) -> Planned:
    """The plan with the fewest bytes."""
    found = solve(prepared, {}, "size")
    if isinstance(found, Unsolved):
        raise CompilerBug("without limits there is no plan")
    return found


def solve(
    prepared: Prepared,
    limits: Mapping[str, float],
    minimize: str,
    weighed: Callable[[Choices], Choices] = lambda choices: choices,
) -> Planned | Unsolved:
    """Allocate, build the files, and allocate again with what they really take besides the choices' own bytes, and
    with what measuring them tells of their damage.

    `limits` are on the costs of choices, but for `size`, which is the size of the artifact; `weighed` makes what is
    chosen from of the measured choices.
    """
    program, contenders = prepared.program, prepared.contenders
    learns = contenders is not None and "damage" in (minimize, *limits)
    if contenders and learns:
        contenders.anchor(prepared.packed.of)
    held = held_by(program)
    # The graph and the manifest; what each store adds to them is in the price of its choice.
    overhead = size_of(image(program.module, program.signature, held, {}))
    limit = limits.get("size")
    for _ in range(MAX_ROUNDS):
        measured = prepared.choices()
        choices = weighed(measured)
        room = dict(limits) if limit is None else {**limits, "size": limit - overhead}
        found = allocate(choices, room, minimize)
        if isinstance(found, Allocation) and choices is not measured:
            found = _as_measured(found, measured)
        why = found if isinstance(found, Infeasible) else None
        if why is not None and why.quantity != "size":
            return Unsolved(why, 0)
        stores = prepared.packed.of(found.chosen)
        files = image(program.module, program.signature, held, stores)
        exact = size_of(files)
        if why is not None:
            if limit is None or exact > limit or why.conflict:
                return Unsolved(why, exact)
            size, damage = (sum(c.cost(q) for c in why.chosen.values()) for q in ("size", "damage"))
            found = Allocation(why.chosen, int(size), damage, 0.0)  # only the estimate of the overhead was too high
        elif isinstance(found, Allocation) and contenders and learns and contenders.learn(found.chosen, stores):
            continue
        if isinstance(found, Allocation) and (limit is None or exact <= limit):
            return Planned(_plan(prepared, found, exact, limit), stores, found, files)
        overhead = max(overhead + 1, exact - sum(c.bytes for c in found.chosen.values()))
        del stores, files  # before the next ones are made
    raise RequestError("the size of the artifact does not settle below the budget; raise it by a kilobyte")


def _as_measured(found: Allocation, measured: Choices) -> Allocation:
    """An allocation among weighed choices by what was measured of them, of which nothing is proven."""
    chosen = {site: next(c for c in measured[site] if c.text == choice.text) for site, choice in found.chosen.items()}
    return Allocation(chosen, found.bytes, float(sum(c.damage for c in chosen.values())), None)


def _plan(prepared: Prepared, allocation: Allocation, exact: int, limit: float | None) -> Plan:
    contenders = prepared.contenders
    return plan_of(
        prepared.program,
        prepared.policy,
        prepared.resolution,
        prepared.measured,
        allocation,
        formed=prepared.forms.known.keys() | prepared.packed.formed,
        size=exact,
        limit=limit,
        examples=prepared.examples,
        damage=contenders.together(allocation.chosen) if contenders else allocation.damage,
    )


def carry_out(program: Program, planned: Planned) -> tuple[fx.GraphModule, tuple[TraceStep, ...]]:
    """The rewritten graph of a plan, and the trace of how it came to be."""
    reasons = {s.site: s.place for s in planned.plan.sites if s.place is not None}
    return rewrite(program, planned.stores, reasons)


__all__ = ["Planned", "Unsolved", "carry_out", "original_bytes", "plan", "planned", "solve"]
