"""What a compilation came to, as a page shows it: the report of a search that had one plan."""

from __future__ import annotations

from tersor.compiler.report import Made, SearchReport, form_of
from tersor.result import Result


def compiled(name: str, result: Result, origin: Made) -> SearchReport:
    """The report of a result: no front, and nothing measured on the way."""
    report, stores = result.report, result.planned.stores
    return SearchReport(
        model=name,
        plan=result.plan,
        forms=tuple(form_of(row.site, stores[row.site]) for row in result.plan.sites),
        budgets=report.budgets,
        front=(),
        contenders=(),
        fidelity=report.fidelity.to_json() if report.fidelity else None,
        policy=result.policy.to_text(),
        seconds={},
        made=origin,
        original={},
        notes=report.notes,
    )
