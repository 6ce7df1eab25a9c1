"""`Policy` to text: `parse_policy(write_policy(p), methods) == p` for every policy the language can say."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tersor.compiler.errors import RequestError
from tersor.compiler.policy import (
    And,
    Budget,
    Call,
    Everything,
    InPath,
    Named,
    Not,
    Objective,
    OfKind,
    OfRole,
    One,
    OneOf,
    Option,
    Or,
    Point,
    Policy,
    Range,
    Recover,
    Rule,
    Selector,
    Share,
    Space,
    Use,
    Where,
)
from tersor.dsl import units
from tersor.dsl.format import format_policy
from tersor.dsl.tokens import GRAMMAR

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")


def write_policy(policy: Policy) -> str:
    """The canonical text of a policy. Methods are written with their full ids. Raises `RequestError` for what has no
    text: a name that is not one, or the use of a `let` that the policy does not hold."""
    defined: set[str] = set()
    lets = []
    for name, selector in policy.lets:
        _check_names(selector, defined)
        lets.append(f"let {_name(name)} = {_selector(selector)}")
        defined.add(name)
    for rule in policy.rules:
        _check_names(rule.selector, defined)
    head = [*map(_budget, policy.budgets), _objective(policy.objective)]
    recover = [] if policy.recover is None else [_recover(policy.recover)]
    sections = (head, lets, [_rule(r) for r in policy.rules], recover)
    return format_policy("\n\n".join("\n".join(lines) for lines in sections if lines))


def _check_names(selector: Selector, defined: set[str]) -> None:
    waiting = [selector]
    while waiting:
        match waiting.pop():
            case Named(name, _) if name not in defined:
                raise RequestError(f"the policy uses `{name}` but holds no `let` of that name before it")
            case And(left, right) | Or(left, right):
                waiting += [left, right]
            case Not(operand):
                waiting.append(operand)
            case _:
                pass


def _name(text: str) -> str:
    if not WORD.fullmatch(text):
        raise RequestError(f"`{text}` cannot be written as a name")
    return text


def _quoted(text: str) -> str:
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _lexes_as(text: str, kinds: Iterable[str]) -> bool:
    """Whether a bare text is one token of one of these kinds."""
    tokens = list(GRAMMAR.lex(text))
    return len(tokens) == 1 and tokens[0] == text and tokens[0].type in kinds


def _objective(objective: Objective) -> str:
    metric = "" if objective.metric is None else f" {_quoted(objective.metric)}"
    return f"{objective.direction} {objective.quantity}{metric}"


def _budget(budget: Budget) -> str:
    metric = "" if budget.metric is None else f" {_quoted(budget.metric)}"
    if budget.share:
        limit = units.write_percent(budget.limit)
    elif budget.quantity == "metric":
        limit = units.plain(budget.limit)
    else:
        limit = units.write(budget.limit, "seconds" if budget.quantity == "latency" else "bytes")
    shape = ", ".join(f"{name} = {value}" for name, value in budget.at)
    operator = ">=" if budget.quantity == "metric" else "<="
    return f"budget {budget.quantity}{metric} {operator} {limit}{f' at {shape}' if shape else ''}"


def _selector(selector: Selector, level: int = 0) -> str:
    """`level` is how tightly the surroundings bind: 0 `or`, 1 `and`, 2 `not`."""
    match selector:
        case Everything():
            return "all"
        case OfKind(kind):
            return _name(kind)
        case Named(name, _):
            return _name(name)
        case OfRole(glob):
            return f"role {glob if _lexes_as(glob, ('WORD', 'GLOB', 'STAR')) else _quoted(glob)}"
        case InPath(glob):
            return f"in {_quoted(glob)}"
        case Where(subject, operator, value):
            if subject == "bytes" and isinstance(value, int) and value > 0:
                written = units.write(value, "bytes")
            else:
                written = _quoted(value) if isinstance(value, str) else repr(value)
            return f"where {subject} {operator} {written}"
        case Not(operand):
            return f"not {_selector(operand, 2)}"
        case And(left, right):
            word = " " if _is_phrase(selector) else " and "
            text = f"{_selector(left, 1)}{word}{_selector(right, 2)}"
            return f"({text})" if level > 1 else text
        case Or(left, right):
            text = f"{_selector(left, 0)} or {_selector(right, 1)}"
            return f"({text})" if level > 0 else text


def _is_phrase(selector: Selector) -> bool:
    """`linear role ffn where out_features < 64`: a noun and what narrows it, read without `and`."""
    while isinstance(selector, And) and isinstance(selector.right, (OfRole, InPath, Where)):
        selector = selector.left
    return isinstance(selector, (Everything, OfKind, Named))


def _rule(rule: Rule) -> str:
    if not rule.options:
        return f"keep {_selector(rule.selector)}"
    return f"for {_selector(rule.selector)} choose {' or '.join(map(_option, rule.options))}"


def _option(option: Option) -> str:
    return " then ".join(map(_use, option.uses))


def _use(use: Use) -> str:
    return f"{_name(use.method)}({', '.join(f'{_name(name)} = {_space(space)}' for name, space in use.arguments)})"


def _space(space: Space) -> str:
    match space:
        case One(value):
            return _point(value)
        case OneOf(values):
            return f"{{{', '.join(map(_point, values))}}}"
        case Range(low, high, step):
            return f"{_point(low)}..{_point(high)}{'' if step is None else f' step {_point(step)}'}"


def _point(point: Point) -> str:
    match point:
        case bool():
            return str(point).lower()
        case int() | float():
            return repr(point)
        case Share(fraction):
            return units.write_percent(fraction)
        case Call(name, arguments):
            return f"{_name(name)}({', '.join(map(_point, arguments))})"
        case str():
            bare = point not in ("true", "false") and _lexes_as(point, ("WORD", "ALL"))
            return point if bare else _quoted(point)


def _recover(recover: Recover) -> str:
    items = []
    if recover.teacher is not None:
        items.append(f"teacher {_point(recover.teacher)}")
    if recover.loss:
        terms = (f"{'' if t.weight == 1 else f'{t.weight!r} * '}{_use(t.use)}" for t in recover.loss)
        items.append(f"loss {' + '.join(terms)}")
    items += [f"{_name(name)} {_point(value)}" for name, value in recover.settings]
    return "\n".join(["recover {", *items, "}"])
