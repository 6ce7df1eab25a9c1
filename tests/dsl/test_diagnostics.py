"""Golden files: a policy, a line `---`, and what is said about it. One at least for every code.

`pytest --update-golden` writes what is said now; read the difference before committing it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tersor.compiler.diagnostics import PolicyError
from tersor.compiler.policy import Policy
from tersor.dsl import CODES

FOLDER = Path(__file__).parent / "diagnostics"
CASES = sorted(FOLDER.glob("*.tersor"))
ABOUT_FILES = {"E010", "E011", "E012"}  # no policy text says these: test_read.py


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_golden(case: Path, parse: Callable[..., Policy], update_golden: bool) -> None:
    text, _, expected = case.read_text(encoding="utf-8").partition("\n---\n")
    with pytest.raises(PolicyError) as caught:
        parse(text)
    said = str(caught.value) + "\n"
    code = case.stem.split("_")[0]
    assert code in {d.code for d in caught.value.diagnostics}, said
    if update_golden:
        case.write_text(f"{text.rstrip()}\n---\n{said}", encoding="utf-8")
    else:
        assert expected, f"{case.name} has no golden part: run pytest --update-golden"
        assert said == expected


def test_every_code_has_a_golden_file() -> None:
    shown = {case.stem.split("_")[0] for case in CASES}
    assert shown == set(CODES) - ABOUT_FILES


def test_one_line_form_names_the_place(parse: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError) as caught:
        parse("budget size <= 12 MB\nfor linaer choose half", name="a.tersor")
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.line().startswith("a.tersor:2:5: error[E111]: ")


def test_problems_come_in_source_order(parse: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError) as caught:
        parse("for b choose nothing_at_all\nbudget sise <= 1 MB\nlet b = linaer\n")
    starts = [d.span.start for d in caught.value.diagnostics if d.span]
    assert starts == sorted(starts)
    assert [d.code for d in caught.value.diagnostics] == ["E113", "E101", "E116", "E111"]


def test_at_most_fifty_problems_are_shown(parse: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError) as caught:
        parse("keep nosuchname\n" * 300)
    assert len(caught.value.diagnostics) == 50
    assert caught.value.diagnostics[-1].notes[-1] == "250 more problems are not shown"
