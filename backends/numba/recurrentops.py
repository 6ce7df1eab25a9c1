"""One direction of a recurrent layer as a torch operator, `tersor::quantized_recurrence`: what an exported graph holds,
where a loop over time would make the length a constant. It has no gradient: who trains goes step by step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.backends.numba.cells import GATES, Mode
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.ops import quantized_linear
from tersor.backends.numba.recurrentstep import over_time

_library = torch.library.Library("tersor", "FRAGMENT")
_library.define(
    "quantized_recurrence(Tensor products, Tensor h, Tensor c, str mode, bool backward, Tensor codes, Tensor scale, "
    "Tensor? shift, Tensor bias, int rows, int columns, int width, int room, int weight_group, "
    "int activation_group, str activation, str level) -> (Tensor, Tensor, Tensor)"
)


def quantized_recurrence(
    products: Tensor, h: Tensor, c: Tensor, mode: Mode, backward: bool, *weight: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """y (time, batch, hidden) and the last h and c from products W_ih x + b_ih (time, batch, gates * hidden) and the
    first h and c (batch, hidden); `weight` are the operands of `quantized_linear` after its input, for W_hh and b_hh.
    """
    y, h, c = over_time(mode, products, lambda state: quantized_linear(state, *weight), h, c, backward)
    return y, h.clone(), c.clone()


def _fake(products: Tensor, h: Tensor, c: Tensor, mode: Mode, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*products.shape[:2], products.shape[2] // GATES[mode])
    return products.new_empty(shape), torch.empty_like(h), torch.empty_like(c)


_library.impl("quantized_recurrence", quantized_recurrence, "CPU")
torch.library.register_fake("tersor::quantized_recurrence", _fake, lib=_library)


def exported(
    mode: Mode, products: Tensor, linear: QuantizedLinear, h: Tensor, c: Tensor, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's call for a linear of the state."""
    weight = (linear.codes, linear.scale, linear.shift, linear.bias, *linear._constants)
    y, last_h, last_c = torch.ops.tersor.quantized_recurrence.default(products, h, c, mode, backward, *weight)
    return y, last_h, last_c
