"""Times of kernels on this machine, kept between runs, in those of a reference: one SQLite file in the cache folder,
shared by processes.

A cache may be lost: where the file cannot be used, times last as long as the process.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tersor.backends.numba.build import cache_root

SECONDS = 10.0
"""How long to wait for another process that writes."""


class Timings:
    """`tersor.compiler.measure.clock.Timings` on disk; `path` defaults to the cache folder's."""

    def __init__(self, path: Path | None = None) -> None:
        self.known: dict[str, float] = {}
        self._file: sqlite3.Connection | None = None
        path = path or cache_root() / "timings.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=SECONDS, isolation_level=None, check_same_thread=False)
            self._file.execute("CREATE TABLE IF NOT EXISTS relative (key TEXT PRIMARY KEY, times REAL NOT NULL)")
        except (OSError, sqlite3.Error):
            self._file = None

    def get(self, key: str) -> float | None:
        if key not in self.known and self._file is not None:
            try:
                row = self._file.execute("SELECT times FROM relative WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error:
                row = None
            if row is not None:
                self.known[key] = float(row[0])
        return self.known.get(key)

    def put(self, key: str, times: float) -> None:
        self.known[key] = times
        if self._file is None:
            return
        try:
            self._file.execute("INSERT OR REPLACE INTO relative VALUES (?, ?)", (key, times))
        except sqlite3.Error:
            self._file = None
