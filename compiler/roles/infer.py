"""Roles."""

from __future__ import annotations

from dataclasses import dataclass

@dataclass(frozen=True)
class Role:
    """A role and the evidence for it, in short phrases."""

    name: str
    why: tuple[str, ...] = ()
