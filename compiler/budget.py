"""The size budget of a policy, and what to say when it cannot be met (E301)."""

from __future__ import annotations

from tersor.compiler.allocate import Infeasible
from tersor.compiler.diagnostics import Diagnostic
from tersor.compiler.policy import Budget, Policy
from tersor.compiler.program import Program
from tersor.compiler.units import bytes_text


def original_bytes(program: Program) -> int:
    """Bytes of the model's parameters, tied ones once."""
    return sum(site.bytes for site in program.sites)


def size_limit(policy: Policy, original: int) -> tuple[float | None, Budget | None]:
    """The size budget in bytes, and where it is written."""
    for budget in policy.budgets:
        if budget.quantity == "size":
            return (budget.limit * original if budget.share else budget.limit), budget
    return None, None


def infeasible(program: Program, found: Infeasible, smallest: int, limit: float, budget: Budget | None) -> Diagnostic:
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
