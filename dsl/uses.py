"""Uses of methods: names resolved, parameters known, every value and point taken by the method's pydantic model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tersor.compiler.diagnostics import Span
from tersor.compiler.policy import One, OneOf, Option, Point, Range, Share, Space, Use, Value, expand
from tersor.dsl import syntax, units
from tersor.dsl.names import Methods, resolve
from tersor.dsl.problems import Problems, listed, place
from tersor.dsl.spaces import calls_in, count, placed, space_of

MOST_POINTS = 100_000
MOST_CHECKED_TOGETHER = 4096
# pydantic's kinds of error in our words; `{...}` are the error's own context.
SENTENCES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "`true` or `false`",
    "string_type": "a name",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
}


def check_option(
    option: syntax.Option, methods: Methods, catalogue: Collection[str], problems: Problems
) -> Option | None:
    """The meaning of an option, or None with every reason reported."""
    uses = [check_use(use, methods, catalogue, problems) for use in option.uses]
    sound = tuple(use for use in uses if use is not None)
    if len(sound) < len(uses) or too_many(
        [space for use in sound for _, space in use.arguments], option.span, problems
    ):
        return None
    return Option(sound, option.span)


def too_many(spaces: Iterable[Space], span: Span, problems: Problems) -> bool:
    """Reports a search space that nobody can search (E108)."""
    points = prod(map(count, spaces))
    if points <= MOST_POINTS:
        return False
    message = f"{points:,} points are too many to try" if points < 10**12 else "these are too many points to try"
    problems.add("E108", message, span, help=f"at most {MOST_POINTS:,}: use sets, or ranges with a larger step")
    return True


def check_use(use: syntax.Use, methods: Methods, catalogue: Collection[str], problems: Problems) -> Use | None:
    """The meaning of one use of a method, or None with every reason reported (E101-E109, E128, E129)."""
    before = len(problems.found)
    identifier = resolve(use.method, methods, catalogue, problems)
    written = arguments_of(use, problems)
    if identifier is None:
        return None
    spaces = {a.name.text: space_of(a.space, problems) for a in written}
    for argument in written:
        for call in calls_in(argument.space):
            problems.add("E129", f"`{call.name.text}(...)` cannot stand here: a plain value is wanted", call.span)
            spaces[argument.name.text] = None
    model: type[BaseModel] = methods[identifier].Params
    _check_names(use, written, model, problems)
    sound = {name: space for name, space in spaces.items() if space is not None}
    if too_many(sound.values(), use.span, problems):
        return None
    known = [a for a in written if a.name.text in sound and a.name.text in model.model_fields]
    _check_values(use.method.text, known, sound, model, problems)
    if len(sound) < len(use.arguments) or len(problems.found) > before:
        return None
    if prod(map(count, sound.values())) <= MOST_CHECKED_TOGETHER and not _check_points(use, sound, model, problems):
        return None
    return Use(identifier, tuple(sound.items()), use.span)


def arguments_of(use: syntax.Use, problems: Problems) -> list[syntax.Argument]:
    """The arguments of a use, each name once (E107)."""
    seen: dict[str, syntax.Argument] = {}
    for argument in use.arguments:
        first = seen.setdefault(argument.name.text, argument)
        if first is not argument:
            note = f"first at {place(first.name.span)}"
            problems.add("E107", f"`{argument.name.text}` is given twice", argument.name.span, notes=(note,))
    return list(seen.values())


def _check_names(use: syntax.Use, written: list[syntax.Argument], model: type[BaseModel], problems: Problems) -> None:
    fields: dict[str, FieldInfo] = model.model_fields
    method = use.method.text
    for argument in written:
        if argument.name.text not in fields:
            takes = f"it takes {listed(list(fields))}" if fields else "it takes no parameters"
            help = problems.suggest(argument.name.text, fields, takes)
            problems.add("E104", f"`{method}` takes no `{argument.name.text}`", argument.name.span, help=help)
    given = {argument.name.text for argument in written}
    for name, field in fields.items():
        if field.is_required() and name not in given:
            problems.add("E105", f"`{method}` needs `{name}`", use.span, help=f"write `{method}({name} = ...)`")


def _check_values(
    method: str,
    arguments: list[syntax.Argument],
    spaces: dict[str, Space],
    model: type[BaseModel],
    problems: Problems,
) -> None:
    """Each value by itself, the other parameters at their first value. Reports one wrong value a place."""
    first = {name: expand(space)[0] for name, space in spaces.items()}
    for argument in arguments:
        name = argument.name.text
        reported: set[Span] = set()
        for value, span in placed(argument.space, spaces[name]):
            errors = [e for e in _errors(model, {**first, name: value}) if e["loc"][:1] == (name,)]
            if errors and span not in reported:
                reported.add(span)
                in_range = isinstance(argument.space, syntax.Range)
                notes = (f"the range holds {written(value, spaces[name])}",) if in_range else ()
                problems.add("E106", f"`{name}` of `{method}`{_sentence(errors)}", span, notes=notes)


def _check_points(use: syntax.Use, spaces: dict[str, Space], model: type[BaseModel], problems: Problems) -> bool:
    """All values together; reports the first point that the method does not take."""
    for point in _points(spaces):
        errors = _errors(model, point)
        if errors:
            text = ", ".join(f"{name} = {written(value, spaces[name])}" for name, value in point.items())
            problems.add("E128", f"`{use.method.text}({text})`{_sentence(errors)}", use.span)
            return False
    return True


def _points(spaces: dict[str, Space]) -> Iterator[dict[str, Value]]:
    for values in product(*(expand(space) for space in spaces.values())):
        yield dict(zip(spaces, values, strict=True))


def _errors(model: type[BaseModel], values: dict[str, Value]) -> list[ErrorDetails]:
    """What pydantic has against a point. Strict, so that no value is quietly turned into another."""
    try:
        model.model_validate(values, strict=True)
    except ValidationError as e:
        return e.errors(include_url=False)
    return []


def _sentence(errors: list[ErrorDetails]) -> str:
    """What follows the name of a parameter: all errors of a value in one (a union of types gives several)."""
    wanted: list[str] = []
    for error in errors:
        context: dict[str, Any] = error.get("ctx", {})
        if error["type"] in ("value_error", "assertion_error"):
            return f": {context['error']}"
        sentence = SENTENCES.get(error["type"])
        unknown = error["msg"][:1].lower() + error["msg"][1:]
        wanted.append(sentence.format(**context).replace("'", "`") if sentence else unknown)
    kinds = [w for w in dict.fromkeys(wanted) if not (w == "a whole number" and "a number" in wanted)]
    return f" must be {' or '.join(kinds)}"


def written(value: Value, space: Space) -> str:
    """A value of a space for a message: in per cent where the space was."""
    match space:
        case One(point):
            points: tuple[Point, ...] = (point,)
        case OneOf(points):
            pass
        case Range(low, _, _):
            points = (low,)
    if isinstance(value, float) and any(isinstance(p, Share) for p in points):
        return units.write_percent(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
