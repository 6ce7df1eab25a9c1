"""Program and stores to a compressed graph, with a trace: before -> after, and the line of the policy that asked for
it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from tersor.compiler.install import install
from tersor.compiler.program import Program
from tersor.compiler.slots import slots
from tersor.compiler.stores import Dense, Store


@dataclass(frozen=True)
class TraceStep:
    """One rewritten module; `why` is the place of the rule behind it."""

    path: str
    before: str
    after: str
    why: str


def held_by(program: Program) -> dict[str, dict[str, str]]:
    """Which site each attribute of each leaf belongs to."""
    held: dict[str, dict[str, str]] = {}
    for site in program.sites:
        if site.kind != "attention":
            for path, attribute in slots(program.module, site):
                held.setdefault(path, {})[attribute] = site.name
    return held


def rewrite(
    program: Program, stores: Mapping[str, Store], reasons: Mapping[str, str]
) -> tuple[fx.GraphModule, tuple[TraceStep, ...]]:
    """A new graph module in which every weight site holds its store; the program stays as it was."""
    module = fx.GraphModule(program.module, copy.deepcopy(program.module.graph), class_name="Compressed")
    held = held_by(program)
    before = {path: repr(program.module.get_submodule(path)) for path in held if path}
    install(module, held, stores)
    module.train(program.module.training)
    trace = []
    for path, attributes in held.items():
        changed = [n for n in attributes.values() if not (isinstance(s := stores[n], Dense) and s.dtype == "float32")]
        if changed:
            why = "; ".join(dict.fromkeys(reasons[n] for n in changed if n in reasons))
            after = repr(module.get_submodule(path)) if path else "attribute"
            trace.append(TraceStep(path, before.get(path, "attribute"), after, why))
    module.recompile()
    return module, tuple(trace)
