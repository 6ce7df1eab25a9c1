"""What a compilation came to, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tersor.backend import Placed
from tersor.compiler.measure.signal import SignalName
from tersor.compiler.report import Held
from tersor.compiler.units import bytes_text
from tersor.fidelity import Fidelity


@dataclass(frozen=True)
class Report:
    """`original_bytes` are the parameters of the original, `bytes` the files that loading reads.

    `damage` is predicted, in `unit`; `fidelity` is measured on the compiled module (None without data).
    """

    original_bytes: int
    bytes: int
    budget: float | None
    damage: float
    bound: float | None
    unit: str
    calibrated: int
    signal: SignalName
    placed: tuple[Placed, ...]
    fidelity: Fidelity | None
    notes: tuple[str, ...]
    budgets: tuple[Held, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "placed": [p.to_json() for p in self.placed],
            "fidelity": self.fidelity.to_json() if self.fidelity else None,
            "notes": list(self.notes),
            "budgets": [b.to_json() for b in self.budgets],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        fidelity = Fidelity(**data["fidelity"]) if data["fidelity"] else None
        placed = tuple(Placed(**p) for p in data["placed"])
        budgets = tuple(Held(**b) for b in data["budgets"])
        kept = {"placed": placed, "fidelity": fidelity, "notes": tuple(data["notes"]), "budgets": budgets}
        return cls(**{**data, **kept})

    def to_text(self) -> str:
        return "\n".join(self.lines()) + "\n"

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        budget = f", budget {bytes_text(self.budget)}" if self.budget is not None else ""
        lines = [
            f"size      {bytes_text(self.bytes)} of {bytes_text(self.original_bytes)}: "
            f"{self.original_bytes / self.bytes:.2f} times smaller{budget}",
            f"damage    {self.damage:.4g} {self.unit} predicted ({self._basis()})"
            + (f", at least {self.bound:.4g} within the budget" if self.bound is not None else ""),
            f"fidelity  {self.fidelity.to_text() if self.fidelity else 'not measured: there is no data'}",
        ]
        lines += [f"{b.name.split()[0]:9} {b.text}" for b in self.budgets if b.name != "size"]
        lines += [f"computed  {line}" for line in self.coverage()]
        return lines + [f"note      {note}" for note in self.notes]

    def _basis(self) -> str:
        return f"{self.calibrated} calibration examples" if self.calibrated else "weights only, no data"

    def coverage(self) -> list[str]:
        """By which kernels the compressed modules compute."""
        if not self.placed:
            return ["no module holds a store: all of it by torch"]
        lines = []
        for (kernel, reason), count in Counter((p.kernel, p.reason) for p in self.placed).items():
            lines.append(f"{count} of {len(self.placed)} modules by {kernel}" + (f": {reason}" if reason else ""))
        return lines
