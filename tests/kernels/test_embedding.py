"""Rows of a quantised embedding against the dense table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracle import WIDTHS, random_matrix
from torch import Tensor

from tersor.backends.numba import gather
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.backends.numba.layout import Layout
from tersor.backends.numba.rows.affine import affine_table, pack_rows, unpack_rows
from tersor.compiler.errors import RequestError


def embedding(
    codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int = 0, level: str | None = None
) -> GatheredEmbedding:
    return GatheredEmbedding.of(*affine_table(codes, scale, zero, bits, group), level)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 200),
    bits=st.integers(1, 8),
    group=st.sampled_from([0, 32, 64]),
    shifted=st.booleans(),
    level=st.sampled_from(WIDTHS),
    seed=st.integers(0, 1000),
)
def test_rows_are_the_dense_rows(
    rows: int, columns: int, bits: int, group: int, shifted: bool, level: str, seed: int
) -> None:
    """To the last bit: one subtraction and one product per value, in float32."""
    matrix = random_matrix(rows, columns, bits, group, shifted, seed)
    module = embedding(matrix.codes, matrix.scale, matrix.zero, bits, group, level)
    repeat = group or columns
    scale, zero = (v.repeat_interleave(repeat, dim=1)[:, :columns] for v in (matrix.scale, matrix.zero))
    dense = (matrix.codes.float() - zero) * scale
    index = torch.randint(0, rows, (3, 5))
    assert torch.equal(module(index), dense[index])
    assert torch.equal(module.dense(), dense)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_any_index(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrix = random_matrix(10, 48, 8)
    module = embedding(matrix.codes, matrix.scale, matrix.zero, 8)
    index = torch.randint(0, 10, shape).to(dtype)
    assert torch.equal(module(index), module.dense()[index.long()])


def test_strided_index() -> None:
    matrix = random_matrix(10, 48, 8)
    module = embedding(matrix.codes, matrix.scale, matrix.zero, 8)
    index = torch.randint(0, 10, (6, 4)).T
    assert torch.equal(module(index), module.dense()[index])


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_index_out_of_range(wrong: int) -> None:
    matrix = random_matrix(10, 48, 8)
    module = embedding(matrix.codes, matrix.scale, matrix.zero, 8)
    with pytest.raises(RequestError, match=f"index {wrong} is out of range: the embedding has rows 0 to 9"):
        module(torch.tensor([0, 3, wrong, 4]))


def test_four_bits_take_half_a_byte() -> None:
    matrix = random_matrix(64, 64, 4)
    module = embedding(matrix.codes, matrix.scale, matrix.zero, 4)
    assert module.table.arrays[0].numel() == 64 * 64 // 2


@given(rows=st.integers(1, 9), columns=st.integers(1, 100), width=st.sampled_from([4, 8]))
def test_packing_is_reversible(rows: int, columns: int, width: int) -> None:
    codes = torch.randint(0, 1 << width, (rows, columns), dtype=torch.uint8)
    layout = Layout(rows, columns, width)
    assert torch.equal(unpack_rows(pack_rows(codes, layout), layout), codes)


def test_operator_contract() -> None:
    matrix = random_matrix(10, 48, 8)
    module = embedding(matrix.codes, matrix.scale, matrix.zero, 8)
    torch.library.opcheck(gather.gather, (torch.tensor([[1, 2], [3, 4]]), *module.constants()))
