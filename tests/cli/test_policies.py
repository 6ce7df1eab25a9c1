"""check, fmt and methods: what needs no model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tersor.passes import METHODS

BAD = "budget size <= 80 XB\nfor linaer choose unifrom(bits = 2)\n"


def test_a_right_policy_passes(run, workplace: Path) -> None:
    ran = run("check", "policy.tersor")
    assert (ran.code, ran.err) == (0, "")
    assert "policy.tersor: ok" in ran.out


def test_every_problem_is_a_line_in_a_pipe(run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tersor"
    bad.write_text(BAD)
    ran = run("check", "policy.tersor", bad)
    assert ran.code == 2
    assert [line.split(": error[")[0] for line in ran.err.splitlines()] == [f"{bad}:1:19", f"{bad}:2:5", f"{bad}:2:19"]
    assert "policy.tersor: ok" in ran.out


def test_a_person_sees_the_place(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.tersor"
    bad.write_text(BAD)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    ran = run("check", bad)
    assert ran.code == 2
    assert "   2 | for linaer choose unifrom(bits = 2)" in ran.err
    assert "^^^^^^" in ran.err
    assert "help: did you mean `linear`?" in ran.err


def test_check_as_json(run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tersor"
    bad.write_text(BAD)
    ran = run("check", "policy.tersor", bad, "--json")
    assert ran.code == 2
    assert ran.json["ok"] is False
    good, wrong = ran.json["policies"]
    assert good == {"file": "policy.tersor", "ok": True, "diagnostics": []}
    first = wrong["diagnostics"][0]
    assert (first["code"], first["line"], first["column"]) == ("E117", 1, 19)
    assert BAD[first["start"] : first["end"]] == "XB"


def test_what_only_a_later_version_does_is_a_warning(run, tmp_path: Path) -> None:
    path = tmp_path / "later.tersor"
    path.write_text("for linear choose half()\nrecover {\n  steps 10\n}\n")
    ran = run("check", path)
    assert ran.code == 0
    assert f"{path}:2:1: warning[E303]" in ran.err
    assert run("plan", "tiny_models:model", "--policy", path).code == 2


def test_a_missing_policy(run) -> None:
    ran = run("check", "nothing.tersor")
    assert ran.code == 2
    assert "nothing.tersor" in ran.err
    assert "no such file" in ran.err


def test_fmt_is_idempotent_and_check_changes_nothing(run, tmp_path: Path) -> None:
    path = tmp_path / "p.tersor"
    text = "budget size<=80%\nfor   linear choose half( )  # small\n"
    path.write_text(text)
    assert run("fmt", "--check", path).code == 2
    assert path.read_text() == text
    assert run("fmt", path).code == 0
    formatted = path.read_text()
    assert formatted == "budget size <= 80%\nfor linear choose half()  # small\n"
    assert run("fmt", "--check", path).code == 0
    again = run("fmt", path, "--json")
    assert (again.code, again.json["changed"], path.read_text()) == (0, [], formatted)


def test_fmt_changes_nothing_when_a_policy_is_wrong(run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tersor", tmp_path / "bad.tersor"
    good.write_text("budget size<=80%\n")
    bad.write_text("budget ((\n")
    assert run("fmt", good, bad).code == 2
    assert good.read_text() == "budget size<=80%\n"


def test_methods_as_json_are_all_methods(run) -> None:
    listed = run("methods", "--json").json
    assert [m["id"] for m in listed] == [m.id for m in METHODS]
    uniform = next(m for m in listed if m["id"] == "quant.uniform")
    bits = next(p for p in uniform["params"] if p["name"] == "bits")
    assert bits == {
        "name": "bits", "type": "integer", "range": "2..8", "required": False, "default": 8,
        "description": "bits per weight",
    }  # fmt: skip
    for method in METHODS:
        described = next(m for m in listed if m["id"] == method.id)
        assert [p["name"] for p in described["params"]] == list(method.Params.model_fields)


def test_one_method(run) -> None:
    assert run("methods", "uniform", "--json").json["id"] == "quant.uniform"
    shown = run("methods", "quant.uniform")
    assert shown.code == 0
    assert "{32, 64, 128, row}" in shown.out


def test_an_unknown_method(run) -> None:
    ran = run("methods", "unifrom")
    assert ran.code == 2
    assert ran.err == "error: there is no method `unifrom`; did you mean `uniform`?\n"
    assert ran.out == ""
