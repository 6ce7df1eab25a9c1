"""What is timed on this machine, and by which backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from tersor.compiler.equality import resized
from tersor.compiler.program import Program


@dataclass(frozen=True, order=True)
class Shape:
    """The inputs and the threads of a timed call: `tokens` new ones, after `cached` whose keys and values are kept."""

    batch: int
    tokens: int
    threads: int = 1
    cached: int = 0

    def __str__(self) -> str:
        cached = f", cached = {self.cached}" if self.cached else ""
        return f"batch = {self.batch}, tokens = {self.tokens}{cached}, threads = {self.threads}"

    def inputs(self, program: Program) -> dict[str, Tensor]:
        """Inputs of this shape without padding, made from the example; the new tokens only."""
        found = resized(program.example, self.batch, self.tokens, program.signature.limits)
        if "attention_mask" in found:
            found["attention_mask"] = torch.ones_like(found["attention_mask"])
        return found


class Engine(Protocol):
    """A backend as the core sees it. `version` names its kernels and the machine: times of one version are not those
    of another."""

    @property
    def version(self) -> str: ...

    def emit(self, module: fx.GraphModule) -> nn.Module:
        """The graph for inference on this backend; the one given stays as it is."""


class Timings(Protocol):
    """Times that were measured before, in those of `pace.Pace.reference`, by a text that says of what."""

    def get(self, key: str) -> float | None: ...

    def put(self, key: str, times: float) -> None: ...


class Remembered:
    """Timings of this process alone."""

    def __init__(self) -> None:
        self.known: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        return self.known.get(key)

    def put(self, key: str, times: float) -> None:
        self.known[key] = times
