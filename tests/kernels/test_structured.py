"""A linear over kept blocks or banks against exact integers or float64, at every CPU level this machine runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import RUNNABLE, WIDTHS, error, rounded_activations
from kernel_stores import affine, codebook
from torch import Tensor

from tersor.backends.numba import structureops
from tersor.backends.numba.denselinear import DenseLinear
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms import FORMS, Target
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.quantiser import QMAX
from tersor.backends.numba.reference import activate
from tersor.backends.numba.sparselinear import SparseLinear
from tersor.backends.numba.structure import Structure
from tersor.backends.numba.structurelinear import StructuredLinear
from tersor.compiler.errors import RequestError
from tersor.compiler.stores import Banked, Dense, Store
from tersor.passes.prune.bank import Bank, BankPruning
from tersor.passes.prune.block import Block, BlockPruning
from tersor.passes.quantize.uniform import quantise

TOLERANCE = 1e-5  # about 200 float32 roundings of 2^-24 on sums of like magnitude
BANKED = [level for level in RUNNABLE if level != "generic"]


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def blocks(weight: Tensor, block: str = "16x4", sparsity: float = 0.8) -> Banked:
    return BlockPruning().pack(weight, Block(sparsity=sparsity, block=block))  # type: ignore[arg-type]


def banks(weight: Tensor, kept: int = 4, bank: int = 16) -> Banked:
    return BankPruning().pack(weight, Bank(kept=kept, bank=bank))


def with_values(store: Banked, values: Store) -> Banked:
    return store.rebuilt({"places": store.places, "values": values})


def coded(store: Banked, bits: int = 8, group: int = 0) -> Banked:
    """Symmetric codes with a scale for the row or for `group` of its kept values."""
    values = store.values.dense()
    return with_values(store, quantise(values, bits, group or values.shape[1], symmetric=True))


def kinds(rows: int, columns: int) -> list[Banked]:
    """A store for each kind of kernel."""
    weight = drawn(rows, columns)
    return [coded(blocks(weight)), coded(banks(weight)), blocks(weight)]


def kernel(store: Banked, bias: Tensor | None = None, level: str | None = None) -> torch.nn.Module:
    return FORMS["banked"].linear(store, bias, Target(detect(level), 64))


def integer_product(store: Banked, x: Tensor, bias: Tensor) -> np.ndarray:
    """What the store stands for times activations rounded to 8 bits, one scale per row, in float64."""
    return rounded_activations(x, 0) @ store.dense().double().numpy().T + bias.double().numpy()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 300),
    form=st.sampled_from(["16x4", "32x4", (4, 16), (3, 16), (8, 64), (2, 32)]),
    tokens=st.sampled_from([0, 1, 2, 3, 5, 8, 9, 16, 17, 33]),
    bits=st.sampled_from([2, 5, 8]),
    group=st.sampled_from([0, 24, 64]),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_codes_of_any_shape(
    rows: int, columns: int, form: str | tuple[int, int], tokens: int, bits: int, group: int, level: str, seed: int
) -> None:
    weight = drawn(rows, columns, seed)
    held = blocks(weight, form) if isinstance(form, str) else banks(weight, *form)
    store = coded(held, bits, group)
    bias, x = torch.randn(rows), torch.randn(tokens, columns)
    module = kernel(store, bias, level)
    y = module(x)
    assert y.shape == (tokens, rows)
    if isinstance(module, StructuredLinear):
        assert module.level == level
        assert module.weights.dtype is torch.int8
        assert error(y, integer_product(store, x, bias)) < TOLERANCE
        torch.testing.assert_close(module.dense(), store.dense(), rtol=1e-6, atol=1e-7)
    else:
        share = held.kept / held.grid.blocks
        assert share > 0.5 or (level == "generic" and not isinstance(form, str)) or (group == 64 and form == (3, 16))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 200),
    form=st.sampled_from([("16x4", "float32"), ("32x4", "float16"), ("16x1", "bfloat16")]),
    tokens=st.sampled_from([0, 1, 2, 7, 8, 9, 16, 33]),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_floats_of_any_shape(
    rows: int, columns: int, form: tuple[str, str], tokens: int, level: str, seed: int
) -> None:
    """Each sum of k products is off by at most k 2^-24 of the sum of their sizes, and a little for the bias."""
    block, half = form
    weight = drawn(rows, columns, seed)
    if half == "bfloat16":
        weight[0] *= 2.0**40  # beyond what float16 holds
    held = blocks(weight, block)
    store = with_values(held, Dense.of(held.values.dense(), half))  # type: ignore[arg-type]
    bias, x = torch.randn(rows), torch.randn(tokens, columns)
    module = kernel(store, bias, level)
    assert isinstance(module, StructuredLinear | DenseLinear | SparseLinear)
    weight = store.dense().double()
    sizes = x.double().abs() @ weight.abs().T
    off = (module(x) - (x.double() @ weight.T + bias)).abs()
    assert bool((off <= (columns + 8) * 2.0**-24 * (sizes + 10)).all())
    if isinstance(module, StructuredLinear):
        assert module.weights.element_size() == (4 if half == "float32" else 2)
        assert torch.equal(module.dense(), store.dense())


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("tokens", [1, 9])
def test_extreme_codes_do_not_saturate(level: str, code: int, sign: int, tokens: int) -> None:
    """Every product has the greatest size a code and an activation can have; all sums are exact integers here."""
    structures = [Structure(17, 256, 16, 4, 0, 64), Structure(33, 256, 32, 4, 0, 32)]
    if level in BANKED:
        structures += [Structure(17, 256, 1, 1, 16, 4), Structure(17, 256, 1, 1, 64, 8)]
    for s in structures:
        block_rows = -(-s.rows // s.height)
        index = torch.arange(s.kept).repeat(block_rows, max(s.banks, 1))
        values = torch.full((s.rows, s.values), code, dtype=torch.int8)
        module = StructuredLinear.from_values(s, values, index, torch.ones(s.rows, 1), level=level)
        y = module(torch.full((tokens, 256), sign * QMAX))
        assert torch.equal(y, torch.full((tokens, s.rows), sign * code * 127.0 * s.values))


@pytest.mark.parametrize("level", RUNNABLE)
def test_the_longest_row_is_exact(level: str) -> None:
    """65,536 products of the greatest size: just below 2^31."""
    s = Structure(16, 65536, 16, 4, 0, 16384)
    values = torch.full((16, 65536), -127, dtype=torch.int8)
    module = StructuredLinear.from_values(s, values, torch.arange(16384)[None], torch.ones(16, 1), level=level)
    y = module(torch.full((1, 65536), QMAX))
    assert torch.equal(y, torch.full((1, 16), -127.0 * 127 * 65536))


@pytest.mark.parametrize("level", BANKED)
def test_unsigned_codes_with_a_zero_point(level: str) -> None:
    """Codes of fewer than 8 bits keep their zero point; 8-bit ones beyond a signed byte are rounded again."""
    held = blocks(drawn(40, 96))
    bias, x = torch.zeros(40), torch.randn(5, 96)
    for bits, limit in ((5, TOLERANCE), (8, 0.02)):
        values = held.values.dense()
        store = with_values(held, quantise(values.abs() + 0.1, bits, values.shape[1], symmetric=False))
        module = kernel(store, bias, level)
        assert isinstance(module, StructuredLinear)
        assert error(module(x), integer_product(store, x, bias)) < limit


@pytest.mark.parametrize("level", RUNNABLE)
def test_where_no_kernel_over_kept_weights_pays(level: str) -> None:
    weight, target = drawn(64, 256), Target(detect(level), 64)

    def made(store: Banked) -> type[torch.nn.Module]:
        return type(FORMS["banked"].linear(store, None, target))

    assert made(coded(blocks(weight, "16x4", 0.3))) is QuantizedLinear
    assert made(coded(blocks(weight, "16x1", 0.5))) is QuantizedLinear
    assert made(coded(blocks(weight, "16x1", 0.9))) is StructuredLinear
    assert made(blocks(weight, "16x4", 0.3)) is DenseLinear
    assert made(banks(weight, 4, 16)) is SparseLinear
    assert made(banks(weight, 8, 16)) is DenseLinear
    assert made(coded(banks(weight, 8, 16))) is QuantizedLinear
    held = banks(weight, 4, 16)
    assert made(coded(held)) is (QuantizedLinear if level == "generic" else StructuredLinear)
    assert made(with_values(held, codebook(held.values.dense(), 4))) is made(coded(held))
    assert made(with_values(held, affine(held.values.dense()))) is made(coded(held))


@pytest.mark.parametrize("store", kinds(130, 100))
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("count", [1, 33])
def test_activation_and_gradient(store: Banked, activation: str, count: int) -> None:
    bias, x = torch.randn(130), torch.randn(count, 100)
    linear = kernel(store, bias)
    assert isinstance(linear, StructuredLinear)
    module = linear.with_activation(activation)  # type: ignore[arg-type]
    assert module is not None
    weight = store.dense().double()
    given = torch.from_numpy(rounded_activations(x, 0)) if linear.weights.dtype is torch.int8 else x.double()
    before = (given @ weight.T + bias).requires_grad_()
    wanted = activate(before, activation)  # type: ignore[arg-type]
    assert error(module(x), wanted.detach().numpy()) < TOLERANCE
    x.requires_grad_()
    (got,) = torch.autograd.grad(module(x).sum(), x)
    (outer,) = torch.autograd.grad(wanted.sum(), before)
    assert error(got, (outer @ weight).numpy()) < 1e-4


@pytest.mark.parametrize("store", kinds(700, 300))
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(store: Banked, threads: int) -> None:
    module = kernel(store)
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y = module(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y, torch.cat([module(part) for part in x.split(25)]))


def test_inputs_that_do_not_fit_the_nearest_cache() -> None:
    """Fewer tokens lie side by side then."""
    weight = drawn(40, 3001)
    bias = torch.randn(40)
    for store in (coded(blocks(weight)), blocks(weight)):
        module = kernel(store, bias)
        assert isinstance(module, StructuredLinear)
        for count in (2, 8, 9, 25):
            x = torch.randn(count, 3001)
            wanted = integer_product(store, x, bias)
            if module.weights.dtype is not torch.int8:
                wanted = (x.double() @ store.dense().double().T + bias).numpy()
            assert error(module(x), wanted) < TOLERANCE


def test_ranks_strides_and_types() -> None:
    module = kernel(coded(blocks(drawn(20, 96))))
    for shape in ((96,), (2, 3, 96), (0, 96)):
        assert module(torch.randn(shape)).shape == (*shape[:-1], 20)
    x = torch.randn(96, 5).T
    assert torch.equal(module(x), module(x.contiguous()))
    assert module(x.to(torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize("store", kinds(20, 96))
def test_operator_contract(store: Banked) -> None:
    module = kernel(store)
    assert isinstance(module, StructuredLinear)
    arrays = (module.weights, module.places, module.start, module.scale, module.bias)
    torch.library.opcheck(structureops.linear, (torch.randn(3, 96, requires_grad=True), *arrays, *module._constants))


def test_refusals() -> None:
    s = Structure(4, 64, 16, 4, 0, 3)
    codes, index, scale = torch.zeros(4, 12, dtype=torch.int8), torch.arange(3)[None], torch.ones(4, 1)
    with pytest.raises(RequestError, match="blocks of 8 x 4 have no kernel"):
        StructuredLinear.from_values(replace(s, height=8), codes, index, scale)
    with pytest.raises(RequestError, match="bias has shape"):
        StructuredLinear.from_values(s, codes, index, scale, torch.ones(3))
    with pytest.raises(RequestError, match="64 inputs"):
        StructuredLinear.from_values(s, codes, index, scale)(torch.ones(3, 65))
    with pytest.raises(RequestError, match="5 of 12 columns have no kernel"):
        StructuredLinear.from_values(Structure(4, 64, 1, 1, 12, 5), codes, index, scale, level=BANKED[0])
