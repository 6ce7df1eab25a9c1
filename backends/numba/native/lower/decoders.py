"""The parts of decoders as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tersor.backends.numba.decodermodules import Rotary
from tersor.backends.numba.decodersteps import rotary_step
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.values import Value
from tersor.backends.numba.tensorsteps import broadcast


def _rotary(b: Builder, module: Any, args: tuple[Any, ...], _: Mapping[str, Any]) -> Any:
    half = int(module.first)
    x, cos, sin = (b.value(v) for v in args)
    if any(v.dtype is not torch.float32 for v in (x, cos, sin)) or len(x.shape) != 4 or x.shape[3] != 2 * half:
        return NotImplemented
    if any(tuple(np.broadcast_shapes(v.shape, x.shape)) != x.shape or v.shape[-1] != x.shape[-1] for v in (cos, sin)):
        return NotImplemented
    x, cos, sin = (broadcast(_adjacent(b, v), x.shape) for v in (x, cos, sin))
    y = b.new(x.shape)
    b.step(rotary_step(b.level, x, cos, sin, y))
    return y


def _adjacent(b: Builder, value: Value) -> Value:
    return value if value.stride[-1] == 1 else b.dense(value)


HANDLERS: Mapping[Any, Handler] = {Rotary: _rotary}
