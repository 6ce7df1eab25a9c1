"""A search in about ten lines: what its page says, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tersor.compiler.report import SearchReport
from tersor.compiler.units import bytes_text
from tersor.page.facts import DESCRIPTION, parts, refusals
from tersor.page.words import count, quantity, seconds_spent
from tersor.result import PAGE
from tersor.searching import Found

LARGEST = 3
"""Parts of the model that are named."""


def summary(found: Found, out: Path) -> list[str]:
    """One fact a line, each under its name."""
    return [f"{name:9} {text}" for name, text in _facts(found, out)]


def _facts(found: Found, out: Path) -> Iterator[tuple[str, str]]:
    report, plan = found.report, found.report.plan
    outcome = "no budget was given" if not report.budgets else "a budget is MISSED" if report.missed else "budgets hold"
    ratio = plan.original_bytes / max(1, plan.bytes)
    yield (
        "model",
        f"{bytes_text(plan.bytes)} of {bytes_text(plan.original_bytes)}: {ratio:.2f} times smaller; {outcome}",
    )
    for budget in report.budgets:
        original = report.original.get(budget.name)
        before = "" if original is None else f"; the original: {quantity(budget.name, original)}"
        yield budget.name.split()[0], f"{budget.text}{before}"
    yield "damage", _damage(report)
    fidelity = found.result.report.fidelity
    yield "fidelity", fidelity.to_text() if fidelity else "not measured: there is no data"
    largest = [p for p in parts(plan) if p.name != DESCRIPTION][:LARGEST]
    yield "parts", ", ".join(f"{p.name} {bytes_text(p.before)} -> {bytes_text(p.after)}" for p in largest)
    met = [p for p in report.front if p.met]
    if met:
        ends = ", ".join(f"{bytes_text(p.bytes)} {p.damage:.2g}" for p in (met[0], met[len(met) // 2], met[-1]))
        yield "front", f"{count(len(met), 'plan')} from the same measurements, size and damage: {ends}"
    refused = refusals(plan)
    if refused:
        yield "refused", f"{count(len(plan.refused), 'choice')}, mostly since {refused[0].reason}"
    yield "computed", "; ".join(found.result.report.coverage())
    spent, notes = sum(report.seconds.values()), f"; {count(len(report.notes), 'note')} in the report"
    yield (
        "searched",
        f"{count(len(plan.sites), 'weight')}, {count(len(report.contenders), 'artifact')} measured, "
        f"{seconds_spent(spent)}{notes if report.notes else ''}",
    )
    yield "report", str(out / PAGE)


def _damage(report: SearchReport) -> str:
    plan = report.plan
    basis = f"{count(plan.calibrated, 'example')}" if plan.calibrated else "weights only, no data"
    kept = {b.name: b.measured for b in report.budgets}
    measured = [
        c.measured["damage"] for c in report.contenders if kept.items() <= c.measured.items() and "damage" in c.measured
    ]
    told = f", {measured[-1]:.3g} measured" if measured else ""
    bound = f"; at least {plan.bound:.3g} within the budget" if plan.bound is not None else ""
    return f"{plan.damage:.3g} {plan.unit} predicted ({basis}){told}{bound}"
