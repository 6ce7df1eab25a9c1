"""A native program computes what its lowered graph computes, at every shape, on any number of threads."""

from __future__ import annotations

import copy
import operator
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracle import random_matrix
from lowered import lowered, steps
from tests.captured import MODELS, captured
from torch import Tensor, fx, nn

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.compiler.compressed import CompressedEmbedding, CompressedLinear, StoredWeight
from tersor.compiler.errors import RequestError
from tersor.compiler.measure.seconds import ring_of
from tersor.compiler.stores import Affine, Codes, Dense

aten = torch.ops.aten


def stored(weight: Tensor) -> StoredWeight:
    """8 bits, a scale per row."""
    scale = weight.detach().abs().amax(1, keepdim=True) / 127
    codes = ((weight.detach() / scale).round() + 128).to(torch.uint8)
    return StoredWeight(Affine(Codes(codes, 8), Dense(scale), None, weight.shape[1]))


def emitted(name: str) -> tuple[NativeGraph, list[Tensor]]:
    """A model of the zoo with every linear and embedding in 8 bits, and its inputs."""
    _, example, program = captured(name)
    graph = copy.deepcopy(program.module)
    for path, leaf in list(graph.named_modules()):
        if isinstance(leaf, nn.Linear):
            graph.set_submodule(path, CompressedLinear(stored(leaf.weight), leaf.bias))
        elif isinstance(leaf, nn.Embedding):
            graph.set_submodule(path, CompressedEmbedding(stored(leaf.weight), leaf.padding_idx))
    native, _ = NumbaBackend().emit(graph)
    return native, [example[i.name] for i in program.signature.inputs if i.name in example]


def tensors(output: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor)]


