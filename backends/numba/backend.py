"""Lowers a captured graph to the CPU kernels, for inference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from tersor.backends.numba.attention import prepare_masks
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms import FORMS, Target, plain_kernel
from tersor.backends.numba.forms.recurrent import plain_recurrent, recurrent, refuse_recurrent
from tersor.backends.numba.fuse import (
    drop_dropout,
    fuse_activations,
    fuse_norms,
    fuse_sums,
    merge_linears,
    split_chains,
)
from tersor.backends.numba.fusebags import fuse_bags
from tersor.backends.numba.fusedecoder import fuse_decoder
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, CompressedRecurrent, StoredWeight
from tersor.compiler.errors import RequestError


@dataclass(frozen=True)
class Lowered:
    """What became of a leaf: `kernel` says by what it is computed, "eager" if by torch, and then `reason` says why."""

    path: str
    kernel: str
    reason: str = ""


class NumbaBackend:
    """Claims the stores of linears, embeddings and recurrent layers that have a form (`forms`); others stay eager.

    Where weights are codes, activations are rounded to 8 bits in the groups of columns that the store names. `level`
    asks for a CPU level (default: `features.detect`).
    """

    name = "numba"

    def __init__(self, level: str | None = None) -> None:
        self.level = detect(level)

    def claim(self, leaf: nn.Module) -> str | None:
        """Why a leaf cannot be lowered; None if it can."""
        if isinstance(leaf, CompressedRecurrent):
            return refuse_recurrent(leaf, FORMS)
        if not isinstance(leaf, CompressedLinear | CompressedEmbedding):
            return f"no kernel for a {type(leaf).__name__}"
        store = leaf.stored.template
        form = FORMS.get(store.kind)
        return form.refuse(store) if form else f"no kernel for a store of kind {store.kind}"

    def emit(self, module: fx.GraphModule) -> tuple[NativeGraph, list[Lowered]]:
        """The graph over kernels, for inference, as a native program, and what became of every leaf that holds a store.

        `module` is left as it was. Layers without a store get a kernel too, a product of factors becomes two
        linears. Dropout is removed, a following activation joins its linear, linears that read one value
        become one, and an addition joins the layer normalisation after it.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, {}))
        lowered = fx.GraphModule(module, graph)
        calls = Counter(str(node.target) for node in graph.find_nodes(op="call_module"))
        rows: list[Lowered] = []
        target = Target(self.level)
        for path in calls:
            leaf = module.get_submodule(path)
            if not any(isinstance(part, StoredWeight) for part in leaf.modules()):
                plain = plain_kernel(leaf, target) or plain_recurrent(leaf, FORMS, target, HANDLERS)
                if plain is not None:
                    lowered.set_submodule(path, plain)
                continue
            reason = self.claim(leaf)
            if reason is None:
                try:
                    kernel = self._kernel(leaf, target)
                except RequestError as refusal:
                    reason = str(refusal)
            if reason is not None:
                rows.append(Lowered(path, "eager", reason))
                continue
            lowered.set_submodule(path, kernel)
            rows.append(Lowered(path, f"{self.name}:{self.level.name}"))
        split_chains(lowered)
        calls = Counter(str(node.target) for node in lowered.graph.find_nodes(op="call_module"))
        single = {path for path, count in calls.items() if count == 1}
        drop_dropout(lowered)
        fuse_bags(lowered)
        fuse_decoder(lowered)
        fuse_activations(lowered, single)
        merge_linears(lowered, single)
        prepare_masks(lowered)
        fuse_norms(lowered, self.level.name)
        fuse_sums(lowered)
        lowered.delete_all_unused_submodules()
        lowered.graph.lint()
        lowered.recompile()
        return NativeGraph(lowered.eval(), HANDLERS, self.level.name), rows

    def _kernel(self, leaf: nn.Module, target: Target) -> nn.Module:
        if isinstance(leaf, CompressedRecurrent):
            return recurrent(leaf, FORMS, target, HANDLERS)
        if not isinstance(leaf, CompressedLinear | CompressedEmbedding):
            raise RequestError(f"no kernel for a {type(leaf).__name__}")
        store = leaf.stored.store()
        form = FORMS[store.kind]
        if isinstance(leaf, CompressedEmbedding):
            return form.embedding(store, target)
        return form.linear(store, None if leaf.bias is None else leaf.bias.detach().float(), target)
