"""`tersor search`: what it writes, what it says, and how it ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.cli.conftest import Runner
from tests.page.document import Document

import tersor
from tersor import judge
from tersor.compiler.measure import pace, seconds
from tersor.compiler.report import SearchReport

SEARCH = ("search", "tiny_models:model", "--data", "tiny_models:batches")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.01)
    monkeypatch.setattr(seconds, "SECONDS", 0.001)
    monkeypatch.setattr(pace, "FIRST", 0.01)


def test_it_writes_artifact_policy_front_and_report_and_the_policy_compiles_to_the_same(
    run: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = run(*SEARCH, "--size", "22kB", "--latency", "1s at tokens = 16", "--out", out, "--json")
    assert ran.code == 0, ran.err
    report = SearchReport.from_json({k: v for k, v in ran.json.items() if k != "out"})
    assert report.plan.bytes <= 22_000
    assert all(b.met for b in report.budgets)
    assert report == SearchReport.from_json(json.loads((out / "search.json").read_text()))
    rows = list(csv.DictReader((out / "front.csv").read_text().splitlines()))
    assert [int(row["bytes"]) for row in rows if row["chosen"] == "True"] == [report.plan.bytes]
    assert len(rows) == len(json.loads((out / "front.json").read_text())) > 3
    assert (out / "policy.tersor").read_text() == report.policy
    shown = Document((out / "report.html").read_text(encoding="utf-8"))
    assert sum(len(shown.marks(kind, "wide")) for kind in ("met", "unmet", "chosen")) == 2 * len(rows)
    assert f"--out {out} --json" in shown.all("code", within="again")[0].text
    assert run("show", out, "--page", tmp_path / "anew.html").code == 0
    assert (tmp_path / "anew.html").read_bytes() == (out / "report.html").read_bytes()
    tersor.load(out)
    again = tmp_path / "again"
    ran = run("compile", "tiny_models:model", "--policy", out / "policy.tersor", "--data", "tiny_models:batches",
              "--out", again)  # fmt: skip
    assert ran.code == 0, ran.err
    weights = [next(folder.glob("weights-*")).read_bytes() for folder in (out, again)]
    assert weights[0] == weights[1]
    compiled = Document((again / "report.html").read_text(encoding="utf-8"))
    assert not compiled.marks("chosen", "wide")
    assert str(report.plan.sites[0].path) in compiled.all("table", within="layers")[-1].text
    ran = run("show", again, "--page", tmp_path / "none.html")
    assert ran.code == 2
    assert "has no search.json of its artifact" in ran.err


def test_the_summary_is_about_ten_lines(run: Runner, tmp_path: Path) -> None:
    ran = run(*SEARCH, "--size", "30%", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    lines = [line.split(maxsplit=1) for line in ran.out.splitlines()]
    assert [name for name, _ in lines] == [
        "model", "size", "damage", "fidelity", "parts", "front", "computed", "searched", "report"
    ]  # fmt: skip
    said = dict(lines)
    assert "budgets hold" in said["model"]
    assert "within size <= " in said["size"]
    assert "plans from the same measurements" in said["front"]
    assert said["report"] == str(tmp_path / "out" / "report.html")
    assert "\x1b" not in ran.out


def test_a_budget_that_cannot_be_met_ends_with_3_and_keeps_the_best(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run(*SEARCH, "--latency", "1us", "--out", out)
    assert ran.code == 3
    assert "cannot be met: the least this policy allows is" in ran.err
    assert "raise the budget to" in ran.err
    assert "a budget is MISSED" in ran.out
    tersor.load(out)
    shown = Document((out / "report.html").read_text(encoding="utf-8"))
    (told,) = [e for e in shown.elements if e.classes == ["warning"]]
    assert "cannot be met: the least this policy allows is" in told.text
    assert "raise the budget to" in told.text
    assert run(*SEARCH, "--size", "1kB", "--out", tmp_path / "small").code == 3
    shown = Document((tmp_path / "small" / "report.html").read_text(encoding="utf-8"))
    assert "size <= 1.00 kB cannot be met" in shown.all("body")[0].text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "12 MegaBytes"), "--size:1:"),
        (("--latency", "8"), "the budget on `latency` needs a unit"),
        (("--time", "soon"), "--time soon: write a number of seconds, minutes or hours"),
        (("--minimize", "speed"), "there is no objective `speed`"),
    ],
)
def test_a_wrong_argument_is_told_with_its_name(
    run: Runner, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = run(*SEARCH, *arguments, "--out", tmp_path / "out")
    assert ran.code == 2
    assert said in ran.err


def test_data_that_has_vanished_is_told_and_what_was_measured_stays(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*SEARCH, "--size", "30%", "--out", out).code == 0
    ran = run("search", "tiny_models:model", "--data", tmp_path / "gone.txt", "--size", "20%", "--out", out)
    assert ran.code == 2
    assert "gone.txt: there is no such file" in ran.err
    tersor.load(out)
    assert (out / "journal.sqlite").stat().st_size > 1000
