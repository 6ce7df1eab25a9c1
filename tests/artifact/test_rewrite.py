"""A rewritten model computes what the original computes with its weights replaced by hand."""

from __future__ import annotations

import pytest
import torch
from tests.artifact.compressed_zoo import CHANGED, EVERY_CASE, RECIPES, by_hand, rewritten, stores_of
from tests.captured import captured
from tests.inputs import inputs_like, leaves
from torch import nn

from tersor.compiler.callable import CompiledModule
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, CompressedRecurrent, StoredWeight
from tersor.compiler.install import installed
from tersor.compiler.recurrence import RECURRENT as SHAPES
from tersor.compiler.rewrite import held_by, rewrite
from tersor.compiler.shapes import shapes_only
from tersor.compiler.stores import Dense

RECURRENT = {"lstm_lm", "lstm_tied", "gru_lm", "rnn_lm", "bilstm"}
CLOSE = 1e-5
"""Of the largest output: a sum in another order (a chain applies its factors one by one)."""


@pytest.mark.parametrize(("name", "recipe"), EVERY_CASE)
def test_equals_the_original_with_replaced_weights(name: str, recipe: str) -> None:
    _, example, program = captured(name)
    ours = CompiledModule(rewritten(name, recipe), program.signature)
    theirs = by_hand(name, stores_of(name, recipe))
    for batch, length in ((2, 12), (3, 7), (1, 1)):
        inputs = inputs_like(example, batch, length)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                expected, found = theirs(**inputs), ours(**inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert type(expected) is type(found)
        assert len(leaves(expected)) == len(leaves(found)) > 0
        for a, b in zip(leaves(expected), leaves(found), strict=True):
            assert float((a - b).abs().max()) <= CLOSE * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize(("name", "recipe"), EVERY_CASE)
def test_every_floating_array_trains(name: str, recipe: str) -> None:
    """A gradient reaches every parameter that the outputs depend on, which are those the original's gradients reach."""
    _, example, program = captured(name)
    module = rewritten(name, recipe).train()
    original = program.callable()
    inputs = inputs_like(example, 3, 9)
    for m in (module, original.train()):
        run = m if isinstance(m, CompiledModule) else CompiledModule(m, program.signature).train()
        m.zero_grad()
        torch.manual_seed(1)
        sum(x.float().square().mean() for x in leaves(run(**inputs)) if x.dtype.is_floating_point).backward()
    original.eval()
    held = held_by(program)
    reached = 0
    for path, attributes in held.items():
        ours, theirs = module.get_submodule(path), program.module.get_submodule(path)
        for attribute, site in attributes.items():
            before = getattr(theirs, attribute).grad
            if before is None or not before.any():
                continue
            stored = isinstance(ours, CompressedLinear | CompressedEmbedding | CompressedRecurrent)
            arrays = [p for n, p in ours.named_parameters() if not stored or "stored" in n or n.endswith(attribute)]
            assert arrays, site
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in arrays), site
            reached += 1
    original.zero_grad(set_to_none=True)
    assert reached > 3


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", pytest.param("t5", marks=pytest.mark.slow), "torch_encoder", "lstm_lm", "gru_lm"]
)
def test_can_be_exported_again(name: str) -> None:
    _, example, program = captured(name)
    module = rewritten(name, "uniform")
    inputs = tuple(
        inputs_like(example, 2, 12)[n] if n in example else program.example[n] for n in program.signature.names
    )
    with shapes_only(SHAPES):
        exported = torch.export.export(module, inputs, strict=False)
    if name in RECURRENT:  # exported with shapes only; running it computes
        assert exported.graph_signature.user_outputs
    with torch.no_grad():
        for a, b in zip(leaves(exported.module()(*inputs)), leaves(module(*inputs)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "t5", "lstm_tied", "hand_gpt", "albert"])
@pytest.mark.parametrize("recipe", ["uniform", "kmeans"])
def test_a_weight_with_several_readers_stays_one(name: str, recipe: str) -> None:
    _, _, program = captured(name)
    module = rewritten(name, recipe)
    shared = [s for s in program.sites if s.kind in CHANGED and len({r.path for r in s.readers}) > 1]
    for site in shared:
        stored = {id(module.get_submodule(r.path).stored) for r in site.readers}
        assert len(stored) == 1, site.name
    assert shared or name == "albert"
    kept = [m for m in module.modules() if isinstance(m, StoredWeight)]
    assert len(kept) == sum(s.kind in CHANGED for s in program.sites)


@pytest.mark.parametrize("name", ["bert", "t5", "lstm_tied"])
def test_plain_stores_keep_classes_and_ties(name: str) -> None:
    _, example, program = captured(name)
    stores = {n: Dense(s.dense().detach()) for n, s in stores_of(name, "uniform").items()}
    module, trace = rewrite(program, stores, {})
    assert trace == ()
    assert not any(isinstance(m, StoredWeight) for m in module.modules())
    for path, attributes in held_by(program).items():
        assert type(module.get_submodule(path)) is type(program.module.get_submodule(path)) or path == ""
        for attribute in attributes:
            assert isinstance(getattr(module.get_submodule(path), attribute), nn.Parameter)
    assert sum(p.numel() for p in module.parameters()) == sum(s.params for s in program.sites if s.kind != "attention")
    theirs, inputs = by_hand(name, stores), inputs_like(example, 2, 8)
    with torch.no_grad():
        ours = CompiledModule(module.eval(), program.signature)
        for a, b in zip(leaves(theirs(**inputs)), leaves(ours(**inputs)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ["bert"])
def test_the_program_stays_as_it_was(name: str) -> None:
    _, example, program = captured(name)
    inputs = inputs_like(example, 2, 8)
    with torch.no_grad():
        before = leaves(program.callable().eval()(**inputs))
        rewritten(name, "prune")
        after = leaves(program.callable().eval()(**inputs))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["lstm_tied"])
def test_the_trace_names_what_changed_and_why(name: str) -> None:
    _, _, program = captured(name)
    sites = {s.name: s for s in program.sites}
    module, trace = rewrite(program, stores_of(name, "uniform"), {"embed.weight": "policy.tersor:3:1"})
    by_path = {step.path: step for step in trace}
    changed = {r.path for s in sites.values() if s.kind in CHANGED for r in s.readers}
    assert set(by_path) == changed
    assert by_path["embed"].why == by_path["decoder"].why == "policy.tersor:3:1"
    assert by_path["rnn"].why == ""
    assert "Embedding(97, 16)" in by_path["embed"].before
    assert "CompressedEmbedding" in by_path["embed"].after
    assert repr(module.get_submodule("embed")) == by_path["embed"].after


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["bert", "lstm_tied"])
def test_what_is_installed_comes_out_again(name: str, recipe: str) -> None:
    program, stores = captured(name)[2], stores_of(name, recipe)
    found = installed(rewritten(name, recipe), held_by(program), stores)
    assert set(found) == set(stores)
    assert all(torch.equal(found[n].dense(), s.dense()) for n, s in stores.items())
