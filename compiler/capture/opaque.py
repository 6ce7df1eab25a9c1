"""Submodules that are captured as they are: one opaque operator while exporting, a call of the original module
afterwards.

What the operator returns for symbolic shapes is learnt from two real runs: an output dimension that follows a
dimension of an input in both runs is that dimension, one that never changes is a constant.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.compiler.errors import CaptureError

_counter = itertools.count()
Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]
    single: bool


@dataclass(frozen=True)
class Leaf:
    """An opaque submodule: the operator that stands for it while exporting, and whether it returns one bare tensor."""

    path: str
    module: nn.Module
    single: bool


@contextlib.contextmanager
def opaque(model: nn.Module, paths: Sequence[str], runs: Sequence[Mapping[str, Tensor]]) -> Iterator[dict[Any, Leaf]]:
    """While the context lives, each submodule is one operator; yields operator -> leaf. `runs` are two example
    inputs of different batch and sequence sizes."""
    observed = {path: [_observe(model, path, run) for run in runs] for path in paths}
    leaves: dict[Any, Leaf] = {}
    with contextlib.ExitStack() as restore:
        for path, seen in observed.items():
            module = model.get_submodule(path)
            operator = _define(restore, _shape_rule(path, seen))
            leaves[operator] = Leaf(path, module, seen[0].single)
            module.forward = _caller(operator, seen[0].single)
            restore.callback(module.__dict__.pop, "forward")
        yield leaves


def fold(gm: fx.GraphModule, leaves: Mapping[Any, Leaf]) -> dict[str, nn.Module]:
    """Replace every opaque operator by a call of its module, in place; returns the modules by path."""
    found: dict[str, nn.Module] = {}
    for node in list(gm.graph.nodes):
        leaf = leaves.get(node.target) if node.op == "call_function" else None
        if leaf is None:
            continue
        arguments: Any = node.args[0]
        gm.add_submodule(leaf.path, leaf.module)
        found[leaf.path] = leaf.module
        with gm.graph.inserting_before(node):
            call = gm.graph.call_module(leaf.path, tuple(arguments))
        call.meta = dict(node.meta)
        if leaf.single:
            call.meta["val"] = node.meta["val"][0]
            for use in list(node.users):
                use.replace_all_uses_with(call)
                gm.graph.erase_node(use)
        node.replace_all_uses_with(call)
        gm.graph.erase_node(node)
    gm.recompile()
    return found


def _observe(model: nn.Module, path: str, example: Mapping[str, Tensor]) -> _Run:
    runs: list[_Run] = []

    def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [output] if isinstance(output, Tensor) else output
        if kwargs or not all(isinstance(a, Tensor) for a in args):
            raise CaptureError(f"opaque submodule {path!r} is called with something else than positional tensors")
        if not isinstance(tensors, list | tuple) or not all(isinstance(t, Tensor) for t in tensors):
            raise CaptureError(f"opaque submodule {path!r} returns something else than tensors")
        inputs, outputs = (tuple(tuple(t.shape) for t in group) for group in (args, tensors))
        runs.append(_Run(inputs, outputs, tuple(t.dtype for t in tensors), isinstance(output, Tensor)))

    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise CaptureError(f"opaque={path!r}: the model has no such submodule") from None
    handle = module.register_forward_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**example)
    finally:
        handle.remove()
    if not runs:
        raise CaptureError(f"opaque={path!r}: the model does not call this submodule on the example")
    return runs[0]


def _shape_rule(path: str, seen: Sequence[_Run]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    first, second = seen
    rules: list[list[int | tuple[int, int]]] = []
    for a, b in zip(first.outputs, second.outputs, strict=True):
        rules.append([_dim_rule(path, first, second, x, y) for x, y in zip(a, b, strict=True)])

    def fake(inputs: Sequence[Tensor]) -> list[Tensor]:
        sizes = [[r if isinstance(r, int) else inputs[r[0]].shape[r[1]] for r in rule] for rule in rules]
        return [inputs[0].new_empty(s, dtype=d) for s, d in zip(sizes, first.dtypes, strict=True)]

    return fake


def _dim_rule(path: str, first: _Run, second: _Run, x: int, y: int) -> int | tuple[int, int]:
    if x == y:
        return x
    for i, (a, b) in enumerate(zip(first.inputs, second.inputs, strict=True)):
        for dim, sizes in enumerate(zip(a, b, strict=True)):
            if sizes == (x, y):
                return i, dim
    raise CaptureError(f"opaque submodule {path!r}: an output dimension ({x}, then {y}) follows no input dimension")


def _define(restore: contextlib.ExitStack, fake: Callable[[Sequence[Tensor]], list[Tensor]]) -> Any:
    name = f"leaf{next(_counter)}"
    library = restore.enter_context(torch.library._scoped_library("tersor_opaque", "FRAGMENT"))
    library.define(f"{name}(Tensor[] xs) -> Tensor[]")
    library.impl(name, fake, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tersor_opaque::{name}", fake, lib=library)
    return getattr(torch.ops.tersor_opaque, name).default


def _caller(operator: Any, single: bool) -> Callable[..., Any]:
    def forward(*args: Tensor) -> Any:
        outputs = operator(list(args))
        return outputs[0] if single else tuple(outputs)

    return forward
