"""A program as stable text, one line per node: for people, goldens and diffs.

Nodes are numbered in order of execution, so that the text does not depend on the names a tracer gave.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tersor.compiler.program import Program


def to_text(program: Program) -> str:
    """Inputs, one line per node (`%7 = up(%6)  # ffn.up`), and the outputs; roles of the weights read as comments."""
    roles = {reader.path: site.role for site in program.sites for reader in site.readers if site.kind != "bias"}
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in program.module.graph.nodes:
        if node.op == "placeholder":
            names[node] = f"%{node.target}"
            lines.append(f"input %{node.target}")
        elif node.op == "get_attr":
            names[node] = f"@{node.target}"
        elif node.op == "output":
            lines.append("return " + _show(node.args[0], names))
        else:
            names[node] = f"%{len(names)}"
            role = f"  # {roles[node.target]}" if node.op == "call_module" and node.target in roles else ""
            lines.append(f"{names[node]} = {_target(node.target)}({_arguments(node, names)}){role}")
    return "\n".join(lines) + "\n"


def _arguments(node: fx.Node, names: dict[fx.Node, str]) -> str:
    shown = [_show(a, names) for a in node.args]
    return ", ".join(shown + [f"{key}={_show(value, names)}" for key, value in node.kwargs.items()])


def _target(target: Any) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return str(target.__name__)


def _show(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_show(v, names) for v in value) + "]"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else repr(value)
