"""Sites: each parameter once, with every reader, and the leaf a later rewrite will swap."""

from __future__ import annotations

import operator

import pytest
import torch
from tests.captured import MODELS
from torch.utils import _pytree as pytree

from tersor.compiler.capture import capture
from tersor.compiler.site import Reader


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_one_site(captured, name):
    model, _, program = captured(name)
    sites = [site for site in program.sites if site.kind != "attention"]
    assert sorted(site.name for site in sites) == sorted(n for n, _ in model.named_parameters())
    sizes = {n: p.numel() * p.element_size() for n, p in model.named_parameters()}
    assert {site.name: site.bytes for site in sites} == sizes


@pytest.mark.parametrize("name", MODELS)
def test_readers_are_leaves_that_hold_the_parameter(captured, name):
    model, _, program = captured(name)
    calls = [n.target for n in program.module.graph.find_nodes(op="call_module")]
    raw = dict(program.raw.named_parameters(remove_duplicate=False))
    for site in program.sites:
        for reader in site.readers:
            leaf = program.module.get_submodule(reader.path)
            assert calls.count(reader.path) > reader.call
            if site.kind in ("linear", "embedding"):
                assert tuple(leaf.weight.shape) == site.shape
                own = raw[next(n for n, _ in model.named_parameters() if n == site.name)]
                assert leaf.weight.data_ptr() == own.data_ptr()


@pytest.mark.parametrize("name", ["t5"])
def test_tied_weights_are_one_site_with_all_its_aliases(captured, name):
    _, _, program = captured(name)
    site = next(s for s in program.sites if s.name == "shared.weight")
    assert site.paths == ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    assert site.readers == (Reader("encoder.embed_tokens"), Reader("decoder.embed_tokens"), Reader("lm_head"))
    leaves = [program.module.get_submodule(r.path) for r in site.readers]
    assert len({id(leaf.weight) for leaf in leaves}) == 1
    assert [type(leaf).__name__ for leaf in leaves] == ["Embedding", "Embedding", "Linear"]


@pytest.mark.parametrize("name", ["albert"])
def test_a_shared_layer_has_several_calls(captured, name):
    _, _, program = captured(name)
    (site,) = [s for s in program.sites if s.role == "ffn.up"]
    path = "encoder.albert_layer_groups.0.albert_layers.0.ffn"
    assert site.readers == (Reader(path, 0), Reader(path, 1))


@pytest.mark.parametrize("name", ["gpt2"])
def test_a_transposed_weight_is_a_linear_over_the_same_memory(captured, name):
    model, _, program = captured(name)
    site = next(s for s in program.sites if s.path == "transformer.h.0.mlp.c_fc")
    assert site.shape == (128, 32)
    weight = program.module.get_submodule(site.path).weight
    assert torch.equal(weight, model.transformer.h[0].mlp.c_fc.weight.t())


class Transposed(torch.nn.Module):
    """A linear written as a product with a transposed weight, and a weight that no module can hold."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 8))
        self.odd = torch.nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return (x @ self.weight.T) + self.odd.t().exp().sum()


def test_a_written_out_product_is_a_linear_and_the_rest_is_other():
    model, x = Transposed(), torch.randn(2, 3, 8)
    program = capture(model, {"x": x})
    sites = {site.name: site for site in program.sites}
    assert (sites["weight"].kind, sites["weight"].shape, len(sites["weight"].readers)) == ("linear", (5, 8), 1)
    assert (sites["odd"].kind, sites["odd"].readers) == ("other", ())
    assert torch.equal(program.callable()(x), model(x))


def test_changing_a_leaf_changes_every_reader_and_not_the_original(captured):
    from tests.zoo import lstm_tied

    model, example = lstm_tied()
    program = capture(model, example)
    before = model(**example)
    site = next(s for s in program.sites if s.path == "embed")
    with torch.no_grad():
        program.module.get_submodule(site.readers[1].path).weight.zero_()
    assert torch.equal(program.module.get_submodule("embed").weight, torch.zeros(97, 16))
    assert torch.equal(model(**example), before)


def test_without_copy_the_parameters_are_the_models_own():
    from tests.zoo import lstm_lm

    model, example = lstm_lm()
    program = capture(model, example, copy=False)
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in program.module.parameters()} == own


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_holds_only_what_can_be_written_down(captured, name):
    """aten operators, operator.* on sizes, and plain values as arguments."""
    _, _, program = captured(name)
    plain = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, slice)
    for graph in (program.module.graph, program.raw.graph):
        for node in graph.nodes:
            if node.op == "call_function":
                aten = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
                assert aten or getattr(operator, node.target.__name__) is node.target
            values = pytree.tree_leaves((node.args, dict(node.kwargs)))
            assert all(isinstance(v, (*plain, torch.fx.Node)) for v in values), node.format_node()


@pytest.mark.parametrize("name", ["torch_encoder", "multihead", "bert", "albert"])
def test_no_module_path_lies_inside_another(captured, name):
    _, _, program = captured(name)
    paths = sorted({n.target for n in program.module.graph.find_nodes(op="call_module")})
    assert not any(b.startswith(a + ".") for a in paths for b in paths)
