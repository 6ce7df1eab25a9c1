"""Banked stores against loops over their blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tersor.compiler.errors import ArtifactError
from tersor.compiler.stores import Banked, Codes, Dense, Positions, Store, from_state
from tersor.compiler.stores.banked import Grid, banked, places_of


def drawn(grid: Grid, kept: int, seed: int = 0) -> Tensor:
    """A mask (block rows, blocks) with `kept` in every bank."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(grid.block_rows, grid.banks, grid.bank, generator=generator).argsort(-1)
    return (order < kept).reshape(grid.block_rows, grid.blocks)


def again(store: Store) -> Store:
    return from_state(store.spec(), {f"w.{name}": array for name, array in store.state().items()}.get, "w")


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    height=st.sampled_from([1, 3, 16]),
    width=st.sampled_from([1, 4]),
    bank=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_grid(rows: int, columns: int, height: int, width: int, bank: int, share: float, seed: int) -> None:
    grid = Grid((rows, columns), height, width, bank)
    keep = drawn(grid, max(1, round(share * bank)), seed)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    places, values = banked(grid, weight, keep)
    store = Banked(grid, places, Dense(values))
    expected = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            if keep[i // height, j // width]:
                expected[i, j] = weight[i, j]
    assert torch.equal(store.dense(), expected)
    assert torch.equal(again(store).dense(), expected)
    assert store.nbytes() == values.numel() * 4 + places.nbytes()


@pytest.mark.parametrize(
    ("columns", "bank", "kept", "form"),
    [(1024, 256, 128, "mask"), (1024, 4, 1, "numbers"), (1024, 64, 1, "numbers"), (8192, 8192, 500, "gaps")],
)
def test_places_take_the_fewest_bytes(columns: int, bank: int, kept: int, form: str) -> None:
    grid = Grid((4, columns), 1, 1, bank)
    keep = drawn(grid, kept)
    places = places_of(grid, keep)
    mask = 4 * columns / 8
    width = max(1, (bank - 1).bit_length())
    numbers = 4 * grid.banks * kept * width / 8 if bank <= 256 else float("inf")
    found = "gaps" if isinstance(places, Positions) else "mask" if places.nbytes() == mask else "numbers"
    assert found == form
    assert places.nbytes() <= min(mask, numbers)


def test_every_block_kept_is_the_matrix() -> None:
    weight = torch.randn(20, 30)
    for bank in (1, 2, 8):
        grid = Grid((20, 30), 16, 4, bank)
        places, values = banked(grid, weight, torch.ones(grid.block_rows, grid.blocks, dtype=torch.bool))
        assert torch.equal(again(Banked(grid, places, Dense(values))).dense(), weight)


def test_damage_is_found() -> None:
    grid = Grid((4, 16), 1, 1, 8)
    values = Dense(torch.zeros(4, 4))
    good = torch.tensor([[0, 3, 1, 7]] * 4, dtype=torch.uint8)
    assert again(Banked(grid, Codes(good, 3), values)).kept == 4
    mask = torch.zeros(4, 16, dtype=torch.uint8)
    mask[:, :4] = 1  # four of one bank, none of the other
    broken = [
        Banked(grid, Codes(good[:3], 3), values),
        Banked(grid, Codes(good.flip(1), 3), values),
        Banked(grid, Codes(mask, 1), values),
        Banked(grid, Codes(good, 3), Dense(torch.zeros(4, 3))),
        Banked(grid, Codes(good, 3), Dense(torch.zeros(3, 4))),
        Banked(grid, Positions(torch.arange(16, dtype=torch.int32), 4), values),
        Banked(Grid((4, 16), 1, 1, 2**20), Codes(good, 3), values),
    ]
    for store in broken:
        with pytest.raises(ArtifactError, match="`w` is damaged"):
            again(store)
