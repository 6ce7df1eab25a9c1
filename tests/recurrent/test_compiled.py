"""Compiled recurrent models compute what the original does with the weights that its stores stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.recurrent.conftest import SHAPES, STORES, Compiled, compile_recurrent, example_of, tensors
from torch import nn

import tersor
from tersor.backends.numba.native.graph import NativeGraph
from tersor.compiler.compressed import CompressedRecurrent
from tersor.compiler.stores import Affine, Dense


def same(first: object, second: object) -> bool:
    ours, theirs = tensors(first), tensors(second)
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


def layer(compiled: Compiled) -> nn.Module:
    return compiled.result.reference.graph_module.get_submodule("rnn")


def taking_gradients_alike(compiled: Compiled) -> nn.Module:
    """The model with replaced weights, of which those take a gradient that do in the compiled one: torch multiplies a
    time-major input by another product where a weight does, which rounds differently on some processors.
    """
    replaced, ours = copy.deepcopy(compiled.replaced), layer(compiled)
    if isinstance(ours, CompressedRecurrent):  # half() leaves torch's own layer
        with torch.no_grad():
            for name, weight in zip(ours.order, ours.flat_weights(), strict=True):
                replaced.get_submodule("rnn").get_parameter(name).requires_grad_(weight.requires_grad)
    return replaced


def test_it_computes_what_the_replaced_weights_compute(compiled: Compiled) -> None:
    assert any(s.kind == "recurrent" for s in compiled.result.plan.sites)
    replaced = taking_gradients_alike(compiled)
    for shape in SHAPES:
        example = example_of(compiled.name, *shape)
        with torch.no_grad():
            assert same(compiled.result.module(**example), replaced(**example))


def test_the_weights_are_not_the_original_ones(compiled: Compiled) -> None:
    changed = [s.site for s in compiled.result.plan.sites if s.kind == "recurrent" and s.error > 0]
    assert sorted(changed) == sorted(s.site for s in compiled.result.plan.sites if s.kind == "recurrent")


def test_what_is_loaded_computes_the_same_bits(compiled: Compiled, tmp_path) -> None:
    folder = compiled.result.save(tmp_path / "artifact")
    loaded = tersor.load(folder, backend="eager")
    for shape in SHAPES:
        example = example_of(compiled.name, *shape)
        with torch.no_grad():
            assert same(loaded(**example), compiled.result.module(**example))


def test_the_default_backend_loads_it_too(compiled: Compiled, tmp_path) -> None:
    """Products with codes take their inputs in 8 bits, within half a percent of their spread; others are exact."""
    loaded = tersor.load(compiled.result.save(tmp_path / "artifact"))
    stored = any(store.kind != "dense" for store in compiled.stores.values())
    assert isinstance(loaded.graph_module, NativeGraph) == stored
    example = example_of(compiled.name, 3, 7)
    coded = any(kind in str(store.spec()) for store in compiled.stores.values() for kind in ("affine", "codebook"))
    with torch.no_grad():
        for ours, theirs in zip(tensors(loaded(**example)), tensors(compiled.replaced(**example)), strict=True):
            if coded:
                assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.01
            else:
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_replaced_weights(model_name: str) -> None:
    compiled = compile_recurrent(model_name, STORES["affine"])
    ours, theirs, example = compiled.result.reference.train(), compiled.replaced.train(), example_of(model_name, 2, 9)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(3)  # the same dropout
        outputs.append(module(**example))
        sum(t.square().sum() for t in tensors(outputs[-1])).backward()
    assert same(*outputs)
    recurrent = layer(compiled)
    assert isinstance(recurrent, CompressedRecurrent)
    reference = dict(theirs.named_parameters())
    for name, plain in recurrent.plain.items():
        torch.testing.assert_close(plain.grad, reference[f"rnn.{name}"].grad)
    for name, held in recurrent.stored.items():
        store = held.store()
        assert isinstance(store, Affine)
        # w = s (c - z) with one scale a row: dL/ds is the sum over the row of (c - z) dL/dw.
        levels = store.codes.dense() - store.zero.dense()
        expected = (reference[f"rnn.{name}"].grad * levels).sum(1, keepdim=True)
        torch.testing.assert_close(held.scale.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_trained_result_is_kept_as_it_was_trained(model_name: str, tmp_path) -> None:
    compiled = compile_recurrent(model_name, STORES["codebook"])
    module, example = compiled.result.reference, example_of(model_name, 2, 9)
    with torch.no_grad():
        before = tensors(module(**example))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        tensors(module.train()(**example))[0].square().mean().backward()
        optimiser.step()
    loaded = tersor.load(compiled.result.save(tmp_path / "artifact"), backend="eager")
    with torch.no_grad():
        trained = tensors(module.eval()(**example))
        for old, ours, theirs in zip(before, tensors(loaded(**example)), trained, strict=True):
            assert not torch.equal(old, theirs)
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)  # tables are rounded to 16 bits


def test_it_exports_again(model_name: str) -> None:
    compiled, example = compile_recurrent(model_name, STORES["affine"]), example_of(model_name, 2, 10)
    exported = torch.export.export(compiled.result.reference.eval(), (), example, strict=False)
    with torch.no_grad():
        ours, theirs = tensors(exported.module()(**example)), tensors(compiled.result.reference(**example))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_biases_alone_leave_an_ordinary_layer(model_name: str) -> None:
    model = compile_recurrent(model_name, "half()")
    assert isinstance(layer(model), nn.RNNBase)
    assert all(isinstance(store, Dense) for store in model.stores.values())


@pytest.mark.parametrize("bits", [2, 5])
def test_fewer_bits_are_fewer_bytes_on_disk(bits: int, model_name: str, tmp_path) -> None:
    compiled = compile_recurrent(model_name, f"uniform(bits = {bits}, group = row)")
    for row in compiled.result.plan.sites:
        if row.kind == "recurrent":
            rows, columns = row.shape
            expected = -(-rows * columns * bits // 8) + 2 * rows + -(-rows * bits // 8)
            assert compiled.stores[row.site].nbytes() == expected
