"""Problems between a policy and a model: one golden file per case, at least one per code.

A file is a policy, a line `---`, and what a person is shown; `pytest --update-golden` writes the second part anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import zoo

from tersor.compiler.capture import capture
from tersor.compiler.codes import CODES
from tersor.compiler.diagnostics import PolicyError
from tersor.compiler.pipeline import plan
from tersor.compiler.program import Program
from tersor.dsl import parse_policy
from tersor.passes import METHODS

FOLDER = Path(__file__).parent / "diagnostics"
CASES = sorted(FOLDER.glob("*.tersor"))
LINE = "---\n"


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(*zoo.bert(), check=False)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_says_what_the_golden_file_says(case: Path, program: Program, update_golden: bool) -> None:
    text, line, expected = case.read_text().partition(LINE)
    policy = parse_policy(text, {method.id: method for method in METHODS}, name=case.name)
    with pytest.raises(PolicyError) as caught:
        plan(program, policy, METHODS)
    shown = str(caught.value) + "\n"
    code = case.stem.split("_")[0]
    assert [d for d in caught.value.diagnostics if d.code == code and d.span is not None]
    assert caught.value.exit_code == (3 if code == "E301" else 2)
    if update_golden:
        case.write_text(text + LINE + shown)
        return
    assert line, f"{case.name} has no expected part; write it with --update-golden"
    assert shown == expected


def test_every_code_has_a_case() -> None:
    assert {path.stem.split("_")[0] for path in CASES} == set(CODES)
