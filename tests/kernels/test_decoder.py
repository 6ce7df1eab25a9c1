"""Generation with cached keys and values gives what computing everything again for each token gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowered import run, steps
from test_native import emitted, tensors
from torch import Tensor, fx, nn

import tersor
from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.decodermodules import RootNorm, Rotary
from tersor.backends.numba.fusedecoder import fuse_decoder
from tersor.backends.numba.native.decode import Decoder
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.compiler.errors import RequestError
from tersor.compiler.modules import Attention

aten = torch.ops.aten
DECODERS = ("llama", "gpt2", "hand_gpt")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def whole(native: NativeGraph, inputs: int, ids: Tensor) -> Tensor:
    """The logits after the last token, from all tokens anew."""
    return tensors(native(ids, *[torch.ones_like(ids)] * (inputs - 1)))[0][:, -1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_the_whole_sequence(name: str, threads: int) -> None:
    native, inputs = emitted(name)
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for batch, length in ((1, 1), (2, 5), (1, 17)):
            decoder = native.decoder(batch, 24)
            ids = torch.randint(0, 97, (batch, length))
            logits = decoder.step(ids)
            for _ in range(4):
                assert torch.equal(logits, whole(native, len(inputs), ids))
                new = logits.argmax(-1, keepdim=True)
                ids = torch.cat([ids, new], 1)
                logits = decoder.step(new)
            assert decoder.length == length + 4
            assert not decoder.program(1).torch_calls


@pytest.mark.parametrize("name", DECODERS)
def test_pieces_and_a_second_text_change_nothing(name: str) -> None:
    native, _ = emitted(name)
    ids = torch.randint(0, 97, (2, 13))
    decoder = native.decoder(2, 13)
    with torch.inference_mode():
        wanted = decoder.step(ids)
        for pieces in ((1,) * 13, (6, 7), (12, 1)):
            decoder.reset()
            for piece in ids.split(pieces, 1):
                found = decoder.step(piece)
            assert torch.equal(found, wanted)


def test_whole_sequences_need_no_torch_call() -> None:
    for name in DECODERS:
        native, inputs = emitted(name)
        given = (inputs[0], *[torch.ones_like(x) for x in inputs[1:]])
        assert not native.program(*given).torch_calls


def test_more_tokens_than_there_is_room_for() -> None:
    native, _ = emitted("llama")
    decoder = native.decoder(1, 4)
    decoder.step(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(RequestError, match="more than a capacity of 4"):
        decoder.step(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(RequestError, match="a decoder of 1 sequences"):
        decoder.step(torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize(("name", "node"), [("t5", "decoder_input_ids"), ("gru_lm", "rnn"), ("bert", "token_type_ids")])
def test_other_models_are_refused_by_node(name: str, node: str) -> None:
    native, _ = emitted(name)
    with pytest.raises(RequestError, match=node):
        native.decoder(1, 8).step(torch.zeros(1, 3, dtype=torch.int64))


def small(*calls: tuple[Any, ...], heads: int = 2) -> Decoder:
    """Embedding of 8 columns, then operators one after the other; `Attention` takes its input for q, k and v."""
    graph = fx.Graph()
    ids = graph.placeholder("input_ids")
    modules: dict[str, nn.Module] = {"embed": nn.Embedding(97, 8)}
    x = graph.call_module("embed", (ids,))
    for i, (target, *args) in enumerate(calls):
        if isinstance(target, nn.Module):
            modules[f"part{i}"] = target
            x = graph.call_module(f"part{i}", (x, x, x) if isinstance(target, Attention) else (x,))
        else:
            x = graph.call_function(target, (x, *args))
    graph.output((x,))
    return NativeGraph(fx.GraphModule(modules, graph), HANDLERS, NumbaBackend().level.name).decoder(1, 9)


SPLIT = ((aten.unsqueeze.default, 1),)
REFUSED = {
    "future": (*SPLIT, (Attention(),)),
    "sum over tokens": ((aten.mean.dim, [1], True),),
    "softmax over tokens": ((aten.transpose.int, 1, 2), (aten.softmax.int, -1)),
    "last token": ((aten.slice.Tensor, 1, -1),),
    "reversed": ((aten.flip.default, [1]),),
    "mixed": ((aten.transpose.int, 1, 2), (aten.reshape.default, [1, -1, 8])),
    "running": ((aten.cumsum.default, 1),),
}


@pytest.mark.parametrize("calls", REFUSED.values(), ids=REFUSED.keys())
def test_what_mixes_tokens_is_refused(calls: tuple[Any, ...]) -> None:
    with torch.no_grad(), pytest.raises(RequestError, match="cannot generate with a cache"):
        small(*calls).step(torch.zeros(1, 3, dtype=torch.int64))


def test_causal_attention_is_not() -> None:
    with torch.no_grad():
        assert small(*SPLIT, (Attention(is_causal=True),)).step(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 8)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(1e-6, 1e-2))
def test_root_norm(rows: int, vectors: int, epsilon: float) -> None:
    x, weight = torch.randn(rows, 16 * vectors) * 3, torch.randn(16 * vectors)
    found, calls = run(RootNorm(weight, epsilon), x)
    wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()
    assert not calls
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_torchs_own_root_norm_is_found_with_its_epsilon() -> None:
    norm, x = nn.RMSNorm(16), torch.randn(3, 16) * 1e-4  # so small that its epsilon, that of a float32, counts
    nn.init.normal_(norm.weight)
    policy = tersor.Policy.parse("for linear choose int8()")
    native = tersor.compile(nn.Sequential(norm, nn.Linear(16, 16)), policy, {"input": x}).module
    assert steps(native.graph_module, x)[0] == "norm"
    (found,) = (part for part in native.graph_module.lowered.modules() if isinstance(part, RootNorm))
    torch.testing.assert_close(found(x), norm(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_before_a_block_takes_the_addition_and_the_rounding_over(kind: Any) -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(kind(64, eps=1e-5) for _ in range(2))
            self.linears = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

        def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            for norm, linear in zip(self.norms, self.linears, strict=True):
                x = x + other
                other = linear(norm(x))
            return x + other

    torch.manual_seed(0)
    module, example = Before().eval(), {"x": torch.randn(2, 9, 64), "other": torch.randn(1, 9, 64)}
    for norm in module.norms:
        nn.init.normal_(norm.weight)
    policy = tersor.Policy.parse("for linear choose int8(activations = 64)")
    native = tersor.compile(module, policy, example, backend="numba").module
    assert steps(native.graph_module, *example.values()) == 2 * ["norm and round", "multiply"] + ["add"]
    few = [x[:1, :2].contiguous() for x in example.values()]  # rounded one by one
    assert steps(native.graph_module, *few) == 2 * ["norm", "quantise", "multiply"] + ["add"]
    with torch.inference_mode():
        exact = module(**example)
        assert float((native(**example) - exact).norm() / exact.norm()) < 0.01


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 40))
def test_rotary(batch: int, heads: int, tokens: int, half: int) -> None:
    x = torch.randn(batch, tokens, heads, 2 * half).transpose(1, 2)
    angle = torch.randn(1, 1, tokens, half)
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    found, calls = run(Rotary(half), x, cos, sin)
    turned = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1).contiguous().double())
    turned = turned * torch.polar(torch.ones_like(angle, dtype=torch.float64), angle.double())
    assert not calls
    torch.testing.assert_close(found.double(), torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-5)


def test_written_out_parts_are_found() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            y = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
            hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
            p = torch.softmax((y @ y.transpose(-2, -1) / 4.0).masked_fill(hidden, float("-inf")), -1)
            z = p @ y
            gelu = 0.5 * z * (1 + torch.tanh(0.7978845608028654 * (z + 0.044715 * z**3)))
            return gelu * 1.0

    x = torch.randn(2, 2, 5, 16)
    module = Written()
    traced = torch.export.export(module, (x,)).module()
    assert isinstance(traced, fx.GraphModule)
    wanted = module(x)
    fuse_decoder(traced)
    traced.recompile()
    kinds = {type(part) for part in traced.modules()}
    assert {RootNorm, Attention, nn.GELU} <= kinds
    torch.testing.assert_close(traced(x), wanted, rtol=1e-5, atol=1e-5)
