"""Rows of a table in every form against the table itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import WIDTHS

from tersor.backends.numba import gather
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms import FORMS, Target
from tersor.compiler.errors import RequestError
from tersor.compiler.stores import Dense, Store


def embedding(store: Store, level: str | None = None) -> torch.nn.Module:
    return FORMS[store.kind].embedding(store, Target(detect(level), 64))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 100),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    level=st.sampled_from(WIDTHS),
)
def test_floats(rows: int, columns: int, dtype: str, level: str) -> None:
    store = Dense.of(torch.randn(rows, columns) * 1e-6, dtype)  # type: ignore[arg-type]
    module = embedding(store, level)
    index = torch.randint(0, rows, (3, 5))
    assert torch.equal(module(index), store.dense()[index])
    assert torch.equal(module.dense(), store.dense())  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(), (4,), (2, 1, 3), (0,)])
def test_any_index(shape: tuple[int, ...]) -> None:
    table = torch.randn(10, 48)
    index = torch.randint(0, 10, shape)
    for places in (index, index.to(torch.int32)):
        assert torch.equal(embedding(Dense(table))(places), table[index])


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_index_out_of_range(wrong: int) -> None:
    with pytest.raises(RequestError, match=f"index {wrong} is out of range: the embedding has rows 0 to 9"):
        embedding(Dense(torch.randn(10, 48)))(torch.tensor([0, 3, wrong, 4]))


def test_operator_contract() -> None:
    module = embedding(Dense(torch.randn(10, 48)))
    assert isinstance(module, gather.GatheredEmbedding)
    torch.library.opcheck(gather.gather, (torch.tensor([[1, 2]]), *module.constants()))
