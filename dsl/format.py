"""`tersor fmt`: one layout for every policy. It moves spaces and line ends only, so that meaning and comments stay.

A statement takes one line where it fits, otherwise a line for each option (or each `or` of a selector). A `recover`
block takes a line for each item. At most one blank line is kept between statements, none inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lark import Token

from tersor.compiler.diagnostics import Source
from tersor.dsl import syntax
from tersor.dsl.parse import parse_statements
from tersor.dsl.problems import Problems
from tersor.dsl.tokens import CLOSING, OPENING, end_of, first_on_line, start_of, tokenise

WIDTH = 100
INDENT = "  "
TIGHT_BEFORE = {"COMMA", "RPAR", "RBRACE", "PERCENT", "DOTS"}
TIGHT_AFTER = {"LPAR", "LBRACE", "DOTS"}


@dataclass
class Part:
    """One token of a statement with the comments that belong to it."""

    token: Token
    above: list[str] = field(default_factory=list)
    beside: str | None = None


def format_policy(text: str, name: str = "<policy>") -> str:
    """The canonical layout of a policy text; formatting twice changes nothing more. Raises `PolicyError` (E0xx) for a
    text that does not parse; names and values are not looked at."""
    source = Source(name, text)
    statements = {s.span.start: s for s in parse_statements(source)}
    tokens = tokenise(source, Problems())
    lines: list[str] = []
    done = 0
    while done < len(tokens):
        token = tokens[done]
        previous = tokens[done - 1] if done else None
        if previous is not None and (token.line or 0) > (previous.end_line or 0) + 1:
            lines.append("")
        if token.type == "COMMENT":
            if first_on_line(token, previous):
                lines.append(token.rstrip())
            else:
                lines[-1] += f"  {token.rstrip()}"
            done += 1
        else:
            statement = statements[start_of(token)]
            parts, done = _gather(tokens, done, statement.span.end)
            lines += _print(parts, _breaks(statement, parts), isinstance(statement, syntax.Recover))
    return "".join(f"{line}\n" for line in lines)


def _gather(tokens: Sequence[Token], first: int, end: int) -> tuple[list[Part], int]:
    """The parts of the statement that starts at token `first` and ends at character `end`, and the index behind it."""
    parts: list[Part] = []
    above: list[str] = []
    for i in range(first, len(tokens)):
        token = tokens[i]
        if token.type != "COMMENT":
            parts.append(Part(token, above))
            above = []
        elif first_on_line(token, tokens[i - 1]):
            above.append(token.rstrip())
        else:
            parts[-1].beside = token.rstrip()
        if end_of(token) >= end:
            return parts, i + 1
    return parts, len(tokens)


def _breaks(statement: syntax.Statement, parts: list[Part]) -> dict[int, int]:
    """The parts that start a line, each with how far it is indented."""
    if isinstance(statement, syntax.Recover):
        items = {item.span.start for item in statement.items}
        starts = [i for i, part in enumerate(parts) if start_of(part.token) in items]
        return _cut(parts, starts, len(parts) - 1) | {len(parts) - 1: 0}
    if len(_flat(parts, calls=False)) <= WIDTH:
        return {}
    return _cut(parts, list(_joints(parts)), len(parts))


def _cut(parts: list[Part], starts: list[int], end: int) -> dict[int, int]:
    """Lines that begin at `starts`; what is too long for one line goes on in the next at each `then` and `+`."""
    breaks = dict.fromkeys(starts, 1)
    for first, behind in pairwise([*starts, end]):
        if len(_flat(parts[first:behind], calls=True)) > WIDTH - len(INDENT):
            breaks |= {i: 2 for i in range(first, behind) if parts[i].token.type in ("THEN", "PLUS")}
    return breaks


def _joints(parts: list[Part]) -> Iterator[int]:
    """Where a long statement is cut: at `choose` and each `or` between options; without a choice, at each `or`."""
    chosen = not any(part.token.type == "CHOOSE" for part in parts)
    depth = 0
    for i, part in enumerate(parts):
        kind = part.token.type
        depth += (kind in OPENING) - (kind in CLOSING)
        chosen = chosen or kind == "CHOOSE"
        if kind == "CHOOSE" or (kind == "OR" and chosen and depth == 0):
            yield i


def _flat(parts: list[Part], calls: bool) -> str:
    return "".join(_print([Part(part.token) for part in parts], {}, calls))


def _print(parts: list[Part], breaks: dict[int, int], calls: bool) -> list[str]:
    """The lines of a statement. A comment ends its line, whatever stands behind it goes on in the next."""
    lines = [str(parts[0].token)]
    goes_on = 2 if calls else 1
    for i, (previous, part) in enumerate(pairwise(parts), start=1):
        if previous.beside is not None:
            lines[-1] += f"  {previous.beside}"
        if i in breaks or part.above or previous.beside is not None:
            level = breaks.get(i, goes_on)
            lines += [INDENT * max(level, 1) + comment for comment in part.above]
            lines.append(INDENT * level + part.token)
        else:
            lines[-1] += _gap(previous.token, part.token, calls) + part.token
        calls = calls or part.token.type == "CHOOSE"
    return lines


def _gap(left: Token, right: Token, calls: bool) -> str:
    """What stands between two tokens of a line. `calls` tells `uniform(...)` from `linear (role a or role b)`."""
    tight = right.type in TIGHT_BEFORE or left.type in TIGHT_AFTER or (calls and right.type == "LPAR")
    return "" if tight else " "
