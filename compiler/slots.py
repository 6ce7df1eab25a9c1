"""Where the parameter of a site stands in a captured graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from tersor.compiler.errors import CompilerBug
from tersor.compiler.site import Site


class Slot(NamedTuple):
    """Attribute `name` of the module at `path` (the graph module itself for "")."""

    path: str
    name: str


def slots(module: fx.GraphModule, site: Site) -> tuple[Slot, ...]:
    """Every slot that holds the site's parameter, the first reader's first."""
    if not site.readers:
        path, _, name = site.name.rpartition(".")
        return (Slot(path, name),)
    found: dict[Slot, None] = {}
    for reader in site.readers:
        leaf = module.get_submodule(reader.path)
        own = (
            site.name.rpartition(".")[2]
            if isinstance(leaf, nn.RNNBase)
            else "bias"
            if site.kind == "bias"
            else "weight"
        )
        found[Slot(reader.path, own)] = None
    return tuple(found)


def parameter_of(module: fx.GraphModule, site: Site) -> Tensor:
    """The site's parameter, float32, detached, in row order (a weight read transposed is a view in column order, and
    a product rounds differently with it than with what a file gives back)."""
    path, name = slots(module, site)[0]
    held = getattr(module.get_submodule(path), name, None)
    if not isinstance(held, Tensor) or tuple(held.shape) != site.shape:
        raise CompilerBug(f"site {site.name} is not at {path}.{name}")
    return held.detach().to(torch.float32).contiguous()
