"""The budgets of a policy as limits on quantities, and what to say when they cannot be met (E301)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from tersor.compiler.allocate import Infeasible
from tersor.compiler.diagnostics import Diagnostic, PolicyError
from tersor.compiler.measure.clock import Shape
from tersor.compiler.measure.seconds import MEMORY
from tersor.compiler.policy import Budget, Policy
from tersor.compiler.program import Program
from tersor.compiler.units import bytes_text, seconds_text

TOKENS = 128
"""The length that a budget names when it names none, or the longest the model takes."""


@dataclass(frozen=True)
class Limit:
    """A budget with its number in bytes, seconds, or the metric's own unit. `key` is what the costs of a choice call
    it, `shape` the inputs it holds for."""

    key: str
    limit: float
    budget: Budget
    shape: Shape | None = None

    @property
    def name(self) -> str:
        """`latency at batch = 1, tokens = 128, threads = 1`"""
        metric = f' "{self.budget.metric}"' if self.budget.metric else ""
        return f"{self.budget.quantity}{metric}" + (f" at {self.shape}" if self.shape else "")

    @property
    def floor(self) -> bool:
        return self.budget.quantity == "metric"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.floor else value <= self.limit

    def over(self, value: float) -> float:
        """How far a value is from the limit, as a share of the limit; 0 where it is met."""
        return 0.0 if self.met(value) else abs(value - self.limit) / max(abs(self.limit), 1e-300)

    def text(self, value: float, up: bool = False) -> str:
        match self.budget.quantity:
            case "size" | "memory":
                return bytes_text(value, up)
            case "latency":
                return seconds_text(value, up)
        return f"{value:.6g}"

    def foreseen(self, value: float | None) -> str:
        """`about 7.900 ms, budget 8.000 ms`"""
        about = "not known before it is measured" if value is None else f"about {self.text(value)}"
        return f"{about}, {'at least' if self.floor else 'budget'} {self.text(self.limit)}"

    def rule(self) -> str:
        """`size <= 12.00 MB`"""
        return f"{self.name} {'>=' if self.floor else '<='} {self.text(self.limit)}"


def sought(policy: Policy) -> Limit | None:
    """The metric that is to be as large as it can be, as a floor that anything meets; None where there is none."""
    if policy.objective.quantity != "metric":
        return None
    return Limit("metric", -inf, Budget("metric", -inf, metric=policy.objective.metric, span=policy.objective.span))


def original_bytes(program: Program) -> int:
    """Bytes of the model's parameters, tied ones once."""
    return sum(site.bytes for site in program.sites)


def limits_of(policy: Policy, program: Program, original: Callable[[Limit], float] | None = None) -> tuple[Limit, ...]:
    """The budgets of a policy in order; `original` measures what the original takes, for budgets that are a share of
    it. Raises PolicyError (E304) for a shape that the model does not take."""
    found = []
    for budget in policy.budgets:
        shape = shape_of(budget, program) if budget.quantity in ("latency", "memory") else None
        key = {"latency": str(shape), "memory": MEMORY}.get(budget.quantity, budget.quantity)
        limit = Limit(key, budget.limit, budget, shape)
        if budget.share and budget.quantity == "size":
            limit = Limit(key, budget.limit * original_bytes(program), budget)
        elif budget.share and original is not None:
            limit = Limit(key, budget.limit * original(limit), budget, shape)
        found.append(limit)
    return tuple(found)


def shape_of(budget: Budget | None, program: Program) -> Shape:
    """The inputs a budget speaks of: one example, `TOKENS` tokens (one after cached ones) and one thread where it does
    not say."""
    named = dict(budget.at) if budget is not None else {}
    longest = min((limit.max for limit in program.signature.limits), default=None)
    cached = named.get("cached", 0)
    tokens = named.get("tokens", 1 if cached else min(TOKENS, longest or TOKENS))
    if longest is not None and cached + tokens > longest:
        raise PolicyError(
            [
                Diagnostic(
                    "E304",
                    f"the model takes at most {longest} tokens, not {cached + tokens}",
                    budget.span if budget else None,
                    help=f"write `{f'cached = {longest - tokens}' if cached else f'tokens = {longest}'}` or less",
                )
            ]
        )
    return Shape(named.get("batch", 1), tokens, named.get("threads", 1), cached)


def infeasible(
    program: Program,
    found: Infeasible,
    limits: Sequence[Limit],
    real: Callable[[Limit, float], float],
) -> Diagnostic:
    """The message for budgets that no plan meets: the best possible, what holds it up, and the smallest change.

    `real` turns the costs of a plan into what the artifact will come to (the graph's bytes, the rest of the time).
    """
    path = {site.name: site.path for site in program.sites}
    by_key = {limit.key: limit for limit in reversed(limits)}
    limit = by_key[found.quantity]
    least = limit.text(real(limit, found.least), up=True)
    share = " together with the other budgets" if found.conflict else ""
    notes = [
        f"{path[c.site]} still takes {limit.text(c.cost(limit.key))} as {c.text}"
        for c in found.largest[:3]
        if c.cost(limit.key) > 0
    ]
    untouched = [c.cost(limit.key) for c in found.largest if c.candidate is None]
    if untouched and limit.key == "size":
        notes.append(f"{len(untouched)} weights that no rule changes take {limit.text(sum(untouched))} of it")
    notes += _instead(found.instead, by_key, real)
    return Diagnostic(
        "E301",
        f"{limit.rule()} cannot be met{share}: the {'smallest' if limit.key == 'size' else 'least'} this policy allows "
        f"is {least}",
        limit.budget.span,
        notes=tuple(notes),
        help=f"raise the budget to {least}, or allow a smaller choice at `{path[found.largest[0].site]}`",
    )


def _instead(
    instead: Mapping[str, float], by_key: Mapping[str, Limit], real: Callable[[Limit, float], float]
) -> Iterator[str]:
    for key, value in instead.items():
        other = by_key[key]
        yield f"or raise {other.name} to {other.text(real(other, value), up=True)}"
