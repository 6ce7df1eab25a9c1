"""Gap codes against the walk they describe, written out slot by slot; and the choice between the two sparse forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tersor.compiler.errors import ArtifactError
from tersor.compiler.stores import Bitmask, Codes, Delta, Dense, Positions, from_state
from tersor.compiler.stores.sparse import decode_gaps, encode_gaps, gap_bits
from tersor.passes.prune.magnitude import sparse_store

WIDTHS = range(2, 9)


def walked(codes: list[int], width: int) -> list[int]:
    """The positions, by walking: a code below the jump skips that many slots and keeps the next; the jump only
    skips."""
    jump, place, kept = 2**width - 1, 0, []
    for code in codes:
        place += code
        if code != jump:
            kept.append(place)
            place += 1
    return kept


def needed(positions: list[int], width: int) -> int:
    """Codes that the positions take: one each, and one more for every whole jump in the empty slots before it."""
    jump = 2**width - 1
    return sum(1 + (later - earlier - 1) // jump for earlier, later in pairwise([-1, *positions]))


def check(positions: list[int], width: int) -> None:
    codes = encode_gaps(np.array(positions, np.int64), width)
    assert all(0 <= c < 2**width for c in codes.tolist())
    assert walked(codes.tolist(), width) == positions
    assert decode_gaps(codes, width).tolist() == positions
    assert len(codes) == needed(positions, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_gaps_at_the_border_of_a_code(width: int) -> None:
    for gap in (1, 2**width - 2, 2**width - 1, 2**width, 2**width + 1, 2 ** (width + 1), 2 ** (width + 1) + 1):
        check([gap - 1], width)
        check([0, gap], width)
        check([0, gap, 2 * gap, 2 * gap + 1], width)
    check([], width)


@given(st.sets(st.integers(0, 3000), max_size=40), st.sampled_from(WIDTHS))
def test_any_positions(positions: set[int], width: int) -> None:
    check(sorted(positions), width)


@given(st.sets(st.integers(0, 3000), min_size=1, max_size=40))
def test_the_width_takes_the_fewest_bits(positions: set[int]) -> None:
    ordered = sorted(positions)
    bits = {width: width * needed(ordered, width) for width in WIDTHS}
    assert bits[gap_bits(np.array(ordered))] == min(bits.values())


def masked(*shape: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) < share


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.0])
def test_the_smaller_form_is_chosen_and_both_hold_the_same(share: float) -> None:
    weight, keep = masked(20, 50, share=share)
    keep[3] = False
    expected = torch.where(keep, weight, 0.0)
    bitmask, delta = (sparse_store(weight, keep, form) for form in ("bitmask", "delta"))
    assert isinstance(bitmask, Bitmask)
    assert isinstance(delta, Delta)
    assert torch.equal(bitmask.dense(), expected)
    assert torch.equal(delta.dense(), expected)
    kept, places = int(keep.sum()), keep.reshape(-1).nonzero().reshape(-1).tolist()
    width = delta.positions.width
    assert bitmask.nbytes() == -(-20 * 50 // 8) + 4 * kept
    assert delta.nbytes() == -(-width * needed(places, width) // 8) + 4 * kept
    chosen = sparse_store(weight, keep, "auto")
    assert chosen.nbytes() == min(bitmask.nbytes(), delta.nbytes())
    assert torch.equal(chosen.dense(), expected)


def test_both_forms_get_chosen_somewhere() -> None:
    kinds = {sparse_store(*masked(20, 50, share=share), "auto").kind for share in (0.02, 0.5)}
    assert kinds == {"bitmask", "delta"}


@pytest.mark.parametrize("kept", [[], [0], [999], [0, 999], list(range(1000))])
def test_round_trip_of_empty_full_and_corners(kept: list[int]) -> None:
    keep = torch.zeros(20, 50, dtype=torch.bool)
    keep.view(-1)[kept] = True
    weight = torch.randn(20, 50)
    for form in ("bitmask", "delta"):
        store = sparse_store(weight, keep, form)  # type: ignore[arg-type]
        state = {f"w.{name}": array for name, array in store.state().items()}
        again = from_state(store.spec(), state.get, "w")
        assert torch.equal(again.dense(), torch.where(keep, weight, 0.0))


def test_sparse_parts_that_do_not_fit_are_refused() -> None:
    weight, keep = masked(4, 10, share=0.4)
    delta, bitmask = sparse_store(weight, keep, "delta"), sparse_store(weight, keep, "bitmask")
    count = int(keep.sum())
    wrong_values = {"values": Dense(torch.zeros(1, count + 1))}
    far = Positions(torch.arange(40, 40 + count, dtype=torch.int32), 4)
    stores = [
        Delta((4, 10), far, Dense(torch.zeros(1, count))),
        Delta((4, 10), delta.parts()["positions"], wrong_values["values"]),  # type: ignore[arg-type]
        Bitmask(bitmask.parts()["mask"], wrong_values["values"]),  # type: ignore[arg-type]
        Bitmask(Codes(keep.to(torch.uint8), 2), Dense(torch.zeros(1, count))),
    ]
    for store in stores:
        state = {f"w.{name}": array for name, array in store.state().items()}
        with pytest.raises(ArtifactError, match="`w"):
            from_state(store.spec(), state.get, "w")
