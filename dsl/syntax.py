"""The syntax tree of a policy: what was written, part by part, each with its place."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.compiler.diagnostics import Span


@dataclass(frozen=True)
class Word:
    """A bare name: `linear`, `row`, `quant.uniform`."""

    text: str
    span: Span


@dataclass(frozen=True)
class Text:
    """A quoted text, escapes resolved."""

    text: str
    span: Span


@dataclass(frozen=True)
class Number:
    """A number as written; `unit` is what stood behind it, `%` included."""

    digits: str
    unit: Word | None
    span: Span

    @property
    def value(self) -> int | float:
        return float(self.digits) if any(c in self.digits for c in ".eE") else int(self.digits)


@dataclass(frozen=True)
class Call:
    """A value that takes values: `every(2)`."""

    name: Word
    arguments: tuple[Point, ...]
    span: Span


Point = Word | Text | Number | Call


@dataclass(frozen=True)
class Set:
    points: tuple[Point, ...]
    span: Span


@dataclass(frozen=True)
class Range:
    low: Number
    high: Number
    step: Number | None
    span: Span


Space = Word | Text | Number | Call | Set | Range


@dataclass(frozen=True)
class Argument:
    name: Word
    space: Space


@dataclass(frozen=True)
class Use:
    method: Word
    arguments: tuple[Argument, ...]
    span: Span


@dataclass(frozen=True)
class Option:
    uses: tuple[Use, ...]
    span: Span


# --- selectors


@dataclass(frozen=True)
class Named:
    """A kind, or a name given by `let`."""

    name: Word
    span: Span


@dataclass(frozen=True)
class Everything:
    span: Span


@dataclass(frozen=True)
class Role:
    glob: str
    span: Span


@dataclass(frozen=True)
class Path:
    glob: str
    span: Span


@dataclass(frozen=True)
class Where:
    subject: Word
    operator: str
    operand: Word | Text | Number
    span: Span


@dataclass(frozen=True)
class Both:
    """Two or more parts joined by `and`, or by nothing."""

    parts: tuple[Selector, ...]
    span: Span


@dataclass(frozen=True)
class Either:
    parts: tuple[Selector, ...]
    span: Span


@dataclass(frozen=True)
class Negation:
    part: Selector
    span: Span


Selector = Named | Everything | Role | Path | Where | Both | Either | Negation


# --- statements


@dataclass(frozen=True)
class Budget:
    quantity: Word
    metric: Text | None
    operator: Word
    limit: Number
    at: tuple[tuple[Word, Number], ...]
    span: Span


@dataclass(frozen=True)
class Objective:
    direction: Word
    quantity: Word
    metric: Text | None
    span: Span


@dataclass(frozen=True)
class Let:
    name: Word
    selector: Selector
    span: Span


@dataclass(frozen=True)
class Rule:
    """`for ... choose ...`; without options, `keep ...`."""

    selector: Selector
    options: tuple[Option, ...]
    span: Span


@dataclass(frozen=True)
class Teacher:
    name: Word | Text
    span: Span


@dataclass(frozen=True)
class Term:
    weight: Number | None
    use: Use


@dataclass(frozen=True)
class Loss:
    terms: tuple[Term, ...]
    span: Span


@dataclass(frozen=True)
class Setting:
    name: Word
    value: Point
    span: Span


@dataclass(frozen=True)
class Recover:
    items: tuple[Teacher | Loss | Setting, ...]
    span: Span


Statement = Budget | Objective | Let | Rule | Recover
