"""Text files, JSONL and CSV to examples: tuples of texts, one per column. Every error names file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.compiler.errors import RequestError

Texts = tuple[str, ...]
USUAL = ("text", "sentence")
"""Columns that are taken where none are named."""


@dataclass(frozen=True)
class Examples:
    """The examples of a file and how many blank ones were left out."""

    texts: list[Texts]
    blank: int


def read_examples(path: Path, columns: Sequence[str] = ()) -> Examples:
    """The examples of a file: one a line, or the named columns of JSONL (`.jsonl`, `.ndjson`) or CSV (`.csv`, `.tsv`).

    Raises RequestError.
    """
    if len(columns) > 2:
        raise RequestError(f"an example has one or two columns, not {len(columns)}: {', '.join(columns)}")
    suffix = path.suffix.lower()
    table = suffix in (".csv", ".tsv")
    if not table and suffix not in (".jsonl", ".ndjson"):
        if columns:
            raise RequestError(
                f"{path} is read as plain text and has no columns; columns are for .jsonl, .csv and .tsv"
            )
        found: Iterator[Texts] = ((line,) for _, line in _lines(path))
    elif table:
        found = _csv(path, columns, "\t" if suffix == ".tsv" else ",")
    else:
        found = _jsonl(path, columns)
    texts, blank = [], 0
    for example in found:
        if all(part.strip() for part in example):
            texts.append(example)
        else:
            blank += 1
    if not texts:
        raise RequestError(f"{path} has no examples" + (f": all {blank} are blank" if blank else ""))
    return Examples(texts, blank)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; UTF-8 without zero bytes."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as problem:
                    wrong = f"byte {raw[problem.start]:#04x} is not UTF-8"
                    raise RequestError(f"{path}:{number}: {wrong}; the data must be text in UTF-8") from None
                if "\0" in line:
                    raise RequestError(f"{path}:{number}: a zero byte; the data must be text in UTF-8")
                yield number, line.rstrip("\r\n")
    except OSError as problem:
        why = "there is no such file" if isinstance(problem, FileNotFoundError) else problem.strerror or str(problem)
        raise RequestError(f"DATA {path}: {why}") from None


def _chosen(path: Path, columns: Sequence[str], known: Sequence[str], line: int) -> Sequence[str]:
    """The columns to read: the named ones, else the only one or one with a usual name."""
    if not columns:
        usual = [name for name in USUAL if name in known]
        if usual or len(known) == 1:
            return usual[:1] or known
        raise RequestError(
            f"{path} has the columns {', '.join(known)}: name one or two, as in `{path.name}:{known[0]}`"
        )
    missing = [name for name in columns if name not in known]
    if missing:
        raise RequestError(f"{path}:{line}: there is no column `{missing[0]}`; there are {', '.join(known) or 'none'}")
    return columns


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[Texts]:
    for number, line in _lines(path):
        if not line.strip():
            yield ("",)
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise RequestError(f"{path}:{number}: not valid JSON: {problem}") from None
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise RequestError(f"{path}:{number}: a JSON object is expected, this is a {type(row).__name__}")
        columns = _chosen(path, columns, list(row), number)
        for name in columns:
            if not isinstance(row[name], str | None):
                raise RequestError(f"{path}:{number}: `{name}` is a {type(row[name]).__name__}, not a text")
        yield tuple(row[name] or "" for name in columns)


def _csv(path: Path, columns: Sequence[str], delimiter: str) -> Iterator[Texts]:
    reader = csv.reader((line + "\n" for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        chosen = _chosen(path, columns, header, 1)
        places = [header.index(name) for name in chosen]
        for row in reader:
            if not row:
                yield ("",)
            elif len(row) != len(header):
                raise RequestError(f"{path}:{reader.line_num}: {len(row)} values for {len(header)} columns")
            else:
                yield tuple(row[place] for place in places)
    except csv.Error as problem:
        raise RequestError(f"{path}:{reader.line_num}: {problem}") from None
