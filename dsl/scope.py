"""Selectors: names resolved, properties and patterns checked, size bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import cast

from tersor.compiler.diagnostics import Span
from tersor.compiler.policy import (
    PROPERTIES,
    STRUCTURAL_KINDS,
    TEXT_PROPERTIES,
    And,
    Everything,
    InPath,
    Named,
    Not,
    OfKind,
    OfRole,
    Operator,
    Or,
    Selector,
    Value,
    Where,
)
from tersor.compiler.site import KINDS
from tersor.dsl import syntax, units
from tersor.dsl.problems import Problems, listed, place, shown

ALL_KINDS = (*KINDS, *STRUCTURAL_KINDS)
KIND_NAMES = {**{kind: kind for kind in ALL_KINDS}, "layer": "layers"}
# With every `let` written out. The bounds keep each walk over a selector short, whatever a policy holds.
MOST_PARTS = 1000
DEEPEST = 150


@dataclass(frozen=True)
class Measured:
    """A selector with its number of parts and its depth, every `let` written out; no selector where it was wrong."""

    selector: Selector | None
    parts: int = 1
    depth: int = 1


class Scope:
    """The `let` names of a policy, and what can be selected with them so far."""

    def __init__(self, lets: list[syntax.Let], problems: Problems) -> None:
        self.problems = problems
        self.known: dict[str, Measured] = {}
        self.places: dict[str, Span] = {}
        self.later: dict[str, syntax.Let] = {}
        for let in lets:
            self.later.setdefault(let.name.text, let)

    def define(self, let: syntax.Let) -> tuple[str, Selector] | None:
        """Takes up a `let`; None when it is wrong (reported), its name then stands for nothing without another
        report."""
        name = let.name.text
        if name in KIND_NAMES:
            self.problems.add("E112", f"`{name}` is a kind and cannot be given another meaning", let.name.span)
            return None
        if name in self.known:
            note = f"first at {place(self.places[name])}"
            self.problems.add("E112", f"`{name}` is defined twice", let.name.span, notes=(note,))
            return None
        if "." in name:
            self.problems.add("E112", "a `let` name has no dots", let.name.span)
        measured = self.measure(let.selector, inside=name)
        self.later.pop(name, None)
        self.known[name] = measured
        self.places[name] = let.name.span
        return None if measured.selector is None else (name, measured.selector)

    def select(self, selector: syntax.Selector) -> Selector | None:
        """The meaning of a selector of a rule, or None with every reason reported."""
        return self.measure(selector).selector

    def measure(self, selector: syntax.Selector, inside: str | None = None) -> Measured:
        measured = self._check(selector, inside)
        if measured.parts > MOST_PARTS or measured.depth > DEEPEST:
            message = f"the selector has more than {MOST_PARTS} parts, or more than {DEEPEST} after one another"
            self.problems.add("E126", message, selector.span, help="select by `role` or a path pattern instead")
            return Measured(None)
        return measured

    def _check(self, selector: syntax.Selector, inside: str | None) -> Measured:
        match selector:
            case syntax.Everything(span):
                return Measured(Everything(span))
            case syntax.Named(name, _):
                return self._named(name, inside)
            case syntax.Role(glob, span):
                return Measured(OfRole(glob, span) if self._glob(glob, span) else None)
            case syntax.Path(glob, span):
                return Measured(InPath(glob, span) if self._glob(glob, span) else None)
            case syntax.Where():
                return Measured(self._where(selector))
            case syntax.Negation(part, span):
                inner = self._check(part, inside)
                whole = None if inner.selector is None else Not(inner.selector, span)
                return Measured(whole, inner.parts, inner.depth + 1)
            case syntax.Both(parts, span):
                return self._join(And, [self._check(p, inside) for p in parts], span)
            case syntax.Either(parts, span):
                return self._join(Or, [self._check(p, inside) for p in parts], span)

    def _join(self, join: type[And] | type[Or], parts: list[Measured], span: Span) -> Measured:
        size = sum(p.parts for p in parts)
        depth = max(p.depth + len(parts) - max(i, 1) for i, p in enumerate(parts))
        selectors = [p.selector for p in parts if p.selector is not None]
        if len(selectors) < len(parts):
            return Measured(None, size, depth)

        def joined(left: Selector, right: Selector) -> Selector:
            end = right.span.end if right.span else span.end
            return join(left, right, Span(span.source, span.start, end))

        return Measured(reduce(joined, selectors), size, depth)

    def _named(self, word: syntax.Word, inside: str | None) -> Measured:
        name = word.text
        if name in KIND_NAMES:
            return Measured(OfKind(KIND_NAMES[name], word.span))
        if name in self.known:
            known = self.known[name]
            selector = None if known.selector is None else Named(name, known.selector, word.span)
            return Measured(selector, known.parts, known.depth + 1)
        if name in self.later:
            self._too_early(word, inside)
        else:
            names = [*KIND_NAMES, "all", *self.known, *self.later]
            help = self.problems.suggest(name, names, f"kinds are {listed(ALL_KINDS)}")
            if "." in name:
                help = f'a role is written `role {shown(name)}`, a path `in "{shown(name)}"`'
            self.problems.add("E111", f"there is no kind and no `let` named `{shown(name)}`", word.span, help=help)
        return Measured(None)

    def _too_early(self, word: syntax.Word, inside: str | None) -> None:
        circle = self._circle(word.text, inside) if inside and not self.problems.full else None
        if circle:
            message = f"`{inside}` refers to itself: {' -> '.join(circle)}"
            self.problems.add("E113", message, word.span, help="a `let` uses only what stands before it")
        else:
            where = place(self.later[word.text].name.span)
            message = f"`{word.text}` is used before it is defined"
            self.problems.add("E113", message, word.span, notes=(f"defined at {where}",), help="move its `let` up")

    def _circle(self, first: str, goal: str) -> list[str] | None:
        """The way from `goal` over `first` back to `goal` through the `let`s still to come, or None."""
        ways = {first: [goal, first]}
        queue = [first]
        for name in queue:
            if len(queue) > 50:  # nobody reads a circle that long
                return None
            if name == goal:
                return ways[name]
            for used in names_in(self.later[name].selector) if name in self.later else ():
                if used not in ways:
                    ways[used] = [*ways[name], used]
                    queue.append(used)
        return None

    def _glob(self, glob: str, span: Span) -> bool:
        if all(glob.split(".")):
            return True
        message = "the pattern is empty" if not glob else "the pattern has an empty segment"
        self.problems.add("E127", message, span, help="segments are joined by single dots: `encoder.layer.0.**`")
        return False

    def _where(self, where: syntax.Where) -> Selector | None:
        subject = where.subject.text
        if subject not in PROPERTIES:
            help = self.problems.suggest(subject, PROPERTIES, f"properties are {listed(list(PROPERTIES))}")
            self.problems.add("E114", f"sites have no property `{shown(subject)}`", where.subject.span, help=help)
            return None
        textual = subject in TEXT_PROPERTIES
        operand = where.operand
        if textual and not isinstance(operand, syntax.Number):
            if where.operator in ("==", "!="):
                return Where(subject, cast(Operator, where.operator), operand.text, where.span)
            message = f"`{subject}` is a name: it is equal or it is not"
            help = f'use `==` or `!=`, or a pattern: `{"in" if subject == "path" else "role"} "..."`'
            self.problems.add("E115", message, where.span, help=help)
            return None
        if textual or not isinstance(operand, syntax.Number):
            wanted = 'a name, such as `"linear"`' if textual else "a number"
            self.problems.add("E115", f"`{subject}` is compared with {wanted}", operand.span)
            return None
        value = self._amount(subject, operand)
        return None if value is None else Where(subject, cast(Operator, where.operator), value, where.span)

    def _amount(self, subject: str, number: syntax.Number) -> Value | None:
        unit = number.unit
        if unit is None:
            return number.value
        if subject != "bytes" or unit.text not in units.BYTES:
            self.problems.add("E117", f"`{subject}` is not measured in `{unit.text}`", unit.span)
            return None
        value = units.read(number.digits, units.UNITS["bytes"][unit.text])
        return int(value) if value.is_integer() else value


def names_in(selector: syntax.Selector) -> Iterator[str]:
    """Every bare name in a selector."""
    waiting: list[syntax.Selector] = [selector]
    while waiting:
        match waiting.pop():
            case syntax.Named(name, _):
                yield name.text
            case syntax.Both(parts, _) | syntax.Either(parts, _):
                waiting.extend(parts)
            case syntax.Negation(part, _):
                waiting.append(part)
            case _:
                pass
