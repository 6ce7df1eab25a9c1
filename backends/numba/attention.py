"""Masks of attention that are made once, and left out where they hide nothing."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from tersor.compiler.modules import Attention


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
