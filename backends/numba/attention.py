"""Self-attention over one joined projection, and a mask that is left out where it hides nothing."""

from __future__ import annotations

import operator
from math import sqrt
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.backends.numba import ops
from tersor.compiler.modules import Attention

aten = torch.ops.aten


class PreparedMask(nn.Module):
    """A mask for several attentions: None if a boolean mask is true everywhere, else additive (0 or -inf), made
    once.
    """

    def forward(self, mask: Tensor) -> Tensor | None:
        if mask.dtype is not torch.bool or torch.compiler.is_compiling():
            return mask
        if bool(mask.all()):
            return None
        return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill_(~mask, -torch.inf)


class JoinedAttention(nn.Module):
    """softmax(scale * q k^T + mask) v for q, k, v side by side: joined (batch, tokens, 3 * heads * width), result
    (batch, tokens, heads * width)."""

    def __init__(self, heads: int, width: int, scale: float | None, level: str) -> None:
        super().__init__()
        self.heads, self.width, self.level = heads, width, level
        self.scale = 1 / sqrt(width) if scale is None else scale

    def forward(self, joined: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
        run = ops.joined_attention if ops.direct(joined) else ops.attention
        y: Tensor = run(joined, mask, self.heads, self.width, self.scale, self.level)
        return y

    def extra_repr(self) -> str:
        return f"heads={self.heads}, width={self.width}, scale={self.scale:.4g}, level={self.level}"


def prepare_masks(module: fx.GraphModule) -> None:
    """Prepare every mask that attentions read once for all of them."""
    prepared: dict[fx.Node, fx.Node] = {}
    for node in module.graph.find_nodes(op="call_module"):
        if not isinstance(module.get_submodule(str(node.target)), Attention) or len(node.args) < 4:
            continue
        mask = node.args[3]
        if not isinstance(mask, fx.Node):
            continue
        if mask not in prepared:
            name = f"prepared_mask_{len(prepared)}"
            module.add_submodule(name, PreparedMask())
            with module.graph.inserting_after(mask):
                prepared[mask] = module.graph.call_module(name, (mask,))
        node.args = (*node.args[:3], prepared[mask])


def join_attentions(module: fx.GraphModule, level: str) -> None:
    """Attention over the three parts of one projection reads the projection itself; the moves of axes around it go."""
    for node in module.graph.find_nodes(op="call_module"):
        attention = module.get_submodule(str(node.target))
        if not isinstance(attention, Attention) or attention.enable_gqa or attention.is_causal or node.kwargs:
            continue
        found = _joined_inputs(node)
        if found is None:
            continue
        joined, shape, heads, width = found
        last = _output(node, shape, width)
        if last is None:
            continue
        module.set_submodule(str(node.target), JoinedAttention(heads, width, attention.scale, level))
        node.args = (joined, *node.args[3:])
        last.replace_all_uses_with(node)
    module.graph.eliminate_dead_code()


def _call(node: Any, target: Any) -> fx.Node | None:
    return node if isinstance(node, fx.Node) and node.target is target else None


def _joined_inputs(attention: fx.Node) -> tuple[fx.Node, tuple[Any, Any], int, int] | None:
    """(the projection, (batch, tokens), heads, width) if q, k, v are its thirds, moved to (batch, heads, tokens,
    width).
    """
    splits, shapes = [], []
    for position, argument in enumerate(attention.args[:3]):
        moved = _call(argument, aten.transpose.int)
        viewed = _call(moved.args[0], aten.reshape.default) if moved and moved.args[1:] == (1, 2) else None
        part = _call(viewed.args[0], operator.getitem) if viewed else None
        if viewed is None or part is None or part.args[1] != position:
            return None
        shapes.append(tuple(viewed.args[1]) if isinstance(viewed.args[1], list | tuple) else ())
        splits.append(_call(part.args[0], aten.split_with_sizes.default))
    split, shape = splits[0], shapes[0]
    if split is None or any(other is not split for other in splits) or any(other != shape for other in shapes):
        return None
    joined, sizes = split.args[0], split.args[1]
    if len(shape) != 4 or not isinstance(shape[3], int) or not isinstance(joined, fx.Node):
        return None
    if not isinstance(sizes, list | tuple) or len(sizes) != 3 or len(set(sizes)) != 1:
        return None
    (size, *_), width = sizes, shape[3]
    if not isinstance(size, int) or width < 1 or size % width or shape[2] not in (-1, size // width):
        return None
    return joined, (shape[0], shape[1]), size // width, width


def _output(attention: fx.Node, shape: tuple[Any, Any], width: int) -> fx.Node | None:
    """The node that holds the result as (batch, tokens, heads * width), if nothing else reads what lies between."""
    node = attention
    while len(node.users) == 1:
        (user,) = node.users
        sizes = user.args[1] if user.target is aten.reshape.default else None
        if isinstance(sizes, list | tuple) and tuple(sizes) == (shape[0], -1, shape[1], width):
            node = user  # already of this shape: (batch, heads, tokens, width)
            continue
        if user.target is not aten.transpose.int or user.args[1:] != (1, 2) or len(user.users) != 1:
            return None
        (last,) = user.users
        sizes = last.args[1] if last.target is aten.reshape.default else None
        return last if isinstance(sizes, list | tuple) and tuple(sizes) == (*shape, -1) else None
    return None
