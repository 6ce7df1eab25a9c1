"""Files are small: one idea each, found by name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 400
FOLDERS = ("compiler", "passes", "dsl", "backends", "src", "tests", "examples")


def test_no_file_is_longer_than_the_limit() -> None:
    files = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    long = {name: length for name, length in lengths.items() if length > LIMIT}
    assert not long, f"split by idea: {long}"
