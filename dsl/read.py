"""Policy files: bytes to text, or a diagnostic that says what is wrong with the file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tersor.compiler.diagnostics import Diagnostic, PolicyError, Source, Span
from tersor.compiler.policy import Policy
from tersor.dsl.check import check
from tersor.dsl.names import Methods
from tersor.dsl.parse import parse_statements

MOST_BYTES = 4 * 2**20


def parse_policy(text: str, methods: Methods, *, name: str = "<policy>", catalogue: Collection[str] = ()) -> Policy:
    """The meaning of a policy text.

    `methods` are the methods a policy may use, by id; `name` is what messages call the text; `catalogue` holds ids of
    methods that exist but not here, so that naming one is told from a misspelling. Raises `PolicyError` with every
    problem found: all of the syntax first (E0xx), then all of names and values (E1xx).
    """
    source = Source(name, text)
    return check(source, parse_statements(source), methods, catalogue)


def read_policy(path: Path, methods: Methods, *, catalogue: Collection[str] = ()) -> Policy:
    """`parse_policy` of a file. Raises `PolicyError` also where the file cannot be read as text (E010, E011, E012)."""
    return parse_policy(read_text(path), methods, name=str(path), catalogue=catalogue)


def read_text(path: Path) -> str:
    """The text of a policy file: UTF-8, at most 4 MiB. Raises `PolicyError` (E010, E011, E012)."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        if isinstance(e, FileNotFoundError):
            why = "there is no such file"
        elif isinstance(e, IsADirectoryError):
            why = "it is a folder"
        else:
            why = (e.strerror if isinstance(e, OSError) else str(e)) or type(e).__name__
        raise PolicyError([Diagnostic("E010", f"`{path}` cannot be read: {why}")]) from None
    if len(data) > MOST_BYTES:
        raise PolicyError([Diagnostic("E012", f"`{path}` is larger than a policy may be (4 MiB)")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        good = data[: e.start].decode("utf-8-sig", errors="replace")
        return _not_text(path, good, f"byte {data[e.start]:#04x} is not UTF-8")
    if "\0" in text:
        return _not_text(path, text[: text.index("\0")], "it holds a zero byte")
    return text


def _not_text(path: Path, before: str, why: str) -> str:
    span = Span(Source(str(path), before), len(before), len(before) + 1)
    help = "a policy is a text in UTF-8"
    raise PolicyError([Diagnostic("E011", f"this is not a text: {why}", span, help=help)])
