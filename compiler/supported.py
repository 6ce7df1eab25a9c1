"""What the language can say and this version cannot carry out yet."""

from __future__ import annotations

from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.policy import Policy


def unsupported(policy: Policy) -> list[Diagnostic]:
    """Budgets, objectives and recoveries of a policy that only a later version carries out (E302, E303)."""
    problems = [
        Diagnostic(
            "E302", f"a budget on {b.quantity} is not available in this version", b.span, help="use `budget size`"
        )
        for b in policy.budgets
        if b.quantity != "size"
    ]
    if policy.objective.quantity not in ("damage", "size"):
        what = f"`{policy.objective.direction} {policy.objective.quantity}`"
        message = f"{what} is not available in this version"
        problems.append(
            Diagnostic("E302", message, policy.objective.span, help="use `minimize damage` or `minimize size`")
        )
    if policy.recover is not None:
        message = "`recover` is not available in this version: there is no trainer yet"
        problems.append(Diagnostic("E303", message, policy.recover.span, help="remove the block"))
    return problems


def check_supported(policy: Policy) -> None:
    """Refuse what cannot be carried out, rather than ignore it. Raises PolicyError."""
    problems = unsupported(policy)
    if problems:
        raise PolicyError(problems)
