"""Roles of the parts of a graph, inferred from its structure alone: no names, no module paths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """A role (`attention.query`, `ffn.up`, ...) and the evidence for it, in short phrases."""

    name: str
    why: tuple[str, ...] = ()
