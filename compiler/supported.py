"""What the language can say and this version cannot carry out yet."""

from __future__ import annotations

from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.policy import Policy


def unsupported(policy: Policy) -> list[Diagnostic]:
    """What of a policy only a later version carries out (E303)."""
    problems = []
    if policy.recover is not None:
        message = "`recover` is not available in this version: there is no trainer yet"
        problems.append(Diagnostic("E303", message, policy.recover.span, help="remove the block"))
    return problems


def check_supported(policy: Policy) -> None:
    """Refuse what cannot be carried out, rather than ignore it. Raises PolicyError."""
    problems = unsupported(policy)
    if problems:
        raise PolicyError(problems)
