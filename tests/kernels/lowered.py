"""One module as a native program."""

from __future__ import annotations

from torch import Tensor, fx, inference_mode, nn

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.backends.numba.native.program import NativeRun


def lowered(module: nn.Module, inputs: int) -> NativeGraph:
    """A graph that calls a module with so many inputs."""
    graph = fx.Graph()
    args = tuple(graph.placeholder(f"x{i}") for i in range(inputs))
    graph.output((graph.call_module("part", args),))
    return NativeGraph(fx.GraphModule({"part": module}, graph), HANDLERS, NumbaBackend().level.name)


def run(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, int]:
    """What a module computes natively; how many torch calls are left."""
    native = lowered(module, len(inputs))
    with inference_mode():
        return native(*inputs)[0], len(native.program(*inputs).torch_calls)


def steps(native: NativeGraph, *inputs: Tensor) -> list[str]:
    """Names of the native steps."""
    with inference_mode():
        return [name for item in native.program(*inputs).items if isinstance(item, NativeRun) for name in item.names]
