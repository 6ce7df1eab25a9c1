"""Where the modules of a captured graph live: the paths of the original model wherever it has one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn


def stack(node: fx.Node) -> list[tuple[str, str]]:
    """(call key, module path) of the modules running when the node was recorded, outermost first, without the root."""
    entries = node.meta.get("nn_module_stack") or {}
    return [(key, path) for key, (path, _) in entries.items() if isinstance(path, str) and path]


def parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """Every alias of every parameter, by identity, in the order of the model."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def owner_path(node: fx.Node, parameter: nn.Parameter, model: nn.Module, names: Mapping[int, list[str]]) -> str:
    """The path for a module that reads `parameter` at `node`.

    The deepest running module that holds the parameter itself (so a tied head keeps its own path); where that module
    is not the usual owner of one `weight`, or none is running, the path comes from the parameter's name
    (`self_attn.in_proj_weight` gives `self_attn.in_proj`).
    """
    for _, path in reversed(stack(node)):
        for name, candidate in model.get_submodule(path)._parameters.items():
            if candidate is parameter:
                return _join(path, "" if name == "weight" else _stem(name))
    aliases = names.get(id(parameter), ["weight"])
    path, _, name = aliases[0].rpartition(".")
    return _join(path, "" if name == "weight" and path else _stem(name))


def recurrent_path(node: fx.Node, parameter: nn.Parameter, model: nn.Module, names: Mapping[int, list[str]]) -> str:
    """The path of the module that holds a recurrent weight, whatever the weight is called."""
    for _, path in reversed(stack(node)):
        if any(candidate is parameter for candidate in model.get_submodule(path)._parameters.values()):
            return path
    return names.get(id(parameter), [""])[0].rpartition(".")[0]


def _stem(name: str) -> str:
    return name.removesuffix("weight").rstrip("_") or "weight"


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)


@dataclass
class Namespace:
    """Hands out module paths such that none is a prefix of another."""

    taken: set[str] = field(default_factory=set)

    def place(self, wanted: str, kind: str, others: Iterable[str]) -> str:
        """`wanted`, or below it with the kind as a name where other modules live under it, or numbered when taken."""
        path = wanted or kind
        if any(other.startswith(path + ".") for other in (*others, *self.taken)):
            path = f"{path}.{kind}"
        while any(path.startswith(other + ".") for other in self.taken):
            head, _, tail = path.rpartition(".")
            path = f"{head}_{tail}"
        base, number = path, 0
        while path in self.taken or any(other.startswith(path + ".") for other in self.taken):
            number += 1
            path = f"{base}_{number}"
        self.taken.add(path)
        return path
