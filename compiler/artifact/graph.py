"""A graph as JSON, and back: nodes by name, operators by their ATen name, arguments as tagged values."""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tersor.compiler.errors import ArtifactError, RequestError

PYTHON_OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (
        "getitem",
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "pow",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
}
MATH_OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")
}
SYMBOLIC: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_ite", "sym_not", "sym_sum", "sym_sqrt", "_sym_sqrt")
    if hasattr(torch, name)
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{n}": f for n, f in PYTHON_OPERATORS.items()},
    **{f"math.{n}": f for n, f in MATH_OPERATORS.items()},
    **{f"torch.{n}": f for n, f in SYMBOLIC.items()},
}
NAMES = {function: name for name, function in FUNCTIONS.items()}


def target_to_json(target: Any) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if target in NAMES:
        return NAMES[target]
    raise RequestError(f"the operator {target} of the captured graph cannot be saved")


PATH = re.compile(r"""[^\s."'\\(){}\[\]]+(\.[^\s."'\\(){}\[\]]+)*""")


def is_path(path: Any) -> bool:
    """Whether this can be the dotted path of a module or tensor in an artifact. Paths become Python source in a graph
    module, and attributes that are set: nothing that closes a string and no double underscore may stand in one."""
    return isinstance(path, str) and bool(PATH.fullmatch(path)) and not any(p.startswith("__") for p in path.split("."))


def is_name(name: Any) -> bool:
    """Whether this can be the name of an argument, which becomes Python source in a graph module."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def checked_path(path: Any) -> str:
    """A path read from an artifact."""
    if not is_path(path):
        raise ArtifactError(f"`{path}` is no path of a module")
    return str(path)


def checked_name(name: Any) -> str:
    """The name of an argument read from an artifact."""
    if not is_name(name):
        raise ArtifactError(f"`{name}` is no name of an argument")
    return str(name)


def saveable(node: fx.Node) -> None:
    """Refuse at once what loading would refuse: RequestError that names the path or the argument."""
    if node.op in ("call_module", "get_attr") and not is_path(node.target):
        raise RequestError(
            f"the module path `{node.target}` cannot be saved: spaces, quotes, brackets, backslashes and a leading "
            f"double underscore may not stand in one; rename that attribute of the model"
        )
    if node.op == "placeholder" and not is_name(node.target):
        raise RequestError(f"the input `{node.target}` cannot be saved: its name is no Python identifier; rename it")


def target_from_json(op: str, target: str) -> Any:
    """The function behind a name: only ATen operators and a fixed list of arithmetic ones; else a checked name."""
    if op in ("call_module", "get_attr"):
        return checked_path(target)
    if op in ("placeholder", "output"):
        return checked_name(target)
    if op != "call_function":
        raise ArtifactError(f"the graph holds an operation of unknown kind `{op}`")
    if target in FUNCTIONS:
        return FUNCTIONS[target]
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(torch.ops.aten, name, None) if namespace == "aten" and name.isidentifier() else None
    found = getattr(packet, overload, None) if isinstance(packet, torch._ops.OpOverloadPacket) and overload else None
    if not isinstance(found, torch._ops.OpOverload) or str(found) != target:
        raise ArtifactError(f"the graph calls `{target}`, which this version does not know")
    return found


def value_to_json(value: Any) -> Any:
    match value:
        case fx.Node():
            return {"n": value.name}
        case list():
            return [value_to_json(v) for v in value]
        case tuple():
            return {"t": [value_to_json(v) for v in value]}
        case slice():
            return {"slice": [value_to_json(v) for v in (value.start, value.stop, value.step)]}
        case torch.dtype() | torch.layout() | torch.memory_format():
            return {"torch": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": str(value)}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
    raise RequestError(f"an argument of type {type(value).__name__} in the captured graph cannot be saved")


TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)


def value_from_json(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [value_from_json(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    match tag:
        case "n":
            return nodes[inner]
        case "t":
            return tuple(value_from_json(v, nodes) for v in inner)
        case "slice":
            return slice(*[value_from_json(v, nodes) for v in inner])
        case "device":
            return torch.device(inner)
        case "float":
            return float(inner)
        case "torch" if isinstance(getattr(torch, inner, None), TORCH_VALUES):
            return getattr(torch, inner)
    raise ArtifactError(f"the graph holds an argument of unknown kind `{tag}`")


def graph_to_json(graph: fx.Graph) -> list[list[Any]]:
    """One row per node: name, operation, target, arguments and, where there are any, keyword arguments. RequestError
    for what could not be read back."""
    rows: list[list[Any]] = []
    for node in graph.nodes:
        saveable(node)
        row = [node.name, node.op, target_to_json(node.target), [value_to_json(a) for a in node.args]]
        rows.append(row + ([{k: value_to_json(v) for k, v in node.kwargs.items()}] if node.kwargs else []))
    return rows


def graph_from_json(rows: Sequence[Sequence[Any]]) -> fx.Graph:
    """The graph of `graph_to_json`. Raises ArtifactError for anything it would not have written."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    try:
        for name, op, target, args, *rest in rows:
            kwargs = rest[0] if rest else {}
            arguments = tuple(value_from_json(a, nodes) for a in args)
            keywords = {checked_name(k): value_from_json(v, nodes) for k, v in kwargs.items()}
            if name in nodes:
                raise ValueError(f"two nodes are called {name}")
            nodes[name] = graph.create_node(op, target_from_json(op, target), arguments, keywords, name)
        graph.lint()
        if not nodes or next(reversed(nodes.values())).op != "output":
            raise ValueError("it does not end in an output")
    except (KeyError, ValueError, TypeError, RuntimeError, AssertionError, OverflowError) as problem:
        raise ArtifactError(f"the graph is damaged: {problem!r}") from None
    return graph
