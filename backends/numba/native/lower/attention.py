"""Attention as steps, over a mask prepared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.backends.numba.attention import JoinedAttention, PreparedMask
from tersor.backends.numba.attention16steps import AttentionShape, Rows, attention16_step, takes_width
from tersor.backends.numba.layout import ceil_to
from tersor.backends.numba.native.builder import Builder
from tersor.backends.numba.native.graph import Handler
from tersor.backends.numba.native.program import TorchCall
from tersor.backends.numba.native.values import Derived, Value
from tersor.backends.numba.steps import attention_step, attention_tile


@dataclass(frozen=True)
class KeyMajorMask(Derived):
    """An additive mask as the kernel reads it, (batch or 1, keys, queries padded); absent where nothing is hidden."""

    value: Value


def key_major(mask: Tensor, tile: int) -> Tensor | None:
    """A boolean (True: seen) or additive mask (batch, 1, queries, keys), key by key and padded; None if it hides
    nothing.
    """
    if mask.dtype is torch.bool:
        if bool(mask.all()):
            return None
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    turned = mask[:, 0].mT.to(torch.float32)
    return F.pad(turned, (0, ceil_to(turned.shape[-1], tile) - turned.shape[-1])).contiguous()


def _prepare(b: Builder, _: Any, args: tuple[Any, ...], __: Mapping[str, Any]) -> Any:
    mask = args[0]
    if len(mask.shape) != 4 or mask.shape[1] != 1:
        return NotImplemented
    tile = attention_tile(b.level)
    batch, _, queries, keys = mask.shape
    if mask.stride[0] == 0:
        batch = 1
    turned = b.outside((batch, keys, ceil_to(queries, tile)), torch.float32)
    source = mask.narrowed(0, 0, batch)
    b.call(TorchCall(key_major, (source, tile), {}, (b.base(turned),)))
    return KeyMajorMask(mask, turned)


def _joined(b: Builder, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    attention: JoinedAttention = module
    joined = args[0]
    mask = args[1] if len(args) > 1 else None
    tile = attention_tile(b.level)
    batch, tokens, _ = joined.shape
    if attention.level != b.level or kwargs or attention.width % tile or joined.dtype is not torch.float32:
        return NotImplemented
    address: Any = 0
    stride = 0
    if mask is not None:
        if isinstance(mask, Tensor):
            turned = key_major(mask, tile)
            held = None if turned is None else b.value(turned)
        elif isinstance(mask, KeyMajorMask):
            held = mask.value
        else:
            return NotImplemented
        if held is not None:
            address = held.ref
            stride = 4 * held.stride[0] * (held.shape[0] > 1)
    joined = b.dense(joined)
    y = b.new((batch, tokens, attention.heads * attention.width))
    scale = b.keep(torch.tensor(attention.scale, dtype=torch.float32))
    heads, width = attention.heads, attention.width
    if takes_width(b.level, width):
        line = 4 * heads * width
        q, k, v = (
            Rows(replace(joined.ref, offset=joined.ref.offset + i * line), 3 * line, 3 * line * tokens)
            for i in range(3)
        )
        shape = AttentionShape(batch, tokens, tokens, heads, width)
        b.step(attention16_step(b.level, shape, q, k, v, Rows(y.ref, line, line * tokens), scale, address, stride))
    else:
        b.step(attention_step(b.level, (batch, tokens, heads, width), joined.ref, address, stride, scale, y.ref))
    return y


HANDLERS: Mapping[Any, Handler] = {PreparedMask: _prepare, JoinedAttention: _joined}
