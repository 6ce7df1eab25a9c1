"""How the nodes of a lowered graph become steps: by the class of a leaf module, or by operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.lower import (
    attention,
    decoders,
    elementwise,
    forms,
    layers,
    recurrent,
    structured,
    tables,
    views,
)

_LEAVES: Mapping[Any, Handler] = {
    **layers.HANDLERS,
    **forms.HANDLERS,
    **tables.HANDLERS,
    **structured.HANDLERS,
    **attention.HANDLERS,
    **decoders.HANDLERS,
    **elementwise.HANDLERS,
    **views.HANDLERS,
}

HANDLERS: Mapping[Any, Handler] = {**_LEAVES, **recurrent.handlers(_LEAVES)}

__all__ = ["HANDLERS"]
