"""How far the outputs of two models are apart on given batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.batches import Batch
from tersor.compiler.measure.signal import SIGNALS, SignalName

VIEW_BYTES = 64 * 2**20
"""How much of the original's answers is kept."""


@dataclass(frozen=True)
class Fidelity:
    """`mean` and `worst` divergence over `vectors` compared vectors: 1 - cosine for embeddings, KL in nats for logits.

    `agreement` is the share of logits with the same first answer; `on` says on which data."""

    signal: SignalName
    unit: str
    vectors: int
    mean: float
    worst: float
    agreement: float | None
    on: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """`cosine 0.9991 mean, 0.9950 least (120 texts held out)`"""
        if self.signal == "embedding":
            values = f"cosine {1 - self.mean:.5f} mean, {1 - self.worst:.5f} least"
        else:
            values = f"KL {self.mean:.3g} nats mean, {self.worst:.3g} most"
            if self.agreement is not None:
                values += f"; same first answer {self.agreement:.2%}"
        return f"{values} ({self.vectors} outputs, {self.on})"


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in flat(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in flat(value)]
    return []


class Original:
    """A model to compare others with, on fixed batches. What it answers is kept as long as it is small."""

    def __init__(self, name: SignalName, module: nn.Module, batches: Sequence[Batch]) -> None:
        self.name, self.module, self.batches = name, module, batches
        self._views: dict[int, Tensor] = {}
        self._kept = 0

    def view(self, number: int) -> Tensor:
        """What is compared of the answer to a batch."""
        if number in self._views:
            return self._views[number]
        batch = self.batches[number]
        found = SIGNALS[self.name].view(flat(self.module(**batch)), batch)
        if self._kept + found.nbytes <= VIEW_BYTES:
            self._views[number] = found
            self._kept += found.nbytes
        return found

    def compared(self, other: nn.Module, on: str) -> Fidelity:
        """Another model, called alike, on every batch."""
        signal = SIGNALS[self.name]
        divergences, same = [], []
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                ours, theirs = self.view(number), signal.view(flat(other(**batch)), batch)
                divergences.append(signal.divergence(ours, theirs))
                same.append(ours.argmax(-1) == theirs.argmax(-1))
        found = torch.cat(divergences)
        agreement = float(torch.cat(same).double().mean()) if self.name == "logits" else None
        mean, worst = float(found.double().mean()), float(found.max())
        return Fidelity(self.name, signal.unit, found.numel(), mean, worst, agreement, on)


def fidelity(name: SignalName, reference: nn.Module, other: nn.Module, batches: Sequence[Batch], on: str) -> Fidelity:
    """Compare two models, called alike, on every batch."""
    return Original(name, reference, batches).compared(other, on)
