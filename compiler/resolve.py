"""Program and policy to options: who may do what where, who cannot, and why (codes E2xx)."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tersor.compiler.candidate import Candidate, Step
from tersor.compiler.diagnostics import Diagnostic, PolicyError, Span
from tersor.compiler.method import Method
from tersor.compiler.policy import (
    And,
    InPath,
    Named,
    Not,
    OfKind,
    OfRole,
    Option,
    Or,
    Policy,
    Rule,
    Selector,
    expand,
    selects,
)
from tersor.compiler.site import Site


@dataclass(frozen=True)
class Refused:
    """A candidate that cannot be used at a site, and why."""

    site: str
    candidate: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What the policy says about one site: `rule` is the index of the rule that decided it (None: no rule names it),
    and without candidates the site stays as it is."""

    site: Site
    rule: int | None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Resolution:
    decisions: tuple[Decision, ...]
    refused: tuple[Refused, ...]


def candidates_of(option: Option, place: tuple[int, int], methods: Mapping[str, Method[Any]]) -> Iterator[Candidate]:
    """Every point of an option, in the order of its spaces."""
    per_use: list[list[Step]] = []
    for use in option.uses:
        method = methods[use.method]
        names = [name for name, _ in use.arguments]
        spaces = [expand(space) for _, space in use.arguments]
        per_use.append([Step(method, method.Params(**dict(zip(names, v, strict=True)))) for v in product(*spaces)])
    for steps in product(*per_use):
        yield Candidate(tuple(steps), place, option.span)


def resolve(sites: Sequence[Site], policy: Policy, methods: Sequence[Method[Any]]) -> Resolution:
    """Apply the rules in order; the last one whose selector names a site decides it.

    Raises `PolicyError` with every rule that names nothing, is overridden everywhere, or asks for a method that is
    refused everywhere.
    """
    by_id = {method.id: method for method in methods}
    named = [[site for site in sites if selects(rule.selector, site)] for rule in policy.rules]
    decided_by: dict[str, int] = {site.name: i for i, members in enumerate(named) for site in members}
    problems = [
        problem
        for i, rule in enumerate(policy.rules)
        for problem in _rule_problems(i, rule, named[i], decided_by, policy.rules, sites)
    ]
    decisions, refused = [], []
    for site in sites:
        rule = decided_by.get(site.name)
        chosen: list[Candidate] = []
        for j, option in enumerate(policy.rules[rule].options if rule is not None else ()):
            for candidate in candidates_of(option, (rule or 0, j), by_id):
                reason = _refusal(site, candidate)
                if reason is None:
                    chosen.append(candidate)
                else:
                    refused.append(Refused(site.name, candidate.text, reason))
        decisions.append(Decision(site, rule, tuple(chosen)))
    alive = {candidate.option for decision in decisions for candidate in decision.candidates}
    problems += refused_everywhere(policy, methods, decisions, alive, refused)
    if problems:
        raise PolicyError(sorted(problems, key=lambda p: p.span.start if p.span else 0))
    return Resolution(tuple(decisions), tuple(refused))


def _refusal(site: Site, candidate: Candidate) -> str | None:
    first = candidate.steps[0]
    if site.kind not in first.method.kinds:
        return f"{first.method.id} works on {', '.join(sorted(first.method.kinds))}, not on {site.kind}"
    refusal = first.method.refuse(site.shape, first.point)
    return refusal.reason if refusal else None


def _rule_problems(
    index: int,
    rule: Rule,
    members: Sequence[Site],
    decided_by: Mapping[str, int],
    rules: Sequence[Rule],
    sites: Sequence[Site],
) -> Iterator[Diagnostic]:
    if not members:
        yield Diagnostic(
            "E201",
            "this rule names nothing in the model",
            rule.span,
            notes=tuple(_empty_parts(rule.selector, sites)),
            help=_nearest(rule.selector, sites) or "`tersor sites MODEL` lists what the model has",
        )
        return
    winners = {decided_by[site.name] for site in members}
    if index not in winners:
        lines = [_line(rules[w].span) for w in sorted(winners)]
        yield Diagnostic(
            "E202",
            f"later rules decide all {len(members)} sites this rule names",
            rule.span,
            notes=(f"overridden by the rule{'s' if len(lines) > 1 else ''} at {', '.join(lines)}",),
            help="the last rule that names a site decides it: move this rule down, or remove it",
        )


def _line(span: Span | None) -> str:
    return f"line {span.where()[0]}" if span else "(no place)"


def _parts(selector: Selector) -> Iterator[Selector]:
    match selector:
        case And(left, right) | Or(left, right):
            yield from _parts(left)
            yield from _parts(right)
        case Not(operand):
            yield from _parts(operand)
        case Named(_, inner):
            yield from _parts(inner)
        case _:
            yield selector


def _empty_parts(selector: Selector, sites: Sequence[Site]) -> Iterator[str]:
    for part in _parts(selector):
        if not any(selects(part, site) for site in sites):
            match part:
                case OfKind(kind):
                    yield f"the model has no {kind}; it has {', '.join(sorted({s.kind for s in sites}))}"
                case OfRole(glob):
                    yield f"no site has a role that matches `{glob}`"
                case InPath(glob):
                    yield f'no path matches "{glob}"; a path segment matches whole, `**` stands for any number of them'
                case _:
                    yield "no site fulfils the `where` condition"


def _nearest(selector: Selector, sites: Sequence[Site]) -> str | None:
    """The role or path of the model that comes closest to one the selector asks for in vain."""
    for part in _parts(selector):
        if any(selects(part, site) for site in sites):
            continue
        if isinstance(part, InPath):
            known = sorted({path for site in sites for path in site.paths})
            # What a prefix match would have meant is the likeliest intention.
            prefixed = [path for path in known if path.startswith(part.glob.rstrip("*.") + ".")]
            if prefixed:
                return f'did you mean "{part.glob.rstrip("*.")}.**"?'
            close = difflib.get_close_matches(part.glob, known, n=1)
            if close:
                return f'did you mean "{close[0]}"?'
        if isinstance(part, OfRole):
            close = difflib.get_close_matches(part.glob, sorted({site.role for site in sites}), n=1)
            if close:
                return f"did you mean `role {close[0]}`?"
    return None


def refused_everywhere(
    policy: Policy,
    methods: Sequence[Method[Any]],
    decisions: Sequence[Decision],
    alive: Collection[tuple[int, int]],
    refused: Sequence[Refused],
) -> Iterator[Diagnostic]:
    """E203 for every option of a rule in force of which no candidate is `alive` at any site."""
    by_id = {method.id: method for method in methods}
    in_force = {decision.rule for decision in decisions}
    for i, rule in enumerate(policy.rules):
        for j, option in enumerate(rule.options):
            if i not in in_force or (i, j) in alive:
                continue
            decided = {decision.site.name for decision in decisions if decision.rule == i}
            texts = {c.text for c in candidates_of(option, (i, j), by_id)}
            own = [r for r in refused if r.site in decided and r.candidate in texts]
            reasons = sorted({f"{r.site}: {r.reason}" for r in own})
            yield Diagnostic(
                "E203",
                f"`{' then '.join(use.method for use in option.uses)}` cannot be used at any site this rule decides",
                option.span or rule.span,
                notes=tuple(reasons[:3]) + ((f"and {len(reasons) - 3} more",) if len(reasons) > 3 else ()),
                help="choose another method or parameters, or narrow the rule",
            )
