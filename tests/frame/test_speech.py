"""What is tracked speaks to every reader: no path of one machine, no note to oneself, no package mirror."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each pattern is written so that it does not match itself.
UNWANTED = {
    "the path of one machine": re.compile(r"(?<![\w.}])/(work|root|home|farm|opt|Users)/[\w.]"),
    "a note to oneself": re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b"),
    "a package registry": re.compile(r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org)"),
}


def unwanted(text: str) -> list[str]:
    return [f"{what}: {match[0]}" for what, pattern in UNWANTED.items() if (match := pattern.search(text))]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_says_what_it_should_not() -> None:
    files = tracked()
    assert files
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        found += [f"{path.relative_to(ROOT)}: {what}" for what in unwanted(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "read " + "/wo" + "rk/data/a.txt",
        "'/ro" + "ot/.cache'",
        "# TO" + "DO: later",
        "FIX" + "ME",
        "https://pypi" + ".org/simple",
    ],
)
def test_an_unwanted_text_is_seen(text: str) -> None:
    assert unwanted(text)


@pytest.mark.parametrize("text", ["shared/data", "hard work/life", "a/ro" + "ot/b", "the sun rose over the fields"])
def test_a_harmless_text_is_not(text: str) -> None:
    assert unwanted(text) == []
