"""The report page as text: all sections, as many marks as points, and nothing that a browser would fetch or run."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from tests.page.document import Document
from tests.page.samples import EVIL, LATENCY, QUOTED, ROLE, compilation, report

from tersor.compiler.report import SearchReport
from tersor.page.render import page

SECTIONS = ["front", "parts", "layers", "accuracy", "refused", "policy", "again"]


@pytest.fixture(scope="module")
def text() -> str:
    return page(report()).decode()


@pytest.fixture(scope="module")
def document(text: str) -> Document:
    return Document(text)


def test_every_section_is_there_and_the_links_lead_to_them(document: Document) -> None:
    assert [e.attributes["id"] for e in document.all("section")] == SECTIONS
    assert [e.attributes["href"] for e in document.all("a")] == [f"#{name}" for name in SECTIONS]
    assert all(document.all("h2", within=name) for name in SECTIONS)


def test_a_compilation_has_no_front_and_says_that_nothing_was_measured() -> None:
    shown = Document(page(compilation()).decode())
    assert [e.attributes["id"] for e in shown.all("section")] == SECTIONS[1:]
    assert [e.attributes["href"] for e in shown.all("a")] == [f"#{name}" for name in SECTIONS[1:]]
    (body,) = shown.all("body")
    assert "No budget was given" in body.text
    assert "not measured: there is no data" in body.text
    assert "Nothing was refused" in body.text


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_the_front_has_a_mark_for_every_point(document: Document, width: str) -> None:
    """By size and by latency: two charts."""
    found = report()
    kinds = Counter("chosen" if p.chosen else "met" if p.met else "unmet" for p in found.front)
    assert kinds == {"chosen": 1, "met": 6, "unmet": 2}
    for kind, count in kinds.items():
        assert len(document.marks(kind, width)) == 2 * count
    assert len(document.marks("measured", width)) == 2 * len(found.contenders)
    assert len(document.marks("original", width)) == 2
    titles = [e.text for e in document.all("title") if e.parents[-1] in document.marks("chosen", width)]
    assert titles == [f"90.09 kB, damage 0.00781, 8.8 ms {LATENCY} (predicted)"] * 2


def test_marks_lie_where_the_values_are(document: Document) -> None:
    """Larger is further right, less damage further down, on a scale that is logarithmic in both."""
    from math import isclose, log

    points = report().front
    where = []
    for kind in ("unmet", "chosen", "met"):
        for mark in document.marks(kind, "wide"):
            uses = [e for e in document.all("use") if mark in e.parents]
            where += [(float(e.attributes["x"] or 0), float(e.attributes["y"] or 0)) for e in uses]
    by_size = sorted(where[:2] + where[4:5] + where[6:12])
    assert len(by_size) == len(points)
    (x0, y0), (x1, y1) = by_size[0], by_size[-1]
    for (x, y), point in zip(by_size, points, strict=True):
        across = log(point.bytes / points[0].bytes) / log(points[-1].bytes / points[0].bytes)
        down = log(point.damage / points[0].damage) / log(points[-1].damage / points[0].damage)
        assert isclose((x - x0) / (x1 - x0), across, abs_tol=1e-3)
        assert isclose((y - y0) / (y1 - y0), down, abs_tol=1e-3)


def test_tables_say_what_the_charts_show(document: Document) -> None:
    found = report()
    points = [e for e in document.all("tr", within="front") if e.parents[-1].tag == "tbody"]
    assert len(points) == len(found.front)
    assert [n for n, e in enumerate(points) if e.classes == ["chosen"]] == [3]
    weights = [e.text for e in document.all("tr", within="layers")]
    for site in found.plan.sites:
        assert any(site.path in " ".join(row.split()) for row in weights)
    numbers = [e.text for e in document.all("td", within="layers")]
    assert numbers.count("90 %") == 1  # sparsity
    assert numbers.count("7") == 1  # rank
    cells = [e for e in document.elements if e.classes == ["cell"]]
    assert len(cells) == 2 * 3
    assert {e.text for e in cells} == {"7.8"}  # 8 * 4000 / 4096 bits


def test_the_parts_add_up_to_the_artifact_and_the_original() -> None:
    from tersor.page.facts import parts

    plan = report().plan
    for many in (plan, replace(plan, sites=tuple(replace(s, role=s.site) for s in plan.sites) * 2)):
        found = parts(many)
        assert sum(p.before for p in found) == sum(s.original_bytes for s in many.sites)
        assert sum(p.after for p in found) == sum(s.bytes for s in many.sites) + plan.overhead
        assert sum(p.weights for p in found) == len(many.sites)
        assert len(found) <= 13


def test_predicted_stands_beside_measured(document: Document) -> None:
    rows = [e for e in document.all("tr", within="accuracy") if e.parents[-1].tag == "tbody"]
    assert [(e.text, e.classes == ["chosen"]) for e in rows] == [
        ("1damage0.0060.005-16.7%", False), (f"1{LATENCY}-9 ms-", False), ("1size95.09 kB95.09 kBexact", False),
        ("2damage0.00780.006-23.1%", True), (f"2{LATENCY}8.4 ms8.5 ms+1.2%", True),
        ("2size90.09 kB90.09 kBexact", True),
    ]  # fmt: skip
    assert len(document.marks("compared", "wide")) == 5


def test_missed_budgets_and_refusals_are_told(document: Document) -> None:
    (body,) = document.all("body")
    assert "Not every budget holds" in body.text
    assert "raise the budget to 8.6 ms" in body.text
    rows = [e.text for e in document.all("td", within="refused")]
    assert rows[:2] == ["2", "a refusal & its <b>reason</b>"]


def test_it_says_how_to_make_it_again(document: Document) -> None:
    (section,) = [e for e in document.all("section") if e.attributes["id"] == "again"]
    for said in ("tersor search", "--size 80kB", "A processor, 2 cores", "torch 2", "timing 1 min 1 s", "40 examples"):
        assert said in section.text
    (policy,) = document.all("code", within="policy")
    assert "".join(policy.texts).strip() == report().policy.strip()


def test_nothing_is_fetched_and_nothing_runs(text: str, document: Document) -> None:
    assert not {e.tag for e in document.elements} & {"script", "link", "img", "iframe", "object", "embed", "base", "b"}
    for element in document.elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), element
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert (value or "").startswith("#"), element
    assert not re.search(r"@import|url\((?!#)|https?:|//[a-z]", text)
    (policy,) = [e for e in document.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_names_stay_text(text: str, document: Document) -> None:
    """They were put into the model (title, heading), a weight, a role, a note, the policy, the command, the data, and
    what was missed."""
    assert EVIL not in text
    assert text.count("&lt;script&gt;window.harmed") == 7
    (body,) = document.all("body")
    assert body.text.count(QUOTED) == 2
    assert [e.text for e in document.all("text", within="parts")].count(ROLE.replace("\x07", " ")) == 2


def test_charts_are_told_to_those_who_do_not_see_them(document: Document) -> None:
    names = [e.attributes["id"] for e in document.elements if "id" in e.attributes]
    assert len(names) == len(set(names))
    charts = document.all("svg")
    assert len(charts) == 2 * 4  # front by size and by latency, parts, accuracy; for wide and narrow screens
    for chart in charts:
        assert chart.attributes["role"] == "img"
        assert set((chart.attributes["aria-labelledby"] or "").split()) <= set(names)
    used = re.findall(r"(?:href=\"|url\()#([\w-]+)", page(report()).decode())
    assert set(used) <= set(names)


def test_the_page_is_the_same_for_the_same_report(text: str) -> None:
    again = SearchReport.from_json(report().to_json())
    assert page(again).decode() == text
