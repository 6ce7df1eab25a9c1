"""What the language can say and this version cannot carry out yet."""

from __future__ import annotations

from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.policy import Policy


def unsupported(policy: Policy) -> list[Diagnostic]:
    """Budgets, objectives and recoveries of a policy that only a later version carries out (E302, E303)."""
    problems = [
        Diagnostic(
            "E302",
            "a budget on memory as a share of the original's is not available in this version",
            b.span,
            help="give it in bytes, such as `memory <= 200 MiB`",
        )
        for b in policy.budgets
        if b.quantity == "memory" and b.share
    ]
    if policy.objective.quantity == "metric":
        problems.append(
            Diagnostic(
                "E302",
                "`maximize metric` is not available in this version",
                policy.objective.span,
                help="use `minimize damage`, or a floor: `budget metric >= ...` with `minimize size`",
            )
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
