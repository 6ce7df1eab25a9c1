"""A flat graph: placeholders in the order of the signature, one flat tuple of tensors out; the structure moves to
`Signature`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.compiler.errors import CaptureError
from tersor.compiler.signature import Constant, Group, Input, Output, Signature, TensorAt


@dataclass(frozen=True)
class _Leaf:
    index: int


def flatten(gm: fx.GraphModule, model: nn.Module, example: Mapping[str, Tensor]) -> Signature:
    """Give the graph the plain calling convention, in place, and say what the original one was (without limits)."""
    graph = gm.graph
    codegen: Any = graph._codegen
    names = _reorder_placeholders(graph, list(codegen.pytree_info.orig_args), list(example))
    (output,) = graph.find_nodes(op="output")
    leaves: list[Any] = list(pytree.tree_leaves(output.args[0], is_leaf=lambda x: x is None or isinstance(x, fx.Node)))
    spec = codegen.pytree_info.out_spec
    tensors: list[fx.Node] = []
    outputs: list[Output] = []
    for leaf in leaves:
        if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor):
            outputs.append(TensorAt(len(tensors)))
            tensors.append(leaf)
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            outputs.append(Constant(leaf))
        else:
            raise CaptureError(f"an output is neither a tensor nor a constant ({leaf}); return tensors")
    structure = _structure(pytree.tree_unflatten([_Leaf(i) for i in range(len(leaves))], spec), outputs)
    if not tensors:
        raise CaptureError("the model returns no tensor")
    output.args = (tuple(tensors),)
    graph.set_codegen(fx.graph.CodeGen())
    gm.recompile()
    inputs = tuple(Input(n, str(example[n].dtype)[6:], example[n].dim(), _default(n, example, model)) for n in names)
    return Signature(inputs, structure, _positional(model))


def _reorder_placeholders(graph: fx.Graph, exported: list[str], names: list[str]) -> list[str]:
    placeholders = graph.find_nodes(op="placeholder")
    if len(placeholders) != len(names):
        raise CaptureError(f"the exported graph has {len(placeholders)} inputs for the {len(names)} given")
    by_name = dict(zip(exported if len(exported) == len(names) else names, placeholders, strict=True))
    if set(by_name) != set(names):
        by_name = dict(zip(names, placeholders, strict=True))
    first = next(iter(graph.nodes))
    for name in names:
        if by_name[name] is not first:
            first.prepend(by_name[name])
        else:
            first = first.next
        by_name[name].target = name
    return names


def _structure(value: Any, outputs: list[Output]) -> Output:
    if isinstance(value, _Leaf):
        return outputs[value.index]
    if value is None:
        return Constant(None)
    if isinstance(value, Mapping):
        cls = type(value)
        kind = f"{cls.__module__}:{cls.__qualname__}" if cls.__module__.split(".")[0] == "transformers" else "dict"
        return Group(kind, tuple(_structure(v, outputs) for v in value.values()), tuple(map(str, value)))
    if isinstance(value, tuple | list):
        kind = "list" if isinstance(value, list) else "tuple"
        return Group(kind, tuple(_structure(v, outputs) for v in value))
    raise CaptureError(f"the model returns a {type(value).__name__}; return tensors, tuples, lists or dicts")


def _positional(model: nn.Module) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds)


def _default(name: str, example: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Masks of ones and token types of zeros, where the original also does without them."""
    parameter = inspect.signature(model.forward).parameters.get(name)
    if parameter is None or parameter.default is not None:
        return None
    for suffix, make in (("attention_mask", "ones_like"), ("token_type_ids", "zeros_like")):
        source = name.removesuffix(suffix) + "input_ids"
        if name.endswith(suffix) and source in example and example[source].shape == example[name].shape:
            return f"{make}:{source}"
    return None
