"""Text continued token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.compiler.callable import CompiledModule
from tersor.compiler.errors import RequestError


def generate(module: nn.Module, ids: Tensor, max_new_tokens: int) -> Tensor:
    """`ids` (batch, tokens) followed by `max_new_tokens` more, each the likeliest after all before it (greedy).

    `module` is what `compile` or `load` gave for a language model: its first output holds logits (batch, tokens,
    entries). On the CPU kernels keys and values are kept from token to token; elsewhere everything is computed again
    for each. All sequences of a batch have one length: there is no padding.

    Raises RequestError, naming the node, for a model on the CPU kernels that does not treat every token alike apart
    from causal attention and positions.
    """
    if not isinstance(module, CompiledModule):
        raise RequestError("generate takes what tersor.compile or tersor.load gave")
    if ids.dim() != 2 or not ids.numel() or max_new_tokens < 0:
        raise RequestError(f"generate takes (batch, tokens), not {tuple(ids.shape)}, and no fewer than 0 new tokens")
    if not max_new_tokens:
        return ids
    graph: Any = module.graph_module
    decoder = None
    if hasattr(graph, "decoder"):
        decoder = graph.decoder(ids.shape[0], ids.shape[1] + max_new_tokens)
    new = ids
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = _last(module, ids) if decoder is None else decoder.step(new)
            new = logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], 1)
    return ids


def _last(module: CompiledModule, ids: Tensor) -> Tensor:
    """The logits after the last token, from all tokens anew."""
    first = pytree.tree_leaves(_flat(module(ids)))[0]
    found: Tensor = first[:, -1]
    return found


def _flat(output: Any) -> Any:
    return tuple(output.values()) if hasattr(output, "values") else output
