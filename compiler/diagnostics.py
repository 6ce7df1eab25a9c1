"""What the compiler says about a policy, as data: code, severity, message, place, notes, help.

Codes are stable: E0xx syntax, E1xx names and values, E2xx against the model, E3xx against the budget.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tersor.compiler.errors import TersorError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Source:
    """A policy text and the name people know it by (a path, or `<policy>`)."""

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Span:
    """Half-open range of characters of a source."""

    source: Source = field(repr=False)
    start: int
    end: int

    def where(self) -> tuple[int, int]:
        """Line and column of the start, both counted from 1."""
        line = self.source.text.count("\n", 0, self.start) + 1
        return line, self.start - (self.source.text.rfind("\n", 0, self.start) + 1) + 1

    def excerpt(self, width: int = 120) -> str:
        """The line of the start with carets under the span; long lines are cut around it."""
        line, column = self.where()
        lines = self.source.text.split("\n")
        text = lines[line - 1].rstrip("\r") if line <= len(lines) else ""
        first = max(0, column - 1 - width // 2)
        shown = "".join(c if c.isprintable() else " " for c in text[first : first + width])
        carets = max(1, min(self.end - self.start, len(shown) - (column - 1 - first)))
        return f"{line:>4} | {shown}\n     | {' ' * (column - 1 - first)}{'^' * carets}"


@dataclass(frozen=True)
class Diagnostic:
    """One problem. `line()` is what a pipe sees, `render()` what a person sees."""

    code: str
    message: str
    span: Span | None = None
    notes: tuple[str, ...] = ()
    help: str | None = None
    severity: Severity = "error"

    def line(self) -> str:
        text = f"{self.severity}[{self.code}]: {self.message}"
        if self.help:
            text += f" ({self.help})"
        if self.span is None:
            return text
        line, column = self.span.where()
        return f"{self.span.source.name}:{line}:{column}: {text}"

    def render(self) -> str:
        text = f"{self.severity}[{self.code}]: {self.message}"
        parts = [text]
        if self.span is not None:
            line, column = self.span.where()
            parts = [f"{self.span.source.name}:{line}:{column}: {text}", self.span.excerpt()]
        parts += [f"     = note: {note}" for note in self.notes]
        if self.help:
            parts.append(f"     = help: {self.help}")
        return "\n".join(parts)


class PolicyError(TersorError):
    """Every problem found at one stage, in source order; never just the first."""

    def __init__(self, diagnostics: Iterable[Diagnostic], exit_code: int = 2) -> None:
        self.diagnostics = tuple(diagnostics)
        self.exit_code = exit_code
        super().__init__("\n\n".join(d.render() for d in self.diagnostics))


class BudgetError(PolicyError):
    """No plan holds every budget; the message says what comes nearest. `result` is the best that was found, as
    `tersor.compile` gives it back; None where nothing was carried out."""

    def __init__(self, diagnostics: Iterable[Diagnostic], result: Any = None) -> None:
        super().__init__(diagnostics, exit_code=3)
        self.result = result


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The help line for a misspelt name, or None when nothing known is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else None
