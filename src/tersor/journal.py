"""The journal of an output folder: everything that was measured, so that no run measures it again.

One SQLite file. Each entry is on disk when `keep` returns: a run that is killed at any moment loses at most what it
was measuring. Entries belong to a mark, a hash of the model and the data; those of other marks stay for later.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from tersor.compiler.errors import RequestError

JOURNAL = "journal.sqlite"
WAIT = 10.0
"""Seconds to wait for another run that writes to the same folder."""

TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    mark TEXT NOT NULL, key TEXT NOT NULL, value TEXT, arrays BLOB, PRIMARY KEY (mark, key)
)
"""


class Journal:
    """`tersor.compiler.measure.ledger.Ledger` in a folder. Raises RequestError where it cannot be read or written."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.path, self.mark = folder / JOURNAL, mark
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._file.execute(TABLE)
        except (OSError, sqlite3.Error) as problem:
            raise self._broken(problem) from None

    def _broken(self, problem: Exception) -> RequestError:
        why = str(problem)
        if "not a database" in why or "malformed" in why:
            return RequestError(f"{self.path} is damaged: remove it, and what it held will be measured again")
        return RequestError(
            f"the journal {self.path} cannot be used: {why}; what was found so far stays in {self.path.parent}"
        )

    def _one(self, column: str, key: str) -> Any:
        try:
            with closing(
                self._file.execute(f"SELECT {column} FROM entries WHERE mark = ? AND key = ?", (self.mark, key))
            ) as rows:
                row = rows.fetchone()
        except sqlite3.Error as problem:
            raise self._broken(problem) from None
        return row[0] if row else None

    def recall(self, key: str) -> Any | None:
        value = self._one("value", key)
        return None if value is None else json.loads(value)

    def keep(self, key: str, value: Any) -> None:
        self._write(key, json.dumps(value), None)

    def recall_arrays(self, key: str) -> Mapping[str, Tensor] | None:
        value = self._one("arrays", key)
        try:
            return None if value is None else safetensors.torch.load(value)
        except safetensors.SafetensorError as problem:
            raise self._broken(problem) from None

    def keep_arrays(self, key: str, arrays: Mapping[str, Tensor]) -> None:
        self._write(key, None, safetensors.torch.save({n: t.contiguous().clone() for n, t in arrays.items()}))

    def _write(self, key: str, value: str | None, arrays: bytes | None) -> None:
        try:
            self._file.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (self.mark, key, value, arrays))
        except sqlite3.Error as problem:
            raise self._broken(problem) from None

    def close(self) -> None:
        self._file.close()


@cache
def measuring() -> str:
    """A hash of the code that measures: what another version measured is not taken for this one's."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for part in ("compiler", "passes"):
        folder = Path(str(importlib.import_module(f"tersor.{part}").__path__[0]))
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    digest.update((here / "judge.py").read_bytes())
    return digest.hexdigest()


def is_journal(name: str) -> bool:
    """Whether a file name is the journal's or that of a transaction that was not finished."""
    return name == JOURNAL or name.startswith(f"{JOURNAL}-")
