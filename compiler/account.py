"""An allocation to a plan: the row of every site, the totals, and what the reader should know besides."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tersor.compiler.allocate import Allocation
from tersor.compiler.budget import original_bytes
from tersor.compiler.measure.price import Choice, Measurements
from tersor.compiler.plan import Plan, RefusedPlan, SitePlan
from tersor.compiler.policy import Policy
from tersor.compiler.program import Program
from tersor.compiler.resolve import Decision, Resolution


def plan_of(
    program: Program,
    policy: Policy,
    resolution: Resolution,
    measured: Measurements,
    allocation: Allocation,
    *,
    formed: Collection[str],
    size: int,
    limit: float | None,
    examples: int,
    damage: float,
) -> Plan:
    """The plan that carries out an allocation. `size` is the exact size of its files, `formed` the sites with an error
    form, `examples` how many examples the damage was judged on, `damage` what the choices do together."""
    rows = tuple(
        _row(policy, decision, allocation.chosen[decision.site.name], len(measured.choices[decision.site.name]) - 1)
        for decision in resolution.decisions
        if decision.site.name in allocation.chosen
    )
    refused = tuple(RefusedPlan(r.site, r.candidate, r.reason) for r in (*resolution.refused, *measured.refused))
    return Plan(
        sites=rows,
        refused=refused,
        original_bytes=original_bytes(program),
        bytes=size,
        overhead=size - allocation.bytes,
        damage=damage,
        bound=_scaled(allocation, damage),
        unit=measured.unit,
        budget=limit,
        calibrated=examples,
        notes=(*program.notes, *_notes(measured, allocation, formed, examples)),
    )


def _row(policy: Policy, decision: Decision, choice: Choice, rivals: int) -> SitePlan:
    site = decision.site
    return SitePlan(
        site=site.name,
        path=site.path,
        kind=site.kind,
        role=site.role,
        shape=site.shape,
        choice=choice.text,
        original_bytes=site.bytes,
        bytes=choice.bytes,
        damage=choice.damage,
        error=choice.error,
        place=_place(policy, decision.rule, choice),
        rivals=rivals,
    )


def _place(policy: Policy, rule: int | None, choice: Choice) -> str | None:
    """`file:line:column` of the option that was chosen, or of the rule that keeps the site."""
    span = choice.candidate.span if choice.candidate else None
    if span is None and rule is not None:
        span = policy.rules[rule].span
    if span is None:
        return None
    line, column = span.where()
    return f"{span.source.name}:{line}:{column}"


def _scaled(allocation: Allocation, damage: float) -> float | None:
    """The bound on the damage, which comes to `damage` where the sites act together."""
    if allocation.bound is None or allocation.damage <= 0:
        return allocation.bound
    return allocation.bound * damage / allocation.damage


def _notes(measured: Measurements, allocation: Allocation, formed: Collection[str], examples: int) -> list[str]:
    notes = []
    if examples and measured.unjudged:
        notes.append(
            f"{len(measured.unjudged)} sites are judged by weight error at the median sensitivity, since the signal "
            f"has no score for them: {_few(measured.unjudged)}"
        )
    if measured.sampled:
        notes.append(
            f"{len(measured.sampled)} sites are priced on a sample of their rows: their errors are estimates, their "
            f"bytes are exact"
        )
    wanting = [c for c in allocation.chosen.values() if c.candidate is not None and c.candidate.wants_form]
    if wanting:
        notes.append(f"{len(wanting)} sites are rounded with compensation")
    formless = [c.site for c in wanting if c.site not in formed]
    if formless:
        notes.append(f"{len(formless)} of them have no error form and are rounded to nearest: {_few(formless)}")
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
