"""Method names: the full id, or any dotted tail of it that fits one method only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tersor.compiler.method import Method
from tersor.dsl.problems import Problems, listed, shown
from tersor.dsl.syntax import Word

Methods = Mapping[str, Method[Any]]


def fitting(name: str, ids: Collection[str]) -> list[str]:
    """The ids a name stands for: itself, or every id that ends with it, whole segments only.

    >>> fitting("uniform", ["quant.uniform", "quant.uniform.rnn_cell"]), fitting("form", ["quant.uniform"])
    (['quant.uniform'], [])
    """
    if name in ids:
        return [name]
    return sorted(i for i in ids if i.endswith(f".{name}"))


def resolve(word: Word, methods: Methods, catalogue: Collection[str], problems: Problems) -> str | None:
    """The id of the method that `word` names, or None with the reason reported (E101, E102, E103)."""
    found = fitting(word.text, methods)
    if len(found) == 1:
        return found[0]
    if found:
        problems.add("E102", f"`{word.text}` fits several methods", word.span, help=f"write {listed(found)}")
        return None
    missing = fitting(word.text, catalogue)
    if missing:
        message = f"`{missing[0]}` is in the catalogue but not available in this version"
        problems.add("E103", message, word.span, help="`tersor methods` lists those that are")
        return None
    tails = {tail for i in methods for tail in _tails(i)}
    hint = problems.suggest(word.text, sorted(tails), "`tersor methods` lists them all")
    problems.add("E101", f"there is no method `{shown(word.text)}`", word.span, help=hint)
    return None


def _tails(identifier: str) -> list[str]:
    segments = identifier.split(".")
    return [".".join(segments[i:]) for i in range(len(segments))]
