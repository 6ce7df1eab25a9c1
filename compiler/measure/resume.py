"""A graph run again from the middle: only what a changed weight reaches is computed anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn


class Resumable(fx.Interpreter):
    """Runs a graph on some inputs and keeps what is needed to run it once more with other weights in the leaves at
    some paths."""

    def __init__(self, module: fx.GraphModule, paths: Sequence[Sequence[str]]) -> None:
        super().__init__(module)
        self.nodes = list(module.graph.nodes)
        self.parts = {tuple(some): reached(module.graph, some) for some in paths}
        inputs = {key: {n for node in part for n in node.all_input_nodes} for key, part in self.parts.items()}
        self.starts = {key: inputs[key] - set(part) for key, part in self.parts.items()}
        self.kept: dict[fx.Node, Any] = {}
        self.leaves: Mapping[str, nn.Module] = {}

    def first(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs with the weights as they are."""
        self.kept, self.leaves = {}, {}
        wanted = set().union(*self.starts.values())
        self.args_iter = iter(inputs)
        return self._through(self.nodes, {}, wanted)

    def again(self, paths: Sequence[str], leaves: Mapping[str, nn.Module]) -> Sequence[Tensor]:
        """The outputs for the same inputs with other leaves at these paths."""
        self.leaves = leaves
        key = tuple(paths)
        outputs = self._through(self.parts[key], {node: self.kept[node] for node in self.starts[key]}, set())
        self.leaves = {}  # they hold a weight
        return outputs

    def _through(self, nodes: Sequence[fx.Node], env: dict[fx.Node, Any], wanted: set[fx.Node]) -> Sequence[Tensor]:
        self.env, output = env, ()
        for node in nodes:
            output = self.env[node] = self.run_node(node)
            if node in wanted:
                self.kept[node] = output
            for used in self.user_to_last_uses.get(node, ()):
                self.env.pop(used, None)
        return output

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in self.leaves:
            return self.leaves[target](*args, **kwargs)
        return super().call_module(target, args, kwargs)


def reached(graph: fx.Graph, paths: Sequence[str]) -> list[fx.Node]:
    """The calls of the leaves at these paths and all that depends on them, in order."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if (node.op == "call_module" and node.target in paths) or any(n in found for n in node.all_input_nodes):
            found[node] = None
    return list(found)


def with_weight(leaf: nn.Module, name: str, weight: Tensor) -> nn.Module:
    """The same leaf with another weight; the one given stays as it is."""
    other = copy.copy(leaf)
    other._parameters = {**leaf._parameters, name: nn.Parameter(weight, requires_grad=False)}
    if isinstance(other, nn.RNNBase):
        other.__dict__["_flat_weights"] = [getattr(other, n) for n in other._flat_weights_names]
    return other
