"""A module on the CPU kernels goes through `torch.export` again, batch and length symbolic, and computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.captured import captured
from tests.inputs import inputs_like, leaves
from torch.export import Dim

import tersor
from tersor.compiler.callable import CompiledModule

POLICY = tersor.Policy.parse("for linear or embedding or recurrent choose int8()\n")
KERNELS = {
    "bert": {"quantized_linear", "gather_rows", "add_layer_norm"},
    "lstm_lm": {"quantized_linear", "gather_rows", "quantized_recurrence"},
    "gru_lm": {"quantized_linear", "gather_rows", "quantized_recurrence"},
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_it_exports_again_with_symbolic_sizes(name: str, gradients: bool) -> None:
    model, example, _ = captured(name)
    module: Any = tersor.compile(model, POLICY, example, backend="numba").module
    sizes = tuple({0: Dim.AUTO, 1: Dim.AUTO} for _ in example)
    with torch.set_grad_enabled(gradients):
        exported = torch.export.export(module, tuple(example.values()), dynamic_shapes={"args": sizes})
    called = [str(node.target).split(".") for node in exported.graph.nodes if node.op == "call_function"]
    assert {target[1] for target in called if target[0] == "tersor"} == KERNELS[name]
    again: Any = exported.module()
    plain: Any = CompiledModule(module.graph_module.lowered, module.signature).eval()  # what a native program runs
    for batch, length in ((2, 12), (1, 1), (3, 7)):
        inputs = inputs_like(example, batch, length)
        with torch.no_grad():
            ours, theirs = leaves(again(*inputs.values())), leaves(plain(**inputs))
            native = leaves(module(**inputs))
        assert len(ours) == len(theirs) == len(native) > 0
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        # Sums in another order send a rounded activation to its neighbour here and there.
        assert all(float((a - b).norm()) <= 0.02 * float(b.norm()) for a, b in zip(native, theirs, strict=True))
