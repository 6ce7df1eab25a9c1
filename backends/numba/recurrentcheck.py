"""A recurrence is trusted on this CPU only after it has agreed with the same layer computed step by step."""

from __future__ import annotations

from functools import cache

import torch

from tersor.backends.numba.cells import GATES, Mode
from tersor.backends.numba.features import level_named
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.lower import HANDLERS
from tersor.backends.numba.native.program import Context
from tersor.backends.numba.recurrent import QuantizedRecurrent

_TOLERANCE = 2e-6  # of states below 1: the gates are within 3e-7, and three steps may add up
_LENGTH, _BATCH = 3, 2


def small_layer(mode: Mode, level: str) -> QuantizedRecurrent:
    """Two directions of random 8-bit weights, with one whole and one partial vector of units."""
    hidden, inputs = level_named(level).lanes + 3, 5
    generator = torch.Generator().manual_seed(0)

    def linear(columns: int) -> QuantizedLinear:
        rows = GATES[mode] * hidden
        codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
        scale, zero = torch.full((rows, 1), 0.01), torch.full((rows, 1), 128.0)
        bias = torch.randn(rows, generator=generator)
        return QuantizedLinear.from_codes(codes, scale, zero, 8, bias, activation_group=0, level=level)

    linears = [linear(columns) for columns in (inputs, hidden, inputs, hidden)]
    return QuantizedRecurrent(mode, linears, hidden, True, True, level)


@cache
def trusted(mode: Mode, level: str) -> bool:
    """Whether the compiled recurrence agrees with its reference here."""
    layer = small_layer(mode, level)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(_BATCH, _LENGTH, 5, generator=generator)
    states = [0.5 * torch.randn(2, _BATCH, layer.hidden, generator=generator) for _ in range(2)]
    b = Builder(level, 1)
    value, *held = (b.input(t) for t in (x, *states))
    found = HANDLERS[QuantizedRecurrent](b, layer, (value, (held[0], held[1])), {})
    if found is NotImplemented:
        return False  # a linear fell back to a slower level
    program = b.finish(found[0])
    with torch.no_grad():
        y = program.run((x, *states), Context())
        wanted, _ = layer(x, (states[0], states[1]))
    return bool((y - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp_min(1))
