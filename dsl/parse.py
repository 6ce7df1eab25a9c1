"""Policy text to statements, or to every syntax error.

Statements are parsed one by one, so that a mistake in one hides none in the next.
"""

from __future__ import annotations

from lark import Token
from lark.exceptions import UnexpectedToken
from lark.parsers.lalr_interactive_parser import InteractiveParser

from tersor.compiler.diagnostics import Source, Span
from tersor.dsl import syntax
from tersor.dsl.build import Build
from tersor.dsl.problems import Problems, listed, place, shown
from tersor.dsl.tokens import CLOSING, GRAMMAR, OPENING, STATEMENTS, end_of, nearly, span_of, split, tokenise

WORDS = {
    "WORD": "a name",
    "STRING": "a quoted text",
    "NUMBER": "a number",
    "UNIT": "a unit",
    "PERCENT": "`%`",
    "COMPARE": "a comparison such as `<=`",
    "GLOB": "a pattern such as `attention.*`",
    "EQUAL": "`=`",
    "COMMA": "`,`",
    "DOTS": "`..`",
    "PLUS": "`+`",
    "STAR": "`*`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "$END": "the end of the statement",
}
# Words that join what stands outside a bracket: met inside one that could end here, the bracket was forgotten.
JOINING = {"AND", "OR", "THEN", "CHOOSE"}
# What a long list of expected tokens is called when it stands for one idea.
IDEAS = (
    ("a selector", {"WORD", "ALL", "ROLE", "IN", "WHERE", "NOT", "LPAR"}),
    ("a value", {"WORD", "ALL", "NUMBER", "STRING", "LBRACE"}),
    ("a value", {"WORD", "ALL", "NUMBER", "STRING"}),
    ("a name", {"WORD", "UNIT", "KEEP", "STEP", "ROLE", "ALL", "AT", "LOSS", "TEACHER", "BUDGET"}),
)


def parse_statements(source: Source) -> tuple[syntax.Statement, ...]:
    """The statements of a policy, in order. Raises `PolicyError` with every syntax error (E0xx)."""
    problems = Problems()
    tokens = tokenise(source, problems)
    if any(d.code in ("E006", "E012") for d in problems.found):
        problems.raise_any()
    statements = []
    for chunk in split(tokens):
        if chunk.sound:
            statement = _parse(source, chunk.tokens, problems)
            if statement is not None:
                statements.append(statement)
    problems.raise_any()
    return tuple(statements)


def _parse(source: Source, tokens: tuple[Token, ...], problems: Problems) -> syntax.Statement | None:
    if str(tokens[0]) not in STATEMENTS:
        near = nearly(tokens[0], cutoff=0.6)
        hint = f"did you mean `{near}`?" if near else f"statements start with {listed(STATEMENTS)}"
        problems.add("E007", f"no statement starts with `{shown(tokens[0])}`", span_of(source, tokens[0]), help=hint)
        return None
    parser = GRAMMAR.parse_interactive(start="statement")
    opened: list[Token] = []
    previous: Token | None = None
    for token in tokens:
        try:
            parser.feed_token(token)
        except UnexpectedToken:
            _report(source, token, previous, opened, _accepts(parser), problems)
            return None
        if token.type in OPENING:
            opened.append(token)
        elif token.type in CLOSING and opened:
            opened.pop()
        previous = token
    try:
        tree = parser.feed_token(Token.new_borrow_pos("$END", "", tokens[-1]))
    except UnexpectedToken:
        _report(source, None, previous, opened, _accepts(parser), problems)
        return None
    statement: syntax.Statement = Build(source).transform(tree)
    return statement


def _accepts(parser: InteractiveParser) -> set[str]:
    """The types of the tokens that could have come next."""
    return set(parser.accepts())  # type: ignore[no-untyped-call]  # lark leaves it untyped


def _report(
    source: Source,
    token: Token | None,
    previous: Token | None,
    opened: list[Token],
    accepts: set[str],
    problems: Problems,
) -> None:
    """Says what is wrong at `token` (None: the statement ended) after `previous`."""
    after = Span(source, end_of(previous), end_of(previous) + 1) if previous is not None else None
    closer = OPENING[opened[-1].type] if opened else None
    if closer and (token is None or token.type in CLOSING or (token.type in JOINING and accepts & set(CLOSING))):
        note = f"`{opened[-1]}` was opened at {place(span_of(source, opened[-1]))}"
        problems.add("E005", f"missing `{closer}`", after, notes=(note,))
    elif token is None:
        problems.add("E001", "the statement is not complete", after, help=_expected(accepts))
    elif token.type in CLOSING and not opened:
        problems.add("E005", f"`{token}` closes nothing", span_of(source, token))
    elif str(token) in STATEMENTS and "$END" in accepts:
        problems.add("E008", f"`{token}` starts a statement and stands on a line of its own", span_of(source, token))
    else:
        help = _confused(token, accepts, opened) or _expected(accepts)
        problems.add("E001", f"did not expect `{shown(token)}` here", span_of(source, token), help=help)


def _confused(token: Token, accepts: set[str], opened: list[Token]) -> str | None:
    """The help for what is easily confused."""
    if token.type == "EQUAL" and opened and "WHERE" in accepts:
        return "methods stand behind `choose`"
    if token.type == "EQUAL" and "COMPARE" in accepts:
        return "`=` gives a value; compare with `==`, `<=` or `>=`"
    if token.type == "COMPARE" and "EQUAL" in accepts:
        return "a value is given with `=`"
    if token.type == "COMPARE":
        return "a comparison starts with `where`" if "WHERE" in accepts else None
    return None


def _expected(accepts: set[str]) -> str | None:
    rest, named = set(accepts), []
    for idea, members in IDEAS:
        if members <= rest:
            named.append(idea)
            rest -= members
    named += [WORDS.get(t, f"`{t.lower()}`") for t in sorted(rest, key=lambda t: (t == "$END", t))]
    return f"expected {', '.join(named[:-1])}{' or ' if len(named) > 1 else ''}{named[-1]}" if named else None
