"""Which codes fit sums of 16 bits, against the sums themselves over the worst bytes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.stores.sums import MOST, excess, one_sided, room_of, shrunk


def worst(weights: np.ndarray, room: int) -> dict[tuple[int, int, int], int]:
    """The largest |sum| that bytes 0..255 make of each sum of 16 bits: of every row, `room` quads of columns, and half
    of a quad.
    """
    above: dict[tuple[int, int, int], int] = {}
    below: dict[tuple[int, int, int], int] = {}
    for n, row in enumerate(weights):
        for k, w in enumerate(row):
            key = n, k // (4 * room), k % 4 // 2
            above[key] = above.get(key, 0) + 255 * max(int(w), 0)
            below[key] = below.get(key, 0) + 255 * max(-int(w), 0)
    return {key: max(value, below[key]) for key, value in above.items()}


@given(
    st.integers(1, 4), st.integers(1, 40), st.sampled_from([1, 2]), st.sampled_from([30, 60, 80]), st.integers(0, 99)
)  # fmt: skip
def test_room_is_what_fits(rows: int, columns: int, room: int, most: int, seed: int) -> None:
    drawn = torch.randint(-most, most, (rows, columns), generator=torch.Generator().manual_seed(seed))
    sums = worst(drawn.numpy(), room)
    found = one_sided(drawn, room)
    assert {key: 255 * int(found[key]) for key in sums} == sums
    fits = all(value < 2**15 for value in sums.values())
    assert fits == (room_of((drawn + 128).to(torch.uint8), 128) >= room)
    less = shrunk(drawn, room)
    assert all(value < 2**15 for value in worst(less.numpy(), room).values())
    assert bool((less.abs() <= drawn.abs()).all())
    assert bool((less * drawn >= 0).all())
    assert not fits or torch.equal(less, drawn)


@given(st.integers(1, 3), st.integers(1, 100), st.sampled_from([1, 2]), st.sampled_from([32, 64]), st.integers(0, 99))
def test_excess_is_that_of_the_worst_sum_of_a_group(rows: int, columns: int, room: int, group: int, seed: int) -> None:
    drawn = torch.randint(-127, 128, (rows, columns), generator=torch.Generator().manual_seed(seed))
    found = excess(drawn, room, group)
    assert found.shape == (rows, -(-columns // group))
    for n in range(rows):
        for g, part in enumerate(drawn[n : n + 1].split(group, 1)):
            assert float(found[n, g]) == max(worst(part.numpy(), room).values()) / 255 / MOST
    assert torch.equal(excess(drawn, room, columns)[:, 0], found.amax(1))
