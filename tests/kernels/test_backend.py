"""A whole graph on the kernels against the same graph computed by its stores."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_oracle import FASTEST
from torch import Tensor, fx, nn

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.fuse import fuse_norms
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.norm import AddLayerNorm
from tersor.compiler.callable import CompiledModule
from tersor.compiler.capture import capture
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, StoredWeight
from tersor.compiler.program import Program
from tersor.compiler.stores import Dense
from tersor.compiler.stores.affine import Affine
from tersor.compiler.stores.codes import Codes


def affine(weight: Tensor, bits: int = 8, group: int = 0, symmetric: bool = False) -> Affine:
    """Nearest levels between the least and the greatest value of each group."""
    rows, columns = weight.shape
    group = group or columns
    x = weight.detach().reshape(rows, -1, group)
    if symmetric:
        scale = (x.abs().amax(-1) / (2 ** (bits - 1) - 1)).half().float()
        codes = (x / scale[..., None]).round() + 2 ** (bits - 1)
        zero = None
    else:
        low, high = x.amin(-1).clamp_max(0), x.amax(-1).clamp_min(0)
        scale = ((high - low) / (2**bits - 1)).half().float()
        origin = (-low / scale).round().clamp(0, 2**bits - 1)
        codes = (x / scale[..., None]).round() + origin[..., None]
        zero = Codes(origin.to(torch.uint8), bits)
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8).reshape(rows, columns)
    return Affine(Codes(codes, bits), Dense(scale), zero, group)


def compress(graph: fx.GraphModule, bits: int = 8, group: int = 0, symmetric: bool = False) -> None:
    for name, leaf in list(graph.named_modules()):
        if isinstance(leaf, nn.Linear):
            weight = StoredWeight(affine(leaf.weight, bits, group, symmetric))
            graph.set_submodule(name, CompressedLinear(weight, leaf.bias))
        elif isinstance(leaf, nn.Embedding):
            weight = StoredWeight(affine(leaf.weight, 8, 0, symmetric))
            graph.set_submodule(name, CompressedEmbedding(weight, leaf.padding_idx))


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    """A BERT of two layers whose attention heads are as wide as the kernel wants."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        max_position_embeddings=64,
    )  # fmt: skip
    ids = torch.randint(5, 97, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return transformers.BertModel(config).eval(), {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": mask,
    }


@pytest.fixture(scope="module")
def captured() -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, example = encoder()
    return capture(model, example), example


def run(program: Program, graph: fx.GraphModule, example: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        output: Any = CompiledModule(graph, program.signature).eval()(**example)
        return output.last_hidden_state[example["attention_mask"].bool()]


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(8, 0, True), (8, 0, False), (4, 64, False), (3, 32, True)])
def test_computes_what_the_stores_compute(
    captured: tuple[Program, dict[str, Tensor]], bits: int, group: int, symmetric: bool
) -> None:
    """Up to the rounding of activations to 8 bits in groups, about 1 % of their spread, in each of two layers."""
    program, example = captured
    graph = copy.deepcopy(program.module)
    compress(graph, bits, group, symmetric)
    wanted = run(program, graph, example)
    before = graph.code
    lowered, rows = NumbaBackend().emit(graph)
    assert all(row.kernel.startswith("numba:") for row in rows)
    kinds = Counter(type(module) for module in lowered.modules())
    assert kinds[GatheredEmbedding] == 3
    assert kinds[QuantizedLinear] == 2 * 4 + 1  # q, k, v are one
    assert kinds[AddLayerNorm] == 5
    assert kinds[nn.Dropout] == kinds[CompressedLinear] == 0
    assert not [node for node in lowered.lowered.graph.nodes if node.target is torch.ops.aten.gelu.default]
    assert float((run(program, lowered, example) - wanted).norm() / wanted.norm()) < 0.01
    # Without padding the mask is left out.
    full = example | {"attention_mask": torch.ones_like(example["input_ids"])}
    assert float((run(program, lowered, full) - run(program, graph, full)).norm() / wanted.norm()) < 0.01
    assert graph.code == before
    assert torch.equal(run(program, graph, example), wanted)


def test_what_has_no_kernel_stays_eager_with_a_reason() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    model = Model()
    graph = fx.symbolic_trace(model)
    graph.set_submodule("first", CompressedLinear(StoredWeight(affine(model.first.weight, 8, 16)), model.first.bias))
    graph.set_submodule("second", CompressedLinear(StoredWeight(Codes(torch.ones(48, 48).to(torch.uint8), 1)), None))
    x = torch.randn(3, 48)
    wanted = graph(x)
    lowered, rows = NumbaBackend().emit(graph)
    assert {row.path: (row.kernel, row.reason) for row in rows} == {
        "first": ("eager", "groups of 16 columns are not a multiple of 32"),
        "second": ("eager", "no kernel for a store of kind codes"),
    }
    assert torch.equal(lowered(x), wanted)


def test_a_linear_called_twice_keeps_its_own_output() -> None:
    """It is followed by an activation once only, so that the activation must not be fused."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.ops.aten.relu.default(self.linear(x)))

    model = Twice()
    graph = fx.symbolic_trace(model)
    graph.set_submodule("linear", CompressedLinear(StoredWeight(affine(model.linear.weight)), model.linear.bias))
    x = torch.randn(3, 64)
    wanted = graph(x).detach()
    lowered, _ = NumbaBackend().emit(graph)
    assert float((lowered(x).detach() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.slow
def test_a_sentence_encoder_keeps_its_meaning(minilm_folder: Path, shared_data: Path) -> None:
    """all-MiniLM-L6-v2 at 8 bits: mean cosine of the sentence vectors to those of float32 at least 0.999."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    lines = (shared_data / "stsb" / "stsb-en-dev.csv").read_text().splitlines()[::30]
    example = dict(tokenizer([line.split(",")[0] for line in lines], padding=True, return_tensors="pt"))
    program = capture(model, {name: value[:2] for name, value in example.items()})
    compress(program.module)
    lowered, _ = NumbaBackend().emit(program.module)
    keep = example["attention_mask"].unsqueeze(-1)
    vectors = []
    with torch.inference_mode():
        for candidate in (model, CompiledModule(lowered, program.signature).eval()):
            pooled = (candidate(**example).last_hidden_state * keep).sum(1) / keep.sum(1)
            vectors.append(nn.functional.normalize(pooled, dim=-1))
    assert float((vectors[0] * vectors[1]).sum(1).mean()) >= 0.999


class SharedNorm(nn.Module):
    """One normalisation, first of a single tensor (or not), then of a sum: as layers that share their weights have."""

    def __init__(self, sums: int) -> None:
        super().__init__()
        self.sums = sums
        self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            y = self.linear(x)
            x = self.norm(x + y if i >= 2 - self.sums else y)
        return x


@pytest.mark.parametrize("sums", [0, 1, 2])
def test_a_shared_norm_takes_an_addition_over_at_every_call_or_at_none(sums: int) -> None:
    x = torch.randn(2, 5, 64)
    program = capture(SharedNorm(sums).eval(), {"x": x})
    graph = copy.deepcopy(program.module).eval()
    fuse_norms(graph, FASTEST)
    graph.recompile()
    assert isinstance(graph.get_submodule("norm"), AddLayerNorm) == (sums == 2)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], program.module.eval()(x)[0], rtol=1e-5, atol=1e-5)
