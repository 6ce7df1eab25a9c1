"""Text continued token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.compiler.callable import CompiledModule
from tersor.compiler.errors import RequestError

IDS = "input_ids"


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
        longest = min((limit.max for limit in module.signature.limits), default=None)
        decoder = graph.borrow(ids.shape[0], ids.shape[1] + max_new_tokens, longest)
    new = ids
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = _last(module, ids) if decoder is None else decoder.step(new)
            new = logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], 1)
    if decoder is not None:
        graph.give_back(decoder)
    return ids


def continuing(module: nn.Module, ids: Tensor, cached: int) -> Callable[[], Tensor]:
    """A call that takes in the tokens of `ids` after the first `cached`, the same ones each time, as `generate` does.
    Raises RequestError like `generate`."""
    graph: Any = getattr(module, "graph_module", None)
    if not hasattr(graph, "decoder"):
        return lambda: _last(module, ids)
    decoder = graph.decoder(*ids.shape)
    with torch.inference_mode():
        decoder.step(ids[:, :cached])

    def run() -> Tensor:
        decoder.reset(cached)
        found: Tensor = decoder.step(ids[:, cached:])
        return found

    return run


def ids_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """The tokens among the inputs of a language model."""
    return inputs.get(IDS, next(iter(inputs.values())))


def _last(module: nn.Module, ids: Tensor) -> Tensor:
    """The logits after the last token, from all tokens anew."""
    first = pytree.tree_leaves(_flat(module(ids)))[0]
    found: Tensor = first[:, -1]
    return found


def _flat(output: Any) -> Any:
    return tuple(output.values()) if hasattr(output, "values") else output
