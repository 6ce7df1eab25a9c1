"""Files to a model: every value is checked, nothing in a file is executed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from tersor.compiler.artifact.files import read
from tersor.compiler.artifact.graph import checked_path, graph_from_json
from tersor.compiler.artifact.image import BUFFER_PREFIX
from tersor.compiler.artifact.leaves import OPAQUE, rebuild
from tersor.compiler.errors import ArtifactError, CompilerBug
from tersor.compiler.install import Held, install
from tersor.compiler.program import verify_graph
from tersor.compiler.signature import Constant, Group, Output, Signature, TensorAt
from tersor.compiler.stores import Store, from_state
from tersor.compiler.stores.base import join

DAMAGED = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
    CompilerBug,
)
"""What values of the wrong kind in a description end in."""


@dataclass(frozen=True)
class Loaded:
    """The reference graph of an artifact, how it is called, and where its stores are."""

    module: fx.GraphModule
    signature: Signature
    held: Held
    stores: dict[str, Store]


def load(folder: Path, opaque: Mapping[str, nn.Module] = {}) -> Loaded:
    """The model of an artifact, in eval mode. ArtifactError when the folder is not one, or damaged.

    `opaque` are the modules of its opaque leaves by path: their code is not in the artifact, their arrays are.
    """
    graph, data = read(folder)
    try:
        arrays = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as problem:
        raise ArtifactError(f"the weights in {folder} are damaged: {problem}") from None
    try:
        return _assemble(graph, arrays, opaque)
    except DAMAGED as problem:
        raise ArtifactError(f"the description in {folder} is damaged: {problem!r}") from None


def _assemble(described: Any, arrays: dict[str, Tensor], opaque: Mapping[str, nn.Module]) -> Loaded:
    signature = Signature.from_json(described["signature"])
    stores = {name: from_state(spec, arrays.get, name) for name, spec in described["stores"].items()}
    root = nn.Module()
    kept = {path for path, d in described["modules"].items() if d["type"] == OPAQUE}
    with torch.device("meta"):
        leaves = {path: rebuild(d, path) for path, d in described["modules"].items() if path not in kept}
    for path, leaf in leaves.items():
        set_attribute(root, path, leaf)
    held: dict[str, dict[str, str]] = described["held"]
    _check_held(held, leaves, stores)
    inside = {join(path, name): stores[held[path][name]].shape for path in held for name in held[path]}
    for path in kept:
        own = {name.removeprefix(path + "."): shape for name, shape in inside.items() if name.startswith(path + ".")}
        set_attribute(root, path, _opaque(path, described["modules"][path]["class"], own, arrays, opaque))
    for name in described["buffers"]:
        set_attribute(root, name, arrays[BUFFER_PREFIX + name])
    for path, attributes in held.items():
        # Parameters that operators read directly: the graph module needs to find something there.
        if path not in leaves and not any((path + ".").startswith(leaf + ".") for leaf in kept):
            for attribute in attributes:
                set_attribute(root, join(path, attribute), nn.Parameter(torch.empty(0)))
    module = fx.GraphModule(root, graph_from_json(described["nodes"]), class_name="Compressed")
    install(module, held, stores)
    verify_graph(module, signature)
    _check_signature(module, signature)
    return Loaded(module.eval(), signature, held, stores)


def _opaque(
    path: str,
    kind: str,
    parameters: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, Tensor],
    given: Mapping[str, nn.Module],
) -> nn.Module:
    """The caller's module for an opaque leaf, with the buffers of the artifact; its parameters are installed later."""
    if path not in given:
        raise ArtifactError(
            f"`{path}` is an opaque leaf, a {kind} whose code is not in the artifact: "
            f"give it as tersor.load(folder, opaque={{{path!r}: module}})"
        )
    prefix = f"{OPAQUE}:{path}."
    buffers = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    module = copy.deepcopy(given[path])
    expected = {name: tuple(p.shape) for name, p in module.named_parameters()} | {
        name: tuple(b.shape) for name, b in module.named_buffers()
    }
    found = {name: tuple(b.shape) for name, b in buffers.items()} | dict(parameters)
    if expected != found:
        raise ArtifactError(f"the module given for `{path}` has {expected}, but {found} is stored for it")
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    return module


def _check_held(held: Held, leaves: Mapping[str, nn.Module], stores: Mapping[str, Store]) -> None:
    """Every parameter of a leaf has a store of its shape, and no leaf holds anything else."""
    for path, leaf in leaves.items():
        expected = {name: tuple(p.shape) for name, p in leaf.named_parameters()}
        found = {name: tuple(stores[store].shape) for name, store in held.get(path, {}).items()}
        if expected != found:
            raise ArtifactError(f"the module at `{path}` needs {expected}, but {found} is stored for it")


def _check_signature(module: fx.GraphModule, signature: Signature) -> None:
    """The signature speaks only of inputs and outputs that the graph has, and of output classes that may be made."""
    (output,) = module.graph.find_nodes(op="output")
    ranks = {i.name: i.rank for i in signature.inputs}
    made = [i.default.partition(":")[::2] for i in signature.inputs if i.default is not None]
    fits = all(limit.input in ranks and limit.dim < ranks[limit.input] for limit in signature.limits)
    fits = fits and all(make in ("ones_like", "zeros_like") and like in ranks for make, like in made)
    if not fits or not _possible(signature.output, len(output.args[0])):
        raise ArtifactError("the description of how the model is called does not fit its graph")


def _possible(output: Output, tensors: int) -> bool:
    match output:
        case TensorAt(index):
            return isinstance(index, int) and 0 <= index < tensors
        case Constant():
            return True
        case Group(kind, items, fields):
            known = kind in ("tuple", "list", "dict") or kind.split(":")[0].split(".")[0] == "transformers"
            named = len(fields) == len(items) or kind in ("tuple", "list")
            return known and named and all(_possible(item, tensors) for item in items)


def set_attribute(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Set a module, parameter or buffer at a dotted name, making the modules on the way."""
    *parents, last = checked_path(name).split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if hasattr(root, last):
        raise ArtifactError(f"two things stand at `{name}`")
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(last, value)
    else:
        setattr(root, last, value)
