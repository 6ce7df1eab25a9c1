"""What the embeddings of a graph are looked up with, computed on the example; tells positions from tokens, and their
limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tersor.compiler.graph import attribute, parameter, same_size
from tersor.compiler.signature import Limit

aten = torch.ops.aten
_CUTS = {aten.slice.Tensor, aten.select.int, aten.unsqueeze.default, aten.reshape.default}


def index_values(raw: fx.GraphModule, example: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
    """Embedding node -> its index tensor on the example. Indices that depend on parameters are left out, as are those
    that depend on buffers without values."""
    values: dict[fx.Node, Any] = {n: example[n.target] for n in raw.graph.find_nodes(op="placeholder")}
    found: dict[fx.Node, Tensor] = {}
    for node in raw.graph.find_nodes(op="call_function", target=aten.embedding.default):
        index = node.args[1]
        if isinstance(index, fx.Node) and _evaluate(raw, index, values) and not values[index].is_meta:
            found[node] = values[index]
    return found


def with_values(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The example; inputs without values (on the device `meta`) count up by 7."""
    return {
        name: (torch.arange(t.numel()) * 7 + 5).reshape(t.shape).to(t.dtype) if t.is_meta else t
        for name, t in example.items()
    }


def _evaluate(raw: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Compute a node from the inputs; False where a parameter or a module is needed."""
    pending, order = [node], []
    seen: set[fx.Node] = set()
    while pending:
        n = pending.pop()
        if n in values or n in seen:
            continue
        seen.add(n)
        if n.op == "call_module" or parameter(raw, n) is not None:
            return False
        order.append(n)
        pending += n.all_input_nodes
    positions = {n: i for i, n in enumerate(raw.graph.nodes)}
    with torch.no_grad():
        for n in sorted(order, key=positions.__getitem__):
            if n.op == "get_attr":
                held = attribute(raw, n.target)
                values[n] = held.clone() if isinstance(held, Tensor) else held
            else:
                call: Any = n.target
                args: Any = fx.map_arg(n.args, values.__getitem__)
                kwargs: Any = fx.map_arg(n.kwargs, values.__getitem__)
                values[n] = call(*args, **kwargs)
    return True


def first_position(index: Tensor) -> int | None:
    """The smallest start of a row that counts up by one, or None where no row does: padded rows may not."""
    rows = index.reshape(-1, index.shape[-1]) if index.dim() else index.reshape(1, 1)
    if rows.shape[1] < 2:
        return None
    counting = rows[(rows[:, 1:] - rows[:, :-1] == 1).all(1)]
    return int(counting[:, 0].min()) if len(counting) else None


def find_limits(
    raw: fx.GraphModule, indices: Mapping[fx.Node, Tensor], names: Mapping[int, list[str]]
) -> tuple[Limit, ...]:
    """How long the inputs may be: tables looked up by position, and buffers cut to the length of an input."""
    limits: dict[tuple[str, int], Limit] = {}

    def add(size: Any, most: int, what: str) -> None:
        for node in raw.graph.find_nodes(op="placeholder"):
            for dim, own in enumerate(node.meta["val"].shape):
                known = limits.get((node.target, dim))
                if not isinstance(size, int) and same_size(own, size) and (known is None or most < known.max):
                    limits[node.target, dim] = Limit(node.target, dim, most, what)

    for node, index in indices.items():
        table, start = parameter(raw, node.args[0]), first_position(index)
        if table is not None and start is not None:
            name = names.get(id(table), [str(node.args[0])])[0].removesuffix(".weight")
            add(node.args[1].meta["val"].shape[-1], table.shape[0] - start, f"rows of {name}")  # type: ignore[union-attr]
    for node in raw.graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        args: Any = (*node.args, None, None)[:4]
        source, dim, _, end = args
        most = source.meta["val"].shape[dim] if isinstance(end, fx.Node) else None
        buffer = _buffer(source)
        if isinstance(most, int) and buffer is not None:
            add(end.meta["val"], most, f"entries of {buffer.target}")
    return tuple(limits.values())


def _buffer(node: fx.Node) -> fx.Node | None:
    """The buffer a node cuts pieces from."""
    while node.op == "call_function" and node.target in _CUTS:
        source: Any = node.args[0]
        node = source
    return node if node.op == "get_attr" else None
