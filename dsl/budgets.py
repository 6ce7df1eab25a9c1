"""Budgets and objectives: quantities, directions, units and input shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from tersor.compiler.policy import Budget, Objective, Quantity
from tersor.dsl import syntax, units
from tersor.dsl.problems import Problems, listed, place


@dataclass(frozen=True)
class Limited:
    """What a budget on one quantity must look like."""

    operator: str
    measure: units.Measure | None
    example: str
    share: str = "20%"


QUANTITIES = {
    "size": Limited("<=", "bytes", "12 MB"),
    "memory": Limited("<=", "bytes", "200 MiB"),
    "latency": Limited("<=", "seconds", "8 ms"),
    "metric": Limited(">=", None, "0.86", "98%"),
}
OBJECTIVES: dict[str, Literal["damage", "size", "latency", "metric"]] = {
    "damage": "damage",
    "size": "size",
    "latency": "latency",
    "metric": "metric",
}
DIMENSIONS = ("batch", "tokens", "threads")
CACHED = "cached"
"""Only for `latency`: tokens whose keys and values are kept already, so that `tokens` more are generated."""
METRIC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def check_budget(budget: syntax.Budget, earlier: list[Budget], problems: Problems) -> Budget | None:
    """The meaning of a budget, or None with every reason reported (E116-E120, E123, E124)."""
    before = len(problems.found)
    name = budget.quantity.text
    if name not in QUANTITIES:
        help = problems.suggest(name, QUANTITIES, f"budgets are on {listed(list(QUANTITIES))}")
        problems.add("E116", f"there is no budget on `{name}`", budget.quantity.span, help=help)
        return None
    limited = QUANTITIES[name]
    if budget.operator.text != limited.operator:
        kind = "a floor" if limited.operator == ">=" else "a ceiling"
        help = f"write `{name} {limited.operator} ...`"
        problems.add("E118", f"the budget on `{name}` is {kind}", budget.operator.span, help=help)
    metric = _metric(budget, problems)
    limit = _limit(budget, limited, problems)
    at = _shape(budget, problems)
    checked = Budget(cast(Quantity, name), limit, _is_share(budget.limit), at, metric, budget.span)
    for other in earlier:
        same = (other.quantity, other.metric, sorted(other.at)) == (checked.quantity, metric, sorted(at))
        if same and other.span is not None:
            note = f"the other one is at {place(other.span)}"
            problems.add("E119", f"there are two budgets on `{name}`", budget.span, notes=(note,), help="keep one")
            break
    return checked if len(problems.found) == before else None


def _is_share(limit: syntax.Number) -> bool:
    return limit.unit is not None and limit.unit.text == "%"


def _metric(budget: syntax.Budget | syntax.Objective, problems: Problems) -> str | None:
    if budget.metric is None:
        return None
    if budget.quantity.text != "metric":
        what = "a budget on" if isinstance(budget, syntax.Budget) else "the objective"
        problems.add("E124", f"{what} `{budget.quantity.text}` names no function", budget.metric.span)
    elif not METRIC.fullmatch(budget.metric.text):
        help = 'such as `"evaluation.retrieval:recall"`'
        problems.add("E124", "a metric is named `package.module:function`", budget.metric.span, help=help)
    return budget.metric.text


def _limit(budget: syntax.Budget, limited: Limited, problems: Problems) -> float:
    """The limit in bytes, seconds, or as a fraction; reports a wrong unit and an impossible number."""
    number, name = budget.limit, budget.quantity.text
    example = f"such as `{limited.example}`, or `{limited.share}` of the original"
    known = {} if limited.measure is None else units.UNITS[limited.measure]
    unit = None if number.unit is None else number.unit.text
    if unit == "%":
        limit = units.read_percent(number.digits)
    elif unit is None:
        if known:
            problems.add("E117", f"the budget on `{name}` needs a unit", number.span, help=example)
        limit = units.read(number.digits)
    elif unit in known:
        limit = units.read(number.digits, known[unit])
    else:
        lower = {u.lower(): u for u in known}
        help = f"did you mean `{lower[unit.lower()]}`?" if unit.lower() in lower else example
        span = number.unit.span if number.unit else number.span
        what = f"`{name}` is not measured in `{unit}`" if known else f"`{name}` has no unit"
        problems.add("E117", what, span, help=help)
        return 1.0
    if limit <= 0 and limited.operator == "<=":
        problems.add("E123", f"`{name}` cannot be that small", number.span, help="the limit is more than 0")
    elif limit == float("inf"):
        problems.add("E123", "the limit is too large", number.span)
    return limit


def _shape(budget: syntax.Budget, problems: Problems) -> tuple[tuple[str, int], ...]:
    """The input shape of `at batch = 1, tokens = 128`."""
    shape: dict[str, int] = {}
    known = (*DIMENSIONS, CACHED) if budget.quantity.text == "latency" else DIMENSIONS
    for name, number in budget.at:
        value = number.value
        if budget.quantity.text in ("size", "metric"):
            problems.add("E120", f"`{budget.quantity.text}` does not depend on an input shape", name.span)
        elif name.text not in known:
            help = problems.suggest(name.text, known, f"an input has {listed(known)}")
            problems.add("E120", f"an input has no `{name.text}`", name.span, help=help)
        elif name.text in shape:
            problems.add("E107", f"`{name.text}` is given twice", name.span)
        elif not isinstance(value, int) or value < 1:
            problems.add("E120", f"`{name.text}` is a whole number from 1", number.span)
        elif name.text == CACHED and _is_share(budget.limit):
            help = "write the milliseconds"
            problems.add("E120", "the original keeps nothing between tokens to take a share of", name.span, help=help)
        else:
            shape[name.text] = value
    return tuple(shape.items())


def check_objective(objective: syntax.Objective, problems: Problems) -> Objective | None:
    """The meaning of `minimize` and `maximize`, or None with the reason reported (E116, E122)."""
    name, direction = objective.quantity.text, objective.direction.text
    if name not in OBJECTIVES:
        help = problems.suggest(name, OBJECTIVES, f"objectives are {listed(list(OBJECTIVES))}")
        problems.add("E116", f"there is no objective `{name}`", objective.quantity.span, help=help)
    elif (direction == "maximize") != (name == "metric"):
        other = "maximize" if direction == "minimize" else "minimize"
        problems.add("E122", f"`{name}` can only be {other}d", objective.span, help=f"write `{other} {name}`")
    else:
        metric = _metric(objective, problems)
        return Objective(OBJECTIVES[name], "maximize" if name == "metric" else "minimize", metric, objective.span)
    return None
