"""How the nodes of a lowered graph become steps: by the class of a leaf module, or by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.lower import attention, elementwise, forms, layers, views

HANDLERS: Mapping[Any, Handler] = {
    **layers.HANDLERS,
    **forms.HANDLERS,
    **attention.HANDLERS,
    **elementwise.HANDLERS,
    **views.HANDLERS,
}

__all__ = ["HANDLERS"]
