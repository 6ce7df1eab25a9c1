"""Put stores where parameters were: the one place that decides which module holds which store."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, fx, nn

from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, CompressedRecurrent, StoredWeight
from tersor.compiler.errors import CompilerBug
from tersor.compiler.stores import Dense, Store

Held = Mapping[str, Mapping[str, str]]
"""Module path -> attribute -> name of the store that belongs there."""


def install(module: fx.GraphModule, held: Held, stores: Mapping[str, Store]) -> None:
    """Replace the leaves of `module` (in place) so that every attribute in `held` is its store.

    A leaf whose weight is a store becomes the compressed module of its kind; a leaf whose arrays are all floating
    values keeps its class. A store named twice (a tied weight) is one module, or one parameter, with two readers.
    """
    modules: dict[str, StoredWeight] = {}
    parameters: dict[str, nn.Parameter] = {}
    for path, attributes in held.items():
        plain: dict[str, nn.Parameter] = {}
        stored: dict[str, StoredWeight] = {}
        for attribute, name in attributes.items():
            store = stores[name]
            if isinstance(store, Dense):
                values = store.dense().detach().clone()
                plain[attribute] = parameters.setdefault(name, nn.Parameter(values))
            else:
                stored[attribute] = modules.setdefault(name, StoredWeight(store))
        leaf = module.get_submodule(path)
        if path == "" or next(leaf.children(), None) is not None or type(leaf) is nn.Module:
            _set(leaf, path, plain, stored)
        else:
            new = _replacement(leaf, plain, stored)
            new.train(leaf.training)
            module.set_submodule(path, new)


def _set(owner: nn.Module, path: str, plain: Mapping[str, nn.Parameter], stored: Mapping[str, StoredWeight]) -> None:
    if stored:
        raise CompilerBug(f"`{path}` reads {', '.join(stored)} with an operator of its own and cannot hold a store")
    for attribute, parameter in plain.items():
        setattr(owner, attribute, parameter)


def _replacement(leaf: nn.Module, plain: Mapping[str, nn.Parameter], stored: Mapping[str, StoredWeight]) -> nn.Module:
    if not stored:
        new = copy.copy(leaf)
        new._parameters = {**leaf._parameters, **plain}
        if isinstance(new, nn.RNNBase):
            new._flat_weights = [getattr(new, name) for name in new._flat_weights_names]
        return new
    if isinstance(leaf, nn.Linear):
        return CompressedLinear(stored["weight"], plain.get("bias", leaf.bias))
    if isinstance(leaf, nn.Embedding):
        return CompressedEmbedding(stored["weight"], leaf.padding_idx)
    if isinstance(leaf, nn.RNNBase):
        kept = {name: p for name, p in leaf.named_parameters() if name not in stored}
        return CompressedRecurrent(leaf, stored, {**kept, **plain})
    raise CompilerBug(f"a {type(leaf).__name__} cannot hold a store")


def installed(module: fx.GraphModule, held: Held, stores: Mapping[str, Store]) -> dict[str, Store]:
    """The stores as they are in the module now (they may have been trained), rounded to what the disk form holds.

    `stores` says in which form each one is kept; the values come from the module.
    """
    found: dict[str, Store] = {}
    for path, attributes in held.items():
        leaf = module.get_submodule(path)
        for attribute, name in attributes.items():
            if name not in found:
                found[name] = _current(leaf, attribute, stores[name]).snapped()
    return found


def assign(module: fx.GraphModule, held: Held, stores: Mapping[str, Store]) -> None:
    """Give a module that stores were installed in the values of others of the same forms, in place."""
    for path, attributes in held.items():
        leaf = module.get_submodule(path)
        for attribute, name in attributes.items():
            present = _holder(leaf, attribute)
            if isinstance(present, StoredWeight):
                present.assign(stores[name])
            elif isinstance(present, Tensor):
                present.data.copy_(stores[name].dense())


def _holder(leaf: nn.Module, attribute: str) -> object:
    """What a leaf keeps a weight in: a StoredWeight or a parameter."""
    if isinstance(leaf, CompressedRecurrent):
        return leaf.stored[attribute] if attribute in leaf.stored else leaf.plain[attribute]
    if isinstance(leaf, CompressedLinear | CompressedEmbedding) and attribute == "weight":
        return leaf.stored
    return getattr(leaf, attribute)


def _current(leaf: nn.Module, attribute: str, template: Store) -> Store:
    held = _holder(leaf, attribute)
    if isinstance(held, StoredWeight):
        return held.store()
    if isinstance(held, Tensor) and isinstance(template, Dense):
        return template.bound({"": held.detach()})
    raise CompilerBug(f"{attribute} of {type(leaf).__name__} is not where it was installed")
