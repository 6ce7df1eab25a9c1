"""The default search space: what may be done to a model when no policy says so."""

from __future__ import annotations

from tersor.backend import BackendName, adds_in_pairs
from tersor.compiler.program import Program
from tersor.policies import Policy

MATRICES = ("linear", "embedding", "recurrent")
LARGE = 4096
"""Parameters from which a weight is worth codes of its own; smaller ones are kept in 16 bits."""


def default_space(program: Program, calibrated: bool, backend: BackendName) -> Policy:
    """Every matrix at 2 to 8 bits, with scales for 64 columns or for the row, rounded with compensation where there is
    data to find it from; the same widths for the scales of what linears read, where data tells what that does; linears
    also at 7 and 8 bits whose sums fit 16, where the kernels are faster then; everything small in 16 bits."""
    large = {s.kind for s in program.sites if s.kind in MATRICES and len(s.shape) == 2 and s.params >= LARGE}
    small = {s.kind for s in program.sites if s.kind not in MATRICES or s.params < LARGE}
    rounding = ", rounding = compensated" if calibrated else ""
    reading = ", activations = {64, row}" if calibrated else ""
    lines = []
    halved = " or ".join(kind for kind in (*MATRICES, "norm", "bias") if kind in small)
    if halved:
        lines.append(f"for {halved} choose half()")
    narrowest = min((s.shape[-1] for s in program.sites if s.kind in large and len(s.shape) == 2), default=0)
    groups = "{64, row}" if narrowest > 64 else "row"
    for kind in (kind for kind in MATRICES if kind in large):
        more = reading if kind == "linear" and narrowest > 64 else ""
        choices = f"uniform(bits = 2..8, group = {groups}{rounding}{more})"
        if kind == "linear" and adds_in_pairs(backend):
            choices += f" or uniform(bits = 7..8, group = row, symmetric = true, accumulator = 16{rounding}{more})"
        lines.append(f"for {kind} where params >= {LARGE} choose {choices}")
    return Policy.parse("\n".join(lines) + "\n", "<default space>")
