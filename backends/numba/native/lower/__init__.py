"""How the nodes of a lowered graph become steps: by the class of a leaf module, or by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.lower import attention, decoders, elementwise, layers, views

_FAMILIES = (layers, attention, decoders, elementwise, views)
HANDLERS: Mapping[Any, Handler] = {
    target: handler for family in _FAMILIES for target, handler in family.HANDLERS.items()
}

__all__ = ["HANDLERS"]
