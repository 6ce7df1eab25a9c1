"""With which inputs a model calls each of its leaves, at one shape of its own inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.compiler.measure.clock import Shape
from tersor.compiler.program import Program
from tersor.compiler.threads import using_threads

TIMED = ("linear", "embedding", "recurrent")


def reading_together(program: Program) -> list[tuple[str, ...]]:
    """Paths of linear layers that read one value, and of which each is called once: query, key and value."""
    module = program.module
    calls = Counter(node.target for node in module.graph.find_nodes(op="call_module"))
    found: dict[Any, list[str]] = {}
    for node in module.graph.find_nodes(op="call_module"):
        path = str(node.target)
        if calls[node.target] == 1 and len(node.args) == 1 and isinstance(module.get_submodule(path), nn.Linear):
            found.setdefault(node.args[0], []).append(path)
    return [tuple(paths) for paths in found.values() if len(paths) > 1]


@dataclass(frozen=True)
class Called:
    """Some calls of a leaf whose first inputs do not differ in shape: one of those, and how many there are."""

    given: Tensor
    times: int

    @property
    def form(self) -> str:
        """Type and shape of the input: `float32[1, 128, 384]`."""
        return f"{str(self.given.dtype).removeprefix('torch.')}{list(self.given.shape)}"


def leaf_calls(program: Program, shape: Shape) -> Mapping[str, tuple[Called, ...]]:
    """The calls of every leaf that reads a weight of some size, by module path."""
    paths = dict.fromkeys(r.path for s in program.sites if s.kind in TIMED for r in s.readers)
    found: dict[str, dict[str, Called]] = {path: {} for path in paths}

    def seen(path: str) -> Callable[..., None]:
        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            call = Called(arguments[0], 1)
            before = found[path].get(call.form)
            found[path][call.form] = call if before is None else Called(before.given, before.times + 1)

        return record

    handles = [program.module.get_submodule(path).register_forward_pre_hook(seen(path)) for path in paths]
    try:
        with using_threads(shape.threads), torch.no_grad():
            program.callable().eval()(**shape.inputs(program))
    finally:
        for handle in handles:
            handle.remove()
    return {path: tuple(calls.values()) for path, calls in found.items()}
