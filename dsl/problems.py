"""The problems of one stage, collected and then raised together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from tersor.compiler.diagnostics import Diagnostic, PolicyError, Span, did_you_mean

MOST_SHOWN = 50


class Problems:
    """Collects diagnostics; `raise_any` raises them in source order, at most `MOST_SHOWN` of them."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    @property
    def full(self) -> bool:
        """Whether there are more problems than will be shown, so that looking for a good hint is time wasted."""
        return len(self.found) >= MOST_SHOWN

    def add(
        self, code: str, message: str, span: Span | None, *, help: str | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        self.found.append(Diagnostic(code, message, span, notes, help))

    def suggest(self, word: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
        """The help line for a misspelt name. None for what will not be shown."""
        if self.full:
            return None
        return did_you_mean(word[:60], islice(known, 500)) or otherwise

    def raise_any(self) -> None:
        if not self.found:
            return
        shown = sorted(self.found, key=lambda d: (-1, 0) if d.span is None else (d.span.start, d.span.end))
        if len(shown) > MOST_SHOWN:
            rest = f"{len(shown) - MOST_SHOWN} more problems are not shown"
            last = shown[MOST_SHOWN - 1]
            shown = [*shown[: MOST_SHOWN - 1], replace(last, notes=(*last.notes, rest))]
        raise PolicyError(shown)


def listed(words: tuple[str, ...] | list[str]) -> str:
    """`a`, `b` or `c`, for help lines."""
    quoted = [f"`{w}`" for w in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def place(span: Span) -> str:
    """`line 3, column 5`, for notes that point at a second place."""
    line, column = span.where()
    return f"line {line}, column {column}"


def shown(word: str) -> str:
    """A name for a message; a very long one is cut."""
    return word if len(word) <= 40 else f"{word[:40]}..."
