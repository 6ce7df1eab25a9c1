"""The project's own files agree: version, pins, links, packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import tersor

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
LAYERS = ("compiler", "passes", "dsl", "backends")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_has_a_changelog_entry() -> None:
    assert re.search(
        rf"^## \[{re.escape(tersor.__version__)}\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )


def test_pins_are_exact() -> None:
    wrong = [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin)]
    assert not wrong, f"a name and a plain version each, no local builds and no addresses: {wrong}"


def test_every_requirement_is_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(need for group in extras.values() for need in group)]
    names = {normal(re.match(r"[A-Za-z0-9_.-]+", need)[0]) for need in asked}
    assert names <= {normal(pin.split("==")[0]) for pin in PINS}


def test_the_four_packages_are_the_top_level_folders() -> None:
    for layer in LAYERS:
        assert (ROOT / "src" / "tersor" / layer).resolve() == ROOT / layer


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    assert folders
    bare = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file())
    assert not bare, f"without __init__.py they would be missing from the wheel: {bare}"
