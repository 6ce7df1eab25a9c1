"""Leaf modules as JSON, and back. Parameters are named by the site or buffer that holds their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, CompressedRecurrent
from tersor.compiler.errors import ArtifactError
from tersor.compiler.modules import Attention

OPAQUE = "opaque"


def describe(module: nn.Module) -> dict[str, Any]:
    """The class and settings of a leaf, without its weights. A compressed leaf is described as what it stands for."""
    match module:
        case nn.Linear() | CompressedLinear():
            bias = module.bias is not None
            return {"type": "linear", "in": module.in_features, "out": module.out_features, "bias": bias}
        case nn.Embedding() | CompressedEmbedding():
            return {
                "type": "embedding",
                "rows": module.num_embeddings,
                "width": module.embedding_dim,
                "padding": module.padding_idx,
            }
        case nn.LayerNorm():
            arrays = [module.weight is not None, module.bias is not None]
            return {"type": "layer_norm", "shape": list(module.normalized_shape), "eps": module.eps, "affine": arrays}
        case nn.Dropout():
            return {"type": "dropout", "p": module.p}
        case Attention():
            settings = {
                "p": module.p,
                "is_causal": module.is_causal,
                "scale": module.scale,
                "enable_gqa": module.enable_gqa,
            }
            return {"type": "attention", **settings}
        case nn.RNNBase() | CompressedRecurrent():
            return {
                "type": "recurrent",
                "mode": module.mode,
                "in": module.input_size,
                "hidden": module.hidden_size,
                "layers": module.num_layers,
                "bias": module.bias,
                "batch_first": module.batch_first,
                "dropout": module.dropout,
                "bidirectional": module.bidirectional,
            }
    return {"type": OPAQUE, "class": type(module).__name__}


def opaque_leaves(module: fx.GraphModule) -> dict[str, nn.Module]:
    """The called modules that are kept as they are, by path: their code cannot be written as data."""
    paths = dict.fromkeys(node.target for node in module.graph.find_nodes(op="call_module"))
    called = {path: module.get_submodule(path) for path in paths}
    return {path: leaf for path, leaf in called.items() if describe(leaf)["type"] == OPAQUE}


def _embedding(d: Mapping[str, Any]) -> nn.Module:
    """With its weight given: a random one is made in Python where it is on the meta device, by importing a compiler."""
    return nn.Embedding(d["rows"], d["width"], padding_idx=d["padding"], _weight=torch.empty(d["rows"], d["width"]))


def _layer_norm(d: Mapping[str, Any]) -> nn.Module:
    has_weight, has_bias = d["affine"]
    return nn.LayerNorm(d["shape"], eps=d["eps"], elementwise_affine=has_weight, bias=has_bias)


def _recurrent(d: Mapping[str, Any]) -> nn.Module:
    mode: str = d["mode"]
    settings = {
        "bias": d["bias"],
        "batch_first": d["batch_first"],
        "dropout": d["dropout"],
        "bidirectional": d["bidirectional"],
        "num_layers": d["layers"],
    }
    if mode.startswith("RNN_"):
        return nn.RNN(d["in"], d["hidden"], nonlinearity=mode[4:].lower(), **settings)
    layer: type[nn.LSTM | nn.GRU] = {"LSTM": nn.LSTM, "GRU": nn.GRU}[mode]
    return layer(d["in"], d["hidden"], **settings)


BUILD: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "linear": lambda d: nn.Linear(d["in"], d["out"], bias=d["bias"]),
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "dropout": lambda d: nn.Dropout(d["p"]),
    "attention": lambda d: Attention(d["p"], d["is_causal"], d["scale"], d["enable_gqa"]),
    "recurrent": _recurrent,
}


def rebuild(described: Mapping[str, Any], path: str) -> nn.Module:
    """The leaf that `describe` described, its parameters on the meta device or to be replaced by the caller."""
    try:
        return BUILD[described["type"]](described)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as problem:
        raise ArtifactError(f"the module at `{path}` is damaged: {problem!r}") from None
