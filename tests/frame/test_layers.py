"""Imports go one way: compiler <- passes, dsl, backends <- src/tersor. Absolute imports only, by one name only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("compiler", "passes", "dsl", "backends")
ALLOWED = {layer: {"compiler", layer} for layer in LAYERS}
FOLDERS = (*LAYERS, "src", "tests", "examples")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What a file imports, with the line: `from a import b` counts as `a.b`, a relative import starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def violations(folder: str, source: str) -> list[str]:
    """What a file of a top-level folder imports though it must not, one sentence each."""
    found = []
    for line, name in imported(ast.parse(source)):
        head, *rest = name.split(".")
        if name.startswith("."):
            found.append(f"line {line}: relative import {name}")
        elif head in LAYERS:
            found.append(f"line {line}: bare name {name}")
        elif head == "tersor" and folder in ALLOWED and (not rest or rest[0] not in ALLOWED[folder]):
            found.append(f"line {line}: {folder} imports {name}")
    return found


def files() -> list[Path]:
    """Every Python file once, by its real path (the links under src/tersor lead to the same files)."""
    found = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return sorted(found)


def test_every_import_goes_the_right_way() -> None:
    checked = files()
    assert len(checked) > len(LAYERS)
    wrong = [
        f"{path.relative_to(ROOT)}: {violation}"
        for path in checked
        for violation in violations(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("compiler", "from tersor.passes import METHODS"),
        ("compiler", "import tersor.dsl.parse"),
        ("compiler", "from tersor import backends"),
        ("compiler", "import tersor"),
        ("compiler", "def late():\n    from tersor.backends.eager import run"),
        ("compiler", "import importlib\nimportlib.import_module('tersor.passes')"),
        ("passes", "from tersor.backends import eager"),
        ("passes", "from tersor.dsl.write import write"),
        ("dsl", "from tersor.passes import METHODS"),
        ("backends", "import tersor.passes.quantize.uniform as uniform"),
        ("passes", "from .base import Method"),
        ("src", "from . import compiler"),
        ("tests", "import compiler.policy"),
        ("examples", "from dsl import parse"),
    ],
)
def test_a_wrong_import_is_seen(folder: str, source: str) -> None:
    assert len(violations(folder, source)) == 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("compiler", "from tersor.compiler.site import Site"),
        ("passes", "from tersor.compiler import stores\nfrom tersor.passes.quantize import grid"),
        ("backends", "from tersor.compiler.stores.base import Store\nimport torch"),
        ("src", "from tersor.passes import METHODS\nimport tersor.dsl"),
        ("tests", "import tersor\nfrom tersor import compiler"),
    ],
)
def test_a_right_import_is_not(folder: str, source: str) -> None:
    assert violations(folder, source) == []
