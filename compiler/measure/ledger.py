"""What was measured before, so that it need not be measured again: a run that was killed goes on where it stood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Ledger(Protocol):
    """Measurements of one model on one set of data by a key. What `keep` returned from is there for every later run."""

    def recall(self, key: str) -> Any | None:
        """The JSON value kept under a key; None where there is none."""

    def keep(self, key: str, value: Any) -> None: ...

    def recall_arrays(self, key: str) -> Mapping[str, Tensor] | None: ...

    def keep_arrays(self, key: str, arrays: Mapping[str, Tensor]) -> None: ...


class Forgetful:
    """A ledger that keeps nothing."""

    def recall(self, key: str) -> Any | None:
        return None

    def keep(self, key: str, value: Any) -> None:
        return None

    def recall_arrays(self, key: str) -> Mapping[str, Tensor] | None:
        return None

    def keep_arrays(self, key: str, arrays: Mapping[str, Tensor]) -> None:
        return None


def digest(value: Any) -> str:
    """A short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
