"""What linears and norms that round their own result are specialised on."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.backends.numba.microkernels import LinearSpec
from tersor.backends.numba.rounding import RoundSpec
from tersor.backends.numba.rowkernels import NormSpec


@dataclass(frozen=True)
class MultiplyRoundSpec:
    """A linear, and the rounding of its result."""

    linear: LinearSpec
    rounding: RoundSpec

    @property
    def name(self) -> str:
        return f"{self.linear.name}_{self.rounding.name}"


@dataclass(frozen=True)
class NormRoundSpec:
    """A normalisation, and the rounding of its result."""

    norm: NormSpec
    rounding: RoundSpec

    @property
    def name(self) -> str:
        return f"{self.norm.name}_{self.rounding.name}"
