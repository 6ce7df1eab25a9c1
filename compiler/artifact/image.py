"""An artifact in memory: the exact bytes of every file that loading reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
from torch import Tensor, fx

from tersor.compiler.artifact.graph import graph_to_json
from tersor.compiler.artifact.leaves import OPAQUE, describe, opaque_leaves
from tersor.compiler.artifact.names import files_of, total_bytes
from tersor.compiler.install import Held
from tersor.compiler.signature import Signature
from tersor.compiler.stores import Store
from tersor.compiler.stores.base import join

BUFFER_PREFIX = "buffer:"


@dataclass(frozen=True)
class Image:
    """The contents of the two data files; the manifest follows from them."""

    graph: bytes
    weights: bytes

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files by name, the manifest last."""
        return files_of(self.graph, self.weights)


def compact(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def buffers(module: fx.GraphModule, held: Held) -> dict[str, Tensor]:
    """The constant tensors the graph reads that belong to no site."""
    names = {join(path, attribute) for path, attributes in held.items() for attribute in attributes}
    found: dict[str, Tensor] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in names:
            value: Any = module
            for part in node.target.split("."):
                value = getattr(value, part)
            found[node.target] = value.detach()
    return found


def image(module: fx.GraphModule, signature: Signature, held: Held, stores: Mapping[str, Store]) -> Image:
    """The files of a compressed model. `module` may be the graph before or after `install`: a leaf is described as
    what it stands for."""
    paths = dict.fromkeys(node.target for node in module.graph.find_nodes(op="call_module"))
    arrays: dict[str, Tensor] = {}
    for name, store in stores.items():
        arrays |= {join(name, key): array for key, array in store.state().items()}
    for path, leaf in opaque_leaves(module).items():
        arrays |= {f"{OPAQUE}:{path}.{key}": value.contiguous().clone() for key, value in leaf.named_buffers()}
    constants = buffers(module, held)
    for name, value in constants.items():
        arrays[BUFFER_PREFIX + name] = value.contiguous().clone()
    graph = {
        "signature": signature.to_json(),
        "nodes": graph_to_json(module.graph),
        "modules": {path: describe(module.get_submodule(path)) for path in paths},
        "held": {path: dict(attributes) for path, attributes in held.items()},
        "stores": {name: store.spec() for name, store in stores.items()},
        "buffers": list(constants),
    }
    return Image(compact(graph), safetensors.torch.save(arrays))


def size_of(files: Image) -> int:
    """What the `size` budget counts."""
    return total_bytes(len(files.graph), len(files.weights))
