"""Spaces of parameter values: their meaning, their size, and the place each of their values was written at."""

from __future__ import annotations

from tersor.compiler.diagnostics import Span
from tersor.compiler.policy import Call, One, OneOf, Point, Range, Share, Space, Value, expand
from tersor.dsl import syntax, units
from tersor.dsl.problems import Problems


def point_of(point: syntax.Point) -> Point:
    """What a single value means: a number, a share, a text, a truth value, or a call."""
    match point:
        case syntax.Word("true" | "false" as text, _):
            return text == "true"
        case syntax.Word(text, _) | syntax.Text(text, _):
            return text
        case syntax.Number():
            return bound_of(point)
        case syntax.Call(name, arguments, _):
            return Call(name.text, tuple(point_of(a) for a in arguments))


def bound_of(number: syntax.Number) -> int | float | Share:
    return number.value if number.unit is None else Share(units.read_percent(number.digits))


def space_of(space: syntax.Space, problems: Problems) -> Space | None:
    """What a space means, or None with the reason reported (E109, E110)."""
    match space:
        case syntax.Set(points, _):
            return _set(points, problems)
        case syntax.Range():
            return _range(space, problems)
        case _:
            return One(point_of(space))


def _set(points: tuple[syntax.Point, ...], problems: Problems) -> Space | None:
    values = tuple(point_of(p) for p in points)
    seen: set[tuple[type, Point]] = set()
    for written, value in zip(points, values, strict=True):
        if (type(value), value) in seen:
            problems.add("E110", "this value stands in the set already", written.span)
            return None
        seen.add((type(value), value))
    return OneOf(values)


def _range(written: syntax.Range, problems: Problems) -> Space | None:
    low, high = bound_of(written.low), bound_of(written.high)
    step = None if written.step is None else bound_of(written.step)
    if isinstance(low, float) or isinstance(high, float) or isinstance(step, float) or not _alike(low, high, step):
        message = "a range runs over whole numbers, or from per cent to per cent"
        problems.add("E109", message, written.span, help="list other values in a set: `{0.5, 0.75}`")
        return None
    if step is not None and _plain(step) <= 0:
        problems.add("E109", "the step of a range is more than zero", written.span)
    elif _plain(low) > _plain(high):
        problems.add("E109", "the range ends before it starts", written.span, help="write the smaller end first")
    else:
        return Range(low, high, step)
    return None


def _alike(low: int | Share, high: int | Share, step: int | Share | None) -> bool:
    return isinstance(low, Share) == isinstance(high, Share) and (step is None or isinstance(step, type(low)))


def _plain(bound: int | Share) -> float:
    return bound.fraction if isinstance(bound, Share) else bound


def count(space: Space) -> int:
    """How many values `expand(space)` has, without making them."""
    match space:
        case One():
            return 1
        case OneOf(values):
            return len(values)
        case Range(int(low), int(high), step):
            return (high - low) // (step if isinstance(step, int) else 1) + 1
        case Range(low, high, step):
            first, last = _plain(low), _plain(high)
            width = (last - first) / 10 if step is None else _plain(step)
            steps = (last - first) / width if width > 0 else 0.0
            return int(min(steps, 1e9) + 1e-9) + 1


def placed(written: syntax.Space, space: Space) -> list[tuple[Value, Span]]:
    """Every value of a space with the place of its text; all values of a range share one."""
    if isinstance(written, syntax.Set):
        return [(value, p.span) for value, p in zip(expand(space), written.points, strict=True)]
    return [(value, written.span) for value in expand(space)]


def calls_in(written: syntax.Space) -> list[syntax.Call]:
    """The calls among the values of a space."""
    points = written.points if isinstance(written, syntax.Set) else (written,)
    return [p for p in points if isinstance(p, syntax.Call)]
