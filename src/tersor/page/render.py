"""A report as one page of HTML that needs nothing else: no network, no scripts, no files beside it."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tersor.compiler.report import SearchReport
from tersor.compiler.units import bytes_text
from tersor.page.accuracy import accuracy_chart
from tersor.page.bars import part_bars
from tersor.page.facts import compared, facts, parts, refusals, rows
from tersor.page.front import front_charts
from tersor.page.grid import grid
from tersor.page.words import count, quantity, seconds_spent

TEMPLATE, STYLE = "page.html", "page.css"


@cache
def _environment() -> Environment:
    """Whatever a report says is text: names of models, weights and files are never markup."""
    made = Environment(
        loader=PackageLoader("tersor", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(bytes=bytes_text, spent=seconds_spent)
    made.globals.update(quantity=quantity, count=count)
    return made


def page(report: SearchReport) -> bytes:
    """The page of a search, or of a compilation, which has no front."""
    environment = _environment()
    style = Markup(environment.loader.get_source(environment, STYLE)[0]) if environment.loader else ""
    found = list(rows(report))
    comparison = compared(report)
    sections = parts(report.plan)
    text = environment.get_template(TEMPLATE).render(
        report=report,
        plan=report.plan,
        style=style,
        ratio=report.plan.original_bytes / max(1, report.plan.bytes),
        held=all(b.met for b in report.budgets),
        facts=facts(report),
        parts=sections,
        bars=part_bars(sections),
        fronts=front_charts(report),
        rows=found,
        grid=grid(found),
        compared=comparison,
        accuracy=accuracy_chart(comparison),
        refusals=refusals(report.plan),
        policy=report.policy.rstrip("\n").split("\n"),
        spent=sum(report.seconds.values()),
        rivals=sum(s.rivals for s in report.plan.sites),
    )
    return text.encode()
