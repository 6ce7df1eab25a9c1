"""Policy text to tokens, and tokens to statements.

Everything that can be wrong without looking at the grammar is found here: characters that mean nothing, quotes left
open, escapes, numbers too large, nesting too deep. A statement with such a problem is not parsed, so that one mistake
is reported once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from lark import Lark, Token

from tersor.compiler.diagnostics import Source, Span
from tersor.dsl.problems import Problems

DEEPEST = 64
MOST_TOKENS = 50_000
STATEMENTS = ("budget", "minimize", "maximize", "let", "for", "keep", "recover")
ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}
OPENING = {"LPAR": ")", "LBRACE": "}"}
CLOSING = {"RPAR": "(", "RBRACE": "{"}

GRAMMAR = Lark(
    resources.files("tersor.dsl").joinpath("policy.lark").read_text(encoding="utf-8"),
    parser="lalr",
    lexer="basic",
    start=["statement", "trivia"],
    propagate_positions=True,
    maybe_placeholders=True,
)


@dataclass(frozen=True)
class Chunk:
    """The tokens of one statement, without comments; `sound` when each of them is a token of the language."""

    tokens: tuple[Token, ...]
    sound: bool


def start_of(token: Token) -> int:
    return token.start_pos or 0


def end_of(token: Token) -> int:
    return token.end_pos or 0


def span_of(source: Source, token: Token) -> Span:
    return Span(source, start_of(token), end_of(token))


def first_on_line(token: Token, previous: Token | None) -> bool:
    return previous is None or previous.end_line != token.line


class _Nesting:
    """How deep the tree of a statement will be: open brackets, and the `not`s before each and before the next word."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.depth = self.pending = 0

    def after(self, token: Token) -> int:
        if token.type == "NOT":
            self.pending += 1
        elif token.type in OPENING:
            self.opened.append(self.pending + 1)
            self.depth += self.pending + 1
            self.pending = 0
        else:
            self.pending = 0
            if token.type in CLOSING and self.opened:
                self.depth -= self.opened.pop()
        return self.depth + self.pending


def tokenise(source: Source, problems: Problems) -> list[Token]:
    """Every token, comments included; what makes no sense is reported and left out of none."""
    tokens: list[Token] = []
    nesting = _Nesting()
    for token in GRAMMAR.lex(source.text):
        if len(tokens) == MOST_TOKENS:
            problems.add("E012", f"a policy has at most {MOST_TOKENS:,} words and signs", span_of(source, token))
            break
        first = not tokens or first_on_line(token, tokens[-1])
        if first and str(token) in STATEMENTS:
            nesting = _Nesting()
        if nesting.after(token) > DEEPEST:
            what = f"`{token}` is nested more than {DEEPEST} deep"
            problems.add("E006", what, span_of(source, token), help="name a part of it with `let`")
            break
        tokens.append(token)
    for token in tokens:
        _check_token(source, token, problems)
    return tokens


def _check_token(source: Source, token: Token, problems: Problems) -> None:
    span = span_of(source, token)
    match token.type:
        case "JUNK":
            shown = token[:10] if token[:10].isprintable() else " ".join(f"U+{ord(c):04X}" for c in token[:4])
            problems.add("E002", f"`{shown}` has no meaning here", span, help=_instead(token))
        case "OPEN_STRING":
            problems.add("E003", "the quoted text does not end on its line", span, help='close it with `"`')
        case "STRING":
            for escape in re.finditer(r"\\(.)", token[1:-1]):
                if escape[1] not in ESCAPES:
                    at = span.start + 1 + escape.start()
                    shown = escape[0] if escape[1].isprintable() else f"\\U+{ord(escape[1]):04X}"
                    known = 'escapes are `\\"`, `\\\\`, `\\n` and `\\t`'
                    problems.add("E004", f"there is no escape `{shown}`", Span(source, at, at + 2), help=known)
        case "NUMBER" if len(token) > 40 or not math.isfinite(float(token)):
            problems.add("E013", "the number is too long or too large", span, help="at most 40 digits, below 1e308")


def _instead(junk: str) -> str | None:
    """What was probably meant by a sign of another language."""
    if junk.startswith(("'", "`", "\u2018", "\u201c", "\u201d")):
        return 'texts are quoted with `"`'
    if junk.isalpha():
        return "names are made of the letters a to z, digits and `_`; quote anything else"
    return {
        ";": "a statement ends with its line",
        ":": "write `=` between a parameter and its value",
        "&&": "write `and`",
        "||": "write `or`",
        "!": "write `not`",
        "//": "comments start with `#`",
        "[": "a set is written `{4, 8}`",
        "≤": "write `<=`",
        "≥": "write `>=`",
        ".": "a number starts with a digit, a range has two dots",
    }.get(junk)


def unescape(quoted: str) -> str:
    """The text of a quoted token whose escapes are known to be right."""
    return re.sub(r"\\(.)", lambda m: ESCAPES[m[1]], quoted[1:-1])


def split(tokens: Sequence[Token]) -> list[Chunk]:
    """Tokens to statements. A statement starts at a keyword that is first on its line, or at a word that is first on
    its line outside brackets and either not indented or nearly a keyword (so that a misspelt keyword is not taken for
    more of the statement before it)."""
    words = [t for t in tokens if t.type != "COMMENT"]
    chunks: list[Chunk] = []
    current: list[Token] = []
    depth = 0
    for i, token in enumerate(words):
        named = i + 1 < len(words) and words[i + 1].type == "EQUAL"
        if current and first_on_line(token, words[i - 1]) and not (named and depth > 0) and _starts(token, depth):
            chunks.append(_chunk(current))
            current, depth = [], 0
        depth += (token.type in OPENING) - (token.type in CLOSING)
        current.append(token)
    if current:
        chunks.append(_chunk(current))
    return chunks


def _starts(token: Token, depth: int) -> bool:
    if str(token) in STATEMENTS:
        return True
    return token.type == "WORD" and depth <= 0 and (token.column == 1 or nearly(token) is not None)


def nearly(word: str, cutoff: float = 0.75) -> str | None:
    """The statement keyword that a misspelt word is close to."""
    close = difflib.get_close_matches(word[:20].lower(), STATEMENTS, n=1, cutoff=cutoff)
    return close[0] if close else None


def _chunk(tokens: Iterable[Token]) -> Chunk:
    held = tuple(tokens)
    broken = {"JUNK", "OPEN_STRING"}
    return Chunk(held, not any(t.type in broken or (t.type == "STRING" and _bad_escape(t)) for t in held))


def _bad_escape(token: Token) -> bool:
    return any(m[1] not in ESCAPES for m in re.finditer(r"\\(.)", token[1:-1]))
