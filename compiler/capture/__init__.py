"""Capture a model as a `Program`: export, normalise, lift, find sites, and check the result against the model
itself."""

from __future__ import annotations

import contextlib
import copy as copying
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from tersor.compiler.callable import CompiledModule
from tersor.compiler.capture import opaque as opaque_leaves
from tersor.compiler.capture.bags import open_bags
from tersor.compiler.capture.export import check_dynamic, check_names, check_states, export, plain_config, stretched
from tersor.compiler.capture.flatten import flatten
from tersor.compiler.capture.indices import find_limits, index_values, with_values
from tersor.compiler.capture.lift import Lifted, lift
from tersor.compiler.capture.normalise import normalise
from tersor.compiler.capture.paths import parameter_names
from tersor.compiler.capture.sites import find_sites
from tersor.compiler.equality import disagreement, resized
from tersor.compiler.errors import CaptureError
from tersor.compiler.program import Program, verify_graph
from tersor.compiler.roles.annotate import Annotated
from tersor.compiler.roles.infer import infer_roles
from tersor.compiler.signature import Signature

__all__ = ["capture"]

_EVAL_NOTE = (
    "captured in eval mode, since the model computes something else while training ({reason}); "
    "dropout inside attention is not part of the graph"
)


@dataclass(frozen=True)
class _Graphs:
    raw: fx.GraphModule
    lifted: Lifted
    signature: Signature
    indices: Mapping[fx.Node, Tensor]


def capture(
    model: nn.Module,
    example: Mapping[str, Tensor | None],
    *,
    opaque: Sequence[str] = (),
    copy: bool = True,
    check: bool = True,
    roles: Mapping[str, str] | None = None,
) -> Program:
    """The model as a graph with symbolic batch and sequence sizes, and its sites.

    `example` are keyword arguments of `forward`; dimensions of size 1 are doubled first. `opaque` names submodules
    to keep as they are. With `copy` the program has parameters of its own, else it shares the model's. `check`
    compares the graph with the model at several shapes, in eval mode exactly and in train mode under one seed.
    `roles` overrides inferred roles by path glob. Raises CaptureError with the cause and what to try.
    """
    inputs = _checked_example(model, example)
    check_names(model)
    if copy:
        model = copying.deepcopy(model)
    training = model.training
    with plain_config(model):
        graphs, notes = _faithful(model, inputs, opaque, check)
        signature = _with_true_defaults(model, graphs, inputs) if check else graphs.signature
    names = parameter_names(model)
    annotated = Annotated(graphs.raw)
    inferred = infer_roles(annotated, graphs.indices, with_values(inputs))
    sites = find_sites(annotated, graphs.lifted, names, inferred, roles or {})
    graphs.lifted.module.train(training)
    verify_graph(graphs.lifted.module, signature)
    return Program(graphs.lifted.module, graphs.raw, signature, sites, inputs, notes)


def _checked_example(model: nn.Module, example: Mapping[str, Any]) -> dict[str, Tensor]:
    given = {name: value for name, value in example.items() if value is not None}
    groups = [name for name, value in given.items() if isinstance(value, tuple | list | dict)]
    if groups:
        raise CaptureError(
            f"the example holds tensors in groups: {', '.join(groups)}; captured models take each tensor as an "
            f"argument of its own: give `forward` one parameter for each, as in forward(tokens, h, c)"
        )
    wrong = [name for name, value in given.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CaptureError(f"the example holds something else than tensors: {', '.join(wrong)}; fix such options first")
    if not given:
        raise CaptureError("the example is empty; give the keyword arguments of one forward call")
    check_states(model, given)
    # One tensor given for two arguments would be traced as one input.
    return {name: tensor.clone() for name, tensor in stretched(given).items()}


def _faithful(
    model: nn.Module, example: Mapping[str, Tensor], opaque: Sequence[str], check: bool
) -> tuple[_Graphs, tuple[str, ...]]:
    """Capture in train mode, which keeps every dropout; in eval mode where the model branches on its mode."""
    graphs = _graphs(model, example, opaque, training=True)
    reason = _wrong(model, graphs, example) if check else _branches(model, graphs, example, opaque)
    if reason is None:
        return graphs, ()
    graphs = _graphs(model, example, opaque, training=False)
    found = _wrong(model, graphs, example, modes=(False,)) if check else None
    if found is not None:
        raise CaptureError(
            f"the captured graph of {type(model).__name__} does not compute what the model does {found}. What to try: "
            f"keep the part that depends on values or randomness as it is, opaque=['path.of.the.submodule']"
        )
    return graphs, (_EVAL_NOTE.format(reason=reason),)


def _graphs(model: nn.Module, example: Mapping[str, Tensor], opaque: Sequence[str], training: bool) -> _Graphs:
    with contextlib.ExitStack() as stack:
        leaves = {}
        if opaque:
            model.eval()
            other = resized(example, 3, 7)
            leaves = stack.enter_context(opaque_leaves.opaque(model, opaque, (example, other)))
        gm = export(model, example, training)
    kept = opaque_leaves.fold(gm, leaves)
    normalise(gm)
    open_bags(gm)
    signature = flatten(gm, model, example)
    check_dynamic(gm, example)
    indices = index_values(gm, with_values(example))
    limits = find_limits(gm, indices, parameter_names(model))
    return _Graphs(gm, lift(gm, model, kept), replace(signature, limits=limits), indices)


def _branches(model: nn.Module, graphs: _Graphs, example: Mapping[str, Tensor], opaque: Sequence[str]) -> str | None:
    """Whether an eval capture has other operators: cheaper than running the model, and works without weights."""
    other = _graphs(model, example, opaque, training=False)
    ours, theirs = ([str(n.target) for n in g.raw.graph.nodes] for g in (graphs, other))
    return None if ours == theirs else "other operators in the graph"


def _with_true_defaults(model: nn.Module, graphs: _Graphs, example: Mapping[str, Tensor]) -> Signature:
    """The signature, where an input stays optional only if leaving it out means the same to the model."""
    ours = CompiledModule(graphs.lifted.module, graphs.signature).eval()
    inputs = []
    for given in graphs.signature.inputs:
        if given.default is not None:
            rest = {name: value for name, value in example.items() if name != given.name}
            # The graph itself has been checked at every shape; what a default stands for does not depend on it.
            if disagreement(ours, model.eval(), rest, shapes=()) is not None:
                given = replace(given, default=None)
        inputs.append(given)
    return replace(graphs.signature, inputs=tuple(inputs))


def _wrong(
    model: nn.Module, graphs: _Graphs, example: Mapping[str, Tensor], modes: Sequence[bool] = (False, True)
) -> str | None:
    """How the graph differs from the model, in eval and in train mode; None when it does not."""
    ours = CompiledModule(graphs.lifted.module, graphs.signature)
    for training in modes:
        found = disagreement(ours.train(training), model.train(training), example, graphs.signature.limits, training)
        if found is not None:
            return f"{found} in {'train' if training else 'eval'} mode"
    return None