def agree(found: Any, wanted: Any) -> None:
    """Up to a code of an activation here and there, which a sum taken in another order rounds to its neighbour."""
    for one, other in zip(tensors(found), tensors(wanted), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert float((one - other).double().norm()) <= 0.02 * float(other.double().norm())


@pytest.mark.parametrize("name", MODELS)
def test_computes_what_the_graph_computes(name: str) -> None:
    native, inputs = emitted(name)
    with torch.inference_mode():
        for batch, length in ((2, 10), (1, 1), (3, 7)):
            sized = [x[:1].expand(batch, *x.shape[1:])[:, :1].repeat(1, length) for x in inputs]
            sized = [x.contiguous() for x in sized]
            first = native(*sized)
            before = [x.clone() for x in tensors(first)]
            agree(first, native.lowered(*sized))
            native(*[x.flip(0) for x in sized])
            assert all(torch.equal(x, y) for x, y in zip(tensors(first), before, strict=True))  # memory of their own


def test_threads_change_nothing() -> None:
    native, inputs = emitted("bert")
    long = [x[:, :1].repeat(20, 40) for x in inputs]
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(tensors(native(*long)))
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_callers_at_once_get_what_they_would_alone() -> None:
    native, inputs = emitted("bert")
    requests = [[x[:, : 1 + i % 9].contiguous() for x in inputs] for i in range(24)]
    with torch.inference_mode():
        wanted = [tensors(native(*request)) for request in requests]
    wrong: list[int] = []

    def work(start: int) -> None:
        with torch.inference_mode():
            for i in range(start, 24, 3):
                found = tensors(native(*requests[i]))
                if not all(torch.equal(x, y) for x, y in zip(found, wanted[i], strict=True)):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_index_out_of_range_is_refused_and_does_no_harm() -> None:
    native, inputs = emitted("lstm_lm")
    with torch.inference_mode():
        wanted = native(*inputs)
        with pytest.raises(RequestError, match="index 1000 is out of range"):
            native(torch.full_like(inputs[0], 1000))
        agree(native(*inputs), wanted)


def test_traced_and_differentiated_it_is_the_graph() -> None:
    native, inputs = emitted("bert")
    with torch.inference_mode():
        exported = torch.export.export(native, tuple(inputs))
        agree(exported.module()(*inputs), native(*inputs))


@pytest.mark.parametrize("name", MODELS)
def test_a_bound_program_reads_what_its_inputs_hold_now(name: str) -> None:
    native, inputs = emitted(name)
    given = [x.clone() for x in inputs]
    with torch.inference_mode():
        bound = native.bind(*given)
        agree(bound(), native(*inputs))
        for held, x in zip(given, inputs, strict=True):
            held.copy_(x.flip(1))
        agree(bound(), native(*[x.flip(1) for x in inputs]))


def test_inputs_that_are_no_plain_memory_are_not_bound() -> None:
    native = lowered(nn.Identity(), 1)
    for x in (torch.zeros(2, 3).T, torch.zeros(2, 3, requires_grad=True)):
        with pytest.raises(RequestError, match="contiguous tensors on the CPU, without gradients"):
            native.bind(x)


def test_copies_work() -> None:
    native, inputs = emitted("bert")
    with torch.inference_mode():
        assert all(torch.equal(x, y) for x, y in zip(
            tensors(copy.deepcopy(native)(*inputs)), tensors(native(*inputs)), strict=True
        ))  # fmt: skip


def chain(*calls: tuple[Any, ...]) -> fx.GraphModule:
    """A graph that applies operators one after the other; `...` among the arguments is the second input."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    for target, *args in calls:
        x = graph.call_function(target, (x, *[y if a is ... else a for a in args]))
    graph.output((x,))
    return fx.GraphModule({}, graph)


VIEWS = (
    (aten.transpose.int, 0, 1), (aten.transpose.int, -1, 0), (aten.permute.default, [2, 0, 1]),
    (aten.slice.Tensor, 1, 1, 9), (aten.slice.Tensor, 2, 0, -1), (aten.neg.default,), (aten.relu.default,),
    (aten.mul.Tensor, 1.5), (aten.pow.Tensor_Scalar, 2), (aten.unsqueeze.default, 1), (aten.reshape.default, [-1]),
    (aten.squeeze.dim, 0), (aten.squeeze.dim, -1), (aten.squeeze.dims, [0, 2]), (aten.squeeze.default,),
)  # fmt: skip


@given(st.lists(st.sampled_from(VIEWS), max_size=5), st.tuples(*[st.integers(1, 37)] * 3))
def test_views_and_elementwise_steps(calls: list[Any], shape: tuple[int, int, int]) -> None:
    run = chain(*calls)
    x = torch.randn(shape)
    with torch.inference_mode():
        try:
            (wanted,) = run(x, x)
        except (RuntimeError, IndexError):
            return  # not a program
        if not wanted.numel():
            return
        (found,) = NativeGraph(run, HANDLERS, NumbaBackend().level.name)(x, x)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, torch.exp, torch.rsqrt])
@pytest.mark.parametrize("level", ["generic", NumbaBackend().level.name])
def test_functions_keep_their_bounds(function: Any, level: str) -> None:
    """tanh within 2e-7; the others within 4e-7 of their value (e^x within 2e-7, a division and a rounding)."""
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.linspace(-0.13, 0.13, 999)])
    x = x.abs() + 1e-3 if function is torch.rsqrt else x
    run = chain((getattr(aten, function.__name__).default,))
    with torch.inference_mode():
        (found,) = NativeGraph(run, HANDLERS, level)(x, x)
    wanted = function(x.double())
    bound = 2e-7 if function is torch.tanh else 4e-7 * wanted.abs()
    assert bool(((found - wanted).abs() <= bound).all())


@given(
    st.sampled_from([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor]),
    st.lists(st.tuples(st.integers(1, 18), st.sampled_from("=1<>")), min_size=1, max_size=5),
    st.integers(0, 4),
    st.booleans(),
)
def test_operands_are_broadcast(target: Any, dims: list[tuple[int, str]], drop: int, turned: bool) -> None:
    one = [1 if how in "<1" else n for n, how in dims]
    other = [1 if how in ">1" else n for n, how in dims][min(drop, len(dims) - 1) :]
    x, y = torch.randn(one), torch.randn(other) + 3
    if turned:
        x = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    run = chain((target, ...))
    with torch.inference_mode():
        (found,) = NativeGraph(run, HANDLERS, NumbaBackend().level.name)(x, y)
        assert torch.equal(found, target(x, y))


def test_parts_of_a_split() -> None:
    run = chain((aten.split_with_sizes.default, [3, 5], 1), (operator.getitem, 1), (aten.add.Tensor, ...))
    x, y = torch.randn(4, 8), torch.randn(4, 5)
    with torch.inference_mode():
        (found,) = NativeGraph(run, HANDLERS, NumbaBackend().level.name)(x, y)
    assert torch.equal(found, x[:, 3:] + y)


def test_readers_of_any_width_share_a_rounding() -> None:
    """Each with what it computes alone: a record serves codes of all widths."""
    linears = [random_matrix(40, 64, bits, seed=bits).module() for bits in (8, 7, 5, 4, 2)]
    native = NativeGraph(ring_of(linears, 1), HANDLERS, NumbaBackend().level.name)
    for rows in (1, 40):
        inputs = torch.randn(rows, 64)
        assert steps(native, inputs).count("quantise") == 1
        with torch.inference_mode():
            for found, linear in zip(native(inputs), linears, strict=True):
                assert torch.equal(found, linear(inputs))
