"""Lift ATen operators that read parameters into ordinary modules that hold those very parameters.

linear, addmm and matmul become nn.Linear, embedding nn.Embedding, layer_norm nn.LayerNorm, the recurrent operators
nn.LSTM, nn.GRU and nn.RNN, dropout nn.Dropout and scaled_dot_product_attention `Attention`. Everything else stays
ATen. What a module becomes is decided by the operator alone, so a model's own subclass with a different `forward`
cannot be mistaken for its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from tersor.compiler.capture.leaves import Candidate, build, candidate
from tersor.compiler.capture.paths import Namespace, owner_path, parameter_names, recurrent_path, stack
from tersor.compiler.graph import attribute

aten = torch.ops.aten
_IMPURE = {
    aten.dropout.default,
    aten.scaled_dot_product_attention.default,
    aten.lstm.input,
    aten.gru.input,
    aten.rnn_tanh.input,
    aten.rnn_relu.input,
}


@dataclass(frozen=True)
class Lifted:
    """The modular graph, and where each ATen node went: node name in the raw graph -> module path."""

    module: fx.GraphModule
    paths: Mapping[str, str]


def lift(gm: fx.GraphModule, model: nn.Module, opaque: Mapping[str, nn.Module]) -> Lifted:
    """A new graph module over the same parameters; `gm` is left as it was. `opaque` names the modules already
    called."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(gm.graph, copied)
    graph.output(output)
    names = parameter_names(model)
    found = [c for node in gm.graph.nodes if (c := candidate(gm, node)) is not None]
    found = _without_mixed_orientation(found)
    placed = _places(found, model, names, opaque)
    attributes = {n.target: attribute(gm, n.target) for n in gm.graph.find_nodes(op="get_attr")}
    modules: dict[str, nn.Module] = dict(opaque)
    for c in found:
        path = placed[c.node]
        if path not in modules:
            modules[path] = build(c)
        _replace(graph, c, path, copied)
    for node in reversed(list(graph.nodes)):
        pure = node.op == "get_attr" or (
            node.op == "call_function" and (node.target in _IMPURE or not node.is_impure())
        )
        if pure and not node.users:
            graph.erase_node(node)
    lifted = fx.GraphModule({**attributes, **modules}, graph, class_name="Captured")
    return Lifted(lifted, {node.name: path for node, path in placed.items()})


def _without_mixed_orientation(found: list[Candidate]) -> list[Candidate]:
    """A parameter read both as it is and transposed keeps its transposed readers in ATen: one site, one orientation."""
    direct = {id(c.weight) for c in found if c.weight is not None and not c.transposed}
    return [c for c in found if not (c.transposed and id(c.weight) in direct)]


def _places(
    found: list[Candidate], model: nn.Module, names: Mapping[int, list[str]], opaque: Mapping[str, nn.Module]
) -> dict[fx.Node, str]:
    """A path per candidate. Candidates with the same wanted path and content share it; others get one of their own."""
    counters: dict[tuple[str, str], int] = {}
    wanted: dict[fx.Node, str] = {}
    for c in found:
        if c.weight is not None:
            path_of = recurrent_path if c.flat else owner_path
            wanted[c.node] = path_of(c.node, c.weight, model, names)
        else:
            wanted[c.node] = _parameterless(c, model, counters)
    everything = set(wanted.values())
    namespace = Namespace(set(opaque))
    given: dict[tuple[str, tuple[Any, ...]], str] = {}
    for c in sorted(found, key=lambda c: wanted[c.node].count(".")):
        key = (wanted[c.node], c.identity())
        if key not in given:
            given[key] = namespace.place(wanted[c.node], c.kind, everything)
    return {c.node: given[wanted[c.node], c.identity()] for c in found}


def _parameterless(c: Candidate, model: nn.Module, counters: dict[tuple[str, str], int]) -> str:
    """The path of the nn.Dropout it came from, or a name in its owner, numbered within one call of the owner."""
    running = stack(c.node)
    key, path = running[-1] if running else ("", "")
    if c.kind == "dropout" and path and type(model.get_submodule(path)) is nn.Dropout:
        return path
    number = counters.get((key, c.kind), 0)
    counters[key, c.kind] = number + 1
    name = c.kind if number == 0 else f"{c.kind}_{number}"
    return f"{path}.{name}" if path else name


def _replace(graph: fx.Graph, c: Candidate, path: str, copied: dict[fx.Node, fx.Node]) -> None:
    """Put a call in place of the candidate's copy; `copied` (raw node -> node of the new graph) follows."""
    node = copied[c.node]
    arguments = tuple(fx.map_arg(a, lambda n: copied[n]) for a in c.arguments)
    with graph.inserting_before(node):
        call = graph.call_module(path, arguments)
    call.meta = dict(node.meta)
    copied[c.node] = call
    if c.rewire is not None:
        c.rewire(graph, node, call)
        return
    target = node
    if c.result is not None:
        target = copied[c.result]
        copied[c.result] = call
        call.meta["val"] = target.meta["val"]
    target.replace_all_uses_with(call)
    graph.erase_node(target)
    if target is not node:
        graph.erase_node(node)
