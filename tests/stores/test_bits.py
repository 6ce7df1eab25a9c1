"""Packed codes against a bit string written out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.errors import ArtifactError
from tersor.compiler.stores import Codes, from_state
from tersor.compiler.stores.codes import pack_bits, packed_bytes, unpack_bits

WIDTHS = range(1, 9)


def by_hand(codes: list[int], width: int) -> bytes:
    """The stream as one string of binary digits, the first code's lowest bit first, cut into bytes."""
    digits = "".join(format(code, f"0{width}b")[::-1] for code in codes)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[i : i + 8][::-1], 2) for i in range(0, len(digits), 8))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_every_length_around_a_word(width: int, count: int) -> None:
    codes = [(i * 37 + 11) % 2**width for i in range(count)]
    stream = pack_bits(torch.tensor(codes, dtype=torch.uint8), width)
    assert bytes(stream.tolist()) == by_hand(codes, width)
    assert stream.numel() == packed_bytes(count, width) == -(-count * width // 8)
    assert unpack_bits(stream, width, count).tolist() == codes


@given(st.integers(1, 8).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1), max_size=140))))
def test_any_codes(case: tuple[int, list[int]]) -> None:
    width, codes = case
    stream = pack_bits(torch.tensor(codes, dtype=torch.uint8), width)
    assert bytes(stream.tolist()) == by_hand(codes, width)
    assert unpack_bits(stream, width, len(codes)).tolist() == codes


def test_packing_does_not_share_memory_with_the_codes() -> None:
    codes = torch.zeros(8, dtype=torch.uint8)
    stream = pack_bits(codes, 8)
    codes.fill_(1)
    assert not stream.any()


@pytest.mark.parametrize(
    ("change", "array"),
    [
        ({}, torch.zeros(3, dtype=torch.uint8)),
        ({}, torch.zeros(5, dtype=torch.uint8)),
        ({}, torch.zeros(4, dtype=torch.int8)),
        ({}, None),
        ({"width": 0}, torch.zeros(4, dtype=torch.uint8)),
        ({"width": 9}, torch.zeros(4, dtype=torch.uint8)),
        ({"width": "x"}, torch.zeros(4, dtype=torch.uint8)),
        ({"shape": [-1, 8]}, torch.zeros(4, dtype=torch.uint8)),
        ({"kind": "unheard of"}, torch.zeros(4, dtype=torch.uint8)),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(change: dict[str, object], array: torch.Tensor | None) -> None:
    spec = Codes(torch.zeros(2, 4, dtype=torch.uint8), 4).spec()
    assert from_state(spec, {"w": torch.zeros(4, dtype=torch.uint8)}.get, "w").shape == (2, 4)
    with pytest.raises(ArtifactError, match="`w` is damaged"):
        from_state(spec | change, lambda _: array, "w")
