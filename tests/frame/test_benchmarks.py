"""Benchmarks run by hand, some beside runtimes that are not installed here: what they import of ours must be there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests" / "benchmarks").rglob("*.py"))


def missing(source: str) -> list[str]:
    """The names that a source imports from tersor and that are neither attributes nor modules there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tersor":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name) and not submodule(f"{node.module}.{name.name}"):
                    found.append(f"{node.module}.{name.name}")
    return found


def submodule(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the part before the last dot is no package
        return False


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    assert missing(path.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_seen() -> None:
    assert missing("from tersor.compiler.units import bytes_text, nothing") == ["tersor.compiler.units.nothing"]
