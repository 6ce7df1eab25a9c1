"""Statements to a `Policy`, or to every reason why not (E1xx)."""

from __future__ import annotations

from collections.abc import Collection

from tersor.compiler.diagnostics import Source, Span
from tersor.compiler.policy import Budget, Objective, Policy, Recover, Rule, Selector
from tersor.dsl import syntax
from tersor.dsl.budgets import check_budget, check_objective
from tersor.dsl.names import Methods
from tersor.dsl.problems import Problems, place
from tersor.dsl.recovery import check_recover
from tersor.dsl.scope import Scope
from tersor.dsl.uses import check_option


def check(
    source: Source, statements: tuple[syntax.Statement, ...], methods: Methods, catalogue: Collection[str]
) -> Policy:
    """The meaning of a policy. Raises `PolicyError` with every problem of names and values, in source order."""
    problems = Problems()
    scope = Scope([s for s in statements if isinstance(s, syntax.Let)], problems)
    budgets: list[Budget] = []
    lets: list[tuple[str, Selector]] = []
    rules: list[Rule] = []
    objective: Objective | None = None
    recover: Recover | None = None
    for statement in statements:
        match statement:
            case syntax.Budget():
                budget = check_budget(statement, budgets, problems)
                budgets += [budget] if budget else []
            case syntax.Objective():
                _only_one(objective, "an objective", statement.span, problems)
                objective = objective or check_objective(statement, problems)
            case syntax.Let():
                let = scope.define(statement)
                lets += [let] if let else []
            case syntax.Rule(selector, options, span):
                selected = scope.select(selector)
                checked = [check_option(option, methods, catalogue, problems) for option in options]
                allowed = tuple(option for option in checked if option is not None)
                rules += [Rule(selected, allowed, span)] if selected else []
            case syntax.Recover():
                _only_one(recover, "a `recover`", statement.span, problems)
                recover = recover or check_recover(statement, methods, problems)
    problems.raise_any()
    if not budgets and not rules:
        message = "the policy says nothing: it has no budget and no rule"
        help = "start with `budget size <= 20%` or `for linear choose ...`"
        problems.add("E009", message, Span(source, 0, 0), help=help)
        problems.raise_any()
    return Policy(tuple(budgets), objective or Objective(), tuple(lets), tuple(rules), recover)


def _only_one(first: Objective | Recover | None, what: str, span: Span, problems: Problems) -> None:
    if first is not None and first.span is not None:
        problems.add("E121", f"the policy has {what} already", span, notes=(f"first at {place(first.span)}",))
