"""From the costs of choices to what an artifact comes to: a part that is no choice's, and a scale, both corrected by
every artifact that is measured.

    measured = rest + scale * sum of the costs
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TRUST = 0.3
"""How near, as a share of the costs' own size, artifacts must be to each other to count fully, and how far apart before
their difference moves the scale much."""


@dataclass(frozen=True)
class Forecast:
    """`seen` are (sum of costs, measured) of the artifacts so far, the latest last."""

    seen: tuple[tuple[float, float], ...] = ()

    def after(self, costs: float, measured: float) -> Forecast:
        return Forecast((*self.seen, (costs, measured)))

    @property
    def scale(self) -> float:
        """The slope at the latest artifact: least squares through it, in which near artifacts count more, with a pull
        towards 1, or less where the choices would come to more than all of the artifact; within a factor of two."""
        if not self.seen:
            return 1.0
        costs, measured = np.array(self.seen).T
        expected = min(1.0, measured[-1] / costs[-1]) if costs[-1] > 0 else 1.0
        x, y = costs - costs[-1], measured - measured[-1]
        near = TRUST * float(costs.mean()) or 1.0
        weight = 1 / (1 + (x / near) ** 2)
        slope = ((weight * x) @ y + expected * near**2) / ((weight * x) @ x + near**2)
        return float(np.clip(slope, 0.5, 2.0))

    @property
    def rest(self) -> float:
        """What the latest artifact took besides its choices; 0 before there is one."""
        return self.seen[-1][1] - self.scale * self.seen[-1][0] if self.seen else 0.0

    def real(self, costs: float) -> float:
        """What an artifact whose choices cost this much comes to."""
        return self.rest + self.scale * costs

    def costs(self, real: float) -> float:
        """What the choices may cost for an artifact to come to this much."""
        return (real - self.rest) / self.scale
